// Stands in for kernels/include/wgmma.cuh: the products of a warpgroup, on a CPU.
#pragma once

#include "types.cuh"

namespace srgan_fast {

template <class T>
struct Accumulator;

template <>
struct Accumulator<Half> {
  using type = float;
  static constexpr int kDepth = 16;
  static constexpr machine::Element kElement = machine::kHalf;
};

template <>
struct Accumulator<BFloat16> {
  using type = float;
  static constexpr int kDepth = 16;
  static constexpr machine::Element kElement = machine::kBFloat16;
};

template <>
struct Accumulator<int8_t> {
  using type = int;
  static constexpr int kDepth = 32;
  static constexpr machine::Element kElement = machine::kInt8;
};

template <class T, int N>
struct Wgmma {
  static_assert(N % 16 == 0 && N >= 16 && N <= 256);
  using Value = typename Accumulator<T>::type;
  static inline void add(Value (&d)[N / 2], uint64_t da, uint64_t db, int accumulate) {
    machine::wgmma(d, N, Accumulator<T>::kElement, da, db, accumulate != 0);
  }
};

}  // namespace srgan_fast
