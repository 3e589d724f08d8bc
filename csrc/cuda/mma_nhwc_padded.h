#pragma once
// The entries of PaddedGroups, the tensor-core kernels of mma_nhwc.h for groups that have no kernel of their own width:
// C/groups and K/groups are multiples of 4, at most 64, and equal or not. Each runs in groups of 16, 32 or 64 channels,
// whichever hold both. One kernel is fprop, fused or not, and at stride 1 dgrad.
#include "mma_nhwc_fields.h"

namespace resnext::cuda {
namespace mma_nhwc {

template <class T, class Kind>
const char* padded_why_not(const Problem& problem) {
  constexpr int stride = Kind::spread * Kind::stride;
  const ConvShape& s = problem.shape;
  const int64_t c = s.c_per_group(), k = s.k_per_group(), most = std::max(c, k);
  if (const char* reason = padded_3x3_widths_why_not(problem, dtype_of<T>, Layout::nhwc, c, k, stride)) return reason;
  if (problem.architecture < oldest_architecture<T, Kind>) return "needs compute capability 8.0";
  if (c % 4 != 0 || k % 4 != 0) return "group widths that are no multiples of 4";
  if (most > Kind::width || (Kind::width > 16 && most <= Kind::width / 2)) return "other group widths";
  if (c == k && (c == 4 || c % 8 == 0) && s.c % 8 == 0) return "groups of this width have a kernel of their own";
  return std::max({s.n, s.h, s.w, s.c, s.k}) >= 1 << 30 ? "2^30 images, rows, columns or channels" : nullptr;
}

// Of a convolution from `source` to `result` channels.
template <class Kind, class Args>
Lines padded_lines(const Args& args, int64_t source, int64_t result) {
  const auto groups = static_cast<int>(args.problem.shape.groups);
  Lines g = lines(args);
  g.channels = groups * Kind::width;
  g.source_channels = static_cast<int>(source);
  g.result_channels = static_cast<int>(result);
  g.source_width = g.source_channels / groups;
  g.result_width = g.result_channels / groups;
  return g;
}

template <class T, class Kind>
void padded_fprop(const FpropArgs& args) {
  const ConvShape& s = args.problem.shape;
  launch_lines<T, Kind>(padded_lines<Kind>(args, s.c, s.k), args.launch.stream);
}

template <class T, class Kind>
void padded_dgrad(const DgradArgs& args) {
  const ConvShape& s = args.problem.shape;
  launch_lines<T, Kind>(padded_lines<Kind>(args, s.k, s.c), args.launch.stream);
}

template <int width, int stride>
using PaddedFprop = PaddedGroups<Fused<Gather<width, stride>>>;
template <int width, int stride>
using PaddedDgrad = std::conditional_t<stride == 1, PaddedFprop<width, 1>, PaddedGroups<Spread<width>>>;

}  // namespace mma_nhwc

template <DType dtype, int width, int stride>
KernelEntry<FpropArgs> fprop_mma_padded_nhwc(const char* name) {
  using namespace mma_nhwc;
  using Kind = PaddedFprop<width, stride>;
  return {name, padded_why_not<Element<dtype>, Kind>, no_workspace, padded_fprop<Element<dtype>, Kind>, true};
}

template <DType dtype, int width, int stride>
KernelEntry<DgradArgs> dgrad_mma_padded_nhwc(const char* name) {
  using namespace mma_nhwc;
  using Kind = PaddedDgrad<width, stride>;
  return {name, padded_why_not<Element<dtype>, Kind>, no_workspace, padded_dgrad<Element<dtype>, Kind>};
}

}  // namespace resnext::cuda
