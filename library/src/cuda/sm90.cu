// How the kernels for sm_90a are launched for an operation: their parameters, tensor maps and grids.
#include <algorithm>

#include "../network.hpp"
#include "../packing.hpp"
#include "../sm90.hpp"
#include "../tiles.hpp"
#include "conv3x3/sm90.cu"
#include "head/sm90.cu"
#include "tail/sm90.cu"

namespace srgan_fast::host {
namespace {

constexpr unsigned kThreads = 384;  // two warpgroups that multiply and one that copies
constexpr int kColumns = 8;         // of the tiles of head and tail
constexpr int kSlabs = 4;           // of 64 channels, before the last PixelShuffle
constexpr unsigned kSpan = TailSpan<kTailSize>::kPixels;

int quotient_up(int a, int b) { return (a + b - 1) / b; }

// The columns of a layout's tile: written, multiplied, copied.
struct Columns {
  int written, computed, pitch;
};

template <Layout LAYOUT>
constexpr Columns columns_of() {
  using Tile = Conv3x3Tile<LAYOUT, 2, 128, 128>;
  return {Tile::kColumns, Tile::kComputed, Tile::kPitch};
}

constexpr Columns kColumnsOf[kLayouts] = {columns_of<kShifted>(), columns_of<kFlat>(), columns_of<kBoxes>()};

std::vector<uint64_t> sizes(std::initializer_list<int> list) { return {list.begin(), list.end()}; }
std::vector<uint32_t> box(std::initializer_list<int> list) { return {list.begin(), list.end()}; }

TileOrder order_of(Size size, int rows, int columns, bool backwards) {
  const int across = quotient_up(size.w, columns), a_frame = across * quotient_up(size.h, rows);
  return {across, a_frame, a_frame * size.n, backwards};
}

}  // namespace

const Kernel& Sm90::best(const std::vector<Kernel>& kernels, Size size, int columns, int computed, int blocks,
                         int steps) const {
  std::vector<int> heights;
  for (const Kernel& kernel : kernels) heights.push_back(kernel.rows);
  const int rows = rows_ != 0 ? rows_ : tile_rows(size, columns, computed, blocks, steps, heights);
  return *std::find_if(kernels.begin(), kernels.end(), [&](const Kernel& kernel) { return kernel.rows == rows; });
}

void Sm90::head(const HeadCall& call) {
  const auto [n, h, w] = call.size;
  const Kernel& kernel = best(head_kernels(), call.size, kColumns, kColumns, processors_, kHeadSteps);
  HeadParameters p{};
  p.weight = device_.map({call.weight, sizes({kWidth, kHeadSteps * 16}), box({kWidth, 16}), 0});
  p.y = device_.map({call.y, sizes({kWidth, w, h, n}), box({kWidth, kColumns, kernel.rows, 1}), 128});
  p.x = call.frames;
  p.bias = call.bias;
  p.slopes = call.slopes;
  p.gain = call.gain;
  p.offset = call.offset;
  p.height = h;
  p.width = w;
  p.order = order_of(call.size, kernel.rows, kColumns, call.backwards);
  device_.launch(kernel, static_cast<unsigned>(std::min(p.order.tiles, processors_)), 1, kThreads, &p, stream_, "head");
}

void Sm90::conv(const ConvCall& call) {
  const int n = call.size.n, h = call.size.h, w = call.size.w;
  const Columns columns = kColumnsOf[layout_];
  const int blocks = std::max(1, processors_ / call.slices), steps = 9 * kWidth / 16;
  const Kernel& kernel = best(conv_kernels(layout_, call.residual != nullptr), call.size, columns.written,
                              columns.computed, blocks, steps);
  // Slices are channels beside each other in a pixel, or sub-pixels beside and below each other.
  const int across = call.r == 1 ? call.slices : call.r;
  const auto window = [&](const void* pixels, int wide, int rows) {
    return device_.map(
        {pixels, sizes({across * kWidth, w, call.slices / across, h, n}), box({kWidth, wide, 1, rows, 1}), 128});
  };
  Conv3x3Parameters p{};
  p.work.x = device_.map({call.x, sizes({kWidth, w, h, n}), box({kWidth, columns.pitch, kernel.rows + 2, 1}), 128});
  p.work.weight = device_.map({call.weight, sizes({kWidth, call.slices * 9 * kWidth}), box({kWidth, 192}), 128});
  if (call.residual != nullptr) p.work.residual = window(call.residual, columns.computed, kernel.rows);
  p.work.across = across;
  p.work.order = order_of(call.size, kernel.rows, columns.written, call.backwards);
  p.y = window(call.y, columns.written, layout_ == kFlat ? 1 : kernel.rows);
  p.bias = call.bias;
  p.slopes = call.slopes;
  p.slope_slices = call.slices / (call.r * call.r);
  device_.launch(kernel, static_cast<unsigned>(std::min(p.work.order.tiles, blocks)), static_cast<unsigned>(call.slices),
                 kThreads, &p, stream_, call.r == 1 ? "conv3x3" : "conv3x3_shuffle");
}

void Sm90::tail(const TailCall& call) {
  const auto [n, h, w] = call.size;
  const int steps = kSlabs * kTailSize * 4;
  const Kernel& kernel = best(tail_kernels(), call.size, kColumns, kColumns, processors_, steps);
  const int halo = kTailSize - 1;
  TailColumnsParameters first{};
  first.x =
      device_.map({call.x, sizes({kSlabs * kWidth, w, h, n}), box({kWidth, kColumns, kernel.rows + halo, 1}), 128});
  first.weight = device_.map({call.weight, sizes({kWidth, kSlabs * kTailSize * kWidth}), box({kWidth, kWidth}), 128});
  first.sums = device_.map({call.sums, sizes({kWidth, w, h, n}), box({kWidth, kColumns, kernel.rows, 1}), 128});
  first.order = order_of(call.size, kernel.rows, kColumns, call.backwards);
  device_.launch(kernel, static_cast<unsigned>(std::min(first.order.tiles, processors_)), 1, kThreads, &first, stream_,
                 "tail, sums of columns");
  TailSumParameters second{};
  second.sums = call.sums;
  second.bias = call.bias;
  second.gain = call.gain;
  second.offset = call.offset;
  second.y = call.y;
  second.height = h;
  second.width = w;
  second.spans_across = quotient_up(w, static_cast<int>(kSpan));
  second.reversed = !call.backwards;
  device_.launch(tail_sum_kernel(call.tanh), static_cast<unsigned>(second.spans_across * h * n), 1, kSpan, &second,
                 stream_, "tail, picture");
}

std::vector<int> probed(Device& device) {
  struct {
    int* wrong;  // as ProbeParameters
  } p;
  std::vector<int> wrong(kLayouts, -1);
  const size_t bytes = wrong.size() * sizeof(int);
  const Memory memory(device, bytes);
  device.upload(memory.get(), wrong.data(), bytes);
  p.wrong = static_cast<int*>(memory.get());
  device.prepare(probe_kernel());
  device.launch(probe_kernel(), kLayouts, 1, 128, &p, nullptr, "probe of layouts");
  device.download(wrong.data(), memory.get(), bytes);
  return wrong;
}

}  // namespace srgan_fast::host
