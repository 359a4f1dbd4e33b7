// Bulk copies, from their start to their end.
#pragma once

#include "state.hpp"

namespace machine {
namespace {

bool read_map(Map& to, const void* from, int rank) {
  memcpy(&to, from, sizeof(Map));
  if (to.mark != 0xA5) return fail("a copy names no tensor map"), false;
  if (to.rank != rank) return fail("a copy has %d coordinates, and its map %d dimensions", rank, to.rank), false;
  return true;
}

uint32_t box_bytes(const Map& map) {
  uint32_t bytes = map.element_bytes;
  for (int d = 0; d < map.rank; ++d) bytes *= map.box[d];
  return bytes;
}

// Calls `row(shared offset, global address or nullptr, bytes inside)` for each row of the box.
template <class Row>
void each_row(const Copy& copy, Row row) {
  const Map& map = copy.map;
  const uint32_t row_bytes = map.box[0] * map.element_bytes, rows = copy.bytes / row_bytes;
  int at[5] = {};
  for (uint32_t r = 0; r < rows; ++r) {
    bool in = true;
    int64_t offset = 0;
    for (int d = 1; d < map.rank; ++d) {
      const int64_t c = static_cast<int64_t>(copy.at[d]) + at[d];
      in = in && c >= 0 && c < map.sizes[d];
      offset += c * static_cast<int64_t>(map.strides[d - 1]);
    }
    int64_t from = 0, to = map.box[0];  // elements inside the tensor
    if (copy.at[0] < 0) from = -static_cast<int64_t>(copy.at[0]);
    if (copy.at[0] + to > map.sizes[0]) to = static_cast<int64_t>(map.sizes[0]) - copy.at[0];
    if (!in || to < from) from = to = 0;
    uint8_t* global = reinterpret_cast<uint8_t*>(map.address) + offset + (copy.at[0] + from) * map.element_bytes;
    row(r * row_bytes, static_cast<uint32_t>(from * map.element_bytes), static_cast<uint32_t>(to * map.element_bytes),
        row_bytes, global);
    for (int d = 1; d < map.rank; ++d) {
      if (++at[d] < map.box[d]) break;
      at[d] = 0;
    }
  }
}

void fill(Copy& copy) {
  each_row(copy, [&](uint32_t offset, uint32_t from, uint32_t to, uint32_t bytes, const uint8_t* global) {
    uint8_t row[1024 * 16];
    memset(row, 0, bytes);
    if (to > from) memcpy(row + from, global, to - from);
    for (uint32_t i = 0; i < bytes; i += 16)
      memcpy(memory + swizzled(copy.shared + offset + i, copy.map.swizzle), row + i, 16);
  });
  for (uint32_t g = copy.shared / 16; g < (copy.shared + copy.bytes) / 16; ++g) --loading[g];
  copy.written = true;
  if (alive == 0) return fail("a load to shared address %u ends after the last thread", copy.shared);
  Barrier* barrier = barrier_at(copy.barrier, "a load completes on");
  if (!barrier) return;
  barrier->bytes -= copy.bytes;
  if (barrier->bytes < 0) {
    fail("barrier %u got %lld bytes more than its phase expects", copy.barrier,
         -static_cast<long long>(barrier->bytes));
    return;
  }
  flip_if_complete(*barrier);
}

bool satisfied(const Fiber& fiber, bool read_only) {
  for (int c : fiber.groups)
    if (read_only ? !copies[c].read : !copies[c].written) return false;
  return true;
}

void store_progress(const Copy& copy) {
  Fiber& fiber = fibers[copy.thread];
  if (fiber.slot < 0 && fiber.where == kStores && satisfied(fiber, fiber.waits_for_reads)) wake(copy.thread);
}

void read_for_store(int index) {
  Copy& copy = copies[index];
  copy.data.resize(copy.bytes);
  for (uint32_t i = 0; i < copy.bytes; i += 16)
    memcpy(copy.data.data() + i, memory + swizzled(copy.shared + i, copy.map.swizzle), 16);
  copy.read = true;
  later({Work::kWrite, 0, 0, index, 0, 0});
  store_progress(copy);
}

void write_for_store(Copy& copy) {
  each_row(copy, [&](uint32_t offset, uint32_t from, uint32_t to, uint32_t, uint8_t* global) {
    if (to > from) memcpy(global, copy.data.data() + offset + from, to - from);
  });
  copy.written = true;
  copy.data = {};
  store_progress(copy);
}

bool take_copy(Copy& copy, const void* map, uint32_t shared, int rank, const int* coordinates, const char* what) {
  if (!read_map(copy.map, map, rank)) return false;
  for (int d = 0; d < rank; ++d) copy.at[d] = coordinates[d];
  copy.shared = shared;
  copy.bytes = box_bytes(copy.map);
  copy.thread = current;
  const uint32_t alignment = copy.map.swizzle ? copy.map.swizzle * 8u : 128;
  if (shared % alignment)
    return fail("%s shared address %u, which is no multiple of %u", what, shared, alignment), false;
  return inside(shared, copy.bytes, what);
}

}  // namespace
}  // namespace machine
