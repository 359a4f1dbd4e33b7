// How matrices lie in shared memory for wgmma and for the copies that bring them there.
#pragma once

#include "types.cuh"

namespace srgan_fast {

constexpr uint32_t kSwizzleAlignment = 1024;  // bytes after which the pattern of a 128-byte swizzle repeats

enum class Swizzle : uint64_t { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

// Where a byte lies: the 16-byte words of a row change places by the number of the row, as bits of the address.
__device__ __forceinline__ uint32_t swizzled(uint32_t address, Swizzle swizzle) {
  if (swizzle == Swizzle::k128) return address ^ ((address >> 7 & 7) << 4);
  if (swizzle == Swizzle::k64) return address ^ ((address >> 7 & 3) << 4);
  if (swizzle == Swizzle::k32) return address ^ ((address >> 7 & 1) << 4);
  return address;
}

// An operand of wgmma, K-major: eight rows lie one after another, the next eight `stride` bytes on. `leading` is the
// way from the first 16 bytes of a row to the next without a swizzle, and is not used with one.
__device__ __forceinline__ uint64_t operand(uint32_t address, Swizzle swizzle, uint32_t stride, uint32_t leading = 16) {
  return static_cast<uint64_t>((address & 0x3FFFF) >> 4) | static_cast<uint64_t>(leading >> 4) << 16 |
         static_cast<uint64_t>(stride >> 4) << 32 | static_cast<uint64_t>(swizzle) << 62;
}

// The same operand, `bytes` further on.
__device__ __forceinline__ uint64_t advanced(uint64_t operand, uint32_t bytes) { return operand + (bytes >> 4); }

}  // namespace srgan_fast
