// Weights in the order in which the kernels for sm_90a read them.
#pragma once

#include <cstdint>
#include <vector>

#include "network.hpp"

namespace srgan_fast::host {

constexpr int kHeadSteps = 23;  // products of 16 values of a 9x9 kernel of four channels; see kernels/head/sm90.cu

// [steps * 16, 64]: see kernels/head/sm90.cu.
std::vector<uint16_t> packed_head(const Convolution& conv);
// [slices * 9 * 64, 64]: a row an output of a tap of a slice of 64 outputs.
std::vector<uint16_t> packed_conv(const Convolution& conv);
// [4 * 5 * 64, 64]: a row a sum of a row of the kernel of 64 channels; the sums are the outputs of each column.
std::vector<uint16_t> packed_tail(const Convolution& conv);
// Outputs by sub-pixels, each with all its channels: the order in which a PixelShuffle(2) writes them. The slopes stay,
// which are of the channels after it.
Convolution by_sub_pixels(const Convolution& conv);

}  // namespace srgan_fast::host
