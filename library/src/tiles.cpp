#include "tiles.hpp"

#include <algorithm>
#include <cstdint>

namespace srgan_fast::host {

// From one tile to the next, as the turn goes to the other warpgroup: an estimate.
constexpr int kTurnClocks = 100;

int tile_rows(Size size, int columns, int computed, int blocks, int steps, const std::vector<int>& heights) {
  const auto cost = [&](int rows) {
    const int64_t across = (size.w + columns - 1) / columns, down = (size.h + rows - 1) / rows;
    const int64_t tiles = size.n * down * across;
    const int64_t waves = (tiles + std::min<int64_t>(tiles, blocks) - 1) / std::min<int64_t>(tiles, blocks);
    // What one step takes: products at 2048 a clock, or the operands' way from shared memory at 128 bytes.
    const int pixels = rows * computed, clocks = std::max(pixels / 2, 16 + pixels / 4);
    // The last tile's epilogue is not hidden: it grows with the pixels of a tile.
    return waves * (steps * clocks + kTurnClocks) + 8 * rows;
  };
  int best = heights.front();
  for (const int rows : heights)
    // Of equals, the tallest tile has the least halo.
    if (cost(rows) < cost(best) || (cost(rows) == cost(best) && rows > best)) best = rows;
  return best;
}

}  // namespace srgan_fast::host
