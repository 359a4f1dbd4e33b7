// conv3x3 and conv3x3_shuffle for sm_90a, in 16-bit values: bias, PReLU, residual, PixelShuffle; see the ops' packages.
#include "conv3x3.cuh"
#include "matrix.cuh"
#include "ptx.cuh"
#include "types.cuh"

namespace srgan_fast {

struct Conv3x3Parameters {
  Conv3x3Work work;
  TensorMap y;         // {64 * across, w, slices / across, h, n}, box {64, kColumns, 1, kStoredRows, 1}
  const float* bias;   // [slices * 64]
  const float* slopes;
  int slope_slices;     // of slopes: as many as of outputs, or those of one sub-pixel, which all share them
};

template <class T, class Tile, bool PRELU, bool RESIDUAL>
struct Conv3x3Epilogue {
  const TensorMap* y;
  uint32_t row;
  float bias[2], slopes[2];

  __device__ __forceinline__ Conv3x3Epilogue(const Conv3x3Parameters& p, int slice, uint32_t result) : y(&p.y) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
    // This thread's sums are of two outputs, 8 apart.
    for (int half = 0; half < 2; ++half) {
      const int output = warp * 16 + lane / 4 + 8 * half;
      bias[half] = p.bias[slice * 64 + output];
      slopes[half] = PRELU ? p.slopes[slice % p.slope_slices * 64 + output] : 0.f;
    }
    // Four 8x8 matrices at once: pixels 0..7 and 8..15, outputs 0..7 and 8..15 of the warp's 16. A lane names the memory
    // of one pixel's eight outputs.
    const int pixel = (lane & 7) + (lane >> 4) * 8, word = warp * 2 + (lane >> 3 & 1);
    row = swizzled(result + pixel * 128 + word * 16, Swizzle::k128);
  }

  static __device__ __forceinline__ void prefetch(const Conv3x3Parameters& p) { prefetch_map(&p.y); }

  __device__ __forceinline__ void write(const float (&d)[Tile::kPixels / 2]) const {
#pragma unroll
    for (int j = 0; j < Tile::kPixels / 16; ++j) {
      uint32_t before[4], after[4];
      if (RESIDUAL) load_matrices(row + j * 16 * 128, before);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int first = (2 * j + (m >> 1)) * 4 + (m & 1) * 2;
        float v[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          v[e] = d[first + e] + bias[m & 1];
          if (PRELU) v[e] = v[e] >= 0.f ? v[e] : v[e] * slopes[m & 1];
        }
        if (RESIDUAL) {
          float low, high;
          unpack<T>(before[m], low, high);
          v[0] += low;
          v[1] += high;
        }
        after[m] = pack<T>(v[0], v[1]);
      }
      store_matrices(row + j * 16 * 128, after);
    }
  }

  __device__ __forceinline__ void store(const Conv3x3Place& at, uint32_t result) const {
#pragma unroll
    for (int down = 0; down < Tile::kRows; down += Tile::kStoredRows)
      tma_store(y, result + down * Tile::kComputed * 128, at.slice_x * 64, at.x, at.slice_y, at.y + down, at.n);
  }
};

template <class T, Layout LAYOUT, int ROWS, bool PRELU, bool RESIDUAL>
__global__ void __launch_bounds__(384, 1) conv3x3(const __grid_constant__ Conv3x3Parameters p) {
  using Tile = Conv3x3Tile<LAYOUT, ROWS, 128, 128>;
  conv3x3_tiles<T, Tile, RESIDUAL, Conv3x3Epilogue<T, Tile, PRELU, RESIDUAL>>(p);
}

}  // namespace srgan_fast
