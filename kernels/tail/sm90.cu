// tail for sm_90a without a base: a SIZE x SIZE convolution of 64 * SLABS channels to 3 * R^2 outputs, and the picture.
//
// Tensor cores want 64 outputs, and a x2 stage has 12. So `tail_columns` lets the outputs of all columns of the kernel
// stand side by side, 60 of a 5x5 kernel: a SIZE x 1 convolution
//
//   D^T[64 (column, output) x N pixels] = W[64 x SIZE * 64 * SLABS] * X^T
//
// whose taps are rows of a tile 8 pixels wide, so each starts where the 128-byte swizzle does. `tail_sum` adds SIZE
// neighbours in a row, each its own column of the kernel, and makes pixels of them.
//
// Sums are kept in float16 whatever T is: bfloat16 has too few bits for sums that nearly cancel, and float32 would be
// twice the memory and more than a block has beside the weights. What is beyond the range of float16 stays at its end.
#include "matrix.cuh"
#include "ptx.cuh"
#include "sums.cuh"
#include "tiles.cuh"
#include "types.cuh"
#include "wgmma.cuh"

namespace srgan_fast {

constexpr float kMostHalf = 65504.f;

template <int SLABS, int SIZE, int ROWS>
struct TailTile {
  static_assert(SIZE % 2 == 1 && ROWS % 2 == 0 && ROWS <= 32, "the kernel is odd, and N a multiple of 16 up to 256");
  static constexpr int kColumns = 8;
  static constexpr int kPixels = kColumns * ROWS;        // N of the product
  static constexpr int kTapBytes = 64 * 64 * 2;          // the weights of a row of the kernel, of 64 channels
  static constexpr int kWeightBytes = SLABS * SIZE * kTapBytes;
  static constexpr int kRowBytes = kColumns * 64 * 2;    // one row of the tile, and one repeat of the swizzle
  static constexpr int kSlabBytes = (ROWS + SIZE - 1) * kRowBytes;
  static constexpr int kBarriers = 9;
  static constexpr int kRoom = 232448 - kSwizzleAlignment - kWeightBytes - 8 * kBarriers;
  static constexpr int kStages = kRoom / kSlabBytes < 4 ? kRoom / kSlabBytes : 4;
  static constexpr int kSharedBytes = kSwizzleAlignment + kWeightBytes + kStages * kSlabBytes + 8 * kBarriers;
};

struct TailColumnsParameters {
  TensorMap x;       // {64 * SLABS, w, h, n}, box {64, 8, ROWS + SIZE - 1, 1}, 128-byte swizzle
  TensorMap weight;  // {64, SLABS * SIZE * 64}, box {64, 64}, 128-byte swizzle; rows are (slab, tap, sum)
  TensorMap sums;    // of Half, {64, w, h, n}, box {64, 8, ROWS, 1}, 128-byte swizzle
  TileOrder order;
};

enum TailBarrier { kTailWeights = 0, kSlabFull = 1, kSlabFree = 5 };

// Two warpgroups multiply, each a tile of its own; a thread of a third copies slabs of 64 channels for both by turns.
template <class T, int SLABS, int SIZE, int ROWS>
__global__ void __launch_bounds__(384, 1) tail_columns(const __grid_constant__ TailColumnsParameters p) {
  using Tile = TailTile<SLABS, SIZE, ROWS>;
  constexpr int N = Tile::kPixels, kStages = Tile::kStages;
  static_assert(kStages >= 2, "a slab for each warpgroup fits beside the weights");
  const uint32_t weights = (dynamic_shared() + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  const uint32_t slabs = weights + Tile::kWeightBytes, barriers = slabs + kStages * Tile::kSlabBytes;
  const auto barrier = [&](int which) { return barriers + 8 * which; };
  const int group = same_in_warp(threadIdx.x / 128), thread = threadIdx.x & 127;
  if (threadIdx.x == 0) {
    barrier_init(barrier(kTailWeights), 1);
    for (int stage = 0; stage < kStages; ++stage) {
      barrier_init(barrier(kSlabFull + stage), 1);
      barrier_init(barrier(kSlabFree + stage), 4);
    }
    barrier_init_done();
  }
  __syncthreads();
  launch_dependents();

  if (group == 2) {
    if (thread != 0) return;
    barrier_arrive_expect(barrier(kTailWeights), Tile::kWeightBytes);
#pragma unroll 1
    for (int tap = 0; tap < SLABS * SIZE; ++tap)
      tma_load(weights + tap * Tile::kTapBytes, &p.weight, barrier(kTailWeights), 0, tap * 64);
    prefetch_map(&p.x);
    prefetch_map(&p.sums);
    wait_for_previous_kernel();
    for (int first = blockIdx.x, copied = 0; first < p.order.tiles; first += 2 * gridDim.x) {
#pragma unroll 1
      for (int slab = 0; slab < SLABS; ++slab)
#pragma unroll 1
        for (int i = first; i <= first + gridDim.x && i < p.order.tiles; i += gridDim.x, ++copied) {
          const int stage = copied % kStages;
          const auto [n, y, x] = p.order.place(i, ROWS, Tile::kColumns);
          barrier_wait(barrier(kSlabFree + stage), (copied / kStages & 1) ^ 1);
          barrier_arrive_expect(barrier(kSlabFull + stage), Tile::kSlabBytes);
          tma_load(slabs + stage * Tile::kSlabBytes, &p.x, barrier(kSlabFull + stage), slab * 64, x, y - SIZE / 2, n);
        }
    }
    return;
  }

  const uint64_t a = operand(weights, Swizzle::k128, 1024);
  wait_for_previous_kernel();
  barrier_wait(barrier(kTailWeights), 0);
  for (int i = blockIdx.x + group * gridDim.x, before = 0; i < p.order.tiles; i += 2 * gridDim.x, before += 2 * SLABS) {
    // Slabs come in turns, but to one warpgroup alone if no tile is left for the other.
    const bool alone = i + static_cast<int>(gridDim.x) >= p.order.tiles && group == 0;
    float d[N / 2];
    uint32_t slab_at = 0;
    int stage = 0;
#pragma unroll 1
    for (int slab = 0; slab < SLABS; ++slab) {
      const int number = before + (alone ? slab : 2 * slab + group);
      stage = number % kStages;
      slab_at = slabs + stage * Tile::kSlabBytes;
      barrier_wait(barrier(kSlabFull + stage), number / kStages & 1);
      const uint64_t taps = advanced(a, slab * SIZE * Tile::kTapBytes);
      const uint64_t b = operand(slab_at, Swizzle::k128, Tile::kRowBytes);
      wgmma_fence();
#pragma unroll
      for (int tap = 0; tap < SIZE; ++tap)
#pragma unroll
        for (int k = 0; k < 128; k += 32)
          Wgmma<T, N>::add(d, advanced(taps, tap * Tile::kTapBytes + k), advanced(b, tap * Tile::kRowBytes + k),
                           (slab | tap | k) != 0);
      wgmma_commit();
      wgmma_wait();
      if (slab < SLABS - 1 && (thread & 31) == 0) barrier_arrive(barrier(kSlabFree + stage));
    }
    // All four warps have done with the last slab: its memory takes the sums.
    named_barrier(group + 1, 128);
    write_pixels<Half, N>(slab_at, d, [](float sum, int) {
      return sum > kMostHalf ? kMostHalf : sum < -kMostHalf ? -kMostHalf : sum;
    });
    fence_async_shared();
    named_barrier(group + 1, 128);
    if (thread == 0) {
      const auto [n, y, x] = p.order.place(i, ROWS, Tile::kColumns);
      tma_store(&p.sums, slab_at, 0, x, y, n);
      store_commit();
      store_wait_read();
      barrier_arrive(barrier(kSlabFree + stage), 4);
    }
  }
  if (thread == 0) store_wait();
}

struct TailSumParameters {
  const void* sums;    // [n, h, w, 64] of Half
  const float* bias;   // [3 * R^2]
  const float* gain;   // [3]
  const float* offset;
  void* y;             // [n, h * R, w * R, 3] of Out, aligned to 16 bytes
  int height, width;
  int spans_across;    // of a row
  int reversed;        // the last span first
};

// A value in [0, 1] as the result's bits. What is not a number stays so in floats, and shows what went wrong before.
template <class Out>
struct TailBits;

template <class Integer>
struct TailLevels {
  using Bits = Integer;
  static __device__ __forceinline__ Bits of(float v) {
    // Rounded twice, as everywhere else: fused into one operation a tie may fall the other way.
    constexpr float kTop = static_cast<float>(static_cast<Integer>(~0u));
    return static_cast<Bits>(static_cast<int>(__fadd_rn(__fmul_rn(v, kTop), 0.5f)));
  }
};

template <>
struct TailBits<uint8_t> : TailLevels<uint8_t> {};

template <>
struct TailBits<uint16_t> : TailLevels<uint16_t> {};

template <>
struct TailBits<Half> {
  using Bits = uint16_t;
  static __device__ __forceinline__ Bits of(float v) { return static_cast<Bits>(pack<Half>(v, v)); }
};

template <>
struct TailBits<BFloat16> {
  using Bits = uint16_t;
  static __device__ __forceinline__ Bits of(float v) { return static_cast<Bits>(pack<BFloat16>(v, v)); }
};

template <>
struct TailBits<float> {
  using Bits = uint32_t;
  static __device__ __forceinline__ Bits of(float v) { return __float_as_uint(v); }
};

template <int BYTES>
struct TailUnit;
template <>
struct TailUnit<1> {
  using type = uint8_t;
};
template <>
struct TailUnit<2> {
  using type = uint16_t;
};
template <>
struct TailUnit<4> {
  using type = uint32_t;
};
template <>
struct TailUnit<8> {
  using type = uint64_t;
};

template <int SIZE>
struct TailSpan {
  static constexpr int kPixels = 128;  // of a row of maps, one a thread
  static constexpr int kLoaded = kPixels + SIZE - 1;
  static constexpr int kPitch = 132;   // bytes of a pixel's sums: neighbours in a warp meet no bank twice
  static constexpr int kSharedBytes = kLoaded * kPitch;
};

// grid (spans of all rows of all frames).
template <class Out, int SIZE, int R, bool TANH>
__global__ void __launch_bounds__(128) tail_sum(const __grid_constant__ TailSumParameters p) {
  using Span = TailSpan<SIZE>;
  using Bits = typename TailBits<Out>::Bits;
  constexpr int kOutputs = 3 * R * R;
  static_assert(SIZE * kOutputs <= 64, "the sums of a pixel are 64 at the most");
  launch_dependents();
  const int span = p.reversed ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  const int line = span / p.spans_across, left = (span - line * p.spans_across) * Span::kPixels;
  const int n = line / p.height, y = line - n * p.height, thread = threadIdx.x;
  const uint32_t shared = dynamic_shared();
  wait_for_previous_kernel();
  const uint4* row = static_cast<const uint4*>(p.sums) + static_cast<int64_t>(line) * p.width * 8;
  // Eight words of 16 bytes a pixel, zero outside the row.
  for (int i = thread; i < Span::kLoaded * 8; i += 128) {
    const int x = left + i / 8 - SIZE / 2;
    uint4 v = {0, 0, 0, 0};
    if (x >= 0 && x < p.width) v = row[static_cast<int64_t>(x) * 8 + i % 8];
    const uint32_t to = shared + i / 8 * Span::kPitch + i % 8 * 16;
    store_shared(to, v.x);
    store_shared(to + 4, v.y);
    store_shared(to + 8, v.z);
    store_shared(to + 12, v.w);
  }
  __syncthreads();
  if (left + thread >= p.width) return;

  float v[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) v[o] = p.bias[o];
#pragma unroll
  for (int column = 0; column < SIZE; ++column) {
    const uint32_t from = shared + (thread + column) * Span::kPitch;
    const int first = column * kOutputs;
#pragma unroll
    for (int pair = first / 2; pair <= (first + kOutputs - 1) / 2; ++pair) {
      float two[2];
      unpack<Half>(load_shared(from + 4 * pair), two[0], two[1]);
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (2 * pair + e >= first && 2 * pair + e < first + kOutputs) v[2 * pair + e - first] += two[e];
    }
  }
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    const int colour = o / (R * R);
    const float scaled = __fmaf_rn(TANH ? tanhf(v[o]) : v[o], p.gain[colour], p.offset[colour]);
    v[o] = scaled < 0.f ? 0.f : scaled > 1.f ? 1.f : scaled;
  }
  // The R pixels of a row of the picture, in the largest words that a pixel's share is a multiple of.
  constexpr int kShare = 3 * R * sizeof(Bits), kWord = kShare % 8 == 0 ? 8 : kShare % 4 == 0 ? 4 : kShare % 2 == 0 ? 2 : 1;
  constexpr int kValues = kWord / sizeof(Bits);
  using Word = typename TailUnit<kWord>::type;
  const int64_t across = static_cast<int64_t>(p.width) * R;
#pragma unroll
  for (int down = 0; down < R; ++down) {
    const int64_t pixel = (static_cast<int64_t>(n) * p.height * R + y * R + down) * across + (left + thread) * R;
    Word* to = static_cast<Word*>(p.y) + pixel * 3 / kValues;
#pragma unroll
    for (int word = 0; word < 3 * R / kValues; ++word) {
      uint64_t bits = 0;
#pragma unroll
      for (int e = 0; e < kValues; ++e) {
        const int place = word * kValues + e, beside = place / 3, colour = place % 3;
        const float value = v[colour * R * R + down * R + beside];
        bits |= static_cast<uint64_t>(TailBits<Out>::of(value)) << (8 * sizeof(Bits) * e);
      }
      to[word] = static_cast<Word>(bits);
    }
  }
}

}  // namespace srgan_fast
