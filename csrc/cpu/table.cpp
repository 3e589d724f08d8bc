#include "grouped_conv.h"
#include "reference.h"

// What runs when: the first entry that accepts a problem. Most special first, the reference, which accepts all, last.
namespace resnext::cpu {

const KernelTable<FpropArgs>& fprop_table() {
  static const KernelTable<FpropArgs> table = {
      {"fprop_reference", reference_why_not, fprop_reference_workspace, fprop_reference},
  };
  return table;
}

const KernelTable<DgradArgs>& dgrad_table() {
  static const KernelTable<DgradArgs> table = {
      {"dgrad_reference", reference_why_not, dgrad_reference_workspace, dgrad_reference},
  };
  return table;
}

const KernelTable<WgradArgs>& wgrad_table() {
  static const KernelTable<WgradArgs> table = {
      {"wgrad_reference", reference_why_not, wgrad_reference_workspace, wgrad_reference},
  };
  return table;
}

}  // namespace resnext::cpu
