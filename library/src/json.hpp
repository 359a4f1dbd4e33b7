// A strict reader of JSON for headers of weights files: bounded in depth and size, and every surprise is an error.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace srgan_fast::host {

// A value; what it is not is empty. Members keep their order, and no two have one name.
struct Json {
  enum Kind { kNull, kBoolean, kNumber, kString, kArray, kObject } kind = kNull;
  bool boolean = false;
  double number = 0;
  std::string text;
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;

  const Json* find(std::string_view name) const;
  // The value as a whole number from 0 on that a double holds exactly.
  std::optional<uint64_t> whole() const;
};

struct JsonError {
  std::string text;
};

// Throws JsonError. NaN and Infinity are read as numbers, as Python's json module writes them.
Json parse_json(std::string_view text);

}  // namespace srgan_fast::host
