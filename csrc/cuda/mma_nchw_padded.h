#pragma once
// The entries of PaddedGroups, the tensor-core kernels of mma_nchw.h for groups that have no kernel of their own width:
// C/groups and K/groups are 4 to 64, equal or not. Each runs in groups of 16, 32 or 64 channels, whichever hold both.
// One kernel is fprop, fused or not, and at stride 1 dgrad.
#include "mma_nchw_fields.h"

namespace resnext::cuda {
namespace mma_nchw {

template <DType dtype, class Kind>
const char* padded_why_not(const Problem& problem, bool is_dgrad) {
  constexpr int stride = Kind::spread * Kind::stride;
  const ConvShape& s = problem.shape;
  const int64_t c = s.c_per_group(), k = s.k_per_group(), most = std::max(c, k);
  if (const char* reason = padded_3x3_widths_why_not(problem, dtype, Layout::nchw, c, k, stride)) return reason;
  if (problem.architecture < 80) return "needs compute capability 8.0";
  if (std::min(c, k) < 4) return "groups of less than 4 channels";
  if (most > Kind::width || (Kind::width > 16 && most <= Kind::width / 2)) return "other group widths";
  if (c == k && (c & (c - 1)) == 0) return "groups of this width have a kernel of their own";
  if (std::max({s.n, s.h, s.c, s.k}) >= 1 << 30) return "2^30 images, rows or channels";
  Planes sizes{};
  sizes.source_width = static_cast<int>(is_dgrad ? k : c);
  sizes.result_width = static_cast<int>(is_dgrad ? c : k);
  return fits<Kind>(is_dgrad ? s.q() : s.w, is_dgrad ? s.w : s.q(), sizes) ? nullptr
                                                                           : "rows too long for shared memory";
}

template <DType dtype, class Kind, class Args>
void run_padded(const Args& args) {
  constexpr bool is_dgrad = std::is_same_v<Args, DgradArgs>;
  const ConvShape& s = args.problem.shape;
  const auto groups = static_cast<int>(s.groups);
  Planes g = planes(args);
  g.channels = groups * Kind::width;
  g.source_channels = static_cast<int>(is_dgrad ? s.k : s.c);
  g.result_channels = static_cast<int>(is_dgrad ? s.c : s.k);
  g.source_width = g.source_channels / groups;
  g.result_width = g.result_channels / groups;
  launch_planes<Element<dtype>, Kind>(g, args.launch.stream);
}

}  // namespace mma_nchw

template <DType dtype, int width, int stride>
KernelEntry<FpropArgs> fprop_mma_padded_nchw(const char* name) {
  using namespace mma_nchw;
  using Kind = PaddedGroups<Gather<width, stride>>;
  const auto why_not = [](const Problem& problem) { return padded_why_not<dtype, Kind>(problem, false); };
  return {name, why_not, no_workspace, run_padded<dtype, Kind, FpropArgs>, true};
}

template <DType dtype, int width, int stride>
KernelEntry<DgradArgs> dgrad_mma_padded_nchw(const char* name) {
  using namespace mma_nchw;
  using Kind = PaddedGroups<DgradKind<width, stride>>;
  const auto why_not = [](const Problem& problem) { return padded_why_not<dtype, Kind>(problem, true); };
  return {name, why_not, no_workspace, run_padded<dtype, Kind, DgradArgs>};
}

}  // namespace resnext::cuda
