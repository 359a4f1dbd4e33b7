// 3x3 convolution of 64 channels for sm_90a: NHWC, bias, PReLU, residual, PixelShuffle; see the op's package.
//
//   D^T[64 outputs x N pixels] = W[64 x 576] * X^T[576 x N pixels]
//
// The weights are operand A and stay in shared memory for as long as a block lives. The pixels are operand B: one tile of
// the frame with its halo is copied once, and each of the nine taps is the same memory from another start. A block has
// two warpgroups that multiply in turns, so that one's products hide the other's epilogue, and a warp that copies.
// Outputs beyond 64 are slices of 64 with a block row (gridDim.y) each: channels of one map, or sub-pixels.
#include "matrix.cuh"
#include "ptx.cuh"
#include "types.cuh"
#include "wgmma.cuh"

namespace srgan_fast {

// How the pixels of a tile lie in shared memory. Which of these the hardware reads rightly is what `probe.cu` finds out.
enum Layout {
  kShifted,  // 8 columns; a tap starts anywhere in a halo of 10 columns, whose rows are 1280 bytes
  kFlat,     // 30 columns; a tap starts anywhere, and pixels follow without a gap, those of the halo among them
  kBoxes,    // 8 columns; three halos, one a column of the kernel, so that every tap starts at a multiple of 1024 bytes
};

template <Layout LAYOUT, int ROWS>
struct Conv3x3Tile {
  static constexpr int kPixelBytes = 128;
  static constexpr int kColumns = LAYOUT == kFlat ? 30 : 8;      // that are written
  static constexpr int kComputed = LAYOUT == kFlat ? 32 : 8;     // that are multiplied, and the columns of the result
  static constexpr int kPitch = LAYOUT == kShifted ? 10 : kComputed;
  static constexpr int kBoxes = LAYOUT == ::srgan_fast::kBoxes ? 3 : 1;
  static constexpr int kPixels = kComputed * ROWS;               // N of the product
  static constexpr uint32_t kStride = LAYOUT == kShifted ? kPitch * kPixelBytes : 8 * kPixelBytes;
  static constexpr int kBoxBytes = kPitch * (ROWS + 2) * kPixelBytes;
  static constexpr int kCopyBytes = kBoxes * kBoxBytes;
  // The last tap of a flat halo reads two pixels beyond it, into columns that are not written.
  static constexpr int kHaloBytes =
      (kCopyBytes + (LAYOUT == kFlat ? 2 * kPixelBytes : 0) + 1023) / 1024 * 1024;
  static constexpr int kResultBytes = kPixels * kPixelBytes;
  static constexpr int kStoredRows = LAYOUT == kFlat ? 1 : ROWS;  // of a copy out: without the columns between
  static constexpr int kWeightBytes = 9 * 64 * kPixelBytes;
  static constexpr int kBarriers = 11;
  static constexpr int kSharedBytes = 1024 + kWeightBytes + 2 * kHaloBytes + 2 * kResultBytes + 8 * kBarriers;

  static __device__ __forceinline__ constexpr uint32_t tap(int row, int column) {
    return LAYOUT == ::srgan_fast::kBoxes ? column * kBoxBytes + row * kPitch * kPixelBytes
                                          : (row * kPitch + column) * kPixelBytes;
  }
};

struct Conv3x3Parameters {
  TensorMap x;         // {64, w, h, n}, box {64, kPitch, ROWS + 2, 1}, 128-byte swizzle
  TensorMap weight;    // {64, slices * 576}, box {64, 192}, 128-byte swizzle; rows are (slice, tap, output)
  TensorMap residual;  // as y, box {64, kComputed, 1, ROWS, 1}
  TensorMap y;         // {64 * across, w, down, h, n}, box {64, kColumns, 1, kStoredRows, 1}, 128-byte swizzle:
                       // slice s of a pixel is number s % across of `across` beside it, s / across of `down` below
  const float* bias;   // [slices * 64]
  const float* slopes;
  int slopes_step;     // from one slice's slopes to the next: 64, or 0 if sub-pixels share them
  int across;
  int tiles_across, tiles_a_frame, tiles;
  int reversed;        // the last tile first: what the layer before wrote last is still in the cache
};

// The block's barriers; those that come in two are one a warpgroup.
enum Conv3x3Barrier { kWeights = 0, kHaloFull = 1, kHaloFree = 3, kResidual = 5, kResultFree = 7, kTurn = 9 };

template <class T, Layout LAYOUT, int ROWS, bool PRELU, bool RESIDUAL>
__global__ void __launch_bounds__(384, 1) conv3x3(const __grid_constant__ Conv3x3Parameters p) {
  using Tile = Conv3x3Tile<LAYOUT, ROWS>;
  constexpr int N = Tile::kPixels;
  const uint32_t weights = (dynamic_shared() + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  const uint32_t halos = weights + Tile::kWeightBytes, results = halos + 2 * Tile::kHaloBytes;
  const uint32_t barriers = results + 2 * Tile::kResultBytes;
  const auto barrier = [&](int which) { return barriers + 8 * which; };
  const int group = threadIdx.x / 128, slice = blockIdx.y;
  const int slice_x = slice % p.across, slice_y = slice / p.across;
  if (threadIdx.x == 0) {
    barrier_init(barrier(kWeights), 1);
    for (int g = 0; g < 2; ++g) {
      barrier_init(barrier(kHaloFull + g), 1);
      barrier_init(barrier(kHaloFree + g), 4);
      barrier_init(barrier(kResidual + g), 1);
      barrier_init(barrier(kResultFree + g), 1);
      barrier_init(barrier(kTurn + g), 128);
    }
    barrier_init_done();
  }
  __syncthreads();
  launch_dependents();
  // Tile number i of the order in which they are taken: frame, row and column of its first pixel.
  const auto place = [&](int i, int& n, int& y, int& x) {
    const int tile = p.reversed ? p.tiles - 1 - i : i;
    n = tile / p.tiles_a_frame;
    const int inside = tile - n * p.tiles_a_frame, down = inside / p.tiles_across;
    y = down * ROWS;
    x = (inside - down * p.tiles_across) * Tile::kColumns;
  };

  if (group == 2) {
    registers_down_to<40>();
    if (threadIdx.x != 256) return;
    barrier_arrive_expect(barrier(kWeights), Tile::kWeightBytes);
    for (int third = 0; third < 3; ++third)
      tma_load(weights + third * 192 * Tile::kPixelBytes, &p.weight, barrier(kWeights), 0, slice * 576 + third * 192);
    wait_for_previous_kernel();
    for (int i = blockIdx.x, taken = 0; i < p.tiles; i += gridDim.x, ++taken) {
      const int g = taken & 1, parity = taken >> 1 & 1;
      int n, y, x;
      place(i, n, y, x);
      barrier_wait(barrier(kHaloFree + g), parity ^ 1);
      barrier_arrive_expect(barrier(kHaloFull + g), Tile::kCopyBytes);
      for (int box = 0; box < Tile::kBoxes; ++box)
        tma_load(halos + g * Tile::kHaloBytes + box * Tile::kBoxBytes, &p.x, barrier(kHaloFull + g), 0, x - 1 + box,
                 y - 1, n);
      if (RESIDUAL) {
        barrier_wait(barrier(kResultFree + g), parity ^ 1);
        barrier_arrive_expect(barrier(kResidual + g), Tile::kResultBytes);
        tma_load(results + g * Tile::kResultBytes, &p.residual, barrier(kResidual + g), slice_x * 64, x, slice_y, y, n);
      }
    }
    return;
  }

  registers_up_to<232>();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, thread = threadIdx.x & 127;
  const uint32_t halo = halos + group * Tile::kHaloBytes, result = results + group * Tile::kResultBytes;
  const uint64_t a = operand(weights, Swizzle::k128, 8 * Tile::kPixelBytes);
  const uint64_t b = operand(halo, Swizzle::k128, Tile::kStride);
  // Bias and slopes may have been put in order by the kernel just before; the weights are packed long ahead.
  wait_for_previous_kernel();
  // This thread's sums are of two outputs, 8 apart.
  const int output = warp * 16 + lane / 4;
  const float bias[2] = {p.bias[slice * 64 + output], p.bias[slice * 64 + output + 8]};
  const float slopes[2] = {PRELU ? p.slopes[slice * p.slopes_step + output] : 0.f,
                           PRELU ? p.slopes[slice * p.slopes_step + output + 8] : 0.f};
  // Four 8x8 matrices at once: pixels 0..7 and 8..15, outputs 0..7 and 8..15 of the warp's 16. A lane names the memory of
  // one pixel's eight outputs.
  const int pixel = (lane & 7) + (lane >> 4) * 8, word = warp * 2 + (lane >> 3 & 1);
  const uint32_t row = swizzled(result + pixel * Tile::kPixelBytes + word * 16, Swizzle::k128);
  barrier_wait(barrier(kWeights), 0);
  if (group == 1) barrier_arrive(barrier(kTurn));  // the first turn is warpgroup 0's
  for (int i = blockIdx.x + group * gridDim.x, taken = 0; i < p.tiles; i += 2 * gridDim.x, ++taken) {
    const int parity = taken & 1;
    int n, y, x;
    place(i, n, y, x);
    float d[N / 2];
    barrier_wait(barrier(kHaloFull + group), parity);
    barrier_wait(barrier(kTurn + group), parity);
    wgmma_fence();
#pragma unroll
    for (int tap = 0; tap < 9; ++tap)
#pragma unroll
      for (int k = 0; k < 4; ++k)
        Wgmma<T, N>::add(d, advanced(a, tap * 64 * Tile::kPixelBytes + k * 32),
                         advanced(b, Tile::tap(tap / 3, tap % 3) + k * 32), (tap | k) != 0);
    wgmma_commit();
    barrier_arrive(barrier(kTurn + (group ^ 1)));
    wgmma_wait();
    if (lane == 0) barrier_arrive(barrier(kHaloFree + group));
    if (RESIDUAL) {
      barrier_wait(barrier(kResidual + group), parity);
    } else {
      if (thread == 0) store_wait_read();
      named_barrier(group + 1, 128);
    }
#pragma unroll
    for (int j = 0; j < N / 16; ++j) {
      uint32_t before[4], after[4];
      if (RESIDUAL) load_matrices(row + j * 16 * Tile::kPixelBytes, before);
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
      store_matrices(row + j * 16 * Tile::kPixelBytes, after);
    }
    fence_async_shared();
    named_barrier(group + 1, 128);
    if (thread == 0) {
#pragma unroll
      for (int stored = 0; stored < ROWS; stored += Tile::kStoredRows)
        tma_store(&p.y, result + stored * Tile::kComputed * Tile::kPixelBytes, slice_x * 64, x, slice_y, y + stored, n);
      store_commit();
      if (RESIDUAL) {
        store_wait_read();
        barrier_arrive(barrier(kResultFree + group));
      }
    }
  }
  if (thread == 0) store_wait();
}

}  // namespace srgan_fast
