// Blocks, warps and threads in turns: see simt.h.
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <utility>

#include "simt/machine.h"

asm(R"(
.text
.globl resnext_switch_stack
.hidden resnext_switch_stack
.type resnext_switch_stack, @function
resnext_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size resnext_switch_stack, .-resnext_switch_stack
)");

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace resnext::simt {
namespace {

constexpr const char* block_barrier = "__syncthreads";

// The block's threads, the last warp counted as a whole one.
int threads_of_warps() { return static_cast<int>((machine().count + warp_size - 1) / warp_size * warp_size); }

std::string call_of(const Thread& waiting) {
  const bool numbered = waiting.state == State::at_barrier && waiting.call != block_barrier;
  return waiting.call +
         (numbered ? " " + std::to_string(waiting.barrier) + " of " + std::to_string(waiting.expected) + " threads"
                   : "") +
         " (" + waiting.site.file_name() + ":" + std::to_string(waiting.site.line()) + ")";
}

// From a thread that waits or has returned to the next lane of its warp, or else to the scheduler.
void leave_thread() {
  Machine& m = machine();
  Thread& self = *m.running;
  Thread* const next = m.next_lane();
  if (!next) return switch_to_scheduler();
  m.running = next;
  threadIdx = next->index;
  void* state = nullptr;
  asan::leave(&state, m.stacks.bottom(next - m.threads.data()), Stacks::bytes);
  resnext_switch_stack(&self.stack, next->stack);
  asan::arrive(state, nullptr, nullptr);
}

void enter_thread() {
  Machine& m = machine();
  const bool first = !m.scheduler_bottom;  // which comes from the scheduler
  asan::arrive(nullptr, first ? &m.scheduler_bottom : nullptr, first ? &m.scheduler_bytes : nullptr);
  try {
    (*m.body)();
  } catch (const std::exception& error) {
    fail(error.what());
  }
  m.running->state = State::returned;
  leave_thread();
  std::abort();
}

// Runs `thread`, and each lane of the warp after it, until it waits or has returned.
void resume(Thread& thread) {
  Machine& m = machine();
  m.running = &thread;
  threadIdx = thread.index;
  void* state = nullptr;
  asan::leave(&state, m.stacks.bottom(&thread - m.threads.data()), Stacks::bytes);
  resnext_switch_stack(&m.scheduler, thread.stack);
  asan::arrive(state, nullptr, nullptr);
  const Thread* last = std::exchange(m.running, nullptr);
  if (m.failed) raise(last, m.failure);
}

void wait_in(State state, const char* call, const Site& site) {
  Thread& self = *machine().running;
  self.state = state;
  self.call = call;
  self.site = site;
  leave_thread();
}

bool same_name(const char* a, const char* b) { return a == b || !std::strcmp(a, b); }

bool same_site(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && same_name(a.file_name(), b.file_name());
}

Thread* lane_of(size_t warp, int lane) { return machine().lane_of(warp, lane); }

bool together(const Thread* other, const Thread& thread) {
  return other && other->state == State::at_collective && other->mask == thread.mask &&
         same_name(other->call, thread.call) && same_site(other->site, thread.site);
}

// A lane that `thread` waits for and that has not come, or -1.
int missing_lane(size_t warp, const Thread& thread) {
  for (int lane = 0; lane < warp_size; ++lane)
    if (thread.mask >> lane & 1 && !together(lane_of(warp, lane), thread)) return lane;
  return -1;
}

// Runs the collectives of a warp that are complete; whether there was one.
bool complete_collectives(size_t warp) {
  bool any = false;
  for (int first = 0; first < warp_size; ++first) {
    const Thread* thread = lane_of(warp, first);
    if (!thread || thread->state != State::at_collective || missing_lane(warp, *thread) >= 0) continue;
    const unsigned mask = thread->mask;
    void* operands[warp_size] = {};
    for (int lane = 0; lane < warp_size; ++lane)
      if (mask >> lane & 1) operands[lane] = lane_of(warp, lane)->operands;
    threadIdx = thread->index;  // names the warp if apply() fails
    thread->apply(operands, mask);
    for (int lane = 0; lane < warp_size; ++lane)
      if (mask >> lane & 1) lane_of(warp, lane)->state = State::ready;
    any = true;
  }
  return any;
}

std::string whereabouts(const Thread* thread) {
  if (!thread) return "does not exist";
  if (thread->state == State::returned) return "has returned";
  return "is in " + call_of(*thread);
}

bool waits_at(const Thread& thread, int barrier) {
  return thread.state == State::at_barrier && thread.barrier == barrier;
}

[[noreturn]] void raise_partial_barrier(const Thread& waiting, const Thread& other) {
  raise(&waiting, "partial barrier: " + call_of(waiting) + " waits for thread " + text(other.index) + ", which " +
                      whereabouts(&other));
}

// Fails unless `other` is at the barrier at which `first` is, and in the same call if all lanes or all warps must be.
void check_same_barrier(const Thread& first, const Thread& other, bool of_one_warp) {
  const bool one_call = of_one_warp || first.call == block_barrier || other.call == block_barrier;
  if (!waits_at(other, first.barrier) || (one_call && !same_site(first.site, other.site)))
    raise_partial_barrier(first, other);
  if (other.expected != first.expected)
    raise(&first,
          "two sizes of a barrier: " + call_of(first) + ", and thread " + text(other.index) + " in " + call_of(other));
}

// Runs one warp until each of its lanes has returned or is at a block barrier.
void run_warp(size_t warp) {
  Machine& m = machine();
  do {
    m.warp = warp;
    m.lane = m.random();
    m.step = m.random() | 1;
    m.lanes_left = warp_size;
    if (Thread* first = m.next_lane()) resume(*first);
  } while (complete_collectives(warp));
  for (int lane = 0; lane < warp_size; ++lane) {
    const Thread* thread = lane_of(warp, lane);
    if (!thread || thread->state != State::at_collective) continue;
    const int missing = missing_lane(warp, *thread);
    raise(thread, "divergent collective: " + call_of(*thread) + " waits for lane " + std::to_string(missing) +
                      ", which " + whereabouts(lane_of(warp, missing)));
  }
  const Thread* waiting = nullptr;
  for (int lane = 0; lane < warp_size && !waiting; ++lane)
    if (const Thread* thread = lane_of(warp, lane); thread && thread->state == State::at_barrier) waiting = thread;
  for (int lane = 0; lane < warp_size && waiting; ++lane)
    if (const Thread* thread = lane_of(warp, lane)) check_same_barrier(*waiting, *thread, true);
}

// Opens the barrier at which `warp` waits, if it is complete. All lanes of a warp are in one place: lane 0 tells.
bool open_barrier(size_t warp) {
  Machine& m = machine();
  const Thread& came = *lane_of(warp, 0);
  if (came.state != State::at_barrier) return false;
  int arrived = 0;
  for (size_t i = 0; i < m.count; i += warp_size) {
    if (!waits_at(m.threads[i], came.barrier)) continue;
    check_same_barrier(came, m.threads[i], false);
    arrived += warp_size;
  }
  if (arrived < came.expected) return false;
  for (size_t i = 0; i < m.count; ++i)
    if (waits_at(m.threads[i], came.barrier)) m.threads[i].state = State::ready;
  return true;
}

// Fails if threads still wait at a barrier.
void check_deadlock() {
  Machine& m = machine();
  const Thread *waiting = nullptr, *missing = nullptr;
  for (size_t i = 0; i < m.count && !waiting; ++i)
    if (m.threads[i].state == State::at_barrier) waiting = &m.threads[i];
  for (size_t i = 0; i < m.count && waiting && !missing; ++i)
    if (!waits_at(m.threads[i], waiting->barrier)) missing = &m.threads[i];
  if (missing) raise_partial_barrier(*waiting, *missing);
}

void run_block() {
  Machine& m = machine();
  if (m.shared) m.shared->fill_with_nan();
  for (size_t i = 0; i < m.count; ++i) {
    const unsigned at = static_cast<unsigned>(i), x = blockDim.x, y = blockDim.y;
    Thread& thread = m.threads[i];
    thread.stack = m.stacks.prepare(i, enter_thread);
    thread.state = State::ready;
    thread.lane = static_cast<unsigned char>(i % warp_size);
    thread.index = {at % x, at / x % y, at / x / y};
    thread.open.clear();
    thread.committed.clear();
  }
  std::vector<size_t> warps((m.count + warp_size - 1) / warp_size);
  std::iota(warps.begin(), warps.end(), size_t(0));
  const auto shuffle = [&] {
    for (size_t i = warps.size(); i > 1; --i) std::swap(warps[i - 1], warps[m.random() % i]);
  };
  shuffle();
  for (size_t i = 0; i < warps.size();) {
    const size_t warp = warps[i++];
    run_warp(warp);
    if (!open_barrier(warp)) continue;
    if (m.threads[warp * warp_size].expected == threads_of_warps()) shuffle();
    i = 0;  // the same warps first, so that those at other barriers fall as far behind as they can
  }
  check_deadlock();
  if (m.shared && !m.shared->intact()) raise(nullptr, "write outside the block's shared memory");
}

}  // namespace

void collective(const char* name, unsigned mask, void* operands, Apply apply, const Site& site) {
  Thread& self = *machine().running;
  if (!(mask >> self.lane & 1)) fail(std::string(name) + " by a lane that its mask leaves out");
  self.mask = mask;
  self.operands = operands;
  self.apply = apply;
  wait_in(State::at_collective, name, site);
}

void barrier_sync(int id, int threads, const Site& site) {
  Thread& self = *machine().running;
  const std::string call = "barrier_sync " + std::to_string(id) + " of " + std::to_string(threads) + " threads";
  if (id < 0 || id >= barriers_per_block) fail(call + ": there are barriers 0 to 15");
  if (threads <= 0 || threads % warp_size) fail(call + ": not a multiple of 32");
  if (threads > threads_of_warps()) fail(call + ": the block has " + std::to_string(machine().count));
  self.barrier = id;
  self.expected = threads;
  wait_in(State::at_barrier, "barrier_sync", site);
}

void run(const Grid& grid, const std::function<void()>& body) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  Machine& m = machine();
  struct End {
    Machine& m;
    ~End() {
      m.grid = nullptr;
      m.shared.reset();
    }
  } const end{m};
  m.grid = &grid;
  m.body = &body;
  m.count = size_t(grid.threads.x) * grid.threads.y * grid.threads.z;
  m.failed = false;
  m.scheduler_bottom = nullptr;
  if (grid.shared_bytes > 0) m.shared.emplace("shared memory", grid.shared_bytes, 128, GuardedMemory::Flush::end);
  m.random_state = grid.stream ? grid.stream->seed + (grid.stream->launches++ << 32) : 0;
  blockDim = grid.threads;
  gridDim = grid.blocks;
  const FaultHandlers handlers;
  const uint64_t all = uint64_t(grid.blocks.x) * grid.blocks.y * grid.blocks.z;
  const uint64_t blocks = grid.stream && grid.stream->last_blocks ? grid.stream->last_blocks(all) : all;
  uint64_t step = m.random() % blocks + 1;
  while (std::gcd(step, blocks) != 1) step = step % blocks + 1;
  uint64_t block = m.random() % blocks;
  for (uint64_t i = 0; i < blocks; ++i, block = (block + step) % blocks) {
    const uint64_t at = all - blocks + block, row = at / grid.blocks.x;
    blockIdx = {static_cast<unsigned>(at % grid.blocks.x), static_cast<unsigned>(row % grid.blocks.y),
                static_cast<unsigned>(row / grid.blocks.y)};
    run_block();
  }
}

}  // namespace resnext::simt

void __syncthreads(const resnext::simt::Site& site) {
  using namespace resnext::simt;
  Thread& self = *machine().running;
  self.barrier = 0;
  self.expected = threads_of_warps();
  wait_in(State::at_barrier, block_barrier, site);
}
