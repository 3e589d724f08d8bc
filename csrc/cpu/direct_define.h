#pragma once
#include "direct_entries.h"
#include "direct_layouts.h"
#include "direct_wgrad.h"

// The entries of one instruction set, for the widths that the tables list.
#define RESNEXT_DEFINE_DIRECT_WIDTH(width)                              \
  template int64_t fprop_workspace<width>(const Problem&, int threads); \
  template int64_t dgrad_workspace<width>(const Problem&, int threads); \
  template int64_t wgrad_workspace<width>(const Problem&, int threads); \
  template void fprop<width>(const FpropArgs&);                         \
  template void dgrad<width>(const DgradArgs&);                         \
  template void wgrad<width>(const WgradArgs&);

#define RESNEXT_DEFINE_DIRECT(isa)                                   \
  namespace resnext::cpu::isa {                                      \
  static_assert(vector_lanes == lanes, "compiled with other flags"); \
  template <int group_width>                                         \
  int64_t fprop_workspace(const Problem& problem, int threads) {     \
    return sum_workspace<group_width>(problem, threads);             \
  }                                                                  \
  template <int group_width>                                         \
  int64_t dgrad_workspace(const Problem& problem, int threads) {     \
    return sum_workspace<group_width>(problem, threads);             \
  }                                                                  \
  template <int group_width>                                         \
  int64_t wgrad_workspace(const Problem& problem, int threads) {     \
    return wgrad_workspace_bytes<group_width>(problem, threads);     \
  }                                                                  \
  template <int group_width>                                         \
  void fprop(const FpropArgs& args) {                                \
    run_fprop<group_width>(args);                                    \
  }                                                                  \
  template <int group_width>                                         \
  void dgrad(const DgradArgs& args) {                                \
    run_dgrad<group_width>(args);                                    \
  }                                                                  \
  template <int group_width>                                         \
  void wgrad(const WgradArgs& args) {                                \
    run_wgrad<group_width>(args);                                    \
  }                                                                  \
  RESNEXT_DEFINE_DIRECT_WIDTH(4)                                     \
  RESNEXT_DEFINE_DIRECT_WIDTH(8)                                     \
  RESNEXT_DEFINE_DIRECT_WIDTH(16)                                    \
  RESNEXT_DEFINE_DIRECT_WIDTH(32)                                    \
  RESNEXT_DEFINE_DIRECT_WIDTH(64)                                    \
  }
