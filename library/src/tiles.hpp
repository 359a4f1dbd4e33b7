// Which height of tiles ends first: the rule of kernels/hopper.py.
#pragma once

#include <vector>

#include "ops.hpp"

namespace srgan_fast::host {

// `columns` of a tile are written, `computed` are multiplied, in `steps` products of depth 16; `blocks` run at a time.
// One of `heights`: the one with the fewest clocks in the block that ends last.
int tile_rows(Size size, int columns, int computed, int blocks, int steps, const std::vector<int>& heights);

}  // namespace srgan_fast::host
