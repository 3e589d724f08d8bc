// The entries of the tensor-core kernels of mma_nhwc.h in floats, by TF32: see mma_nhwc_tf32.h.
#include "mma_nhwc_fields.h"

namespace resnext::cuda {
namespace mma_nhwc {

template <class Kind>
const char* tf32_why_not(const Problem& problem) {
  if (const char* reason = why_not<float, Kind>(problem)) return reason;
  return why_no_tf32(problem, Kind::products);
}

}  // namespace mma_nhwc

template <int width, int stride, int products>
KernelEntry<FpropArgs> fprop_mma_tf32(const char* name) {
  using namespace mma_nhwc;
  using Kind = Tf32<Gather<2 * width, stride>, products>;
  return {name, tf32_why_not<Kind>, no_workspace, fprop<float, Kind>, true, tf32_yields<products>};
}

template <int width, int stride, int products>
KernelEntry<DgradArgs> dgrad_mma_tf32(const char* name) {
  using namespace mma_nhwc;
  using Kind = Tf32<std::conditional_t<stride == 1, Gather<2 * width, 1>, Spread<2 * width>>, products>;
  return {name, tf32_why_not<Kind>, no_workspace, dgrad<float, Kind>, false, tf32_yields<products>};
}

template KernelEntry<FpropArgs> fprop_mma_tf32<8, 1, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32<8, 1, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32<8, 2, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32<8, 2, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32<16, 1, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32<16, 1, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32<16, 2, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32<16, 2, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32<32, 1, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32<32, 1, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32<32, 2, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32<32, 2, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32<8, 1, 3>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32<8, 1, 3>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32<16, 1, 3>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32<16, 1, 3>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32<16, 2, 3>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32<16, 2, 3>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32<32, 1, 3>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32<32, 1, 3>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32<32, 2, 3>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32<32, 2, 3>(const char* name);

}  // namespace resnext::cuda
