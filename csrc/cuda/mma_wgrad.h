#pragma once
#include "device.h"
#include "grouped_conv.h"

// The tensor cores' wgrad: half or bfloat16, 3x3 with padding 1, by rows that stream through shared memory.
namespace resnext::cuda {

template <class T, int width, int stride, Layout layout>
KernelEntry<WgradArgs> mma_wgrad_entry(const char* name);

}  // namespace resnext::cuda
