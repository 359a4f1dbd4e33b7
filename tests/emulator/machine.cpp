// The machine: fibers, barriers, bulk copies, products of warpgroups, and the faults that a GPU would not tell of.
//
// Memory that a copy or a product reads counts as being read until the program has proof of the end (a wait), and memory
// that a copy fills is 0xFF until then; what happens in between happens at times that the seed draws.
#include "machine.hpp"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <deque>
#include <vector>

struct Index {
  unsigned x, y, z;
};
Index threadIdx, blockIdx, blockDim, gridDim;

namespace machine {
namespace {

constexpr uint32_t kLimit = 232448, kArena = 1024 + 1024 + kLimit, kStack = 64 * 1024, kStores = ~0u, kElsewhere = ~0u - 1;

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
  fail("%s %u bytes at shared address %u, outside the %u bytes from %u on that the launch asked for", what, bytes, address,
       end - base, base);
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
      return fail("%s shared address %u, which a product or a store still reads as far as a wait has proved", what, g * 16),
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

// --- copies

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
    fail("barrier %u got %lld bytes more than its phase expects", copy.barrier, -static_cast<long long>(barrier->bytes));
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

// --- products

// The 16-byte words of `rows` rows of an operand: two a row.
bool words_of(uint64_t descriptor, int rows, std::vector<uint32_t>& to, const char* what) {
  const uint32_t start = (descriptor & 0x3FFF) << 4, leading = (descriptor >> 16 & 0x3FFF) << 4;
  uint32_t stride = (descriptor >> 32 & 0x3FFF) << 4;
  if (descriptor >> 49 & 7) return fail("the descriptor of %s has a base offset, for which there is no model", what), false;
  const int mode = static_cast<int>(descriptor >> 62), span = mode == 0 ? 16 : 256 >> mode;
  if (mode && now.model == kAddressSbo1024) stride = 1024 >> (mode - 1);
  for (int r = 0; r < rows; ++r)
    for (uint32_t word = 0; word < 2; ++word) {
      const uint32_t group = start + r / 8 * stride;
      uint32_t address;
      if (mode == 0) {
        address = group + r % 8 * 16 + word * leading;
      } else if (now.model == kRow) {
        const uint32_t inside_row = start % span + word * 16, shift = span == 128 ? r % 8 : span == 64 ? r / 2 % 4 : r / 4 % 2;
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
  static float* table = nullptr;
  if (!table) {
    table = static_cast<float*>(malloc(65536 * sizeof(float)));
    for (uint32_t i = 0; i < 65536; ++i) {
      const uint16_t pattern = static_cast<uint16_t>(i);
      _Float16 half;
      memcpy(&half, &pattern, 2);
      table[i] = static_cast<float>(half);
    }
  }
  return table[bits];
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

// --- the scheduler

void body() {
  now.entry(now.parameters);
  Fiber& fiber = fibers[current];
  fiber.ended = true;
  --alive;
  fiber.waits_on = nullptr;
  sleep(current);
  _longjmp(scheduler, 1);
}

__attribute__((noinline)) void resume(int thread) {
  current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  if (!_setjmp(scheduler)) {
    Fiber& fiber = fibers[thread];
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    setcontext(&fiber.start);
  }
  current = -1;
}

void change_pace() {
  slow = draw() & draw();
  prompt = draw(3) == 0;
}

// The thread that goes on now, or -1 if it is the background's turn. Some warps stand still for a while: as long as
// anything else can happen.
int pick() {
  if (draw(1024) == 0) change_pace();
  const uint32_t count = static_cast<uint32_t>(runnable.size()), start = draw(count);
  for (uint32_t i = 0; i < count; ++i) {
    const int thread = runnable[(start + i) % count];
    if (!(slow >> thread / 32 & 1)) return thread;
  }
  return works.empty() ? runnable[start] : -1;
}

void report_deadlock() {
  char list[1500];
  int length = 0;
  const char* last = nullptr;
  uint32_t where = 0, value = 0;
  for (size_t t = 0; t < fibers.size() && length < 1300; ++t) {
    const Fiber& fiber = fibers[t];
    if (fiber.ended || (last == fiber.waits_on && where == fiber.where && value == fiber.value)) continue;
    last = fiber.waits_on;
    where = fiber.where;
    value = fiber.value;
    length += snprintf(list + length, sizeof(list) - length, "; from thread %zu on %s", t, last);
    if (where < kElsewhere) length += snprintf(list + length, sizeof(list) - length, " %u (%u)", where, value);
    for (const Barrier& barrier : barriers)
      if (barrier.address == where)
        length += snprintf(list + length, sizeof(list) - length, ", which is in phase %u and lacks %lld arrivals, %lld bytes",
                           barrier.phase, static_cast<long long>(barrier.pending), static_cast<long long>(barrier.bytes));
  }
  fail("deadlock, every thread waits%s", length ? list : "");
}

void run_block() {
  // 16 leaves the least room to who aligns it.
  base = 1024 + 16 * (draw(3) ? 1 : 1 + draw(63));
  end = base + now.shared_bytes;
  memset(memory, 0xFF, sizeof(memory));
  memset(written_by, 0, sizeof(written_by));
  memset(readers, 0, sizeof(readers));
  memset(loading, 0, sizeof(loading));
  memset(is_barrier, 0, sizeof(is_barrier));
  memset(named_arrived, 0, sizeof(named_arrived));
  runnable.clear();
  copies.clear();
  works.clear();
  barriers.clear();
  groups.assign(now.threads / 128 + 1, {});
  collectives.assign((now.threads + 31) / 32, {});
  step = order = 0;
  next_due = ~0ull;
  change_pace();
  previous_waited = false;
  alive = now.threads;
  for (uint32_t t = 0; t < now.threads; ++t) {
    Fiber& fiber = fibers[t];
    fiber.started = fiber.ended = fiber.fenced = fiber.waited = false;
    fiber.slot = -1;
    fiber.waits_on = "";
    fiber.where = kStores;
    fiber.fences = 1;
    fiber.issued = fiber.committed = fiber.batch = 0;
    fiber.stores.clear();
    fiber.groups.clear();
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack;
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, body, 0);
    wake(static_cast<int>(t));
  }
  while (!failed) {
    if (runnable.empty() && works.empty()) break;
    const int thread = runnable.empty() ? -1 : pick();
    if (thread >= 0) {
      resume(thread);
      ++step;
    } else if (next_due > step) {
      step = next_due;
    }
    do_due_work();
  }
  if (failed) return;
  for (const Fiber& fiber : fibers)
    if (!fiber.ended) return report_deadlock();
  for (const Copy& copy : copies)
    if (!copy.barrier && !copy.released) return fail("ends with a store for which no thread waited");
  for (const Group& group : groups)
    if (!group.batches.empty()) return fail("ends with products for which a warp did not wait");
}

Group& group_of_current() { return groups[current / 128]; }

Batch& batch_of(Group& group, uint32_t number) {
  while (group.batches.size() <= number - group.first) group.batches.push_back({});
  return group.batches[number - group.first];
}

}  // namespace

const char* run(const Launch& launch) {
  now = launch;
  failed = false;
  current = -1;
  state = launch.seed;
  blockIdx = {};
  gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
  blockDim = {launch.threads, 1, 1};
  if (launch.shared_bytes > kLimit)
    return snprintf(text, sizeof(text), "%u bytes of shared memory; a block has %u", launch.shared_bytes, kLimit), text;
  if (launch.threads == 0 || launch.threads > 1024)
    return snprintf(text, sizeof(text), "a block of %u threads", launch.threads), text;
  for (Fiber& fiber : fibers) free(fiber.stack);
  fibers.assign(launch.threads, {});
  for (Fiber& fiber : fibers) fiber.stack = static_cast<char*>(malloc(kStack));
  for (unsigned z = 0; z < launch.grid[2]; ++z)
    for (unsigned y = 0; y < launch.grid[1]; ++y)
      for (unsigned x = 0; x < launch.grid[0]; ++x) {
        blockIdx = {x, y, z};
        run_block();
        if (failed) return text;
      }
  return nullptr;
}

uint32_t dynamic_shared() { return base; }

void write(uint32_t address, const void* from, uint32_t bytes) {
  perhaps_yield(64);
  if (address % bytes) fail("writes %u bytes at shared address %u, which is no multiple", bytes, address);
  inside(address, bytes, "writes");
  usable(address, bytes, "writes", true);
  memcpy(memory + address, from, bytes);
  const uint32_t mark = static_cast<uint32_t>(current + 1) << 21 | fibers[current].fences;
  for (uint32_t word = address / 4; word < (address + bytes + 3) / 4; ++word) written_by[word] = mark;
}

void read(uint32_t address, void* to, uint32_t bytes) {
  perhaps_yield(64);
  if (address % bytes) fail("reads %u bytes at shared address %u, which is no multiple", bytes, address);
  inside(address, bytes, "reads");
  usable(address, bytes, "reads", false);
  memcpy(to, memory + address, bytes);
}

void barrier_init(uint32_t address, uint32_t arrivals) {
  if (address % 8) fail("a barrier at shared address %u, which is no multiple of 8", address);
  inside(address, 8, "makes a barrier of");
  for (const Barrier& other : barriers)
    if (other.address == address) fail("a barrier at shared address %u, where one is", address);
  if (loading[address / 16] || readers[address / 16]) fail("a barrier at shared address %u, which is in use", address);
  is_barrier[address / 16] = true;
  barriers.push_back({address, arrivals, 0, arrivals, 0, current, false});
}

void barrier_init_done() {
  for (Barrier& barrier : barriers)
    if (barrier.by == current) barrier.published = true;
}

void barrier_arrive(uint32_t address, uint32_t count, uint32_t expected_bytes) {
  perhaps_yield(4);
  Barrier& barrier = *barrier_at(address, "arrives on");
  barrier.bytes += expected_bytes;
  barrier.pending -= count;
  if (barrier.pending < 0) fail("arrives on barrier %u more often than its %u times", address, barrier.arrivals);
  flip_if_complete(barrier);
  perhaps_yield(4);
}

void barrier_wait(uint32_t address, uint32_t parity) {
  if (parity > 1) fail("waits for parity %u", parity);
  perhaps_yield(4);
  for (;;) {
    const Barrier& barrier = *barrier_at(address, "waits on");
    if ((barrier.phase & 1) != parity) return;
    block("barrier, for the end of the phase of parity,", address, parity);
  }
}

void named_barrier(uint32_t number, uint32_t threads) {
  if (number > 15) fail("named barrier %u; there are 16", number);
  if (threads % 32) fail("named barrier %u of %u threads; warps have 32", number, threads);
  if (named_arrived[number] && named_threads[number] != threads)
    fail("named barrier %u of %u threads, and of %u for others", number, threads, named_threads[number]);
  named_threads[number] = threads;
  if (++named_arrived[number] < static_cast<int>(threads)) {
    block("named barrier", number, threads);
    return;
  }
  named_arrived[number] = 0;
  for (int t = 0; t < static_cast<int>(fibers.size()); ++t)
    if (fibers[t].slot < 0 && fibers[t].where == number && fibers[t].value == threads) wake(t);
  perhaps_yield(2);
}

void fence_async_shared() {
  ++fibers[current].fences;
  perhaps_yield(8);
}

void tma_load(uint32_t to, const void* map, uint32_t barrier, int rank, const int* coordinates) {
  perhaps_yield(4);
  Copy copy{};
  take_copy(copy, map, to, rank, coordinates, "a load fills");
  copy.barrier = barrier;
  for (uint32_t i = 0; i < now.fresh_count && !fibers[current].waited; ++i)
    if (copy.map.address >= now.fresh[2 * i] && copy.map.address < now.fresh[2 * i + 1])
      fail("a load of what the kernel before wrote, by a thread that has not called wait_for_previous_kernel");
  const Barrier* target = barrier_at(barrier, "a load completes on");
  if (!target->published) fail("a load completes on barrier %u without a barrier_init_done after it was made", barrier);
  usable(to, copy.bytes, "a load fills", true);
  unfenced(to, copy.bytes, "a load fills");
  memset(memory + to, 0xFF, copy.bytes);
  for (uint32_t g = to / 16; g < (to + copy.bytes) / 16; ++g) ++loading[g];
  copies.push_back(copy);
  later({Work::kFill, 0, 0, static_cast<int>(copies.size()) - 1, 0, 0});
}

void tma_store(const void* map, uint32_t from, int rank, const int* coordinates) {
  perhaps_yield(4);
  Copy copy{};
  take_copy(copy, map, from, rank, coordinates, "a store reads");
  if (!previous_waited) fail("a store to global memory before any thread of the block called wait_for_previous_kernel");
  usable(from, copy.bytes, "a store reads", false);
  unfenced(from, copy.bytes, "a store reads");
  for (uint32_t g = from / 16; g < (from + copy.bytes) / 16; ++g) ++readers[g];
  copies.push_back(copy);
  fibers[current].stores.push_back(static_cast<int>(copies.size()) - 1);
  later({Work::kRead, 0, 0, static_cast<int>(copies.size()) - 1, 0, 0});
}

void store_commit() {
  Fiber& fiber = fibers[current];
  fiber.groups.insert(fiber.groups.end(), fiber.stores.begin(), fiber.stores.end());
  fiber.stores.clear();
  perhaps_yield(4);
}

void store_wait(bool read_only) {
  Fiber& fiber = fibers[current];
  fiber.waits_for_reads = read_only;
  perhaps_yield(4);
  while (!satisfied(fiber, read_only)) block(read_only ? "store_wait_read" : "store_wait", kStores, 0);
  for (int c : fiber.groups) {
    Copy& copy = copies[c];
    if (copy.released) continue;
    copy.released = true;
    for (uint32_t g = copy.shared / 16; g < (copy.shared + copy.bytes) / 16; ++g) --readers[g];
  }
  if (!read_only) fiber.groups.clear();
}

void wgmma_fence() {
  fibers[current].fenced = true;
  perhaps_yield(8);
}

void wgmma(void* d, int n, Element element, uint64_t a, uint64_t b, bool accumulate) {
  perhaps_yield(32);
  Fiber& fiber = fibers[current];
  const int thread = current % 128;
  if (!fiber.fenced) fail("a product without a wgmma_fence since its registers were last used");
  if (now.threads < static_cast<uint32_t>(current / 128 + 1) * 128) fail("a product by a part of a warpgroup");
  Group& group = group_of_current();
  Batch& batch = batch_of(group, fiber.batch);
  const size_t number = fiber.issued++;
  const bool first = number == batch.products.size();
  if (first) {
    Product product{a, b, n, element, accumulate, -1, 0, {}};
    words_of(a, 64, product.words, "A");
    words_of(b, n, product.words, "B");
    for (uint32_t address : product.words) {
      usable(address, 16, "a product reads", false);
      unfenced(address, 16, "a product reads");
    }
    for (uint32_t address : product.words) ++readers[address / 16];
    batch.products.push_back(product);
  }
  Product& product = batch.products[number];
  if (product.a != a || product.b != b || product.n != n || product.element != element || product.accumulate != accumulate)
    fail("product %zu since the last wait differs between the threads of a warpgroup", number);
  int which = 0;
  while (which < static_cast<int>(batch.sums.size()) && batch.sums[which].registers[thread] != d) ++which;
  if (which == static_cast<int>(batch.sums.size())) {  // registers that no product has had since the last wait
    which = 0;
    while (which < static_cast<int>(batch.sums.size()) && batch.sums[which].registers[thread]) ++which;
    if (which == static_cast<int>(batch.sums.size())) {
      batch.sums.push_back({n, element, {}, {}});
      batch.sums.back().data.assign(64 * n, 0);
    }
    Sum& sum = batch.sums[which];
    if (sum.n != n || sum.element != element) fail("the same registers for two shapes of products");
    sum.registers[thread] = d;
    if (accumulate) move_registers(sum, thread, false);
    for (int i = 0; i < n / 2; ++i) static_cast<uint32_t*>(d)[i] = 0xFFFFDEAD;
  }
  if (product.sum >= 0 && product.sum != which) fail("product %zu since the last wait names other registers here", number);
  product.sum = which;
  if (++product.issued < 128) return;
  const uint32_t index = static_cast<uint32_t>(number);
  later({Work::kMultiply, 0, 0, static_cast<int>(index), static_cast<uint32_t>(current / 128), fiber.batch},
        group.busy_until);
  // Products of a warpgroup are done in the order of their issue.
  group.busy_until = works.back().due;
}

void wgmma_commit() {
  fibers[current].committed = fibers[current].issued;
  perhaps_yield(8);
}

void wgmma_wait() {
  Fiber& fiber = fibers[current];
  if (fiber.committed != fiber.issued) fail("waits for products that were not committed");
  fiber.fenced = false;
  if (fiber.issued == 0) return;
  const uint32_t which = fiber.batch++;
  fiber.issued = fiber.committed = 0;
  Batch& batch = batch_of(group_of_current(), which);
  const int warp = current % 128 / 32;
  if (++batch.waiting[warp] == 32) {
    // The last of the warp wakes the others, and itself, once the products are done.
    fiber.waits_on = "wgmma_wait";
    fiber.where = kElsewhere;
    sleep(current);
    batch_progress(static_cast<uint32_t>(current / 128), which);
    to_scheduler();
  } else {
    block("wgmma_wait", kElsewhere, 0);
  }
}

namespace {

const char* const kTogether[] = {"store_matrices", "load_matrices", "exchange"};

// Brings a lane's part; true for the last of the warp, which does the work and wakes the others.
bool together(Together kind, uint32_t row, uint32_t* v, int count) {
  Collective& warp = collectives[current / 32];
  const int lane = current % 32;
  if (warp.arrived && warp.kind != kind) fail("%s by some lanes of a warp, %s by others", kTogether[kind], kTogether[warp.kind]);
  warp.kind = kind;
  warp.rows[lane] = row;
  warp.to[lane] = v;
  memcpy(warp.v[lane], v, 4 * count);
  if (++warp.arrived < 32) {
    block(kTogether[kind], kElsewhere, 0);
    return false;
  }
  warp.arrived = 0;
  for (int t = current / 32 * 32; t < current / 32 * 32 + 32; ++t)
    if (t != current) wake(t);
  return true;
}

void matrices(uint32_t row, uint32_t* v, bool store) {
  if (row % 16) fail("a row of a matrix at shared address %u, which is no multiple of 16", row);
  inside(row, 16, "a row of a matrix:");
  if (!together(store ? kStore : kLoad, row, v, 4)) return;
  const Collective& warp = collectives[current / 32];
  for (int m = 0; m < 4; ++m)
    for (int r = 0; r < 8; ++r) {
      const uint32_t address = warp.rows[m * 8 + r];
      usable(address, 16, store ? "writes" : "reads", store);
      for (int c = 0; c < 8; ++c) {
        const int holder = c * 4 + r / 2, shift = r % 2 * 16;
        uint16_t value;
        if (store) {
          value = static_cast<uint16_t>(warp.v[holder][m] >> shift);
          memcpy(memory + address + 2 * c, &value, 2);
        } else {
          memcpy(&value, memory + address + 2 * c, 2);
          warp.to[holder][m] = (warp.to[holder][m] & ~(0xFFFFu << shift)) | static_cast<uint32_t>(value) << shift;
        }
      }
      if (!store) continue;
      // The lane that holds a word's first value has to fence it: any lane could, but each holds a part of every row.
      for (uint32_t word = 0; word < 4; ++word) {
        const int writer = current / 32 * 32 + static_cast<int>(word) * 8 + r / 2;
        written_by[address / 4 + word] = static_cast<uint32_t>(writer + 1) << 21 | fibers[writer].fences;
      }
    }
}

}  // namespace

void store_matrices(uint32_t row, const uint32_t* v) { matrices(row, const_cast<uint32_t*>(v), true); }
void load_matrices(uint32_t row, uint32_t* v) { matrices(row, v, false); }

uint32_t exchange(uint32_t value, int mask) {
  if (mask < 1 || mask > 31) fail("exchange with a lane %d away", mask);
  uint32_t mine = value;
  if (together(kExchange, static_cast<uint32_t>(mask), &mine, 1)) {
    const Collective& warp = collectives[current / 32];
    for (int lane = 0; lane < 32; ++lane) {
      if (warp.rows[lane] != static_cast<uint32_t>(mask)) fail("exchange of different masks in a warp");
      *warp.to[lane] = warp.v[lane ^ mask][0];
    }
  }
  return mine;
}

void wait_for_previous_kernel() { previous_waited = fibers[current].waited = true; }

}  // namespace machine
