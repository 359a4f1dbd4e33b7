// The machine: fibers, barriers, bulk copies, products of warpgroups, and the faults that a GPU would not tell of.
//
// Memory that a copy or a product reads counts as being read until the program has proof of the end (a wait), and
// memory that a copy fills is 0xFF until then; what happens in between happens at times that the seed draws.
#include "machine.hpp"

#include "copies.hpp"
#include "products.hpp"
#include "state.hpp"

namespace machine {
namespace {

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
        length += snprintf(list + length, sizeof(list) - length,
                           ", which is in phase %u and lacks %lld arrivals, %lld bytes", barrier.phase,
                           static_cast<long long>(barrier.pending), static_cast<long long>(barrier.bytes));
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
  if (product.a != a || product.b != b || product.n != n || product.element != element ||
      product.accumulate != accumulate)
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
  if (product.sum >= 0 && product.sum != which)
    fail("product %zu since the last wait names other registers here", number);
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
  if (warp.arrived && warp.kind != kind)
    fail("%s by some lanes of a warp, %s by others", kTogether[kind], kTogether[warp.kind]);
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
