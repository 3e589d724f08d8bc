// The fp16 entries of the tensor-core kernels of mma_nhwc.h.
#include "mma_nhwc_fields.h"

namespace resnext::cuda {

template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 4, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 4, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 4, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 4, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 8, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 8, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 8, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 8, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 16, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 16, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 16, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 16, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 32, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 32, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 32, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 32, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 64, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 64, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 64, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 64, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 24, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 24, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 24, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 24, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 40, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 40, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 40, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 40, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 48, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 48, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 48, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 48, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 56, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 56, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 56, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 56, 2>(const char* name);

}  // namespace resnext::cuda
