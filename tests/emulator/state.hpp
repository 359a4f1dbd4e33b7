// What the machine is made of: threads, barriers, copies and products under way, and what is known of memory.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <deque>
#include <vector>

#include "machine.hpp"

struct Index {
  unsigned x, y, z;
};
Index threadIdx, blockIdx, blockDim, gridDim;

namespace machine {
namespace {

constexpr uint32_t kLimit = 232448, kArena = 1024 + 1024 + kLimit, kStack = 64 * 1024;
// What a thread waits on that has no address: its own stores, or the rest of its warp.
constexpr uint32_t kStores = ~0u, kElsewhere = ~0u - 1;

struct Map {
  uint64_t address;
  uint64_t strides[4];  // bytes, of the dimensions after the first
  uint32_t sizes[5];
  uint16_t box[5];
  uint8_t rank, element_bytes, swizzle, mark;
};

struct Fiber {
  jmp_buf place;
  ucontext_t start;
  char* stack;
  bool started, ended, fenced, waited;
  int slot;              // in the list of those that can run; -1 if it waits
  const char* waits_on;  // and for what, in the words of a report
  uint32_t where, value;
  uint32_t fences;        // how many this thread has executed, from 1
  uint32_t issued, committed, batch;
  std::vector<int> stores, groups;  // not committed, and committed and not waited for
  bool waits_for_reads;
};

struct Barrier {
  uint32_t address, arrivals, phase;
  int64_t pending, bytes;
  int by;
  bool published;
};

struct Copy {
  Map map;
  int at[5];
  uint32_t shared, bytes;
  uint32_t barrier;  // of a load
  int thread;
  bool committed, read, written, released;
  std::vector<uint8_t> data;  // of a store
};

struct Sum {
  int n;
  Element element;
  void* registers[128];
  std::vector<uint32_t> data;  // [64][n]
};

struct Product {
  uint64_t a, b;
  int n;
  Element element;
  bool accumulate;
  int sum, issued;
  std::vector<uint32_t> words;  // addresses of 16 bytes that it reads: those of A, then those of B
};

// The products between two waits.
struct Batch {
  std::vector<Product> products;
  std::vector<Sum> sums;
  uint32_t done;
  int waiting[4];
  bool waited[4];
};

struct Group {
  std::deque<Batch> batches;
  uint32_t first;  // number of batches[0]
  uint64_t busy_until;
};

enum Together { kStore, kLoad, kExchange };

struct Collective {
  int arrived;
  Together kind;
  uint32_t rows[32];
  uint32_t v[32][4];
  uint32_t* to[32];
};

struct Work {
  enum Kind { kFill, kRead, kWrite, kMultiply } kind;
  uint64_t due, order;
  int index;         // of a copy, or of a product in its batch
  uint32_t group, batch;
};

alignas(1024) uint8_t memory[kArena];
uint32_t written_by[kArena / 4];   // thread + 1 and the number of its fences, of a plain write
uint16_t readers[kArena / 16], loading[kArena / 16];
bool is_barrier[kArena / 16];
uint32_t base, end;

std::vector<Fiber> fibers;
std::vector<int> runnable;
std::deque<Copy> copies;
std::vector<Work> works;
std::vector<Barrier> barriers;
std::vector<Group> groups;
std::vector<Collective> collectives;
int named_arrived[16];
uint32_t named_threads[16];
uint64_t step, next_due, order, slow;
uint32_t alive;  // threads
bool prompt;
bool failed, previous_waited;
char text[2000];
Launch now;
int current;  // thread, or -1
jmp_buf scheduler;
uint64_t state;

uint64_t draw() {
  state += 0x9E3779B97F4A7C15ull;
  uint64_t z = state;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ z >> 27) * 0x94D049BB133111EBull;
  return z ^ z >> 31;
}
uint32_t draw(uint32_t below) { return static_cast<uint32_t>((draw() >> 32) * below >> 32); }

void to_scheduler() {
  if (!_setjmp(fibers[current].place)) _longjmp(scheduler, 1);
}

// Notes the first fault; a fiber that meets one never goes on.
__attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
  if (!failed) {
    failed = true;
    int length = snprintf(text, sizeof(text), "block (%u, %u, %u), ", blockIdx.x, blockIdx.y, blockIdx.z);
    length += current >= 0 ? snprintf(text + length, sizeof(text) - length, "thread %d: ", current)
                           : snprintf(text + length, sizeof(text) - length, "in the background: ");
    va_list list;
    va_start(list, format);
    vsnprintf(text + length, sizeof(text) - length, format, list);
    va_end(list);
  }
  if (current >= 0) to_scheduler();
}

void wake(int thread) {
  Fiber& fiber = fibers[thread];
  if (fiber.slot >= 0 || fiber.ended) return;
  fiber.slot = static_cast<int>(runnable.size());
  runnable.push_back(thread);
}

void sleep(int thread) {
  Fiber& fiber = fibers[thread];
  const int slot = fiber.slot, last = runnable.back();
  runnable[slot] = last;
  fibers[last].slot = slot;
  runnable.pop_back();
  fiber.slot = -1;
}

void block(const char* on, uint32_t where, uint32_t value) {
  Fiber& fiber = fibers[current];
  fiber.waits_on = on;
  fiber.where = where;
  fiber.value = value;
  sleep(current);
  to_scheduler();
}

// Now and then others go first, where nothing makes a thread wait.
void perhaps_yield(uint32_t one_in) {
  if (draw(one_in) == 0) to_scheduler();
}

void later(Work work, uint64_t after = 0) {
  // For a while all of it is done at once; else half nearly so, and some very late.
  const uint32_t kind = prompt ? 0 : draw(4);
  const uint64_t delay = kind < 2 ? draw(8) : kind == 2 ? draw(400) : draw(6000);
  work.due = (after > step ? after : step) + delay;
  work.order = order++;
  if (work.due < next_due) next_due = work.due;
  works.push_back(work);
}

bool inside(uint32_t address, uint32_t bytes, const char* what) {
  if (address >= base && address <= end && bytes <= end - address) return true;
  fail("%s %u bytes at shared address %u, outside the %u bytes from %u on that the launch asked for", what, bytes,
       address, end - base, base);
  return false;
}

bool unfenced(uint32_t address, uint32_t bytes, const char* what) {
  for (uint32_t word = address / 4; word < (address + bytes + 3) / 4; ++word) {
    const uint32_t mark = written_by[word];
    if (mark == 0) continue;
    const int writer = static_cast<int>(mark >> 21) - 1;
    if ((mark & 0x1FFFFF) == fibers[writer].fences) {
      fail("%s shared address %u, which thread %d wrote without fence_async_shared since", what, word * 4, writer);
      return true;
    }
    written_by[word] = 0;
  }
  return false;
}

// Whether memory may be read (or written) now: nothing fills it, no barrier lies there, nothing still reads it.
bool usable(uint32_t address, uint32_t bytes, const char* what, bool write) {
  for (uint32_t g = address / 16; g <= (address + bytes - 1) / 16; ++g) {
    if (loading[g]) return fail("%s shared address %u, which a load still fills", what, g * 16), false;
    if (is_barrier[g]) return fail("%s shared address %u, where a barrier is", what, g * 16), false;
    if (write && readers[g])
      return fail("%s shared address %u, which a product or a store still reads: no wait proved its end", what, g * 16),
             false;
  }
  return true;
}

uint32_t swizzled(uint32_t address, int span) {
  return address ^ ((address >> 7 & (span == 128 ? 7 : span == 64 ? 3 : span == 32 ? 1 : 0)) << 4);
}

Barrier* barrier_at(uint32_t address, const char* what) {
  for (Barrier& barrier : barriers)
    if (barrier.address == address) return &barrier;
  fail("%s shared address %u, where no barrier was made", what, address);
  return nullptr;
}

void flip_if_complete(Barrier& barrier) {
  if (barrier.pending || barrier.bytes) return;
  barrier.pending = barrier.arrivals;
  ++barrier.phase;
  for (int t = 0; t < static_cast<int>(fibers.size()); ++t)
    if (fibers[t].slot < 0 && fibers[t].where == barrier.address && (barrier.phase & 1) != fibers[t].value) wake(t);
}

}  // namespace
}  // namespace machine
