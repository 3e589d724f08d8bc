// Blocks, warps and threads in turns: see simt.h.
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>

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

std::string call_of(const Thread& waiting) {
  return std::string(waiting.call) + " (" + waiting.site.file_name() + ":" + std::to_string(waiting.site.line()) + ")";
}

void enter_thread() {
  Machine& m = machine();
  try {
    (*m.body)();
  } catch (const std::exception& error) {
    fail(error.what());
  }
  m.running->state = State::returned;
  switch_to_scheduler();
  std::abort();
}

void resume(Thread& thread) {
  Machine& m = machine();
  m.running = &thread;
  threadIdx = thread.index;
  resnext_switch_stack(&m.scheduler, thread.stack);
  m.running = nullptr;
  if (m.failed) raise(&thread, m.failure);
}

void wait_in(State state, const char* call, const Site& site) {
  Thread& self = *machine().running;
  self.state = state;
  self.call = call;
  self.site = site;
  switch_to_scheduler();
}

bool same_site(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && !std::strcmp(a.file_name(), b.file_name());
}

Thread* lane_of(size_t warp, int lane) {
  Machine& m = machine();
  const size_t index = warp * warp_size + lane;
  return index < m.count ? &m.threads[index] : nullptr;
}

bool together(const Thread* other, const Thread& thread) {
  return other && other->state == State::at_collective && other->mask == thread.mask &&
         !std::strcmp(other->call, thread.call) && same_site(other->site, thread.site);
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

// Runs one warp until each of its lanes has returned or is at a block barrier.
void run_warp(size_t warp) {
  Machine& m = machine();
  do {
    const unsigned start = m.random(), step = m.random() | 1;
    for (unsigned i = 0; i < warp_size; ++i) {
      Thread* thread = lane_of(warp, (start + i * step) % warp_size);
      if (thread && thread->state == State::ready) resume(*thread);
    }
  } while (complete_collectives(warp));
  for (int lane = 0; lane < warp_size; ++lane) {
    const Thread* thread = lane_of(warp, lane);
    if (!thread || thread->state != State::at_collective) continue;
    const int missing = missing_lane(warp, *thread);
    raise(thread, "divergent collective: " + call_of(*thread) + " waits for lane " + std::to_string(missing) +
                      ", which " + whereabouts(lane_of(warp, missing)));
  }
}

// Opens the barrier that every thread of the block has reached; false if all have returned instead.
bool open_barrier() {
  Machine& m = machine();
  const Thread* waiting = nullptr;
  for (size_t i = 0; i < m.count && !waiting; ++i)
    if (m.threads[i].state == State::at_barrier) waiting = &m.threads[i];
  if (!waiting) return false;
  for (size_t i = 0; i < m.count; ++i) {
    Thread& thread = m.threads[i];
    if (thread.state != State::at_barrier || !same_site(thread.site, waiting->site))
      raise(waiting, "partial barrier: " + call_of(*waiting) + " waits for thread " + text(thread.index) + ", which " +
                         whereabouts(&thread));
  }
  for (size_t i = 0; i < m.count; ++i) m.threads[i].state = State::ready;
  return true;
}

void run_block() {
  Machine& m = machine();
  if (m.shared) m.shared->fill_with_nan();
  for (size_t i = 0; i < m.count; ++i) {
    const unsigned at = static_cast<unsigned>(i), x = blockDim.x, y = blockDim.y;
    Thread& thread = m.threads[i];
    thread.stack = m.stacks.prepare(i, enter_thread);
    thread.state = State::ready;
    thread.index = {at % x, at / x % y, at / x / y};
    thread.open.clear();
    thread.committed.clear();
  }
  std::vector<size_t> warps((m.count + warp_size - 1) / warp_size);
  std::iota(warps.begin(), warps.end(), size_t(0));
  do {
    for (size_t i = warps.size(); i > 1; --i) std::swap(warps[i - 1], warps[m.random() % i]);
    for (const size_t warp : warps) run_warp(warp);
  } while (open_barrier());
  if (m.shared && !m.shared->intact()) raise(nullptr, "write outside the block's shared memory");
}

}  // namespace

void collective(const char* name, unsigned mask, void* operands, Apply apply, const Site& site) {
  Thread& self = *machine().running;
  if (!(mask >> lane() & 1)) fail(std::string(name) + " by a lane that its mask leaves out");
  self.mask = mask;
  self.operands = operands;
  self.apply = apply;
  wait_in(State::at_collective, name, site);
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
  if (grid.shared_bytes > 0) m.shared.emplace("shared memory", grid.shared_bytes, 128, GuardedMemory::Flush::end);
  m.random_state = grid.stream ? grid.stream->seed + (grid.stream->launches++ << 32) : 0;
  blockDim = grid.threads;
  gridDim = grid.blocks;
  const FaultHandlers handlers;
  const uint64_t blocks = uint64_t(grid.blocks.x) * grid.blocks.y * grid.blocks.z;
  uint64_t step = m.random() % blocks + 1;
  while (std::gcd(step, blocks) != 1) step = step % blocks + 1;
  uint64_t block = m.random() % blocks;
  for (uint64_t i = 0; i < blocks; ++i, block = (block + step) % blocks) {
    const uint64_t row = block / grid.blocks.x;
    blockIdx = {static_cast<unsigned>(block % grid.blocks.x), static_cast<unsigned>(row % grid.blocks.y),
                static_cast<unsigned>(row / grid.blocks.y)};
    run_block();
  }
}

}  // namespace resnext::simt

void __syncthreads(const resnext::simt::Site& site) {
  resnext::simt::wait_in(resnext::simt::State::at_barrier, "__syncthreads", site);
}
