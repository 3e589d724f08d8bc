// The row-streaming wgrad for NHWC by TF32; see rows_wgrad_mma.h.
#include "rows_wgrad_plan.h"

namespace resnext::cuda {

template KernelEntry<WgradArgs> rows_wgrad_entry<8, 1, Layout::nhwc, 1>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<16, 1, Layout::nhwc, 1>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<32, 1, Layout::nhwc, 1>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<8, 2, Layout::nhwc, 1>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<16, 2, Layout::nhwc, 1>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<32, 2, Layout::nhwc, 1>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<16, 1, Layout::nhwc, 3>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<32, 1, Layout::nhwc, 3>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<16, 2, Layout::nhwc, 3>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<32, 2, Layout::nhwc, 3>(const char*);

}  // namespace resnext::cuda
