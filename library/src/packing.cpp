#include "packing.hpp"

#include "half.hpp"

namespace srgan_fast::host {
namespace {

float weight_at(const Convolution& conv, int output, int input, int row, int column) {
  return conv.weight[((static_cast<size_t>(output) * conv.inputs + input) * conv.size + row) * conv.size + column];
}

}  // namespace

std::vector<uint16_t> packed_head(const Convolution& conv) {
  const int size = conv.size, words = (size + 1) / 2, across = words / 2;
  std::vector<uint16_t> packed;
  packed.reserve(static_cast<size_t>(kHeadSteps) * 16 * kWidth);
  // A core matrix is eight outputs of two columns of four channels; those of a step come in the order (outputs, word).
  const auto step = [&](const int (&rows)[2], const int (&columns)[2]) {
    for (int outputs = 0; outputs < kWidth; outputs += 8)
      for (int word = 0; word < 2; ++word)
        for (int o = outputs; o < outputs + 8; ++o)
          for (int value = 0; value < 8; ++value) {
            const int column = columns[word] + value / 4, channel = value % 4;
            const bool there = rows[word] >= 0 && column < size && channel < conv.inputs;
            packed.push_back(there ? to_half(weight_at(conv, o, channel, rows[word], column)) : uint16_t{0});
          }
  };
  for (int row = 0; row < size; ++row)
    for (int i = 0; i < across; ++i) step({row, row}, {4 * i, 4 * i + 2});
  // Of an odd number of words, the last of two rows together; of the last row, with zeros for the row before.
  for (int row = 0; words % 2 && row < size; row += 2)
    step({row + 1 < size ? row : -1, row + 1 < size ? row + 1 : row}, {size - 1, size - 1});
  return packed;
}

std::vector<uint16_t> packed_conv(const Convolution& conv) {
  std::vector<uint16_t> packed;
  packed.reserve(conv.weight.size());
  for (int slice = 0; slice < conv.outputs; slice += kWidth)
    for (int tap = 0; tap < 9; ++tap)
      for (int o = slice; o < slice + kWidth; ++o)
        for (int i = 0; i < kWidth; ++i) packed.push_back(to_half(weight_at(conv, o, i, tap / 3, tap % 3)));
  return packed;
}

std::vector<uint16_t> packed_tail(const Convolution& conv) {
  std::vector<uint16_t> packed;
  for (int slab = 0; slab < conv.inputs; slab += kWidth)
    for (int row = 0; row < conv.size; ++row)
      for (int sum = 0; sum < kWidth; ++sum)
        for (int i = slab; i < slab + kWidth; ++i) {
          const int column = sum / conv.outputs;
          packed.push_back(column < conv.size ? to_half(weight_at(conv, sum % conv.outputs, i, row, column))
                                              : uint16_t{0});
        }
  return packed;
}

Convolution by_sub_pixels(const Convolution& conv) {
  Convolution result = conv;
  const int channels = conv.outputs / 4;
  const size_t each = conv.weight.size() / static_cast<size_t>(conv.outputs);
  for (int o = 0; o < conv.outputs; ++o) {
    const size_t from = static_cast<size_t>(o % channels * 4 + o / channels);
    for (size_t i = 0; i < each; ++i) result.weight[static_cast<size_t>(o) * each + i] = conv.weight[from * each + i];
    result.bias[static_cast<size_t>(o)] = conv.bias[from];
  }
  return result;
}

}  // namespace srgan_fast::host
