// SHA-256 (FIPS 180-4): weights files carry digests of what they hold.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace srgan_fast::host {

class Sha256 {
 public:
  void update(const void* bytes, size_t count);
  void update(std::string_view text) { update(text.data(), text.size()); }
  // The digest in hexadecimal; the object is used up.
  std::string hex();

 private:
  void block(const uint8_t* bytes);

  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t pending_[64] = {};
  uint64_t count_ = 0;
};

}  // namespace srgan_fast::host
