#pragma once
#include "direct_entries.h"
#include "direct_passes.h"
#include "direct_wgrad.h"

namespace resnext::cpu {
namespace {

template <DType dtype>
using Stored = std::conditional_t<dtype == DType::f32, float, std::conditional_t<dtype == DType::f16, f16, bf16>>;

}  // namespace
}  // namespace resnext::cpu

// The functions of one instruction set.
#define RESNEXT_DEFINE_DIRECT(isa)                                                      \
  namespace resnext::cpu::isa {                                                         \
  static_assert(vector_lanes == lanes, "compiled with other flags");                    \
  template <DType dtype, int slot>                                                      \
  int64_t fprop_workspace(const Problem& problem, int threads) {                        \
    return fprop_workspace_bytes<Stored<dtype>>(problem, slot, threads);                \
  }                                                                                     \
  template <DType dtype, int slot>                                                      \
  int64_t dgrad_workspace(const Problem& problem, int threads) {                        \
    return dgrad_workspace_bytes<Stored<dtype>>(problem, slot, threads);                \
  }                                                                                     \
  template <DType dtype, int slot>                                                      \
  int64_t wgrad_workspace(const Problem& problem, int threads) {                        \
    return wgrad_workspace_bytes<Stored<dtype>>(problem, slot, threads);                \
  }                                                                                     \
  template <DType dtype, int slot>                                                      \
  int64_t fprop_packed(const Problem& problem) {                                        \
    return packed_bytes(fprop_sum<Stored<dtype>>(args_of<FpropArgs>(problem), slot));   \
  }                                                                                     \
  template <DType dtype, int slot>                                                      \
  void fprop_pack(const FpropArgs& args) {                                              \
    pack_ahead(fprop_sum<Stored<dtype>>(args, slot), static_cast<float*>(args.packed)); \
  }                                                                                     \
  template <DType dtype, int slot>                                                      \
  void fprop(const FpropArgs& args) {                                                   \
    run_fprop<Stored<dtype>, slot>(args);                                               \
  }                                                                                     \
  template <DType dtype, int slot>                                                      \
  void dgrad(const DgradArgs& args) {                                                   \
    run_dgrad<Stored<dtype>, slot>(args);                                               \
  }                                                                                     \
  template <DType dtype, int slot>                                                      \
  void wgrad(const WgradArgs& args) {                                                   \
    run_wgrad<Stored<dtype>, slot>(args);                                               \
  }                                                                                     \
  }

// The entries for one type and slot, one or all passes.
#define RESNEXT_DIRECT_ENTRY(isa, pass, Args, dtype, slot)                                                   \
  template int64_t resnext::cpu::isa::pass##_workspace<resnext::DType::dtype, slot>(const resnext::Problem&, \
                                                                                    int threads);            \
  template void resnext::cpu::isa::pass<resnext::DType::dtype, slot>(const resnext::Args&);

#define RESNEXT_DIRECT_ENTRIES(isa, dtype, slot)                                                          \
  template int64_t resnext::cpu::isa::fprop_packed<resnext::DType::dtype, slot>(const resnext::Problem&); \
  template void resnext::cpu::isa::fprop_pack<resnext::DType::dtype, slot>(const resnext::FpropArgs&);    \
  RESNEXT_DIRECT_ENTRY(isa, fprop, FpropArgs, dtype, slot)                                                \
  RESNEXT_DIRECT_ENTRY(isa, dgrad, DgradArgs, dtype, slot)                                                \
  RESNEXT_DIRECT_ENTRY(isa, wgrad, WgradArgs, dtype, slot)
