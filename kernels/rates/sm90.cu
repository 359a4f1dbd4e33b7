// What a Hopper GPU gives at most to kernels like those of this project: matrix products by wgmma, bytes out of the L2
// cache by the copy engine, and the time from one kernel to the next. Timed by bench/rates.py; no op uses them.
#include "matrix.cuh"
#include "ptx.cuh"
#include "types.cuh"
#include "wgmma.cuh"

namespace srgan_fast {

struct ProductsParameters {
  const uint32_t* operands;  // A: 64 rows of 64 channels, then B: N such rows for each of the two warpgroups
  void* sums;                // [blocks, 2, 64, N], float or int
  int rounds;
};

// Two warpgroups multiply the same A by B of their own, again and again, in rounds of as many products as a 3x3
// convolution of 64 channels has in 16 bits; neither waits for the other.
template <class T, int N>
__global__ void __launch_bounds__(256, 1) products(const __grid_constant__ ProductsParameters p) {
  using Value = typename Accumulator<T>::type;
  constexpr int kRowBytes = 64 / Accumulator<T>::kDepth * 32, kProducts = 36;
  constexpr Swizzle kSwizzle = kRowBytes == 128 ? Swizzle::k128 : Swizzle::k64;
  const uint32_t matrices = (dynamic_shared() + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  for (int i = threadIdx.x; i < (64 + 2 * N) * kRowBytes / 4; i += 256)
    store_shared(swizzled(matrices + i * 4, kSwizzle), p.operands[i]);
  fence_async_shared();
  __syncthreads();
  const int group = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
  const uint64_t a = operand(matrices, kSwizzle, 8 * kRowBytes);
  const uint64_t b = operand(matrices + (64 + group * N) * kRowBytes, kSwizzle, 8 * kRowBytes);
  Value d[N / 2];
#pragma unroll
  for (int i = 0; i < N / 2; ++i) d[i] = 0;
#pragma unroll 1
  for (int round = 0; round < p.rounds; ++round) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
      const int k = i * 32 % kRowBytes;
      Wgmma<T, N>::add(d, advanced(a, k), advanced(b, k), 1);
    }
    wgmma_commit();
    // The other warpgroup's products fill the gap.
    wgmma_wait();
  }
  wait_for_previous_kernel();
  Value* row = static_cast<Value*>(p.sums) + ((blockIdx.x * 2 + group) * 64 + warp * 16 + lane / 4) * N + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) row[(i >> 1 & 1) * 8 * N + i / 4 * 8 + (i & 1)] = d[i];
}

struct ReadsParameters {
  TensorMap boxes;  // {64, 10, 32, count}, box {64, 10, 32, 1}, 16-bit values: about the largest halo of conv3x3
  uint32_t* sums;   // a block: of the first words of its boxes
  int count, loads;
};

// A block reads box after box, as many at a time as fit into shared memory; all blocks together go round and round.
__global__ void __launch_bounds__(32, 1) reads(const __grid_constant__ ReadsParameters p) {
  constexpr int kBoxBytes = 64 * 10 * 32 * 2, kBoxes = 5;
  if (threadIdx.x != 0) return;
  const uint32_t memory = (dynamic_shared() + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  const uint32_t barriers = memory + kBoxes * kBoxBytes;
  for (int i = 0; i < kBoxes; ++i) barrier_init(barriers + 8 * i, 1);
  barrier_init_done();
  wait_for_previous_kernel();
  uint32_t sum = 0;
  for (int load = 0; load < p.loads + kBoxes; ++load) {
    const int slot = load % kBoxes, box = static_cast<int>((blockIdx.x + load * gridDim.x) % p.count);
    const uint32_t to = memory + slot * kBoxBytes, barrier = barriers + 8 * slot;
    if (load >= kBoxes && load - kBoxes < p.loads) {
      barrier_wait(barrier, load / kBoxes - 1 & 1);
      sum += load_shared(to);
    }
    if (load < p.loads) {
      barrier_arrive_expect(barrier, kBoxBytes);
      tma_load(to, &p.boxes, barrier, 0, 0, 0, box);
    }
  }
  p.sums[blockIdx.x] = sum;
}

struct LinkParameters {
  uint32_t* count;  // of the links that have run
};

// A link of a chain of kernels that have nothing to do but wait for the one before.
__global__ void __launch_bounds__(384, 1) link(const __grid_constant__ LinkParameters p) {
  launch_dependents();
  wait_for_previous_kernel();
  if (blockIdx.x == 0 && threadIdx.x == 0) *p.count += 1;
}

}  // namespace srgan_fast
