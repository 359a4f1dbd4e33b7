// Products of a warpgroup: how descriptors are read, and what becomes of the registers.
#pragma once

#include "state.hpp"

namespace machine {
namespace {

// The 16-byte words of `rows` rows of an operand: two a row.
bool words_of(uint64_t descriptor, int rows, std::vector<uint32_t>& to, const char* what) {
  const uint32_t start = (descriptor & 0x3FFF) << 4, leading = (descriptor >> 16 & 0x3FFF) << 4;
  uint32_t stride = (descriptor >> 32 & 0x3FFF) << 4;
  if (descriptor >> 49 & 7)
    return fail("the descriptor of %s has a base offset, for which there is no model", what), false;
  const int mode = static_cast<int>(descriptor >> 62), span = mode == 0 ? 16 : 256 >> mode;
  if (mode && now.model == kAddressSbo1024) stride = 1024 >> (mode - 1);
  for (int r = 0; r < rows; ++r)
    for (uint32_t word = 0; word < 2; ++word) {
      const uint32_t group = start + r / 8 * stride;
      uint32_t address;
      if (mode == 0) {
        address = group + r % 8 * 16 + word * leading;
      } else if (now.model == kRow) {
        const uint32_t inside_row = start % span + word * 16;
        const uint32_t shift = span == 128 ? r % 8 : span == 64 ? r / 2 % 4 : r / 4 % 2;
        address = group - start % span + r % 8 * span + (inside_row ^ shift << 4);
      } else {
        address = swizzled(group + r % 8 * span + word * 16, span);
      }
      if (!inside(address, 16, what)) return false;
      to.push_back(address);
    }
  return true;
}

float value_of(uint16_t bits, Element element) {
  if (element == kBFloat16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
  }
  static const std::vector<float> values = [] {
    std::vector<float> all(65536);
    for (uint32_t i = 0; i < all.size(); ++i) all[i] = half_value(static_cast<uint16_t>(i));
    return all;
  }();
  return values[bits];
}

template <class Value>
void multiply(const Product& product, Sum& sum) {
  constexpr int kMost = 32;
  static Value a[64][kMost], b[kMost][256];
  const int depth = product.element == kInt8 ? 32 : 16, n = product.n;
  const auto element = [&](uint32_t word, int k) -> Value {
    const uint8_t* from = memory + product.words[word + (product.element == kInt8 ? k / 16 : k / 8)];
    if (product.element == kInt8) return static_cast<Value>(static_cast<int8_t>(from[k % 16]));
    uint16_t bits;
    memcpy(&bits, from + k % 8 * 2, 2);
    return static_cast<Value>(value_of(bits, product.element));
  };
  for (int m = 0; m < 64; ++m)
    for (int k = 0; k < depth; ++k) a[m][k] = element(2 * m, k);
  for (int r = 0; r < n; ++r)
    for (int k = 0; k < depth; ++k) b[k][r] = element(128 + 2 * r, k);
  Value* data = reinterpret_cast<Value*>(sum.data.data());
  if (!product.accumulate) memset(data, 0, sum.data.size() * 4);
  for (int m = 0; m < 64; ++m)
    for (int k = 0; k < depth; ++k) {
      const Value factor = a[m][k];
      Value* to = data + m * n;
      for (int r = 0; r < n; ++r) to[r] += factor * b[k][r];
    }
}

// A thread's values of D: from its registers into the sum, or back.
void move_registers(Sum& sum, int thread, bool back) {
  const int first = thread / 32 * 16 + thread % 32 / 4;
  uint8_t* registers = static_cast<uint8_t*>(sum.registers[thread]);
  for (int i = 0; i < sum.n / 2; ++i) {
    const int m = first + (i >> 1 & 1) * 8, column = i / 4 * 8 + thread % 4 * 2 + (i & 1);
    uint8_t* value = reinterpret_cast<uint8_t*>(&sum.data[m * sum.n + column]);
    if (back) memcpy(registers + 4 * i, value, 4);
    else memcpy(value, registers + 4 * i, 4);
  }
}

// Lets the warps go on that wait for a batch, once its products are done.
void batch_progress(uint32_t number, uint32_t which) {
  Group& group = groups[number];
  Batch& batch = group.batches[which - group.first];
  if (batch.done < batch.products.size()) return;
  for (int w = 0; w < 4; ++w) {
    if (batch.waited[w] || batch.waiting[w] < 32) continue;
    batch.waited[w] = true;
    for (int t = w * 32; t < w * 32 + 32; ++t) {
      for (Sum& sum : batch.sums) move_registers(sum, t, true);
      wake(static_cast<int>(number) * 128 + t);
    }
  }
  if (!(batch.waited[0] && batch.waited[1] && batch.waited[2] && batch.waited[3])) return;
  for (const Product& product : batch.products)
    for (uint32_t address : product.words) --readers[address / 16];
  // Batches end in their order: a warp waits for one before it starts the next.
  group.batches.pop_front();
  ++group.first;
}

void do_work(const Work& work) {
  if (work.kind == Work::kFill) {
    fill(copies[work.index]);
  } else if (work.kind == Work::kRead) {
    read_for_store(work.index);
  } else if (work.kind == Work::kWrite) {
    write_for_store(copies[work.index]);
  } else {
    Group& group = groups[work.group];
    Batch& batch = group.batches[work.batch - group.first];
    Product& product = batch.products[work.index];
    Sum& sum = batch.sums[product.sum];
    if (product.element == kInt8) multiply<int>(product, sum);
    else multiply<float>(product, sum);
    ++batch.done;
    batch_progress(work.group, work.batch);
  }
}

void do_due_work() {
  while (!failed && next_due <= step) {
    size_t first = works.size();
    for (size_t i = 0; i < works.size(); ++i)
      if (works[i].due <= step &&
          (first == works.size() || works[i].due < works[first].due ||
           (works[i].due == works[first].due && works[i].order < works[first].order)))
        first = i;
    if (first < works.size()) {
      const Work work = works[first];
      works[first] = works.back();
      works.pop_back();
      do_work(work);
    }
    next_due = ~0ull;
    for (const Work& work : works)
      if (work.due < next_due) next_due = work.due;
  }
}

}  // namespace
}  // namespace machine
