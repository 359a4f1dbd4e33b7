// A network as a flat list of operations over named buffers, its weights in one block, and where in a workspace each
// buffer lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "network.hpp"
#include "ops.hpp"

namespace srgan_fast::host {

constexpr size_t kAlignment = 256;  // bytes, of buffers in the workspace and of vectors in the block of weights
constexpr size_t kNone = ~size_t{0};

// What lives in the workspace while frames run. Maps of `scale` times the frames' size.
enum class Buffer { kSkip, kInner, kTrunk, kEnlarged, kMaps, kSums, kNothing };

struct Step {
  enum Op { kHead, kConv, kTail } op;
  Buffer x, y, residual;
  int scale;                    // of x
  int slices, r;                // of a kConv, as in ConvCall
  size_t weight, bias, slopes;  // bytes from the start of the weights; slopes may be kNone
};

struct Plan {
  int scale;
  bool tanh;
  std::vector<Step> steps;
  std::vector<uint8_t> weights;
  size_t input_gain, input_offset, output_gain, output_offset;  // as Step::bias
};

// Throws Failure: UNSUPPORTED_NETWORK for weights that float16 does not hold. `name` is for messages.
Plan plan_of(const std::string& name, const Network& network);

// Bytes of workspace for frames of a size. Throws Failure: BAD_ARGUMENT.
size_t workspace_bytes(const Plan& plan, Size size);

// Frames [n, h, w, 3] in, pictures [n, h*scale, w*scale, 3] out, by `ops` on its device's memory. `weights` is where
// the plan's weights are there.
void run(const Plan& plan, Ops& ops, const uint8_t* weights, const uint8_t* frames, uint8_t* out, Size size,
         uint8_t* workspace);

}  // namespace srgan_fast::host
