#pragma once
#include <algorithm>

#include "direct_entries.h"
#include "direct_passes.h"
#include "direct_wgrad.h"
#include "winograd_entries.h"

// The functions of one instruction set. What is not finite is left to its direct kernel (AllFinite).
#define RESNEXT_DEFINE_WINOGRAD(isa)                                                                              \
  namespace resnext::cpu {                                                                                        \
  int64_t isa::fprop_winograd_workspace(const Problem& problem, int threads) {                                    \
    return std::max(sum_workspace<Winograd>(fprop_sum<float>(args_of<FpropArgs>(problem), lanes, true), threads), \
                    isa::fprop_workspace<DType::f32, lanes>(problem, threads));                                   \
  }                                                                                                               \
  int64_t isa::dgrad_winograd_workspace(const Problem& problem, int threads) {                                    \
    return std::max(sum_workspace<Winograd>(dgrad_sum<float>(args_of<DgradArgs>(problem), lanes, true), threads), \
                    isa::dgrad_workspace<DType::f32, lanes>(problem, threads));                                   \
  }                                                                                                               \
  int64_t isa::wgrad_winograd_workspace(const Problem& problem, int threads) {                                    \
    return std::max(wgrad_workspace_bytes<float>(problem, lanes, threads, true),                                  \
                    isa::wgrad_workspace<DType::f32, lanes>(problem, threads));                                   \
  }                                                                                                               \
  int64_t isa::fprop_winograd_packed(const Problem& problem) {                                                    \
    return packed_bytes(fprop_sum<float>(args_of<FpropArgs>(problem), lanes, true));                              \
  }                                                                                                               \
  void isa::fprop_winograd_pack(const FpropArgs& args) {                                                          \
    pack_ahead(fprop_sum<float>(args, lanes, true), static_cast<float*>(args.packed));                            \
  }                                                                                                               \
  void isa::fprop_winograd(const FpropArgs& args) {                                                               \
    if (run_sum<Winograd, lanes>(fprop_sum<float>(args, lanes, true))) return;                                    \
    FpropArgs unpacked = args;                                                                                    \
    unpacked.packed = nullptr;                                                                                    \
    isa::fprop<DType::f32, lanes>(unpacked);                                                                      \
  }                                                                                                               \
  void isa::dgrad_winograd(const DgradArgs& args) {                                                               \
    if (!run_sum<Winograd, lanes>(dgrad_sum<float>(args, lanes, true))) isa::dgrad<DType::f32, lanes>(args);      \
  }                                                                                                               \
  void isa::wgrad_winograd(const WgradArgs& args) {                                                               \
    if (!run_wgrad<float, lanes>(args, true)) isa::wgrad<DType::f32, lanes>(args);                                \
  }                                                                                                               \
  }
