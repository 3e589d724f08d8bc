#pragma once
// The emulation's own state: the threads of the block that is running, and who runs.
#include <signal.h>

#include <optional>
#include <string>
#include <vector>

#include "simt/fiber.h"
#include "simt/memory.h"
#include "simt/simt.h"

namespace resnext::simt {

constexpr int warp_size = 32, barriers_per_block = 16;

enum class State : uint8_t { ready, at_barrier, at_collective, returned };

struct Copy {
  void* shared;
  const void* global;
  int bytes, valid_bytes;
};

struct alignas(64) Thread {  // all that a collective asks of 32 lanes lies in one cache line of each
  void* stack;
  const char* call;  // what it waits in, and where; for a collective also the lanes, their operands and what to do
  Site site;
  void* operands;
  Apply apply;
  unsigned mask;
  State state;
  unsigned char lane;
  uint3 index;
  int barrier, expected;   // at a barrier: its number, and how many threads it waits for, in whole warps
  std::vector<Copy> open;  // copies not yet committed
  std::vector<std::vector<Copy>> committed;  // groups of copies, oldest first
};

struct Machine {
  Stacks stacks;
  std::vector<Thread> threads{Stacks::count};
  size_t count = 0;  // threads of the block
  Thread* running = nullptr;
  void* scheduler = nullptr;  // the scheduler's stack while a thread runs
  const void* scheduler_bottom = nullptr;
  size_t scheduler_bytes = 0;
  size_t warp = 0;                              // the one that runs, and of its lanes, in their order of this turn,
  unsigned lane = 0, step = 0, lanes_left = 0;  // the next, the step from one to the next, and how many are left
  bool failed = false;
  std::string failure;
  const Grid* grid = nullptr;
  const std::function<void()>* body = nullptr;
  std::optional<GuardedMemory> shared;
  uint64_t random_state = 0;

  // Null if there is none.
  Thread* lane_of(size_t its_warp, unsigned its_lane) {
    const size_t index = its_warp * warp_size + its_lane;
    return index < count ? &threads[index] : nullptr;
  }

  // The lane whose turn it is, if one is left.
  Thread* next_lane() {
    while (lanes_left > 0) {
      Thread* thread = lane_of(warp, lane % warp_size);
      lane += step;
      --lanes_left;
      if (thread && thread->state == State::ready) return thread;
    }
    return nullptr;
  }

  unsigned random() {  // splitmix64
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<unsigned>((z ^ (z >> 31)) >> 16);
  }
};

inline Machine& machine() {
  static Machine instance;
  return instance;
}

// Back to the scheduler, from a thread that waits, has returned or has failed.
void switch_to_scheduler();

// Throws the Error of a thread (or, with null, of the block); only on the scheduler's stack.
[[noreturn]] void raise(const Thread* thread, const std::string& what);

template <class Index>
std::string text(const Index& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

void on_fault(int signal, siginfo_t* info, void* context);

// Turns faults into errors while a launch is running.
class FaultHandlers {
 public:
  FaultHandlers() : stack_(64 * 1024) {
    const stack_t own{stack_.data(), 0, stack_.size()};
    sigaltstack(&own, &old_stack_);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler does not return: it switches stacks
    for (int i = 0; i < 4; ++i) sigaction(signals[i], &action, &old_actions_[i]);
  }
  ~FaultHandlers() {
    for (int i = 0; i < 4; ++i) sigaction(signals[i], &old_actions_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static constexpr int signals[4] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
  std::vector<char> stack_;
  stack_t old_stack_;
  struct sigaction old_actions_[4];
};

}  // namespace resnext::simt
