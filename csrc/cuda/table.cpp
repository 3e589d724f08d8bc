#include "generic.h"
#include "grouped_conv.h"

// What runs when: the first entry that accepts a problem. Most special first, the generic kernel, which accepts all,
// last.
namespace resnext::cuda {

const KernelTable<FpropArgs>& fprop_table() {
  static const KernelTable<FpropArgs> table{
      {"fprop_generic", generic_why_not, generic_gather_workspace, fprop_generic},
  };
  return table;
}

const KernelTable<DgradArgs>& dgrad_table() {
  static const KernelTable<DgradArgs> table{
      {"dgrad_generic", generic_why_not, generic_gather_workspace, dgrad_generic},
  };
  return table;
}

const KernelTable<WgradArgs>& wgrad_table() {
  static const KernelTable<WgradArgs> table{
      {"wgrad_generic", generic_why_not, generic_wgrad_workspace, wgrad_generic},
  };
  return table;
}

}  // namespace resnext::cuda
