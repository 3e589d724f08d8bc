// The fp16 entries of the NCHW tensor-core kernels of mma_nchw.h.
#include "mma_nchw_fields.h"

namespace resnext::cuda {

template KernelEntry<FpropArgs> fprop_mma_nchw<DType::f16, 4, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nchw<DType::f16, 4, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nchw<DType::f16, 4, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nchw<DType::f16, 4, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nchw<DType::f16, 8, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nchw<DType::f16, 8, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nchw<DType::f16, 8, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nchw<DType::f16, 8, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nchw<DType::f16, 16, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nchw<DType::f16, 16, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nchw<DType::f16, 16, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nchw<DType::f16, 16, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nchw<DType::f16, 32, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nchw<DType::f16, 32, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nchw<DType::f16, 32, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nchw<DType::f16, 32, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nchw<DType::f16, 64, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nchw<DType::f16, 64, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nchw<DType::f16, 64, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nchw<DType::f16, 64, 2>(const char* name);

}  // namespace resnext::cuda
