#pragma once
#include <algorithm>
#include <cstdint>
#include <utility>

#include "simd.h"

namespace resnext::cpu {
namespace {

// Runs of bytes, equally far apart.
struct Runs {
  const void* first;
  int64_t count, bytes, distance;
};

// Asks for memory before it is needed: some lines at a time, while something else is computed, as few can be on their
// way at once.
class LinesAhead {
 public:
  LinesAhead() = default;  // asks for nothing

  // All of the runs in `calls` calls of `ask`.
  LinesAhead(const Runs& runs, int64_t calls)
      : run_(static_cast<const char*>(runs.first)),
        runs_(runs.count),
        run_bytes_(runs.bytes),
        distance_(runs.distance) {
    if (distance_ == run_bytes_) run_bytes_ *= std::exchange(runs_, 1);
    lines_ = unsplit_ = runs_ * (run_bytes_ / line + 1) / calls + 1;
    begin_run();
  }

  // A part of a tensor, of which `runs_of` tells the runs.
  template <class Tensor, class Part>
  LinesAhead(const Tensor& tensor, const Part& part, int64_t calls) : LinesAhead(runs_of(tensor, part), calls) {}

  void split(int64_t calls) { lines_ = (unsplit_ + calls - 1) / calls; }

  void ask() {
    for (int64_t i = 0; i < lines_ && runs_ > 0; ++i) {
      prefetch(here_);
      here_ += line;
      if (here_ >= run_ + run_bytes_) next_run();
    }
  }

  // The same in a tight loop for each run, for sums that are short beside it. Where many lines are asked for in one go
  // it is slower (docs/performance.md).
  void ask_fast() {
    for (int64_t left = lines_ * line; left > 0 && runs_ > 0;) {
      const char *end = run_ + run_bytes_, *stop = std::min(here_ + left, end), *here = here_;
      left -= stop - here;
      for (; here < stop; here += line) prefetch(here);
      here_ = here;
      if (here >= end) next_run();
    }
  }

 private:
  static constexpr int64_t line = 64;

  void next_run() {
    run_ += distance_;
    --runs_;
    begin_run();
  }

  void begin_run() { here_ = run_ - reinterpret_cast<uintptr_t>(run_) % line; }

  const char *run_ = nullptr, *here_ = nullptr;                                // `here_` in the run at `run_`
  int64_t runs_ = 0, run_bytes_ = 0, distance_ = 0, unsplit_ = 0, lines_ = 0;  // `lines_` of a call
};

}  // namespace
}  // namespace resnext::cpu
