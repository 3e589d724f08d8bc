// The tensor cores' wgrad for half in NHWC; see mma_wgrad_kernel.h.
#include "mma_wgrad_plan.h"

namespace resnext::cuda {

template KernelEntry<WgradArgs> mma_wgrad_entry<__half, 4, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__half, 8, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__half, 16, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__half, 32, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__half, 64, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__half, 4, 2, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__half, 8, 2, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__half, 16, 2, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__half, 32, 2, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> mma_wgrad_entry<__half, 64, 2, Layout::nhwc>(const char*);

}  // namespace resnext::cuda
