// Stands in for kernels/include/ptx.cuh: what each instruction does, on a CPU.
#pragma once

#include "types.cuh"

namespace srgan_fast {

inline uint32_t dynamic_shared() { return machine::dynamic_shared(); }
inline void store_shared(uint32_t address, uint16_t value) { machine::write(address, &value, 2); }
inline void store_shared(uint32_t address, uint32_t value) { machine::write(address, &value, 4); }
inline void store_shared(uint32_t address, uint64_t value) { machine::write(address, &value, 8); }
inline uint32_t load_shared(uint32_t address) {
  uint32_t value;
  machine::read(address, &value, 4);
  return value;
}

inline void barrier_init(uint32_t barrier, uint32_t arrivals) { machine::barrier_init(barrier, arrivals); }
inline void barrier_init_done() { machine::barrier_init_done(); }
inline void barrier_arrive(uint32_t barrier, uint32_t count = 1) { machine::barrier_arrive(barrier, count, 0); }
inline void barrier_arrive_expect(uint32_t barrier, uint32_t bytes) { machine::barrier_arrive(barrier, 1, bytes); }
inline void barrier_wait(uint32_t barrier, uint32_t parity) { machine::barrier_wait(barrier, parity); }
inline void named_barrier(uint32_t number, uint32_t threads) { machine::named_barrier(number, threads); }
inline void fence_async_shared() { machine::fence_async_shared(); }

inline void prefetch_map(const TensorMap*) {}

template <class... Coordinates>
inline void tma_load(uint32_t to, const TensorMap* map, uint32_t barrier, Coordinates... coordinates) {
  const int list[] = {coordinates...};
  machine::tma_load(to, map, barrier, sizeof...(coordinates), list);
}

template <class... Coordinates>
inline void tma_store(const TensorMap* map, uint32_t from, Coordinates... coordinates) {
  const int list[] = {coordinates...};
  machine::tma_store(map, from, sizeof...(coordinates), list);
}

inline void store_commit() { machine::store_commit(); }
inline void store_wait_read() { machine::store_wait(true); }
inline void store_wait() { machine::store_wait(false); }

inline void wgmma_fence() { machine::wgmma_fence(); }
inline void wgmma_commit() { machine::wgmma_commit(); }
inline void wgmma_wait() { machine::wgmma_wait(); }

inline void store_matrices(uint32_t row, const uint32_t (&v)[4]) { machine::store_matrices(row, v); }
inline void load_matrices(uint32_t row, uint32_t (&v)[4]) { machine::load_matrices(row, v); }

inline uint32_t exchange(uint32_t value, int mask) { return machine::exchange(value, mask); }

inline int same_in_warp(int value) { return value; }

template <int COUNT>
inline void registers_up_to() {}
template <int COUNT>
inline void registers_down_to() {}
inline void launch_dependents() {}
inline void wait_for_previous_kernel() { machine::wait_for_previous_kernel(); }

inline uint32_t pack_bytes(int first, int second, int third, int fourth) {
  uint32_t bytes = 0;
  const int values[] = {first, second, third, fourth};
  for (int i = 0; i < 4; ++i) {
    const int value = values[i] > 127 ? 127 : values[i] < -128 ? -128 : values[i];
    bytes |= static_cast<uint32_t>(value & 0xFF) << 8 * i;
  }
  return bytes;
}

// --- pairs of 16-bit values, rounded to the nearest, ties to even

inline uint32_t half_bits(float value) {
  const uint32_t bits = __float_as_uint(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
  if (value != value) return 0x7FFF;
  if (magnitude >= 0x477FF000) return sign | 0x7C00;                                      // from 65520 on, infinite
  if (magnitude < 0x38800000) return sign | static_cast<uint32_t>(lrintf(fabsf(value) * 16777216.f));  // subnormal
  return sign | ((magnitude + 0xFFF + (magnitude >> 13 & 1)) >> 13) - (112 << 10);
}

inline uint32_t bfloat16_bits(float value) {
  if (value != value) return 0x7FFF;
  const uint32_t bits = __float_as_uint(value);
  return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

template <class T>
inline uint32_t pack(float low, float high);
template <>
inline uint32_t pack<Half>(float low, float high) {
  return half_bits(low) | half_bits(high) << 16;
}
template <>
inline uint32_t pack<BFloat16>(float low, float high) {
  return bfloat16_bits(low) | bfloat16_bits(high) << 16;
}

template <class T>
inline void unpack(uint32_t pair, float& low, float& high);
template <>
inline void unpack<Half>(uint32_t pair, float& low, float& high) {
  low = machine::half_value(static_cast<uint16_t>(pair));
  high = machine::half_value(static_cast<uint16_t>(pair >> 16));
}
template <>
inline void unpack<BFloat16>(uint32_t pair, float& low, float& high) {
  low = __uint_as_float(pair << 16);
  high = __uint_as_float(pair & 0xFFFF0000u);
}

}  // namespace srgan_fast
