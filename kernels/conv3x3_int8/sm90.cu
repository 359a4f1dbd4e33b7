// conv3x3_int8 for sm_90a: int8 products of 64 channels, and float32 after them in the order that the op's package names.
//
// As conv3x3, with 64 bytes a pixel. A result leaves as 16-bit values, as int8, or as both; two copies then.
#include "conv3x3.cuh"
#include "matrix.cuh"
#include "ptx.cuh"
#include "types.cuh"

namespace srgan_fast {

struct Conv3x3Int8Parameters {
  Conv3x3Work work;
  TensorMap half;       // {64 * across, w, slices / across, h, n}, box {64, kColumns, 1, kStoredRows, 1}
  TensorMap quantised;  // the same in int8, 64-byte swizzle
  const float* gain;    // [slices * 64]
  const float* bias;
  const float* slopes;
  int slope_slices;     // of slopes: as many as of outputs, or those of one sub-pixel, which all share them
  float inverse;        // what is quantised beside a 16-bit result is that times this
};

template <class Tile, bool PRELU, bool RESIDUAL, bool HALF, bool QUANTISED>
struct Conv3x3Int8Epilogue {
  static constexpr int kHalfBytes = HALF || RESIDUAL ? Tile::kPixels * 128 : 0;  // before the int8 values

  const Conv3x3Int8Parameters& p;
  uint32_t row, bytes;
  float gain[2], bias[2], slopes[2];

  __device__ __forceinline__ Conv3x3Int8Epilogue(const Conv3x3Int8Parameters& p, int slice, uint32_t result) : p(p) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
    // This thread's sums are of two outputs, 8 apart.
    for (int half = 0; half < 2; ++half) {
      const int output = warp * 16 + lane / 4 + 8 * half;
      gain[half] = p.gain[slice * 64 + output];
      bias[half] = p.bias[slice * 64 + output];
      slopes[half] = PRELU ? p.slopes[slice % p.slope_slices * 64 + output] : 0.f;
    }
    // As in conv3x3: a lane names the memory of one pixel's eight outputs.
    const int pixel = (lane & 7) + (lane >> 4) * 8, word = warp * 2 + (lane >> 3 & 1);
    row = swizzled(result + pixel * 128 + word * 16, Swizzle::k128);
    // Of each 8 pixels this thread writes one, the outputs of two neighbouring threads side by side.
    const int column = lane & 3, output = lane / 4;
    bytes = swizzled(result + kHalfBytes + (2 * column + (output & 1)) * 64 + warp * 16, Swizzle::k64) + (output & ~1);
  }

  static __device__ __forceinline__ void prefetch(const Conv3x3Int8Parameters& p) {
    if (HALF) prefetch_map(&p.half);
    if (QUANTISED) prefetch_map(&p.quantised);
  }

  __device__ __forceinline__ void write(const int (&d)[Tile::kPixels / 2]) const {
#pragma unroll
    for (int j = 0; j < Tile::kPixels / 16; ++j) {
      uint32_t before[4], after[4];
      float v[4][2];
      if (RESIDUAL) load_matrices(row + j * 16 * 128, before);
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int first = (2 * j + (m >> 1)) * 4 + (m & 1) * 2;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          // Each rounded by itself, as everywhere: fused, the last bit would differ.
          v[m][e] = __fadd_rn(__fmul_rn(static_cast<float>(d[first + e]), gain[m & 1]), bias[m & 1]);
          if (PRELU) v[m][e] = v[m][e] >= 0.f ? v[m][e] : __fmul_rn(v[m][e], slopes[m & 1]);
        }
        if (RESIDUAL) {
          float low, high;
          unpack<Half>(before[m], low, high);
          v[m][0] = __fadd_rn(v[m][0], low);
          v[m][1] = __fadd_rn(v[m][1], high);
        }
        after[m] = pack<Half>(v[m][0], v[m][1]);
        if (HALF && QUANTISED) {
          // Of the result as it is stored, so that a pass of its own over that would give the same.
          unpack<Half>(after[m], v[m][0], v[m][1]);
          for (int e = 0; e < 2; ++e) v[m][e] = __fmul_rn(v[m][e], p.inverse);
        }
      }
      if (HALF) store_matrices(row + j * 16 * 128, after);
      if (QUANTISED) {
#pragma unroll
        for (int eight = 0; eight < 2; ++eight) {
          const float(&low)[2] = v[2 * eight], (&high)[2] = v[2 * eight + 1];
          const uint32_t mine = pack_bytes(whole(low[0]), whole(low[1]), whole(high[0]), whole(high[1]));
          // A thread has one output of two pixels; with its neighbour's, two outputs of one pixel.
          const uint32_t theirs = exchange(mine, 4);
          const uint32_t pair = threadIdx.x & 4 ? __byte_perm(theirs, mine, 0x7351) : __byte_perm(mine, theirs, 0x6240);
          store_shared(bytes + (2 * j + eight) * 8 * 64, static_cast<uint16_t>(pair));
          store_shared(bytes + (2 * j + eight) * 8 * 64 + 8, static_cast<uint16_t>(pair >> 16));
        }
      }
    }
  }

  // Not below -127; packing keeps what is too large at 127.
  static __device__ __forceinline__ int whole(float v) { return __float2int_rn(fmaxf(v, -127.f)); }

  __device__ __forceinline__ void store(const Conv3x3Place& at, uint32_t result) const {
#pragma unroll
    for (int down = 0; down < Tile::kRows; down += Tile::kStoredRows) {
      const int pixel = down * Tile::kComputed;
      if (HALF) tma_store(&p.half, result + pixel * 128, at.slice_x * 64, at.x, at.slice_y, at.y + down, at.n);
      if (QUANTISED)
        tma_store(&p.quantised, result + kHalfBytes + pixel * 64, at.slice_x * 64, at.x, at.slice_y, at.y + down, at.n);
    }
  }
};

template <Layout LAYOUT, int ROWS, bool PRELU, bool RESIDUAL, bool HALF, bool QUANTISED>
__global__ void __launch_bounds__(384, 1) conv3x3_int8(const __grid_constant__ Conv3x3Int8Parameters p) {
  using Tile = Conv3x3Tile<LAYOUT, ROWS, 64, (HALF || RESIDUAL ? 128 : 0) + (QUANTISED ? 64 : 0)>;
  conv3x3_tiles<int8_t, Tile, RESIDUAL, Conv3x3Int8Epilogue<Tile, PRELU, RESIDUAL, HALF, QUANTISED>>(p);
}

}  // namespace srgan_fast
