// Which layouts of a tile this GPU's wgmma reads rightly: one block a layout fills a halo with distinct values,
// multiplies it by the identity at every tap, and counts the values that come from somewhere else.
//
// Documentation leaves open what becomes of a swizzle when an operand does not start at a multiple of 1024 bytes, or
// its groups of eight rows are not 1024 bytes apart. A kernel built on a guess would be wrong without a word.
#include "conv3x3.cuh"
#include "matrix.cuh"
#include "ptx.cuh"
#include "types.cuh"
#include "wgmma.cuh"

namespace srgan_fast {

struct ProbeParameters {
  int* wrong;  // one a layout, in the order of the enum: that of blocks
};

// Values are told apart by their bits: from the smallest normal one of 16 bits upwards, all finite.
__device__ __forceinline__ uint32_t probe_bits(int pixel, int channel) { return 0x0400 + pixel * 64 + channel; }

template <Layout LAYOUT, int ROWS>
__device__ __forceinline__ int wrong_values() {
  using Tile = Conv3x3Tile<LAYOUT, ROWS, 128, 128>;
  constexpr int N = Tile::kPixels, kPixels = Tile::kHaloBytes / 128;
  static_assert(0x0400 + kPixels * 64 <= 0x7C00, "more values than there are finite ones");
  const int thread = threadIdx.x, warp = thread >> 5, lane = thread & 31;
  const uint32_t identity = (dynamic_shared() + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  const uint32_t halo = identity + 64 * 128;
  for (int i = thread; i < 64 * 32; i += 128) {
    const int row = i / 32, channel = i % 32 * 2;
    const float low = channel == row ? 1.f : 0.f, high = channel + 1 == row ? 1.f : 0.f;
    store_shared(swizzled(identity + i * 4, Swizzle::k128), pack<Half>(low, high));
  }
  for (int i = thread; i < kPixels * 32; i += 128) {
    const int pixel = i / 32, channel = i % 32 * 2;
    store_shared(swizzled(halo + i * 4, Swizzle::k128),
                 probe_bits(pixel, channel) | probe_bits(pixel, channel + 1) << 16);
  }
  fence_async_shared();
  __syncthreads();
  const uint64_t a = operand(identity, Swizzle::k128, 8 * 128), b = operand(halo, Swizzle::k128, Tile::kStride);
  int wrong = 0;
#pragma unroll 1
  for (int tap = 0; tap < 9; ++tap) {
    const int start = Tile::tap(tap / 3, tap % 3);
    float d[N / 2];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 128; k += 32) Wgmma<Half, N>::add(d, advanced(a, k), advanced(b, start + k), k != 0);
    wgmma_commit();
    wgmma_wait();
#pragma unroll
    for (int i = 0; i < N / 2; i += 2) {
      const int channel = warp * 16 + lane / 4 + (i & 2) * 4, column = i / 4 * 8 + lane % 4 * 2;
      // Both columns are of one row of the tile.
      const int pixel = start / 128 + column / Tile::kComputed * Tile::kPitch + column % Tile::kComputed;
      float first, second;
      unpack<Half>(probe_bits(pixel, channel) | probe_bits(pixel + 1, channel) << 16, first, second);
      wrong += (d[i] == first ? 0 : 1) + (d[i + 1] == second ? 0 : 1);
    }
  }
  return wrong;
}

__global__ void __launch_bounds__(128, 1) probe(const __grid_constant__ ProbeParameters p) {
  const int wrong = blockIdx.x == kShifted ? wrong_values<kShifted, 8>()
                    : blockIdx.x == kFlat  ? wrong_values<kFlat, 2>()
                                           : wrong_values<kBoxes, 8>();
  __syncthreads();
  const uint32_t counts = (dynamic_shared() + 15) / 16 * 16;
  store_shared(counts + threadIdx.x * 4, static_cast<uint32_t>(wrong));
  __syncthreads();
  if (threadIdx.x != 0) return;
  int sum = 0;
  for (int i = 0; i < 128; ++i) sum += static_cast<int>(load_shared(counts + i * 4));
  wait_for_previous_kernel();
  p.wrong[blockIdx.x] = sum;
}

}  // namespace srgan_fast
