// The entries of the tensor-core kernels of mma_nhwc.h, and what they accept.
#include <algorithm>
#include <type_traits>

#include "mma_nhwc.h"
#include "mma_nhwc_entries.h"
#include "padded_3x3.h"

namespace resnext::cuda {
namespace mma_nhwc {

template <DType dtype, int width, int stride>
const char* why_not(const Problem& problem) {
  const ConvShape& s = problem.shape;
  if (const char* reason = padded_3x3_mma_why_not(problem, dtype, Layout::nhwc, width, stride)) return reason;
  if (s.c % 8 != 0) return "the channels of a pixel are no multiple of 16 bytes";
  return std::max({s.n, s.h, s.w, s.c}) >= 1 << 30 ? "2^30 images, rows, columns or channels" : nullptr;
}

inline Lines lines(const FpropArgs& args) {
  const ConvShape& s = args.problem.shape;
  Lines g = padded_3x3_fields<Lines>(args);
  g.source_row = s.w * s.c * bytes_of(args.problem.dtype);
  g.result_row = s.q() * s.k * bytes_of(args.problem.dtype);
  return g;
}

inline Lines lines(const DgradArgs& args) {
  const ConvShape& s = args.problem.shape;
  Lines g = padded_3x3_fields<Lines>(args);
  if (s.stride_h == 1) turn_taps(g, args.problem.dtype);
  g.source_row = s.q() * s.k * bytes_of(args.problem.dtype);
  g.result_row = s.w * s.c * bytes_of(args.problem.dtype);
  return g;
}

template <DType dtype>
using Element = std::conditional_t<dtype == DType::f16, __half, __nv_bfloat16>;

template <DType dtype, int width, int stride>
void fprop(const FpropArgs& args) {
  using Kind = Gather<width, stride>;
  if (args.problem.fused)
    launch_lines<Element<dtype>, Fused<Kind>>(lines(args), args.launch.stream);
  else
    launch_lines<Element<dtype>, Kind>(lines(args), args.launch.stream);
}

template <DType dtype, int width, int stride>
void dgrad(const DgradArgs& args) {
  using Kind = std::conditional_t<stride == 1, Gather<width, 1>, Spread<width>>;
  launch_lines<Element<dtype>, Kind>(lines(args), args.launch.stream);
}

inline int64_t no_workspace(const Problem&, int) { return 0; }

}  // namespace mma_nhwc

template <DType dtype, int width, int stride>
KernelEntry<FpropArgs> fprop_mma_nhwc(const char* name) {
  using namespace mma_nhwc;
  return {name, why_not<dtype, width, stride>, no_workspace, fprop<dtype, width, stride>, true};
}

template <DType dtype, int width, int stride>
KernelEntry<DgradArgs> dgrad_mma_nhwc(const char* name) {
  using namespace mma_nhwc;
  return {name, why_not<dtype, width, stride>, no_workspace, dgrad<dtype, width, stride>};
}

template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 4, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 4, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 4, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 4, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 4, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 4, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 4, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 4, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 8, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 8, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 8, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 8, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 8, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 8, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 8, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 8, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 16, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 16, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 16, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 16, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 16, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 16, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 16, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 16, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 32, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 32, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 32, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 32, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 32, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 32, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 32, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 32, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 64, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 64, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 64, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 64, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 64, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 64, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 64, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 64, 2>(const char* name);

}  // namespace resnext::cuda
