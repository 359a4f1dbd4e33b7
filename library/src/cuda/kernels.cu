// The tables of all kernels but those of conv3x3, which have a file for each layout; and the probe.
#include "../network.hpp"
#include "../sm90.hpp"
#include "conv3x3/probe.cu"
#include "head/sm90.cu"
#include "table.cuh"
#include "tail/sm90.cu"

namespace srgan_fast::host {

template <>
const std::vector<Kernel>& conv_table<kShifted>(bool residual);
template <>
const std::vector<Kernel>& conv_table<kFlat>(bool residual);
template <>
const std::vector<Kernel>& conv_table<kBoxes>(bool residual);

namespace {

constexpr int kSlabs = 4;  // of 64 channels, before the last PixelShuffle

// The identity and the largest of the probe's halos.
constexpr int kProbeSharedBytes = kSwizzleAlignment + 64 * 128 + Conv3x3Tile<kBoxes, 8, 128, 128>::kHaloBytes;

struct HeadMaker {
  template <int ROWS>
  static constexpr int shared_bytes() {
    return HeadTile<kHeadSize, ROWS>::kSharedBytes;
  }
  template <int ROWS>
  static Kernel made() {
    return kernel_of(srgan_fast::head<Half, uint8_t, kHeadSize, ROWS>, ROWS, shared_bytes<ROWS>());
  }
};

struct TailMaker {
  template <int ROWS>
  static constexpr int shared_bytes() {
    return TailTile<kSlabs, kTailSize, ROWS>::kSharedBytes;
  }
  template <int ROWS>
  static Kernel made() {
    static_assert(TailTile<kSlabs, kTailSize, ROWS>::kStages >= 3, "a slab is on its way beside one a warpgroup");
    return kernel_of(tail_columns<Half, kSlabs, kTailSize, ROWS>, ROWS, shared_bytes<ROWS>());
  }
};

template <bool TANH>
Kernel tail_sum_of() {
  return kernel_of(tail_sum<uint8_t, kTailSize, 2, TANH>, 0, TailSpan<kTailSize>::kSharedBytes);
}

}  // namespace

const std::vector<Kernel>& head_kernels() {
  static const std::vector<Kernel> kernels = table<HeadMaker, 2, 32>();
  return kernels;
}

const std::vector<Kernel>& conv_kernels(int layout, bool residual) {
  return layout == kShifted ? conv_table<kShifted>(residual)
         : layout == kFlat  ? conv_table<kFlat>(residual)
                            : conv_table<kBoxes>(residual);
}

const std::vector<Kernel>& tail_kernels() {
  static const std::vector<Kernel> kernels = table<TailMaker, 2, 16>();
  return kernels;
}

Kernel tail_sum_kernel(bool tanh) { return tanh ? tail_sum_of<true>() : tail_sum_of<false>(); }

Kernel probe_kernel() { return kernel_of(probe, 0, kProbeSharedBytes); }

}  // namespace srgan_fast::host
