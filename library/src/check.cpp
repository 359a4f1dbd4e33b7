#include "check.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "failure.hpp"
#include "half.hpp"
#include "packing.hpp"
#include "reference.hpp"
#include "sm90.hpp"

namespace srgan_fast::host {
namespace {

// Taller and wider than any tile, with a remainder both ways; each of two blocks has several tiles.
constexpr Size kMaps{2, 33, 35};
constexpr Size kPictures{1, 17, 139};  // two spans of a row
constexpr Size kWhole{2, 9, 11};
constexpr int kBlocks = 2;

// Of the largest value: half a unit of float16 twice over, of which the kernel's own rounding is one.
constexpr float kTolerance = 0x1p-10f;
// Of bytes, which may differ by one where sums in another order fall on the other side of a rounding edge.
constexpr double kOffShare = 0.02;

[[noreturn]] void disagrees(const std::string& what, const std::string& figure) {
  fail(SRGAN_FAST_FAILED_CHECK, "this GPU's " + what + " disagrees with the reference: " + figure +
                                    "; take the Python package on it, and report this");
}

// Numbers from -size to size that are the same on every machine.
class Draw {
 public:
  std::vector<uint16_t> halves(size_t count, float size) {
    std::vector<uint16_t> result(count);
    for (uint16_t& value : result) value = to_half(next() * size);
    return result;
  }
  std::vector<float> floats(size_t count, float size, float middle = 0) {
    std::vector<float> result(count);
    for (float& value : result) value = middle + next() * size;
    return result;
  }
  std::vector<uint8_t> bytes(size_t count) {
    std::vector<uint8_t> result(count);
    for (uint8_t& value : result) value = static_cast<uint8_t>((next() + 1) * 127.5f);
    return result;
  }

 private:
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(state_ >> 40) * 0x1p-23f - 1;
  }
  uint64_t state_ = 1;
};

template <class Value>
class Uploaded {
 public:
  Uploaded(Device& device, const std::vector<Value>& values) : memory_(device, values.size() * sizeof(Value)) {
    device.upload(memory_.get(), values.data(), values.size() * sizeof(Value));
  }
  Value* get() const { return static_cast<Value*>(memory_.get()); }

 private:
  Memory memory_;
};

size_t pixels(Size size) { return static_cast<size_t>(size.n) * size.h * size.w; }

template <class Value>
std::vector<Value> downloaded(Device& device, const Value* from, size_t count) {
  std::vector<Value> result(count);
  device.download(result.data(), from, count * sizeof(Value));
  return result;
}

void compare(const std::string& what, const std::vector<uint16_t>& got, const std::vector<uint16_t>& want) {
  float largest = 0, off = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const float truth = from_half(want[i]), difference = std::fabs(from_half(got[i]) - truth);
    largest = std::max(largest, std::fabs(truth));
    off = difference <= off ? off : difference;  // NaN stays
  }
  if (!(off <= kTolerance * largest))
    disagrees(what, "off by " + std::to_string(off) + ", and " + std::to_string(kTolerance * largest) + " is allowed");
}

void compare(const std::string& what, const std::vector<uint8_t>& got, const std::vector<uint8_t>& want) {
  int largest = 0;
  size_t off = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest = std::max(largest, std::abs(got[i] - want[i]));
    off += got[i] != want[i];
  }
  const double share = static_cast<double>(off) / static_cast<double>(want.size());
  if (largest > 1 || share > kOffShare)
    disagrees(what,
              "bytes off by up to " + std::to_string(largest) + ", and " + std::to_string(100 * share) + " % of them");
}

std::string named(const char* op, const Kernel& kernel) {
  return std::string(op) + " by tiles of " + std::to_string(kernel.rows) + " rows";
}

void check_head(Device& device) {
  Draw draw;
  const size_t count = pixels(kMaps);
  const auto frames = draw.bytes(count * 3);
  const auto weight =
      packed_head({kWidth, 3, kHeadSize, draw.floats(kWidth * 3 * kHeadSize * kHeadSize, 0.2f), {}, {}});
  const auto bias = draw.floats(kWidth, 0.5f), slopes = draw.floats(kWidth, 1.5f);
  const auto gain = draw.floats(3, 0.002f, 0.004f), offset = draw.floats(3, 1.f);
  std::vector<uint16_t> want(count * kWidth);
  Reference().head({frames.data(), want.data(), kMaps, weight.data(), bias.data(), slopes.data(), gain.data(),
                    offset.data(), false});
  const Uploaded<uint8_t> frames_(device, frames);
  const Uploaded<uint16_t> weight_(device, weight);
  const Uploaded<float> bias_(device, bias), slopes_(device, slopes), gain_(device, gain), offset_(device, offset);
  for (const Kernel& kernel : head_kernels()) {
    device.prepare(kernel);
    const Uploaded<uint16_t> y(device, std::vector<uint16_t>(want.size(), 0xFFFF));
    Sm90(device, nullptr, 0, kBlocks, kernel.rows)
        .head({frames_.get(), y.get(), kMaps, weight_.get(), bias_.get(), slopes_.get(), gain_.get(), offset_.get(),
               true});
    compare(named("head", kernel), downloaded(device, y.get(), want.size()), want);
  }
}

// `residual`: in place on it, without PReLU.
void check_conv(Device& device, int layout, int slices, int r, bool residual) {
  Draw draw;
  const size_t count = pixels(kMaps), outputs = static_cast<size_t>(slices) * kWidth;
  const auto x = draw.halves(count * kWidth, 1.f);
  const auto weight = draw.halves(outputs * 9 * kWidth, 0.1f);
  const auto bias = draw.floats(outputs, 0.5f), slopes = draw.floats(outputs, 1.5f);
  const std::vector<uint16_t> before =
      residual ? draw.halves(count * outputs, 1.f) : std::vector<uint16_t>(count * outputs, 0xFFFF);
  std::vector<uint16_t> want = before;
  const float* const none = nullptr;
  Reference().conv({x.data(), want.data(), residual ? want.data() : nullptr, kMaps, slices, r, weight.data(),
                    bias.data(), residual ? none : slopes.data(), false});
  const Uploaded<uint16_t> x_(device, x), weight_(device, weight);
  const Uploaded<float> bias_(device, bias), slopes_(device, slopes);
  for (const Kernel& kernel : conv_kernels(layout, residual)) {
    device.prepare(kernel);
    const Uploaded<uint16_t> y(device, before);
    Sm90(device, nullptr, layout, kBlocks * slices, kernel.rows)
        .conv({x_.get(), y.get(), residual ? y.get() : nullptr, kMaps, slices, r, weight_.get(), bias_.get(),
               residual ? none : slopes_.get(), true});
    compare(named(r == 1 ? residual ? "conv3x3 with a residual" : "conv3x3" : "conv3x3_shuffle", kernel),
            downloaded(device, y.get(), want.size()), want);
  }
}

void check_tail(Device& device, bool tanh) {
  Draw draw;
  const int inputs = 4 * kWidth;
  const size_t count = pixels(kPictures);
  const auto x = draw.halves(count * inputs, 1.f);
  const auto weight =
      packed_tail({kTailOutputs,
                   inputs,
                   kTailSize,
                   draw.floats(static_cast<size_t>(kTailOutputs) * inputs * kTailSize * kTailSize, 0.03f),
                   {},
                   {}});
  const auto bias = draw.floats(kTailOutputs, 0.2f), gain = draw.floats(3, 0.1f, 0.3f),
             offset = draw.floats(3, 0.1f, 0.5f);
  std::vector<uint16_t> sums(count * kWidth);
  std::vector<uint8_t> want(count * kTailOutputs);
  Reference().tail({x.data(), sums.data(), want.data(), kPictures, tanh, weight.data(), bias.data(), gain.data(),
                    offset.data(), false});
  const Uploaded<uint16_t> x_(device, x), weight_(device, weight);
  const Uploaded<float> bias_(device, bias), gain_(device, gain), offset_(device, offset);
  device.prepare(tail_sum_kernel(tanh));
  for (const Kernel& kernel : tail_kernels()) {
    device.prepare(kernel);
    const Uploaded<uint16_t> sums_(device, std::vector<uint16_t>(sums.size(), 0xFFFF));
    const Uploaded<uint8_t> y(device, std::vector<uint8_t>(want.size(), 1));
    Sm90(device, nullptr, 0, kBlocks, kernel.rows)
        .tail({x_.get(), sums_.get(), y.get(), kPictures, tanh, weight_.get(), bias_.get(), gain_.get(), offset_.get(),
               true});
    compare(named("tail", kernel), downloaded(device, y.get(), want.size()), want);
  }
}

void check_whole(Device& device, int layout, const Plan& plan, const uint8_t* weights) {
  Draw draw;
  const auto frames = draw.bytes(pixels(kWhole) * 3);
  // Full of NaN: what a step leaves unwritten reaches the picture.
  std::vector<uint8_t> workspace(workspace_bytes(plan, kWhole), 0xFF), want(frames.size() * plan.scale * plan.scale);
  const Uploaded<uint8_t> frames_(device, frames), workspace_(device, workspace), out(device, want);
  Reference reference;
  run(plan, reference, plan.weights.data(), frames.data(), want.data(), kWhole, workspace.data());
  Sm90 ops(device, nullptr, layout, device.processors());
  run(plan, ops, weights, frames_.get(), out.get(), kWhole, workspace_.get());
  compare("whole network", downloaded(device, out.get(), want.size()), want);
}

}  // namespace

int checked_layout(Device& device, const Plan& plan, const uint8_t* weights) {
  const std::vector<int> wrong = probed(device);
  const int layout = static_cast<int>(std::find(wrong.begin(), wrong.end(), 0) - wrong.begin());
  if (layout == kLayouts) {
    std::string figures;
    for (int i = 0; i < kLayouts; ++i)
      figures += (i ? ", " : "") + std::string(kLayoutNames[i]) + " " + std::to_string(wrong[static_cast<size_t>(i)]);
    disagrees("reading of tiles", "values from a wrong place, by layout: " + figures);
  }
  check_head(device);
  check_conv(device, layout, 2, 1, false);
  check_conv(device, layout, 4, 2, false);
  check_conv(device, layout, 1, 1, true);
  check_tail(device, plan.tanh);
  check_whole(device, layout, plan, weights);
  return layout;
}

}  // namespace srgan_fast::host
