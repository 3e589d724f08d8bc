#pragma once
#include "grouped_conv.h"

// The direct kernels: one template source, compiled for each instruction set. `slot` is the number of lanes that a
// group takes: 4, 8 (with 16 lanes), or all, as many vectors as it fills; or 1 of each of several vectors.
namespace resnext::cpu {
constexpr int64_t widest_across = 12;  // group that takes one
}  // namespace resnext::cpu
#define RESNEXT_DECLARE_DIRECT(isa, lane_count)         \
  namespace resnext::cpu::isa {                         \
  constexpr int vector_lanes = lane_count;              \
  template <DType, int slot>                            \
  int64_t fprop_workspace(const Problem&, int threads); \
  template <DType, int slot>                            \
  int64_t dgrad_workspace(const Problem&, int threads); \
  template <DType, int slot>                            \
  int64_t wgrad_workspace(const Problem&, int threads); \
  template <DType, int slot>                            \
  int64_t fprop_packed(const Problem&);                 \
  template <DType, int slot>                            \
  void fprop_pack(const FpropArgs&);                    \
  template <DType, int slot>                            \
  void fprop(const FpropArgs&);                         \
  template <DType, int slot>                            \
  void dgrad(const DgradArgs&);                         \
  template <DType, int slot>                            \
  void wgrad(const WgradArgs&);                         \
  }

RESNEXT_DECLARE_DIRECT(avx2, 8)
RESNEXT_DECLARE_DIRECT(avx512, 16)
RESNEXT_DECLARE_DIRECT(avx512bf16, 16)
