#pragma once
#include "grouped_conv.h"

// The generic kernels: any shape, type and layout, on any architecture. The last row of each table.
namespace resnext::cuda {

const char* generic_why_not(const Problem&);

int64_t generic_gather_workspace(const Problem&, int threads);
int64_t generic_wgrad_workspace(const Problem&, int threads);

void fprop_generic(const FpropArgs&);
void dgrad_generic(const DgradArgs&);
void wgrad_generic(const WgradArgs&);

}  // namespace resnext::cuda
