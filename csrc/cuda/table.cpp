#include "grouped_conv.h"

// The CUDA kernel tables: empty until the first kernel lands.
namespace resnext::cuda {

const KernelTable<FpropArgs>& fprop_table() {
  static const KernelTable<FpropArgs> table{};
  return table;
}

const KernelTable<DgradArgs>& dgrad_table() {
  static const KernelTable<DgradArgs> table{};
  return table;
}

const KernelTable<WgradArgs>& wgrad_table() {
  static const KernelTable<WgradArgs> table{};
  return table;
}

}  // namespace resnext::cuda
