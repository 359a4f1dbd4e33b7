#include "network.hpp"

#include <cmath>
#include <cstring>
#include <set>

#include "failure.hpp"
#include "json.hpp"
#include "sha256.hpp"

namespace srgan_fast::host {
namespace {

constexpr double kEpsilon = 1e-5;  // of batch normalisation, as PyTorch has it where nothing else is said
constexpr const char* kMetadata = "srgan_fast";
constexpr const char* kMetadataDigest = "srgan_fast_sha256";

[[noreturn]] void unsupported(const std::string& name, const std::string& what) {
  fail(SRGAN_FAST_UNSUPPORTED_NETWORK,
       name + " holds a network that this library does not run: " + what + "; take the Python package for it");
}

[[noreturn]] void damaged(const std::string& name, const std::string& what) {
  fail(SRGAN_FAST_DAMAGED_FILE, what + " in " + name + ": damaged; fetch it again");
}

// The digest that srgan-fast writes: over the tensors in the order of their names, and of their own names and shapes.
std::string digest(const WeightsFile& file) {
  static const std::map<std::string, std::string> kNames = {{"F64", "float64"}, {"F32", "float32"},
                                                            {"F16", "float16"}, {"BF16", "bfloat16"},
                                                            {"I64", "int64"},   {"I32", "int32"}};
  Sha256 total;
  for (const auto& [name, tensor] : file.tensors) {
    std::string shape;
    for (const int64_t extent : tensor.shape) shape += (shape.empty() ? "" : ", ") + std::to_string(extent);
    if (tensor.shape.size() == 1) shape += ",";
    total.update(name + " torch." + kNames.at(tensor.dtype) + " (" + shape + ")\n");
    total.update(file.data.data() + tensor.offset, tensor.bytes);
  }
  return total.hex();
}

// The shape of the network, as GeneratorConfig has it.
struct Config {
  int scale = 4;
  uint64_t blocks = 16;
  bool batch_norm = true, channel_slopes = false, tanh = false, norm_after_skip = true, bias = false;
};

class Reader {
 public:
  Reader(const std::string& name, const WeightsFile& file) : name_(name), file_(file) {}

  Network network() {
    const Json info = metadata();
    const Config config = config_of(info);
    if (string(info, "digest") != digest(file_)) damaged(name_, "tensors that do not match their digest");
    Network network{};
    network.scale = config.scale;
    network.tanh = config.tanh;
    network.head = convolution("head.0", kWidth, 3, kHeadSize, true);
    network.head.slopes = slopes("head.1", config);
    for (uint64_t i = 0; i < config.blocks; ++i) {
      const std::string block = "body." + std::to_string(i) + ".";
      Convolution first = inner(block + "conv1", block + "norm1", config, config.batch_norm);
      first.slopes = slopes(block + "prelu", config);
      network.blocks.push_back({std::move(first), inner(block + "conv2", block + "norm2", config, config.batch_norm)});
    }
    network.skip = inner("skip.0", "skip.1", config, config.batch_norm && config.norm_after_skip);
    const int stages = config.scale == 4 ? 2 : 1;
    for (int i = 0; i < stages; ++i) {
      const std::string stage = "upsample." + std::to_string(i) + ".";
      Convolution conv = convolution(stage + "conv", 4 * kWidth, kWidth, 3, true);
      conv.slopes = slopes(stage + "prelu", config);
      network.stages.push_back(std::move(conv));
    }
    network.last = before_shuffle(std::move(network.stages.back()));
    network.stages.pop_back();
    network.tail = unshuffled(convolution("output", 3, kWidth, kHeadSize, true));
    if (used_.size() != file_.tensors.size())
      for (const auto& item : file_.tensors)
        if (!used_.count(item.first)) damaged(name_, "a tensor " + item.first.substr(0, 60) + " that no layer has");
    for (int c = 0; c < 3; ++c) {
      const auto [input_low, input_high] = bounds(info, "input_range", c);
      network.input_gain[c] = (input_high - input_low) / 255.f;
      network.input_offset[c] = input_low;
      const auto [low, high] = bounds(info, "output_range", c);
      network.output_gain[c] = 1.f / (high - low);
      network.output_offset[c] = -low / (high - low);
    }
    return network;
  }

 private:
  Json metadata() const {
    const auto text = file_.metadata.find(kMetadata), sum = file_.metadata.find(kMetadataDigest);
    if (text == file_.metadata.end())
      fail(SRGAN_FAST_DAMAGED_FILE,
           "expected a weights file of srgan-fast, got " + name_ + " without its metadata; run srgan-fast convert");
    if (sum != file_.metadata.end()) {
      Sha256 own;
      own.update(text->second);
      if (own.hex() != sum->second) damaged(name_, "metadata that do not match their digest");
    }
    Json info;
    try {
      info = parse_json(text->second);
    } catch (const JsonError& error) {
      damaged(name_, "metadata that are no JSON (" + error.text + ")");
    }
    return info;
  }

  const Json& field(const Json& object, const char* key, Json::Kind kind) const {
    const Json* value = object.find(key);
    if (!value || value->kind != kind) damaged(name_, "metadata without a proper " + std::string(key));
    return *value;
  }

  const std::string& string(const Json& object, const char* key) const {
    return field(object, key, Json::kString).text;
  }

  Config config_of(const Json& info) const {
    if (string(info, "architecture") != "srresnet")
      unsupported(name_, "the architecture " + string(info, "architecture").substr(0, 40));
    const Json& stored = field(info, "config", Json::kObject);
    Config config;
    for (const auto& [key, value] : stored.members) {
      const auto whole = value.whole();
      const bool boolean = value.kind == Json::kBoolean;
      const std::string shown = value.kind == Json::kString ? value.text.substr(0, 40)
                                : whole                     ? std::to_string(*whole)
                                                            : "another kind of value";
      const auto one_of = [&](const char* yes, const char* no) {
        if (value.kind != Json::kString || (value.text != yes && value.text != no))
          unsupported(name_, key + " is " + shown + ", and it takes " + yes + " or " + no);
        return value.text == yes;
      };
      if (key == "scale") {
        if (!whole || (*whole != 2 && *whole != 4)) unsupported(name_, "scale is " + shown + ", and it takes 2 or 4");
        config.scale = static_cast<int>(*whole);
      } else if (key == "blocks") {
        // A block has a tensor at the least: what only the metadata claim is not waited for.
        if (!whole || *whole > file_.tensors.size()) damaged(name_, "metadata of more blocks than there are tensors");
        config.blocks = *whole;
      } else if (key == "width") {
        if (!whole || *whole != kWidth) unsupported(name_, "width is " + shown + ", and it takes 64 channels");
      } else if (key == "kernel") {
        if (!whole || *whole != kHeadSize) unsupported(name_, "kernel is " + shown + ", and it takes 9");
      } else if (key == "norm") {
        config.batch_norm = one_of("batch", "none");
      } else if (key == "prelu") {
        config.channel_slopes = one_of("channel", "shared");
      } else if (key == "activation") {
        config.tanh = one_of("tanh", "none");
      } else if (key == "skip_end") {
        config.norm_after_skip = one_of("norm", "none");
      } else if (key == "bias" && boolean) {
        config.bias = value.boolean;
      } else if (key == "separable" && boolean) {
        if (value.boolean) unsupported(name_, "separable convolutions");
      } else {
        unsupported(name_, "the option " + key.substr(0, 40) + " (" + shown + ")");
      }
    }
    const auto scale = field(info, "scale", Json::kNumber).whole();
    if (!scale || *scale != static_cast<uint64_t>(config.scale)) damaged(name_, "metadata of two scales");
    return config;
  }

  // The bounds of a colour's range: of all colours, or a list of one a colour.
  std::pair<float, float> bounds(const Json& info, const char* key, int colour) const {
    const Json& range = field(info, key, Json::kArray);
    float result[2] = {0, 0};
    for (size_t i = 0; i < range.items.size() && i < 2; ++i) {
      const Json& bound = range.items[i];
      const bool list = bound.kind == Json::kArray && bound.items.size() == 3;
      const Json& value = list ? bound.items[static_cast<size_t>(colour)] : bound;
      if (value.kind != Json::kNumber) damaged(name_, "metadata without a proper " + std::string(key));
      result[i] = static_cast<float>(value.number);
    }
    // Not finite, or empty: written so that NaN fails.
    if (range.items.size() != 2 || !(result[1] - result[0] > 0) || !std::isfinite(result[0]) ||
        !std::isfinite(result[1]))
      damaged(name_, "metadata without a proper " + std::string(key));
    return {result[0], result[1]};
  }

  std::vector<float> floats(const std::string& key, const std::vector<int64_t>& shape) {
    const auto found = file_.tensors.find(key);
    if (found == file_.tensors.end()) damaged(name_, "no tensor " + key);
    const StoredTensor& tensor = found->second;
    if (tensor.dtype != "F32") damaged(name_, "values of dtype " + tensor.dtype + ", not F32, of " + key);
    if (tensor.shape != shape) damaged(name_, "another shape of " + key + " than the network has");
    used_.insert(key);
    std::vector<float> values(tensor.bytes / 4);
    std::memcpy(values.data(), file_.data.data() + tensor.offset, tensor.bytes);
    for (const float value : values)
      if (!std::isfinite(value)) damaged(name_, "a value that is not finite, of " + key);
    return values;
  }

  Convolution convolution(const std::string& key, int outputs, int inputs, int size, bool bias) {
    Convolution conv{outputs, inputs, size, {}, {}, {}};
    conv.weight = floats(key + ".weight", {outputs, inputs, size, size});
    if (bias) {
      conv.bias = floats(key + ".bias", {outputs});
    } else {
      conv.bias.assign(static_cast<size_t>(outputs), 0.f);
    }
    return conv;
  }

  // 3x3 of 64 channels, with what normalises its result folded into it in double and rounded once.
  Convolution inner(const std::string& key, const std::string& norm, const Config& config, bool normed) {
    Convolution conv = convolution(key, kWidth, kWidth, 3, config.bias || !normed);
    if (!normed) return conv;
    const auto gamma = floats(norm + ".weight", {kWidth}), beta = floats(norm + ".bias", {kWidth});
    const auto mean = floats(norm + ".running_mean", {kWidth}), variance = floats(norm + ".running_var", {kWidth});
    counter(norm + ".num_batches_tracked");
    const size_t each = conv.weight.size() / kWidth;
    for (size_t o = 0; o < kWidth; ++o) {
      if (variance[o] < 0) damaged(name_, "a negative variance of " + norm);
      const double gain = gamma[o] / std::sqrt(variance[o] + kEpsilon);
      for (size_t i = 0; i < each; ++i)
        conv.weight[o * each + i] = static_cast<float>(conv.weight[o * each + i] * gain);
      conv.bias[o] = static_cast<float>((static_cast<double>(conv.bias[o]) - mean[o]) * gain + beta[o]);
    }
    return conv;
  }

  // Batches that training has seen: not needed here, but part of the file.
  void counter(const std::string& key) {
    const auto found = file_.tensors.find(key);
    if (found == file_.tensors.end() || found->second.dtype != "I64" || !found->second.shape.empty())
      damaged(name_, "no proper counter " + key);
    used_.insert(key);
  }

  std::vector<float> slopes(const std::string& key, const Config& config) {
    std::vector<float> values = floats(key + ".weight", {config.channel_slopes ? kWidth : 1});
    values.resize(kWidth, values.back());
    return values;
  }

  // The activation after a PixelShuffle, before it: channel c there is channel c / 4 here.
  static Convolution before_shuffle(Convolution conv) {
    std::vector<float> spread(static_cast<size_t>(conv.outputs));
    for (size_t c = 0; c < spread.size(); ++c) spread[c] = conv.slopes[c / 4];
    conv.slopes = std::move(spread);
    return conv;
  }

  // The convolution that gives, on maps before PixelShuffle(2), what `conv` gives on the maps after it: a set of
  // outputs for each sub-pixel, channels and outputs in the shuffle's order.
  static Convolution unshuffled(const Convolution& conv) {
    Convolution result{kTailOutputs, 4 * conv.inputs, kTailSize, {}, {}, {}};
    result.weight.assign(static_cast<size_t>(kTailOutputs) * 4 * conv.inputs * kTailSize * kTailSize, 0.f);
    result.bias.resize(kTailOutputs);
    const int reach = conv.size / 2, halo = kTailSize / 2;
    for (int output = 0; output < kTailOutputs; ++output) {
      const int colour = output / 4, row = output % 4 / 2, column = output % 2;
      result.bias[static_cast<size_t>(output)] = conv.bias[static_cast<size_t>(colour)];
      for (int input = 0; input < conv.inputs; ++input)
        for (int y = 0; y < conv.size; ++y)
          for (int x = 0; x < conv.size; ++x) {
            // Where this tap of this sub-pixel lies, in sub-pixels from the first one of the smaller kernel's window.
            const int down = 2 * halo - reach + row + y, across = 2 * halo - reach + column + x;
            const int channel = 4 * input + down % 2 * 2 + across % 2;
            const size_t to =
                ((static_cast<size_t>(output) * result.inputs + channel) * kTailSize + down / 2) * kTailSize +
                across / 2;
            result.weight[to] =
                conv.weight[((static_cast<size_t>(colour) * conv.inputs + input) * conv.size + y) * conv.size + x];
          }
    }
    return result;
  }

  const std::string& name_;
  const WeightsFile& file_;
  std::set<std::string> used_;
};

}  // namespace

Network network_of(const std::string& name, const WeightsFile& file) { return Reader(name, file).network(); }

}  // namespace srgan_fast::host
