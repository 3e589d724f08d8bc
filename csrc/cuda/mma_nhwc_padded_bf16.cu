// The bf16 entries of PaddedGroups, see mma_nhwc_padded.h.
#include "mma_nhwc_padded.h"

namespace resnext::cuda {

template KernelEntry<FpropArgs> fprop_mma_padded_nhwc<DType::bf16, 16, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_padded_nhwc<DType::bf16, 16, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_padded_nhwc<DType::bf16, 16, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_padded_nhwc<DType::bf16, 16, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_padded_nhwc<DType::bf16, 32, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_padded_nhwc<DType::bf16, 32, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_padded_nhwc<DType::bf16, 32, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_padded_nhwc<DType::bf16, 32, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_padded_nhwc<DType::bf16, 64, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_padded_nhwc<DType::bf16, 64, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_padded_nhwc<DType::bf16, 64, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_padded_nhwc<DType::bf16, 64, 2>(const char* name);

}  // namespace resnext::cuda
