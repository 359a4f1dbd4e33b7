#include "plan.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "failure.hpp"
#include "packing.hpp"

namespace srgan_fast::host {
namespace {

constexpr float kLargestHalf = 65504.f;
constexpr int64_t kMostPixels = 1 << 27;  // of all frames: then 32-bit numbers count everything that is made of them

size_t rounded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

class Writer {
 public:
  Writer(const std::string& name, Plan& plan) : name_(name), plan_(plan) {}

  template <class Value>
  size_t vector(const Value* values, size_t count) {
    const size_t at = plan_.weights.size();
    plan_.weights.resize(at + rounded(count * sizeof(Value)));
    std::copy_n(reinterpret_cast<const uint8_t*>(values), count * sizeof(Value),
                plan_.weights.begin() + static_cast<ptrdiff_t>(at));
    return at;
  }

  void step(Step step, const Convolution& conv, const std::vector<uint16_t>& packed) {
    for (const float value : conv.weight)
      if (!(std::fabs(value) <= kLargestHalf))
        fail(SRGAN_FAST_UNSUPPORTED_NETWORK, name_ + " has a weight beyond float16; take the Python package for it");
    step.weight = vector(packed.data(), packed.size());
    step.bias = vector(conv.bias.data(), conv.bias.size());
    step.slopes = conv.slopes.empty() ? kNone : vector(conv.slopes.data(), conv.slopes.size());
    plan_.steps.push_back(step);
  }

  void conv(const Convolution& conv, Buffer x, Buffer y, Buffer residual, int scale, int r = 1) {
    step({Step::kConv, x, y, residual, scale, conv.outputs / kWidth, r, 0, 0, 0}, conv, packed_conv(conv));
  }

 private:
  const std::string& name_;
  Plan& plan_;
};

// Of the workspace's buffers: bytes a LR pixel.
size_t bytes_a_pixel(Buffer buffer, int scale) {
  const size_t half = static_cast<size_t>(scale / 2), maps = 2 * kWidth;
  switch (buffer) {
    case Buffer::kEnlarged:
    case Buffer::kSums:
      return half * half * maps;
    case Buffer::kMaps:
      return half * half * maps * 4;
    default:
      return maps;
  }
}

struct Placed {
  std::map<Buffer, size_t> at;
  size_t bytes = 0;
};

// Gives every buffer room for as long as it is needed: the first that is free, in the order in which they come to life.
Placed place(const Plan& plan, Size size) {
  const int64_t pixels = static_cast<int64_t>(size.h) * size.w;
  if (size.n < 1 || size.h < 1 || size.w < 1 || pixels > kMostPixels / size.n)
    fail(SRGAN_FAST_BAD_ARGUMENT, "expected 1 to " + std::to_string(kMostPixels) + " pixels, got " +
                                      std::to_string(size.n) + " frames of " + std::to_string(size.h) + " x " +
                                      std::to_string(size.w) + "; take fewer frames, or smaller ones");
  struct Life {
    size_t first, last, bytes;
  };
  std::vector<std::pair<Buffer, Life>> lives;
  const auto used = [&](Buffer buffer, size_t step) {
    if (buffer == Buffer::kNothing) return;
    for (auto& [known, life] : lives)
      if (known == buffer) {
        life.last = step;
        return;
      }
    const size_t bytes = bytes_a_pixel(buffer, plan.scale) * static_cast<size_t>(pixels) * static_cast<size_t>(size.n);
    lives.push_back({buffer, {step, step, rounded(bytes)}});
  };
  for (size_t i = 0; i < plan.steps.size(); ++i)
    for (const Buffer buffer : {plan.steps[i].x, plan.steps[i].residual, plan.steps[i].y}) used(buffer, i);
  Placed placed;
  for (const auto& [buffer, life] : lives) {
    std::vector<std::pair<size_t, size_t>> beside;
    for (const auto& [other, theirs] : lives)
      if (placed.at.count(other) && theirs.first <= life.last && life.first <= theirs.last)
        beside.emplace_back(placed.at[other], placed.at[other] + theirs.bytes);
    std::sort(beside.begin(), beside.end());
    size_t start = 0;
    for (const auto& [low, high] : beside) {
      if (start + life.bytes <= low) break;
      start = std::max(start, high);
    }
    placed.at[buffer] = start;
    placed.bytes = std::max(placed.bytes, start + life.bytes);
  }
  return placed;
}

}  // namespace

Plan plan_of(const std::string& name, const Network& network) {
  Plan plan{};
  plan.scale = network.scale;
  plan.tanh = network.tanh;
  Writer writer(name, plan);
  plan.input_gain = writer.vector(network.input_gain, 3);
  plan.input_offset = writer.vector(network.input_offset, 3);
  plan.output_gain = writer.vector(network.output_gain, 3);
  plan.output_offset = writer.vector(network.output_offset, 3);
  const Buffer none = Buffer::kNothing;
  writer.step({Step::kHead, none, Buffer::kSkip, none, 1, 1, 1, 0, 0, 0}, network.head, packed_head(network.head));
  Buffer x = Buffer::kSkip;
  for (const Block& block : network.blocks) {
    writer.conv(block.first, x, Buffer::kInner, none, 1);
    writer.conv(block.second, Buffer::kInner, Buffer::kTrunk, x, 1);
    x = Buffer::kTrunk;
  }
  // In place on the skip, except where the convolution itself reads it.
  const Buffer end = x == Buffer::kSkip ? Buffer::kTrunk : Buffer::kSkip;
  writer.conv(network.skip, x, end, Buffer::kSkip, 1);
  x = end;
  int scale = 1;
  for (const Convolution& stage : network.stages) {
    writer.conv(by_sub_pixels(stage), x, Buffer::kEnlarged, none, scale, 2);
    x = Buffer::kEnlarged;
    scale *= 2;
  }
  writer.conv(network.last, x, Buffer::kMaps, none, scale);
  // The residual's place is that of the sums, which live no longer than this step.
  writer.step({Step::kTail, Buffer::kMaps, none, Buffer::kSums, scale, 1, 2, 0, 0, 0}, network.tail,
              packed_tail(network.tail));
  return plan;
}

size_t workspace_bytes(const Plan& plan, Size size) { return place(plan, size).bytes; }

void run(const Plan& plan, Ops& ops, const uint8_t* weights, const uint8_t* frames, uint8_t* out, Size size,
         uint8_t* workspace) {
  const Placed placed = place(plan, size);
  const auto maps = [&](Buffer buffer) {
    return buffer == Buffer::kNothing ? nullptr : reinterpret_cast<uint16_t*>(workspace + placed.at.at(buffer));
  };
  const auto vector = [&](size_t at) { return at == kNone ? nullptr : reinterpret_cast<const float*>(weights + at); };
  // Every other step starts with the tile that the one before wrote last, which is still in the cache.
  bool backwards = false;
  for (const Step& step : plan.steps) {
    const Size inside{size.n, size.h * step.scale, size.w * step.scale};
    const auto* weight = reinterpret_cast<const uint16_t*>(weights + step.weight);
    const float *bias = vector(step.bias), *slopes = vector(step.slopes);
    switch (step.op) {
      case Step::kHead:
        ops.head({frames, maps(step.y), inside, weight, bias, slopes, vector(plan.input_gain),
                  vector(plan.input_offset), backwards});
        break;
      case Step::kConv:
        ops.conv({maps(step.x), maps(step.y), maps(step.residual), inside, step.slices, step.r, weight, bias, slopes,
                  backwards});
        break;
      case Step::kTail:
        ops.tail({maps(step.x), maps(step.residual), out, inside, plan.tanh, weight, bias, vector(plan.output_gain),
                  vector(plan.output_offset), backwards});
        break;
    }
    backwards = !backwards;
  }
}

}  // namespace srgan_fast::host
