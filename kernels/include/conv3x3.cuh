// A 3x3 convolution of 64 channels as a product, and the order in which a block does its tiles; what becomes of the sums
// is the caller's.
//
//   D^T[64 outputs x N pixels] = W[64 x 576] * X^T[576 x N pixels]
//
// The weights are operand A and stay in shared memory for as long as a block lives. The pixels are operand B: one tile of
// the frame with its halo is copied once, and each of the nine taps is the same memory from another start. A block has
// two warpgroups that multiply in turns, so that one's products hide the other's epilogue, and a warp that copies.
// Outputs beyond 64 are slices of 64 with a block row (gridDim.y) each: channels of one map, or sub-pixels.
#pragma once

#include "matrix.cuh"
#include "ptx.cuh"
#include "tiles.cuh"
#include "types.cuh"
#include "wgmma.cuh"

namespace srgan_fast {

// How the pixels of a tile lie in shared memory. Which of these the hardware reads rightly is what `probe.cu` finds out.
enum Layout {
  kShifted,  // 8 columns; a tap starts anywhere in a halo of 10 columns
  kFlat,     // 30 columns; a tap starts anywhere, and pixels follow without a gap, those of the halo among them
  kBoxes,    // 8 columns; three halos, one a column of the kernel, so that every tap starts where the swizzle does
};

// PIXEL_BYTES are those of 64 channels, RESULT_BYTES of what one pixel needs while it is finished and stored.
template <Layout LAYOUT, int ROWS, int PIXEL_BYTES, int RESULT_BYTES>
struct Conv3x3Tile {
  static constexpr int kRows = ROWS;
  static constexpr int kPixelBytes = PIXEL_BYTES;
  static constexpr Swizzle kSwizzle = PIXEL_BYTES == 128 ? Swizzle::k128 : Swizzle::k64;
  static constexpr int kColumns = LAYOUT == kFlat ? 30 : 8;   // that are written
  static constexpr int kComputed = LAYOUT == kFlat ? 32 : 8;  // that are multiplied, and the columns of the result
  static constexpr int kPitch = LAYOUT == kShifted ? 10 : kComputed;
  static constexpr int kBoxes = LAYOUT == ::srgan_fast::kBoxes ? 3 : 1;
  static constexpr int kPixels = kComputed * ROWS;  // N of the product
  static constexpr int kStride = (LAYOUT == kShifted ? kPitch : 8) * PIXEL_BYTES;
  static constexpr int kBoxBytes = kPitch * (ROWS + 2) * PIXEL_BYTES;
  static constexpr int kCopyBytes = kBoxes * kBoxBytes;
  // The last tap of a flat halo reads two pixels beyond it, into columns that are not written.
  static constexpr int kHaloBytes = (kCopyBytes + (LAYOUT == kFlat ? 2 * PIXEL_BYTES : 0) + 1023) / 1024 * 1024;
  static constexpr int kResultBytes = (kPixels * RESULT_BYTES + 1023) / 1024 * 1024;
  static constexpr int kStoredRows = LAYOUT == kFlat ? 1 : ROWS;  // of a copy out: without the columns between
  static constexpr int kWeightBytes = 9 * 64 * PIXEL_BYTES;
  static constexpr int kBarriers = 11;
  static constexpr int kSharedBytes =
      kSwizzleAlignment + kWeightBytes + 2 * kHaloBytes + 2 * kResultBytes + 8 * kBarriers;

  static __device__ __forceinline__ constexpr int tap(int row, int column) {
    return LAYOUT == ::srgan_fast::kBoxes ? column * kBoxBytes + row * kPitch * PIXEL_BYTES
                                          : (row * kPitch + column) * PIXEL_BYTES;
  }
};

// What every such kernel is told first; maps have the swizzle of the tile.
struct Conv3x3Work {
  TensorMap x;         // {64, w, h, n}, box {64, kPitch, kRows + 2, 1}
  TensorMap weight;    // {64, slices * 576}, box {64, 192}; rows are (slice, tap, output)
  TensorMap residual;  // as the result, box {64, kComputed, 1, kRows, 1}, 16-bit values, 128-byte swizzle
  int across;          // slice s of a pixel is number s % across beside it, s / across below
  TileOrder order;
};

// The first pixel of a tile, and the slice of the outputs.
struct Conv3x3Place {
  int n, y, x, slice_y, slice_x;
};

// The block's barriers; those that come in two are one a warpgroup.
enum Conv3x3Barrier { kWeights = 0, kHaloFull = 1, kHaloFree = 3, kResidual = 5, kResultFree = 7, kTurn = 9 };

// Epilogue(parameters, slice, result) is made once a thread and does a tile in two steps: `write(d)` brings the sums of
// this thread, finished, to shared memory at `result`, where the residual lies if there is one; `store(place, result)` is
// called by one thread when all have, and starts the copies out of it. `prefetch` is for the maps of those copies.
template <class T, class Tile, bool RESIDUAL, class Epilogue, class Parameters>
__device__ __forceinline__ void conv3x3_tiles(const Parameters& parameters) {
  constexpr int N = Tile::kPixels, kPixelBytes = Tile::kPixelBytes;
  const Conv3x3Work& work = parameters.work;
  const uint32_t weights = (dynamic_shared() + kSwizzleAlignment - 1) / kSwizzleAlignment * kSwizzleAlignment;
  const uint32_t halos = weights + Tile::kWeightBytes, results = halos + 2 * Tile::kHaloBytes;
  const uint32_t barriers = results + 2 * Tile::kResultBytes;
  const auto barrier = [&](int which) { return barriers + 8 * which; };
  const int group = same_in_warp(threadIdx.x / 128), slice = blockIdx.y;
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
  // Tile number i of the order in which they are taken.
  const auto place_of = [&](int i) {
    const TilePlace at = work.order.place(i, Tile::kRows, Tile::kColumns);
    return Conv3x3Place{at.n, at.y, at.x, slice / work.across, slice % work.across};
  };

  if (group == 2) {
    registers_down_to<40>();
    if (threadIdx.x != 256) return;
    barrier_arrive_expect(barrier(kWeights), Tile::kWeightBytes);
    for (int row = 0; row < 576; row += 192)
      tma_load(weights + row * kPixelBytes, &work.weight, barrier(kWeights), 0, slice * 576 + row);
    prefetch_map(&work.x);
    if (RESIDUAL) prefetch_map(&work.residual);
    Epilogue::prefetch(parameters);
    wait_for_previous_kernel();
    for (int i = blockIdx.x, taken = 0; i < work.order.tiles; i += gridDim.x, ++taken) {
      const int g = taken & 1, parity = taken >> 1 & 1;
      const Conv3x3Place at = place_of(i);
      barrier_wait(barrier(kHaloFree + g), parity ^ 1);
      barrier_arrive_expect(barrier(kHaloFull + g), Tile::kCopyBytes);
      for (int box = 0; box < Tile::kBoxes; ++box)
        tma_load(halos + g * Tile::kHaloBytes + box * Tile::kBoxBytes, &work.x, barrier(kHaloFull + g), 0,
                 at.x - 1 + box, at.y - 1, at.n);
      if (RESIDUAL) {
        barrier_wait(barrier(kResultFree + g), parity ^ 1);
        barrier_arrive_expect(barrier(kResidual + g), N * 128);
        tma_load(results + g * Tile::kResultBytes, &work.residual, barrier(kResidual + g), at.slice_x * 64, at.x,
                 at.slice_y, at.y, at.n);
      }
    }
    return;
  }

  registers_up_to<232>();
  const int lane = threadIdx.x & 31, thread = threadIdx.x & 127;
  const uint32_t result = results + group * Tile::kResultBytes;
  const uint64_t a = operand(weights, Tile::kSwizzle, 8 * kPixelBytes);
  const uint64_t b = operand(halos + group * Tile::kHaloBytes, Tile::kSwizzle, Tile::kStride);
  // The vectors may have been put in order by the kernel just before; the weights are packed long ahead.
  wait_for_previous_kernel();
  const Epilogue epilogue(parameters, slice, result);
  barrier_wait(barrier(kWeights), 0);
  if (group == 1) barrier_arrive(barrier(kTurn));  // the first turn is warpgroup 0's
  for (int i = blockIdx.x + group * gridDim.x, taken = 0; i < work.order.tiles; i += 2 * gridDim.x, ++taken) {
    const int parity = taken & 1;
    typename Accumulator<T>::type d[N / 2];
    barrier_wait(barrier(kHaloFull + group), parity);
    barrier_wait(barrier(kTurn + group), parity);
    wgmma_fence();
#pragma unroll
    for (int tap = 0; tap < 9; ++tap)
#pragma unroll
      for (int k = 0; k < kPixelBytes; k += 32)
        Wgmma<T, N>::add(d, advanced(a, tap * 64 * kPixelBytes + k), advanced(b, Tile::tap(tap / 3, tap % 3) + k),
                         (tap | k) != 0);
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
    epilogue.write(d);
    fence_async_shared();
    named_barrier(group + 1, 128);
    if (thread == 0) {
      epilogue.store(place_of(i), result);
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
