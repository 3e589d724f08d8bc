// The entries of the NCHW tensor-core kernels in floats, by TF32: see mma_nchw_tf32.h.
#include "mma_nchw_fields.h"

namespace resnext::cuda {
namespace mma_nchw {

template <class Kind>
const char* tf32_why_not(const Problem& problem) {
  if (const char* reason = why_not<DType::f32, Kind>(problem)) return reason;
  return why_no_tf32(problem, Kind::products);
}

template <class Kind, class Args>
void run_tf32(const Args& args) {
  launch_planes<float, Kind>(planes(args), args.launch.stream);
}

}  // namespace mma_nchw

template <int width, int stride, int products>
KernelEntry<FpropArgs> fprop_mma_tf32_nchw(const char* name) {
  using namespace mma_nchw;
  using Kind = Tf32<Gather<width, stride>, products>;
  return {name, tf32_why_not<Kind>, no_workspace, run_tf32<Kind, FpropArgs>, true, tf32_yields<products>};
}

template <int width, int stride, int products>
KernelEntry<DgradArgs> dgrad_mma_tf32_nchw(const char* name) {
  using namespace mma_nchw;
  using Kind = Tf32<DgradKind<width, stride>, products>;
  return {name, tf32_why_not<Kind>, no_workspace, run_tf32<Kind, DgradArgs>, false, tf32_yields<products>};
}

template KernelEntry<FpropArgs> fprop_mma_tf32_nchw<8, 1, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32_nchw<8, 1, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32_nchw<16, 1, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32_nchw<16, 1, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32_nchw<32, 1, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32_nchw<32, 1, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32_nchw<8, 2, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32_nchw<8, 2, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32_nchw<16, 2, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32_nchw<16, 2, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32_nchw<32, 2, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32_nchw<32, 2, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32_nchw<8, 1, 3>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32_nchw<8, 1, 3>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32_nchw<16, 1, 3>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32_nchw<16, 1, 3>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32_nchw<32, 1, 3>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32_nchw<32, 1, 3>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32_nchw<16, 2, 3>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32_nchw<16, 2, 3>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_tf32_nchw<32, 2, 3>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_tf32_nchw<32, 2, 3>(const char* name);

}  // namespace resnext::cuda
