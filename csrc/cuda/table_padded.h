#pragma once
// The rows of the tables for groups that are padded to 16, 32 or 64 channels.
#include "grouped_conv.h"
#include "kernel_table.h"

namespace resnext::cuda {

KernelTable<FpropArgs> fprop_of_padded_halves();
KernelTable<DgradArgs> dgrad_of_padded_halves();

}  // namespace resnext::cuda
