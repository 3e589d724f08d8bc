#pragma once
#include "grouped_conv.h"

// The direct kernels: one template source, compiled for each instruction set. Group widths are 4, 8, 16, 32 and 64.
#define RESNEXT_DECLARE_DIRECT(isa, lane_count)         \
  namespace resnext::cpu::isa {                         \
  constexpr int vector_lanes = lane_count;              \
  template <int group_width>                            \
  int64_t fprop_workspace(const Problem&, int threads); \
  template <int group_width>                            \
  int64_t dgrad_workspace(const Problem&, int threads); \
  template <int group_width>                            \
  int64_t wgrad_workspace(const Problem&, int threads); \
  template <int group_width>                            \
  void fprop(const FpropArgs&);                         \
  template <int group_width>                            \
  void dgrad(const DgradArgs&);                         \
  template <int group_width>                            \
  void wgrad(const WgradArgs&);                         \
  }

RESNEXT_DECLARE_DIRECT(avx2, 8)
RESNEXT_DECLARE_DIRECT(avx512, 16)
