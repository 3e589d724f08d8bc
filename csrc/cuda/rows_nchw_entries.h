#pragma once
#include "grouped_conv.h"

// K1 in NCHW: 3x3 with padding 1 and groups of 4, 8, 16 or 32, stride 1 or 2.
namespace resnext::cuda {

template <int width, int stride>
const char* rows_nchw_why_not(const Problem&);

template <int width, int stride>
void fprop_rows_nchw(const FpropArgs&);

template <int width, int stride>
void dgrad_rows_nchw(const DgradArgs&);

}  // namespace resnext::cuda
