// The sums of a product D^T[64 outputs x N pixels] on their way to shared memory, where a pixel's 64 outputs lie together.
#pragma once

#include "matrix.cuh"
#include "ptx.cuh"
#include "types.cuh"

namespace srgan_fast {

// The outputs of a thread of a warpgroup: this one and that 8 further on.
__device__ __forceinline__ int first_output() {
  return (threadIdx.x >> 5 & 3) * 16 + (threadIdx.x & 31) / 4;
}

// Writes pixels of 64 values of T, 128 bytes each, to `result`, in a 128-byte swizzle. `finish(v, half)` makes the value
// of a sum of output first_output() + 8 * half.
template <class T, int N, class Finish>
__device__ __forceinline__ void write_pixels(uint32_t result, const float (&d)[N / 2], const Finish& finish) {
  // Four 8x8 matrices at once: pixels 0..7 and 8..15, outputs 0..7 and 8..15 of the warp's 16. A lane names the memory
  // of one pixel's eight outputs.
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
  const int pixel = (lane & 7) + (lane >> 4) * 8, word = warp * 2 + (lane >> 3 & 1);
  const uint32_t row = swizzled(result + pixel * 128 + word * 16, Swizzle::k128);
#pragma unroll
  for (int j = 0; j < N / 16; ++j) {
    uint32_t v[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const int first = (2 * j + (m >> 1)) * 4 + (m & 1) * 2;
      v[m] = pack<T>(finish(d[first], m & 1), finish(d[first + 1], m & 1));
    }
    store_matrices(row + j * 16 * 128, v);
  }
}

}  // namespace srgan_fast
