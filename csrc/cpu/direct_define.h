#pragma once
#include "direct_entries.h"
#include "direct_layouts.h"
#include "direct_wgrad.h"

namespace resnext::cpu {
namespace {

template <DType dtype>
using Stored = std::conditional_t<dtype == DType::f32, float, std::conditional_t<dtype == DType::f16, f16, bf16>>;

}  // namespace
}  // namespace resnext::cpu

// The entries of one instruction set, for the types and slots that the tables list.
#define RESNEXT_DEFINE_DIRECT_ENTRY(dtype, slot)                                     \
  template int64_t fprop_workspace<DType::dtype, slot>(const Problem&, int threads); \
  template int64_t dgrad_workspace<DType::dtype, slot>(const Problem&, int threads); \
  template int64_t wgrad_workspace<DType::dtype, slot>(const Problem&, int threads); \
  template void fprop<DType::dtype, slot>(const FpropArgs&);                         \
  template void dgrad<DType::dtype, slot>(const DgradArgs&);                         \
  template void wgrad<DType::dtype, slot>(const WgradArgs&);

#define RESNEXT_DEFINE_DIRECT_SLOT(slot)  \
  RESNEXT_DEFINE_DIRECT_ENTRY(f32, slot)  \
  RESNEXT_DEFINE_DIRECT_ENTRY(bf16, slot) \
  RESNEXT_DEFINE_DIRECT_ENTRY(f16, slot)

#define RESNEXT_DEFINE_DIRECT(isa)                                       \
  namespace resnext::cpu::isa {                                          \
  static_assert(vector_lanes == lanes, "compiled with other flags");     \
  template <DType dtype, int slot>                                       \
  int64_t fprop_workspace(const Problem& problem, int threads) {         \
    return fprop_workspace_bytes<Stored<dtype>, slot>(problem, threads); \
  }                                                                      \
  template <DType dtype, int slot>                                       \
  int64_t dgrad_workspace(const Problem& problem, int threads) {         \
    return dgrad_workspace_bytes<Stored<dtype>, slot>(problem, threads); \
  }                                                                      \
  template <DType dtype, int slot>                                       \
  int64_t wgrad_workspace(const Problem& problem, int threads) {         \
    return wgrad_workspace_bytes<Stored<dtype>, slot>(problem, threads); \
  }                                                                      \
  template <DType dtype, int slot>                                       \
  void fprop(const FpropArgs& args) {                                    \
    run_fprop<Stored<dtype>, slot>(args);                                \
  }                                                                      \
  template <DType dtype, int slot>                                       \
  void dgrad(const DgradArgs& args) {                                    \
    run_dgrad<Stored<dtype>, slot>(args);                                \
  }                                                                      \
  template <DType dtype, int slot>                                       \
  void wgrad(const WgradArgs& args) {                                    \
    run_wgrad<Stored<dtype>, slot>(args);                                \
  }                                                                      \
  RESNEXT_DEFINE_DIRECT_SLOT(4)                                          \
  RESNEXT_DEFINE_DIRECT_SLOT(8)                                          \
  }
