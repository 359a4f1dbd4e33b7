#include "safetensors.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include "failure.hpp"
#include "json.hpp"

namespace srgan_fast::host {
namespace {

constexpr uint64_t kMostHeaderBytes = uint64_t{16} << 20;
constexpr uint64_t kMostFileBytes = uint64_t{2} << 30;  // of thousands of blocks; what is larger is no file of ours

[[noreturn]] void damaged(const std::string& name, const std::string& what) {
  fail(SRGAN_FAST_DAMAGED_FILE, "expected a weights file of srgan-fast, got " + name + " with " + what +
                                    "; fetch it again, or make it by srgan-fast convert");
}

// Bytes of a value; 0 for a dtype that no network here has.
size_t bytes_of(const std::string& dtype) {
  if (dtype == "F64" || dtype == "I64") return 8;
  if (dtype == "F32" || dtype == "I32") return 4;
  if (dtype == "F16" || dtype == "BF16") return 2;
  return 0;
}

StoredTensor tensor_of(const std::string& file, const std::string& name, const Json& entry, size_t data_bytes) {
  const Json *dtype = entry.find("dtype"), *shape = entry.find("shape"), *offsets = entry.find("data_offsets");
  if (entry.members.size() != 3 || !dtype || dtype->kind != Json::kString || !shape || shape->kind != Json::kArray ||
      !offsets || offsets->kind != Json::kArray || offsets->items.size() != 2)
    damaged(file, "an entry of another kind for " + name);
  StoredTensor tensor{dtype->text, {}, 0, 0};
  const uint64_t size = bytes_of(tensor.dtype);
  if (size == 0) damaged(file, "values of dtype " + tensor.dtype.substr(0, 16) + " in " + name);
  if (shape->items.size() > 8) damaged(file, "too many dimensions in " + name);
  uint64_t values = 1;
  for (const Json& item : shape->items) {
    const auto extent = item.whole();
    if (!extent || (*extent != 0 && values > data_bytes / *extent)) damaged(file, "a shape beyond its data in " + name);
    values *= *extent;
    tensor.shape.push_back(static_cast<int64_t>(*extent));
  }
  const auto first = offsets->items[0].whole(), last = offsets->items[1].whole();
  if (!first || !last || *first > *last || *last > data_bytes) damaged(file, "offsets outside its data for " + name);
  if (*last - *first != values * size) damaged(file, "a shape that does not fill its data in " + name);
  tensor.offset = *first;
  tensor.bytes = *last - *first;
  return tensor;
}

}  // namespace

WeightsFile parse_weights(const std::string& name, std::vector<uint8_t> content) {
  if (content.size() < 8) damaged(name, std::to_string(content.size()) + " bytes");
  uint64_t header_bytes = 0;
  for (int i = 0; i < 8; ++i) header_bytes |= static_cast<uint64_t>(content[i]) << 8 * i;
  if (header_bytes > kMostHeaderBytes || header_bytes > content.size() - 8)
    damaged(name, "a header of " + std::to_string(header_bytes) + " bytes");
  Json header;
  try {
    header = parse_json({reinterpret_cast<const char*>(content.data()) + 8, static_cast<size_t>(header_bytes)});
  } catch (const JsonError& error) {
    damaged(name, "a header that is no JSON (" + error.text + ")");
  }
  if (header.kind != Json::kObject) damaged(name, "a header of another kind");
  WeightsFile file;
  file.data.assign(content.begin() + 8 + static_cast<ptrdiff_t>(header_bytes), content.end());
  for (auto& [key, entry] : header.members) {
    if (key != "__metadata__") {
      file.tensors[key] = tensor_of(name, key.substr(0, 60), entry, file.data.size());
      continue;
    }
    if (entry.kind != Json::kObject) damaged(name, "metadata of another kind");
    for (auto& [field, text] : entry.members) {
      if (text.kind != Json::kString) damaged(name, "metadata of another kind");
      file.metadata[field] = std::move(text.text);
    }
  }
  // One after another, without a gap and without sharing.
  std::vector<const StoredTensor*> ordered;
  for (const auto& item : file.tensors) ordered.push_back(&item.second);
  std::sort(ordered.begin(), ordered.end(), [](const StoredTensor* a, const StoredTensor* b) {
    return a->offset != b->offset ? a->offset < b->offset : a->bytes < b->bytes;
  });
  size_t end = 0;
  for (const StoredTensor* tensor : ordered) {
    if (tensor->offset != end) damaged(name, "tensors that overlap or leave a gap");
    end += tensor->bytes;
  }
  if (end != file.data.size()) damaged(name, std::to_string(file.data.size() - end) + " bytes that no tensor owns");
  return file;
}

WeightsFile read_weights(const char* path) {
  const std::string name = path;
  std::error_code code;
  if (!std::filesystem::is_regular_file(name, code))
    fail(SRGAN_FAST_FILE_NOT_FOUND, "expected a weights file, got " + name + ", which is no file; check the path");
  struct Closed {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  const std::unique_ptr<std::FILE, Closed> file(std::fopen(path, "rb"));
  if (!file)
    fail(SRGAN_FAST_FILE_NOT_FOUND, "cannot read " + name + ": " + std::strerror(errno) + "; check its permissions");
  const auto size = std::filesystem::file_size(name, code);
  if (!code && size > kMostFileBytes) damaged(name, std::to_string(size) + " bytes");
  std::vector<uint8_t> content(code ? 0 : size);
  if (code || std::fread(content.data(), 1, content.size(), file.get()) != content.size())
    fail(SRGAN_FAST_FILE_NOT_FOUND, "cannot read all of " + name + "; check the disk");
  return parse_weights(name, std::move(content));
}

}  // namespace srgan_fast::host
