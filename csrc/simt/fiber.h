#pragma once
// Stacks and the switch between them: what threads are made of.
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#include "simt/asan.h"

// Saves the callee-saved registers and the stack pointer to *save, and continues where `load` was saved. (x86-64,
// System V. A system call per switch, as swapcontext makes, would take ten times as long.)
extern "C" void resnext_switch_stack(void** save, void* load);

namespace resnext::simt {

// The stacks of one block's threads, each with an inaccessible page below it.
class Stacks {
 public:
  static constexpr size_t count = 1024, bytes = 64 * 1024;

  Stacks() {
    void* mapping = mmap(nullptr, count * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<unsigned char*>(mapping);
    for (size_t i = 0; i < count; ++i) mprotect(base_ + i * bytes, 4096, PROT_NONE);
  }
  ~Stacks() { munmap(base_, count * bytes); }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  // The lowest address of a stack.
  unsigned char* bottom(size_t index) const { return base_ + index * bytes; }

  // A saved stack pointer from which a switch enters entry(), which must not return.
  void* prepare(size_t index, void (*entry)()) const {
    asan::unpoison(bottom(index), bytes);  // what an earlier thread left behind
    // The tops are staggered: equal offsets in all stacks would fall on few cache sets.
    auto** top = reinterpret_cast<void**>(base_ + (index + 1) * bytes - 256 * (index % 16) - 64);
    *--top = nullptr;  // the return address that entry() would have
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;  // the saved registers
    return top;
  }

 private:
  unsigned char* base_;
};

}  // namespace resnext::simt
