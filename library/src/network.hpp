// What a weights file says of its network, with batch normalisation folded into the convolutions: the layers that run.
#pragma once

#include <string>
#include <vector>

#include "safetensors.hpp"

namespace srgan_fast::host {

constexpr int kWidth = 64;    // channels inside the network
constexpr int kHeadSize = 9;  // of the first convolution, and of the last before it is rewritten
constexpr int kTailSize = 5;  // of the last convolution, on maps before their PixelShuffle
constexpr int kTailOutputs = 12;

// Weights are [outputs, inputs, size, size]; slopes are one an output, or of the channels that a PixelShuffle leaves,
// and empty where there is no PReLU.
struct Convolution {
  int outputs, inputs, size;
  std::vector<float> weight, bias, slopes;
};

struct Block {
  Convolution first, second;
};

// SRResNet: head, blocks, skip, stages, last (to the maps before the last PixelShuffle), tail (on those maps).
struct Network {
  int scale;
  bool tanh;
  Convolution head;
  std::vector<Block> blocks;
  Convolution skip;
  std::vector<Convolution> stages;
  Convolution last, tail;
  float input_gain[3], input_offset[3];    // x = byte * gain + offset
  float output_gain[3], output_offset[3];  // of values from 0 to 1: v = y * gain + offset
};

// Throws Failure: DAMAGED_FILE, UNSUPPORTED_NETWORK. `name` is for messages.
Network network_of(const std::string& name, const WeightsFile& file);

}  // namespace srgan_fast::host
