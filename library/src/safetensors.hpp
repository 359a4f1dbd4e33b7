// A safetensors file in memory, every claim of its header checked against what is there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace srgan_fast::host {

struct StoredTensor {
  std::string dtype;  // "F32", "I64", ...
  std::vector<int64_t> shape;
  size_t offset, bytes;  // in WeightsFile::data
};

struct WeightsFile {
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
  std::vector<uint8_t> data;
};

// Throw Failure: FILE_NOT_FOUND, DAMAGED_FILE. `name` is for messages.
WeightsFile read_weights(const char* path);
WeightsFile parse_weights(const std::string& name, std::vector<uint8_t> content);

}  // namespace srgan_fast::host
