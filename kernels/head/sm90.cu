// head for sm_90a, in 16-bit values: a SIZE x SIZE convolution from three colours to 64 outputs, bias, PReLU.
//
//   D^T[64 outputs x N pixels] = W[64 x K] * X^T[K x N pixels]
//
// Shared memory has 16 bytes for each pixel of a tile and its halo: four channels of that pixel and four of the next on
// the right. These are a row of operand B without a swizzle, so eight neighbours are a core matrix wherever it starts,
// and a product of K = 16 takes any two such words of the kernel's window that the leading distance can name: two pixels
// further on in the row, or, for the last column of an odd number of words, one row further down.
#include "matrix.cuh"
#include "ptx.cuh"
#include "sums.cuh"
#include "tiles.cuh"
#include "types.cuh"
#include "wgmma.cuh"

namespace srgan_fast {

// A source besides the frames' own types: four channels of T, scaled before.
struct Prepared {};

template <int SIZE, int ROWS>
struct HeadTile {
  static_assert(SIZE % 2 == 1 && SIZE >= 3 && SIZE <= 9, "the kernel is odd, and its weights fit");
  static constexpr int kColumns = 8;
  static constexpr int kPixels = kColumns * ROWS;  // N of the product
  static constexpr int kPitch = kColumns + SIZE - 1;
  static constexpr int kHaloPixels = kPitch * (ROWS + SIZE - 1);
  static constexpr int kWords = (SIZE + 1) / 2;  // of two columns, in a row of the kernel
  static constexpr int kAcross = kWords / 2;     // products of a row
  static constexpr int kDown = kWords % 2 ? (SIZE + 1) / 2 : 0;
  static constexpr int kSteps = SIZE * kAcross + kDown;
  static constexpr int kStepBytes = 64 * 16 * 2;
  static constexpr int kWeightBytes = kSteps * kStepBytes;
  static constexpr int kHaloBytes = (16 * kHaloPixels + 1023) / 1024 * 1024;
  static constexpr int kResultBytes = 128 * kPixels;
  static constexpr int kBarriers = 7;
  static constexpr int kSharedBytes =
      kSwizzleAlignment + 2 * kResultBytes + 2 * kHaloBytes + (kWeightBytes + 1023) / 1024 * 1024 + 8 * kBarriers;
};

struct HeadParameters {
  TensorMap weight;  // {64, kSteps * 16} values, box {64, 16}: a step's core matrices one after another
  TensorMap y;       // {64, w, h, n}, box {64, 8, ROWS, 1}, 128-byte swizzle
  const void* x;     // [n, h, w, 4] of T, or frames [n, h, w, 3]
  const float* bias;
  const float* slopes;
  const float* gain;  // of frames: x = frame * gain + offset
  const float* offset;
  int height, width;
  TileOrder order;
};

// What is read of a pixel before it is known to be there; and its channels, four 16-bit values of T.
template <class T, class Source>
struct HeadPixel {
  float gain[3], offset[3];

  __device__ __forceinline__ explicit HeadPixel(const HeadParameters& p) {
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      gain[c] = p.gain[c];
      offset[c] = p.offset[c];
    }
  }

  __device__ __forceinline__ uint64_t operator()(const void* x, int64_t pixel) const {
    const Source* colours = static_cast<const Source*>(x) + pixel * 3;
    float v[3];
#pragma unroll
    for (int c = 0; c < 3; ++c) v[c] = __fmaf_rn(static_cast<float>(colours[c]), gain[c], offset[c]);
    return pack<T>(v[0], v[1]) | static_cast<uint64_t>(pack<T>(v[2], 0.f)) << 32;
  }
};

template <class T>
struct HeadPixel<T, Prepared> {
  __device__ __forceinline__ explicit HeadPixel(const HeadParameters&) {}
  __device__ __forceinline__ uint64_t operator()(const void* x, int64_t pixel) const {
    return static_cast<const uint64_t*>(x)[pixel];
  }
};

// The block's barriers; those that come in two are one a warpgroup.
enum HeadBarrier { kHeadWeights = 0, kHeadFull = 1, kHeadFree = 3, kHeadTurn = 5 };

// Two warpgroups multiply in turns, so that one's products hide the other's epilogue; a third brings the pixels.
template <class T, class Source, int SIZE, int ROWS>
__global__ void __launch_bounds__(384, 1) head(const __grid_constant__ HeadParameters p) {
  using Tile = HeadTile<SIZE, ROWS>;
  constexpr int N = Tile::kPixels;
  const uint32_t results = (dynamic_shared() + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  const uint32_t halos = results + 2 * Tile::kResultBytes, weights = halos + 2 * Tile::kHaloBytes;
  const uint32_t barriers = weights + (Tile::kWeightBytes + 1023) / 1024 * 1024;
  const auto barrier = [&](int which) { return barriers + 8 * which; };
  const int group = same_in_warp(threadIdx.x / 128), thread = threadIdx.x & 127;
  if (threadIdx.x == 0) {
    barrier_init(barrier(kHeadWeights), 1);
    for (int g = 0; g < 2; ++g) {
      barrier_init(barrier(kHeadFull + g), 128);
      barrier_init(barrier(kHeadFree + g), 4);
      barrier_init(barrier(kHeadTurn + g), 128);
    }
    barrier_init_done();
  }
  __syncthreads();
  launch_dependents();

  if (group == 2) {
    if (thread == 0) {
      barrier_arrive_expect(barrier(kHeadWeights), Tile::kWeightBytes);
#pragma unroll 1
      for (int step = 0; step < Tile::kSteps; ++step)
        tma_load(weights + step * Tile::kStepBytes, &p.weight, barrier(kHeadWeights), 0, step * 16);
      prefetch_map(&p.y);
    }
    wait_for_previous_kernel();
    const HeadPixel<T, Source> read(p);
    for (int i = blockIdx.x, taken = 0; i < p.order.tiles; i += gridDim.x, ++taken) {
      const int g = taken & 1;
      const auto [n, top, left] = p.order.place(i, ROWS, Tile::kColumns);
      // Most of the wait for global memory is over before the halo is free.
      constexpr int kShare = (Tile::kHaloPixels + 127) / 128;
      uint64_t channels[kShare];
#pragma unroll
      for (int k = 0; k < kShare; ++k) {
        const int pixel = thread + 128 * k, row = pixel / Tile::kPitch;
        const int y = top + row - SIZE / 2, x = left + pixel - row * Tile::kPitch - SIZE / 2;
        const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width;
        channels[k] = inside ? read(p.x, (static_cast<int64_t>(n) * p.height + y) * p.width + x) : 0;
      }
      barrier_wait(barrier(kHeadFree + g), (taken >> 1 & 1) ^ 1);
#pragma unroll
      for (int k = 0; k < kShare; ++k) {
        const int pixel = thread + 128 * k, column = pixel % Tile::kPitch;
        if (pixel >= Tile::kHaloPixels) break;
        const uint32_t word = halos + g * Tile::kHaloBytes + 16 * pixel;
        store_shared(word, channels[k]);
        if (column > 0) store_shared(word - 8, channels[k]);
        // No weight but zero meets what is right of the halo; not a number would pass through.
        if (column == Tile::kPitch - 1) store_shared(word + 8, uint64_t{0});
      }
      fence_async_shared();
      barrier_arrive(barrier(kHeadFull + g));
    }
    return;
  }

  const uint32_t result = results + group * Tile::kResultBytes, halo = halos + group * Tile::kHaloBytes;
  constexpr uint32_t kRowBytes = 16 * Tile::kPitch;
  const uint64_t a = operand(weights, Swizzle::kNone, 256, 128);
  const uint64_t across = operand(halo, Swizzle::kNone, kRowBytes, 32);
  const uint64_t down = operand(halo, Swizzle::kNone, kRowBytes, kRowBytes);
  wait_for_previous_kernel();
  const float bias[2] = {p.bias[first_output()], p.bias[first_output() + 8]};
  const float slopes[2] = {p.slopes[first_output()], p.slopes[first_output() + 8]};
  barrier_wait(barrier(kHeadWeights), 0);
  if (group == 1) barrier_arrive(barrier(kHeadTurn));  // the first turn is warpgroup 0's
  for (int i = blockIdx.x + group * gridDim.x, taken = 0; i < p.order.tiles; i += 2 * gridDim.x, ++taken) {
    float d[N / 2];
    barrier_wait(barrier(kHeadFull + group), taken & 1);
    barrier_wait(barrier(kHeadTurn + group), taken & 1);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < Tile::kSteps; ++step) {
      constexpr int kAll = SIZE * Tile::kAcross;
      const uint64_t at = advanced(a, step * Tile::kStepBytes);
      if (step < kAll) {
        const int row = step / Tile::kAcross, four = step % Tile::kAcross;
        Wgmma<T, N>::add(d, at, advanced(across, row * kRowBytes + four * 64), step != 0);
      } else {
        // Two rows' last words; the last row shares its step with a row that has weights of zero there.
        const int row = step < Tile::kSteps - 1 ? 2 * (step - kAll) : SIZE - 2;
        Wgmma<T, N>::add(d, at, advanced(down, row * kRowBytes + (SIZE - 1) * 16), 1);
      }
    }
    wgmma_commit();
    barrier_arrive(barrier(kHeadTurn + (group ^ 1)));
    wgmma_wait();
    if ((thread & 31) == 0) barrier_arrive(barrier(kHeadFree + group));
    if (thread == 0) store_wait_read();
    named_barrier(group + 1, 128);
    write_pixels<T, N>(result, d, [&](float sum, int half) {
      const float v = sum + bias[half];
      return v >= 0.f ? v : v * slopes[half];
    });
    fence_async_shared();
    named_barrier(group + 1, 128);
    if (thread == 0) {
      const auto [n, y, x] = p.order.place(i, ROWS, Tile::kColumns);
      tma_store(&p.y, result, 0, x, y, n);
      store_commit();
    }
  }
  if (thread == 0) store_wait();
}

}  // namespace srgan_fast
