// The row-streaming wgrad for NHWC; see rows_wgrad_kernel.h.
#include "rows_wgrad_plan.h"

namespace resnext::cuda {

template KernelEntry<WgradArgs> rows_wgrad_entry<4, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<8, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<16, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<32, 1, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<4, 2, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<8, 2, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<16, 2, Layout::nhwc>(const char*);
template KernelEntry<WgradArgs> rows_wgrad_entry<32, 2, Layout::nhwc>(const char*);

}  // namespace resnext::cuda
