#include "reference.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "half.hpp"
#include "packing.hpp"

namespace srgan_fast::host {
namespace {

// Sums of a convolution with zeros outside: [n, h, w, outputs], of weights [rows, columns, inputs, outputs].
std::vector<float> convolved(const std::vector<float>& x, Size size, int inputs, int rows, int columns,
                             const std::vector<float>& weight, int outputs) {
  const size_t pixels = static_cast<size_t>(size.n) * size.h * size.w;
  std::vector<float> sums(pixels * outputs);
  for (int n = 0; n < size.n; ++n)
    for (int y = 0; y < size.h; ++y)
      for (int x0 = 0; x0 < size.w; ++x0) {
        float* to = &sums[((static_cast<size_t>(n) * size.h + y) * size.w + x0) * outputs];
        for (int tap = 0; tap < rows * columns; ++tap) {
          const int row = y + tap / columns - rows / 2, column = x0 + tap % columns - columns / 2;
          if (row < 0 || row >= size.h || column < 0 || column >= size.w) continue;
          const float* from = &x[((static_cast<size_t>(n) * size.h + row) * size.w + column) * inputs];
          for (int i = 0; i < inputs; ++i) {
            const float value = from[i];
            const float* by = &weight[(static_cast<size_t>(tap) * inputs + i) * outputs];
            for (int o = 0; o < outputs; ++o) to[o] += value * by[o];
          }
        }
      }
  return sums;
}

std::vector<float> floats(const uint16_t* values, size_t count) {
  std::vector<float> result(count);
  std::transform(values, values + count, result.begin(), from_half);
  return result;
}

float activated(float v, const float* slopes, int channel) {
  return slopes == nullptr || v >= 0.f ? v : v * slopes[channel];
}

}  // namespace

void Reference::head(const HeadCall& call) {
  const size_t pixels = static_cast<size_t>(call.size.n) * call.size.h * call.size.w;
  std::vector<float> x(pixels * 3);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = from_half(to_half(std::fma(static_cast<float>(call.frames[i]), call.gain[i % 3], call.offset[i % 3])));
  // Out of the core matrices: see packed_head.
  std::vector<float> weight(static_cast<size_t>(kHeadSize) * kHeadSize * 3 * kWidth);
  for (int row = 0; row < kHeadSize; ++row)
    for (int column = 0; column < kHeadSize; ++column)
      for (int channel = 0; channel < 3; ++channel)
        for (int o = 0; o < kWidth; ++o) {
          const bool last = column == kHeadSize - 1;
          const int step = last ? 2 * kHeadSize + row / 2 : 2 * row + column / 4;
          const int word = last ? (row % 2 == 1 || row == kHeadSize - 1) : column / 2 % 2;
          const int value = last ? channel : column % 2 * 4 + channel;
          const size_t from = ((static_cast<size_t>(step) * 8 + o / 8) * 2 + word) * 64 + o % 8 * 8 + value;
          weight[((static_cast<size_t>(row) * kHeadSize + column) * 3 + channel) * kWidth + o] =
              from_half(call.weight[from]);
        }
  const std::vector<float> sums = convolved(x, call.size, 3, kHeadSize, kHeadSize, weight, kWidth);
  for (size_t i = 0; i < sums.size(); ++i) {
    const int o = static_cast<int>(i % kWidth);
    call.y[i] = to_half(activated(sums[i] + call.bias[o], call.slopes, o));
  }
}

void Reference::conv(const ConvCall& call) {
  const int outputs = call.slices * kWidth;
  const size_t pixels = static_cast<size_t>(call.size.n) * call.size.h * call.size.w;
  std::vector<float> weight(static_cast<size_t>(9) * kWidth * outputs);
  for (int tap = 0; tap < 9; ++tap)
    for (int i = 0; i < kWidth; ++i)
      for (int o = 0; o < outputs; ++o)
        weight[(static_cast<size_t>(tap) * kWidth + i) * outputs + o] =
            from_half(call.weight[((static_cast<size_t>(o / kWidth) * 9 + tap) * kWidth + o % kWidth) * kWidth + i]);
  const std::vector<float> sums = convolved(floats(call.x, pixels * kWidth), call.size, kWidth, 3, 3, weight, outputs);
  const size_t width = static_cast<size_t>(call.size.w);
  for (size_t pixel = 0; pixel < pixels; ++pixel)
    for (int o = 0; o < outputs; ++o) {
      size_t to = pixel * outputs + o;
      if (call.r == 2) {
        const size_t line = pixel / width, column = pixel % width, down = o / kWidth / 2, beside = o / kWidth % 2;
        to = ((2 * line + down) * 2 * width + 2 * column + beside) * kWidth + o % kWidth;
      }
      float v = activated(sums[pixel * outputs + o] + call.bias[o], call.slopes, call.r == 2 ? o % kWidth : o);
      if (call.residual != nullptr) v += from_half(call.residual[to]);
      call.y[to] = to_half(v);
    }
}

void Reference::tail(const TailCall& call) {
  const int inputs = 4 * kWidth;
  const size_t pixels = static_cast<size_t>(call.size.n) * call.size.h * call.size.w;
  // The outputs of each column of the kernel side by side, rounded, and then neighbours added: as the kernels do it.
  std::vector<float> weight(static_cast<size_t>(kTailSize) * inputs * kWidth);
  for (int row = 0; row < kTailSize; ++row)
    for (int i = 0; i < inputs; ++i)
      for (int sum = 0; sum < kWidth; ++sum) {
        const size_t from = (static_cast<size_t>(i / kWidth) * kTailSize + row) * kWidth + sum;
        weight[(static_cast<size_t>(row) * inputs + i) * kWidth + sum] =
            from_half(call.weight[from * kWidth + i % kWidth]);
      }
  const std::vector<float> x = floats(call.x, pixels * inputs);
  const std::vector<float> sums = convolved(x, call.size, inputs, kTailSize, 1, weight, kWidth);
  std::transform(sums.begin(), sums.end(), call.sums, to_half);
  const int width = call.size.w;
  for (size_t line = 0; line < pixels / width; ++line)
    for (int x0 = 0; x0 < width; ++x0)
      for (int o = 0; o < kTailOutputs; ++o) {
        float v = call.bias[o];
        for (int column = 0; column < kTailSize; ++column) {
          const int at = x0 + column - kTailSize / 2;
          if (at < 0 || at >= width) continue;
          v += from_half(call.sums[(line * width + at) * kWidth + column * kTailOutputs + o]);
        }
        const int colour = o / 4;
        v = std::fma(call.tanh ? std::tanh(v) : v, call.gain[colour], call.offset[colour]);
        v = v < 0.f ? 0.f : v > 1.f ? 1.f : v;
        const size_t to = (2 * line + o % 4 / 2) * 2 * width + 2 * x0 + o % 2;
        call.y[to * 3 + colour] = static_cast<uint8_t>(v * 255.f + 0.5f);
      }
}

}  // namespace srgan_fast::host
