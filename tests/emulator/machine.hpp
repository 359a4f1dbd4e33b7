// What the emulated instructions need of the machine that runs them: one block at a time, every thread a fiber, copies
// and products in the background at times that a seed draws. machine.cpp says what is checked.
#pragma once

#include <stdint.h>
#include <string.h>

namespace machine {

// How the hardware reads an operand in a swizzled pattern; what is believed is kAddress.
enum Model {
  kAddress,         // the words of 16 bytes change places by bits of their final address
  kRow,             // by the number of the row in its group of eight: right only where the pattern starts
  kAddressSbo1024,  // as kAddress, but groups of eight rows follow each other whatever the descriptor says
};

enum Element { kHalf, kBFloat16, kInt8 };

// A 16-bit float's value, from its bits.
inline float half_value(uint16_t bits) {
  const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
  uint32_t wide = fraction << 13 | (exponent == 31 ? 0x7F800000 : (exponent + 112) << 23);
  float value;
  if (exponent) memcpy(&value, &wide, 4);
  else value = static_cast<float>(fraction) / 16777216.f;
  return bits >> 15 ? -value : value;
}

using Entry = void (*)(const void* parameters);

struct Launch {
  Entry entry;
  const void* parameters;
  uint32_t grid[3], threads, shared_bytes, model;
  uint64_t seed;
  const uint64_t* fresh;  // first and last address + 1 of what the kernel before this one wrote
  uint32_t fresh_count;
};

// nullptr, or what went wrong; the text lives until the next launch.
const char* run(const Launch& launch);

uint32_t dynamic_shared();
void write(uint32_t address, const void* from, uint32_t bytes);
void read(uint32_t address, void* to, uint32_t bytes);

void barrier_init(uint32_t barrier, uint32_t arrivals);
void barrier_init_done();
void barrier_arrive(uint32_t barrier, uint32_t count, uint32_t expected_bytes);
void barrier_wait(uint32_t barrier, uint32_t parity);
void named_barrier(uint32_t number, uint32_t threads);
void fence_async_shared();

void tma_load(uint32_t to, const void* map, uint32_t barrier, int rank, const int* coordinates);
void tma_store(const void* map, uint32_t from, int rank, const int* coordinates);
void store_commit();
void store_wait(bool read_only);

void wgmma(void* d, int n, Element element, uint64_t a, uint64_t b, bool accumulate);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait();

void store_matrices(uint32_t row, const uint32_t* v);
void load_matrices(uint32_t row, uint32_t* v);

uint32_t exchange(uint32_t value, int mask);

void wait_for_previous_kernel();

}  // namespace machine
