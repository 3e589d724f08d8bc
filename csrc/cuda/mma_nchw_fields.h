#pragma once
// The entries of the NCHW tensor-core kernels of mma_nchw.h, and what they accept.
#include <algorithm>
#include <type_traits>

#include "mma_nchw.h"
#include "mma_nchw_entries.h"
#include "padded_3x3.h"

namespace resnext::cuda {
namespace mma_nchw {

template <DType dtype, class Kind>
const char* why_not(const Problem& problem) {
  constexpr int stride = Kind::spread * Kind::stride;
  const ConvShape& s = problem.shape;
  if (const char* reason = padded_3x3_mma_why_not(problem, dtype, Layout::nchw, Kind::width, stride)) return reason;
  if (std::max({s.n, s.h, s.c}) >= 1 << 30) return "2^30 images, rows or channels";
  const bool gathers = Kind::spread == 1;
  return fits<Kind>(gathers ? s.w : s.q(), gathers ? s.q() : s.w) ? nullptr : "rows too long for shared memory";
}

inline Planes planes(const FpropArgs& args) { return padded_3x3_fields<Planes>(args); }

inline Planes planes(const DgradArgs& args) {
  Planes g = padded_3x3_fields<Planes>(args);
  if (args.problem.shape.stride_h == 1) turn_taps(g, args.problem.dtype);
  return g;
}

template <DType dtype>
using Element = std::conditional_t<dtype == DType::f16, __half, __nv_bfloat16>;
template <int width, int stride>
using DgradKind = std::conditional_t<stride == 1, Gather<width, 1>, Spread<width>>;

template <DType dtype, class Kind, class Args>
void run(const Args& args) {
  launch_planes<Element<dtype>, Kind>(planes(args), args.launch.stream);
}

inline int64_t no_workspace(const Problem&, int) { return 0; }

}  // namespace mma_nchw

template <DType dtype, int width, int stride>
KernelEntry<FpropArgs> fprop_mma_nchw(const char* name) {
  using namespace mma_nchw;
  using Kind = Gather<width, stride>;
  return {name, why_not<dtype, Kind>, no_workspace, run<dtype, Kind, FpropArgs>, true};
}

template <DType dtype, int width, int stride>
KernelEntry<DgradArgs> dgrad_mma_nchw(const char* name) {
  using namespace mma_nchw;
  using Kind = DgradKind<width, stride>;
  return {name, why_not<dtype, Kind>, no_workspace, run<dtype, Kind, DgradArgs>};
}

}  // namespace resnext::cuda
