// float16 on the host, by the bits: to the nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

namespace srgan_fast::host {

inline uint16_t to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
  if (size > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
  if (size >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // rounds to beyond the largest
  if (size < 0x33000000) return static_cast<uint16_t>(sign);            // less than half of the smallest
  const int exponent = static_cast<int>(size >> 23) - 127;
  const uint32_t mantissa = (size & 0x7FFFFF) | 0x800000;
  // Below 2^-14 a step is 2^-24 whatever the exponent.
  const int dropped = exponent < -14 ? -1 - exponent : 13;
  uint32_t kept = mantissa >> dropped;
  const uint32_t rest = mantissa & ((1u << dropped) - 1), middle = 1u << (dropped - 1);
  if (rest > middle || (rest == middle && (kept & 1))) ++kept;
  // The leading bit adds one to the exponent, and so does a carry.
  return static_cast<uint16_t>(sign | (exponent < -14 ? kept : (static_cast<uint32_t>(exponent + 14) << 10) + kept));
}

inline float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, size = half & 0x7FFF;
  float value;
  if (size < 0x0400) {
    value = static_cast<float>(size) * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t bits = sign | (size < 0x7C00 ? (size << 13) + (112u << 23) : 0x7F800000 | (size & 0x3FF) << 13);
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace srgan_fast::host
