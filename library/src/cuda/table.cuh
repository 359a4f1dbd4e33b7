// Tables of kernels by the height of their tiles.
#pragma once

#include <utility>
#include <vector>

#include "../device.hpp"

namespace srgan_fast::host {

constexpr int kSharedLimit = 232448;  // bytes of dynamic shared memory that a block may have

// MADE<ROWS>::kernel() for ROWS = STEP, 2 * STEP, ...
template <template <int> class MADE, int STEP, int... I>
std::vector<Kernel> table_of(std::integer_sequence<int, I...>) {
  return {MADE<(I + 1) * STEP>::kernel()...};
}

// As table_of, up to the tallest tile, which is known.
template <template <int> class MADE, int STEP, int TALLEST>
std::vector<Kernel> table() {
  static_assert(MADE<TALLEST>::kernel().shared_bytes <= kSharedLimit, "the tallest tile fits into shared memory");
  return table_of<MADE, STEP>(std::make_integer_sequence<int, TALLEST / STEP>());
}

}  // namespace srgan_fast::host
