#pragma once
#include "grouped_conv.h"

// K1's wgrad: float, 3x3 with padding 1 and groups of 4, 8, 16 or 32 channels, by rows that stream through shared
// memory. `products`: 0 of plain floats, 1 or 3 of TF32 numbers on
// tensor cores (1 not for groups of 4, 3 for those of 16 and 32).
namespace resnext::cuda {

template <int width, int stride, Layout layout, int products = 0>
KernelEntry<WgradArgs> rows_wgrad_entry(const char* name);

}  // namespace resnext::cuda
