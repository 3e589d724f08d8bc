#pragma once
#include "grouped_conv.h"

// The reference kernels: plain loops that accept every problem.
namespace resnext::cpu {

const char* reference_why_not(const Problem&);

int64_t fprop_reference_workspace(const Problem&, int threads);
int64_t dgrad_reference_workspace(const Problem&, int threads);
int64_t wgrad_reference_workspace(const Problem&, int threads);

void fprop_reference(const FpropArgs&);
void dgrad_reference(const DgradArgs&);
void wgrad_reference(const WgradArgs&);

}  // namespace resnext::cpu
