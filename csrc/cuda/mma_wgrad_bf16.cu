// The tensor cores' wgrad for nv_bfloat16; see mma_wgrad_kernel.h.
#include "mma_wgrad_plan.h"

namespace resnext::cuda {

template KernelEntry<WgradArgs> mma_wgrad_entry<__nv_bfloat16, 4, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__nv_bfloat16, 8, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__nv_bfloat16, 16, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__nv_bfloat16, 32, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__nv_bfloat16, 64, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__nv_bfloat16, 4, 2, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__nv_bfloat16, 8, 2, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__nv_bfloat16, 16, 2, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__nv_bfloat16, 32, 2, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__nv_bfloat16, 64, 2, Layout::nhwc>(const char*);

}  // namespace resnext::cuda
