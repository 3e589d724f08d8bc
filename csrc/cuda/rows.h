#pragma once
#include "grouped_conv.h"

// K1, the float kernels that stream rows through shared memory: 3x3 with padding 1 and groups of 4, 8, 16 or 32.
namespace resnext::cuda {

template <int width, int stride>
const char* rows_nhwc_why_not(const Problem&);

template <int width, int stride>
void fprop_rows_nhwc(const FpropArgs&);

template <int width, int stride>
void dgrad_rows_nhwc(const DgradArgs&);

int64_t no_workspace(const Problem&, int threads);

}  // namespace resnext::cuda
