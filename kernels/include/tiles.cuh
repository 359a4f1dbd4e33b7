// The order in which the blocks of a kernel take the tiles of its frames.
#pragma once

namespace srgan_fast {

// The frame of a tile, and its first pixel.
struct TilePlace {
  int n, y, x;
};

struct TileOrder {
  int across, a_frame, tiles;
  int reversed;  // the last tile first: what the layer before wrote last is still in the cache

  // That of tile number i in this order, where tiles are rows x columns.
  __device__ __forceinline__ TilePlace place(int i, int rows, int columns) const {
    const int tile = reversed ? tiles - 1 - i : i;
    const int n = tile / a_frame, inside = tile - n * a_frame, down = inside / across;
    return {n, down * rows, (inside - down * across) * columns};
  }
};

}  // namespace srgan_fast
