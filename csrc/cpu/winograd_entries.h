#pragma once
#include "grouped_conv.h"

// The kernels by Winograd's minimal filtering (winograd.h), for float.
#define RESNEXT_DECLARE_WINOGRAD(isa)                            \
  namespace resnext::cpu::isa {                                  \
  int64_t fprop_winograd_workspace(const Problem&, int threads); \
  int64_t dgrad_winograd_workspace(const Problem&, int threads); \
  int64_t wgrad_winograd_workspace(const Problem&, int threads); \
  int64_t fprop_winograd_packed(const Problem&);                 \
  void fprop_winograd_pack(const FpropArgs&);                    \
  void fprop_winograd(const FpropArgs&);                         \
  void dgrad_winograd(const DgradArgs&);                         \
  void wgrad_winograd(const WgradArgs&);                         \
  }

RESNEXT_DECLARE_WINOGRAD(avx2)
RESNEXT_DECLARE_WINOGRAD(avx512)
