// Tables of kernels by the height of their tiles.
#pragma once

#include <utility>
#include <vector>

#include "../device.hpp"
#include "conv3x3/sm90.cu"

namespace srgan_fast::host {

constexpr int kSharedLimit = 232448;  // bytes of dynamic shared memory that a block may have

template <class Parameters>
Kernel kernel_of(void (*function)(Parameters), int rows, int shared_bytes) {
  return {reinterpret_cast<const void*>(function), rows, shared_bytes};
}

template <class Maker, int STEP, int... I>
std::vector<Kernel> table(std::integer_sequence<int, I...>) {
  return {Maker::template made<(I + 1) * STEP>()...};
}

// Maker::made<ROWS>() for ROWS = STEP, 2 * STEP, ... TALLEST.
template <class Maker, int STEP, int TALLEST>
std::vector<Kernel> table() {
  static_assert(Maker::template shared_bytes<TALLEST>() <= kSharedLimit, "tiles fit into shared memory");
  return table<Maker, STEP>(std::make_integer_sequence<int, TALLEST / STEP>());
}

template <Layout LAYOUT, bool RESIDUAL>
struct ConvMaker {
  template <int ROWS>
  static constexpr int shared_bytes() {
    return Conv3x3Tile<LAYOUT, ROWS, 128, 128>::kSharedBytes;
  }
  template <int ROWS>
  static Kernel made() {
    return kernel_of(conv3x3<Half, LAYOUT, ROWS, !RESIDUAL, RESIDUAL>, ROWS, shared_bytes<ROWS>());
  }
};

// Each layout is compiled in a file of its own, so that several are at once.
template <Layout LAYOUT>
const std::vector<Kernel>& conv_table(bool residual);

template <Layout LAYOUT, int STEP, int TALLEST>
const std::vector<Kernel>& conv_table_of(bool residual) {
  static const std::vector<Kernel> tables[] = {table<ConvMaker<LAYOUT, false>, STEP, TALLEST>(),
                                               table<ConvMaker<LAYOUT, true>, STEP, TALLEST>()};
  return tables[residual];
}

}  // namespace srgan_fast::host
