#pragma once
#include "grouped_conv.h"

// The tensor-core kernels of mma_nhwc.h: 3x3 with padding 1, fp16 and bf16.
namespace resnext::cuda {

template <DType dtype, int width, int stride>
KernelEntry<FpropArgs> fprop_mma_nhwc(const char* name);

template <DType dtype, int width, int stride>
KernelEntry<DgradArgs> dgrad_mma_nhwc(const char* name);

// Of groups of up to so many channels in fours, as many on both sides or not.
template <DType dtype, int width, int stride>
KernelEntry<FpropArgs> fprop_mma_padded_nhwc(const char* name);

template <DType dtype, int width, int stride>
KernelEntry<DgradArgs> dgrad_mma_padded_nhwc(const char* name);

// In floats, by one product of TF32 numbers or by three.
template <int width, int stride, int products>
KernelEntry<FpropArgs> fprop_mma_tf32(const char* name);

template <int width, int stride, int products>
KernelEntry<DgradArgs> dgrad_mma_tf32(const char* name);

}  // namespace resnext::cuda
