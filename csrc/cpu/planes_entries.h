#pragma once
#include "grouped_conv.h"

// The kernels that have pixels of NCHW in the lanes (planes.h).
namespace resnext::cpu::avx512 {

template <DType>
int64_t planes_workspace(const Problem&, int threads);
template <DType>
int64_t planes_packed(const Problem&);
template <DType>
void planes_pack(const FpropArgs&);
template <DType>
void fprop_planes(const FpropArgs&);
template <DType>
void dgrad_planes(const DgradArgs&);

}  // namespace resnext::cpu::avx512
