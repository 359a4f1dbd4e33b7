// Damaged weights files: whatever their bytes are, reading ends in a network or in a Failure, and touches no memory
// that is not its own. Built with sanitizers where the compiler has them.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "failure.hpp"
#include "json.hpp"
#include "network.hpp"
#include "safetensors.hpp"
#include "sha256.hpp"

using namespace srgan_fast::host;

namespace {

using Bytes = std::vector<uint8_t>;

[[noreturn]] void wrong(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

Bytes file_of(const std::string& header, size_t data_bytes) {
  Bytes file;
  for (int i = 0; i < 8; ++i) file.push_back(static_cast<uint8_t>(header.size() >> 8 * i));
  file.insert(file.end(), header.begin(), header.end());
  for (size_t i = 0; i < data_bytes; ++i) file.push_back(static_cast<uint8_t>(i * 37));
  return file;
}

// The status that reading ends with.
srgan_fast_status outcome(Bytes file) {
  try {
    parse_weights("x", std::move(file));
    return SRGAN_FAST_OK;
  } catch (const Failure& failure) {
    if (failure.text.empty()) wrong("a failure without a text");
    return failure.status;
  }
}

void expect_damaged(const std::string& header, size_t data_bytes, const char* what) {
  if (outcome(file_of(header, data_bytes)) != SRGAN_FAST_DAMAGED_FILE) wrong(std::string("taken: ") + what);
}

std::string entry(const char* dtype, const char* shape, const char* offsets) {
  return std::string("{\"dtype\":\"") + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

const std::string kSound =
    "{\"__metadata__\":{\"a\":\"\\u00e9\\ud83d\\ude00\\n\"},\"w\":" + entry("F32", "[2,3]", "[0,24]") +
    ",\"b\":" + entry("F16", "[4]", "[24,32]") + ",\"c\":" + entry("I64", "[]", "[32,40]") +
    ",\"e\":" + entry("F32", "[0]", "[40,40]") + "}  ";

void known_faults() {
  const Bytes sound = file_of(kSound, 40);
  if (outcome(sound) != SRGAN_FAST_OK) wrong("the sound file is not taken");
  const WeightsFile file = parse_weights("x", sound);
  if (file.metadata.at("a") != "\xc3\xa9\xf0\x9f\x98\x80\n" || file.tensors.size() != 4) wrong("read another file");
  for (size_t size = 0; size < sound.size(); ++size)
    if (outcome(Bytes(sound.begin(), sound.begin() + static_cast<ptrdiff_t>(size))) != SRGAN_FAST_DAMAGED_FILE)
      wrong("taken: a file cut at " + std::to_string(size));
  Bytes longer = sound;
  longer.push_back(0);
  if (outcome(longer) != SRGAN_FAST_DAMAGED_FILE) wrong("taken: a byte too many");
  for (const uint64_t claimed : {uint64_t{0}, uint64_t{1} << 24, ~uint64_t{0}, ~uint64_t{7}}) {
    Bytes file_bytes = sound;
    for (int i = 0; i < 8; ++i) file_bytes[static_cast<size_t>(i)] = static_cast<uint8_t>(claimed >> 8 * i);
    if (outcome(file_bytes) != SRGAN_FAST_DAMAGED_FILE) wrong("taken: a header of another size");
  }
  const auto one = [](const std::string& tensor) { return "{\"w\":" + tensor + "}"; };
  expect_damaged(one(entry("F32", "[2,3]", "[0,28]")), 28, "more bytes than the shape has");
  expect_damaged(one(entry("F32", "[2,3]", "[0,20]")), 20, "fewer bytes than the shape has");
  expect_damaged(one(entry("F32", "[2,3]", "[24,0]")), 24, "offsets that go back");
  expect_damaged(one(entry("F32", "[2,3]", "[8,32]")), 24, "offsets beyond the data");
  expect_damaged(one(entry("F32", "[2,3]", "[4,28]")), 28, "a gap");
  expect_damaged(one(entry("F32", "[2,3]", "[0,24,24]")), 24, "three offsets");
  expect_damaged(one(entry("F32", "[2,-3]", "[0,24]")), 24, "a negative extent");
  expect_damaged(one(entry("F32", "[2.5]", "[0,10]")), 10, "a broken extent");
  expect_damaged(one(entry("F32", "[4294967296,4294967296,4]", "[0,0]")), 0, "a shape that overflows");
  expect_damaged(one(entry("F8_E4M3", "[4]", "[0,4]")), 4, "an unknown dtype");
  expect_damaged(one("{\"dtype\":\"F32\",\"shape\":[1]}"), 4, "no offsets");
  expect_damaged(one("[]"), 0, "an array for a tensor");
  expect_damaged("{\"a\":" + entry("F32", "[1]", "[0,4]") + ",\"b\":" + entry("F32", "[1]", "[0,4]") + "}", 4,
                 "tensors that overlap");
  expect_damaged("{\"a\":" + entry("F32", "[1]", "[0,4]") + ",\"a\":" + entry("F32", "[1]", "[4,8]") + "}", 8,
                 "two tensors of one name");
  expect_damaged("{\"__metadata__\":{\"a\":1}}", 0, "metadata that is no text");
  expect_damaged("{\"a\":" + std::string(100000, '['), 0, "many levels");
  expect_damaged("[]", 0, "no object");
  for (const char* text :
       {"{\"\\ud800\":1}", "{\"\\x\":1}", "{\"a\":01}", "{\"a\":1.}", "{\"a\":+1}", "{\"a\":1e999}", "{\"a\":tru}",
        "{\"a\" 1}", "{\"a\":1,}", "{,}", "{\"a\":1}}", "{\"a\n\":1}", "{\"\\u12g4\":1}"})
    expect_damaged(text, 0, text);
}

// Files of random bytes in the place of some of a sound one's.
void mutations() {
  const Bytes sound = file_of(kSound, 40);
  uint32_t state = 1;
  const auto below = [&](size_t count) {
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % count;
  };
  static const char kLikely[] = "{}[]\",:\\u0123456789-+.eEtfnNI";
  size_t taken = 0;
  for (int round = 0; round < 20000; ++round) {
    Bytes file = sound;
    for (size_t change = 0; change <= below(4); ++change) {
      const size_t at = below(10) == 0 ? below(file.size()) : 8 + below(kSound.size());
      switch (below(4)) {
        case 0:
          file[at] = static_cast<uint8_t>(below(256));
          break;
        case 1:
          file[at] = static_cast<uint8_t>(kLikely[below(sizeof kLikely - 1)]);
          break;
        case 2:
          file[at] ^= static_cast<uint8_t>(1u << below(8));
          break;
        default:
          // A byte fewer, and a header that says so.
          file.erase(file.begin() + static_cast<ptrdiff_t>(at));
          --file[0];
      }
    }
    const srgan_fast_status status = outcome(file);
    if (status != SRGAN_FAST_OK && status != SRGAN_FAST_DAMAGED_FILE) wrong("another status than damaged");
    taken += status == SRGAN_FAST_OK;
  }
  // A changed name is another sound file; most other changes are not.
  if (taken == 0 || taken > 12000) wrong(std::to_string(taken) + " of 20000 mutations taken");
}

// Metadata of all kinds over no tensors at all: no network comes of it.
void metadata() {
  const std::string sound =
      "{\"architecture\": \"srresnet\", \"config\": {\"activation\": \"none\", \"bias\": false, \"blocks\": 0, "
      "\"kernel\": 9, \"norm\": \"none\", \"prelu\": \"shared\", \"scale\": 2, \"separable\": false, \"skip_end\": "
      "\"norm\", \"width\": 64}, \"digest\": \"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\", "
      "\"input_range\": [0.0, 1.0], \"output_range\": [-1.0, 1.0], \"scale\": 2}";
  const auto status_of = [](const std::string& text, std::string* said = nullptr) {
    WeightsFile file;
    file.metadata["srgan_fast"] = text;
    try {
      network_of("x", file);
    } catch (const Failure& failure) {
      if (said != nullptr) *said = failure.text;
      return failure.status;
    }
    return SRGAN_FAST_OK;
  };
  std::string said;
  if (status_of(sound, &said) != SRGAN_FAST_DAMAGED_FILE || said.find("no tensor head.0.weight") == std::string::npos)
    wrong("sound metadata without tensors: " + said);
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = sound;
    return text.replace(text.find(from), from.size(), to);
  };
  const std::pair<const char*, const char*> beyond[] = {{"srresnet", "rrdb"},
                                                        {"\"norm\": \"none\"", "\"norm\": \"instance\""},
                                                        {"\"width\": 64", "\"width\": 32"},
                                                        {"\"kernel\": 9", "\"kernel\": 3"},
                                                        {"\"scale\": 2, \"sep", "\"scale\": 8, \"sep"},
                                                        {"\"separable\": false", "\"separable\": true"},
                                                        {"\"skip_end\": \"norm\"", "\"skip_end\": \"prelu\""},
                                                        {"\"bias\": false", "\"attention\": true"}};
  for (const auto& [from, to] : beyond)
    if (status_of(changed(from, to), &said) != SRGAN_FAST_UNSUPPORTED_NETWORK) wrong(std::string("not refused: ") + to);
  const std::pair<const char*, const char*> broken[] = {{"\"blocks\": 0", "\"blocks\": 1000000"},
                                                        {"\"scale\": 2}", "\"scale\": 4}"},
                                                        {"e3b0", "e3b1"},
                                                        {"\"input_range\": [0.0, 1.0]", "\"input_range\": [0.0]"}};
  for (const auto& [from, to] : broken)
    if (status_of(changed(from, to), &said) != SRGAN_FAST_DAMAGED_FILE) wrong(std::string("not damaged: ") + to);
  uint32_t state = 7;
  for (int round = 0; round < 5000; ++round) {
    std::string text = sound;
    for (int change = 0; change < 3; ++change) {
      state = state * 1664525u + 1013904223u;
      text[(state >> 8) % text.size()] = static_cast<char>(state >> 3);
    }
    if (status_of(text) == SRGAN_FAST_OK) wrong("a network of nothing");
  }
}

// The two digests that FIPS 180-4's examples give, and one that ends near the end of a block.
void digests() {
  const auto of = [](const std::string& text) {
    Sha256 sum;
    for (const char c : text) sum.update(&c, 1);
    return sum.hex();
  };
  if (of("abc") != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad") wrong("SHA-256 of abc");
  if (of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") !=
      "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1")
    wrong("SHA-256 of two blocks");
  Sha256 whole;
  whole.update(std::string(1000, 'a'));
  if (whole.hex() != of(std::string(1000, 'a'))) wrong("SHA-256 by bytes and at once");
}

}  // namespace

int main() {
  digests();
  known_faults();
  mutations();
  metadata();
  return 0;
}
