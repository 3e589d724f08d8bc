#pragma once
// What the tensor-core kernels of mma_nhwc.h accept, what of an operator's arguments they are told, and their launches.
#include <algorithm>
#include <type_traits>

#include "mma_nhwc.h"
#include "mma_nhwc_entries.h"
#include "padded_3x3.h"

namespace resnext::cuda::mma_nhwc {

template <class T>
constexpr DType dtype_of = std::is_same_v<T, float>    ? DType::f32
                           : std::is_same_v<T, __half> ? DType::f16
                                                       : DType::bf16;

template <class T, class Kind>
const char* why_not(const Problem& problem) {
  constexpr int stride = Kind::spread * Kind::stride, oldest = oldest_architecture<T, Kind>;
  const ConvShape& s = problem.shape;
  if (const char* reason = padded_3x3_why_not(problem, dtype_of<T>, Layout::nhwc, Kind::width, stride)) return reason;
  if (problem.architecture < oldest)
    return oldest == 75                       ? "needs compute capability 7.5"
           : std::is_same_v<T, __nv_bfloat16> ? "bfloat16 needs compute capability 8.0"
                                              : "needs compute capability 8.0";
  if (s.c * int64_t(sizeof(T)) % 16 != 0) return "the channels of a pixel are no multiple of 16 bytes";
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

template <class T, class Kind>
void fprop(const FpropArgs& args) {
  if (args.problem.fused)
    launch_lines<T, Fused<Kind>>(lines(args), args.launch.stream);
  else
    launch_lines<T, Kind>(lines(args), args.launch.stream);
}

template <class T, class Kind>
void dgrad(const DgradArgs& args) {
  launch_lines<T, Kind>(lines(args), args.launch.stream);
}

inline int64_t no_workspace(const Problem&, int) { return 0; }

template <DType dtype>
using Element = std::conditional_t<dtype == DType::f16, __half, __nv_bfloat16>;

template <int width, int stride>
using Dgrad = std::conditional_t<stride == 1, Gather<width, 1>, Spread<width>>;

}  // namespace resnext::cuda::mma_nhwc

namespace resnext::cuda {

template <DType dtype, int width, int stride>
KernelEntry<FpropArgs> fprop_mma_nhwc(const char* name) {
  using namespace mma_nhwc;
  using Kind = Gather<width, stride>;
  return {name, why_not<Element<dtype>, Kind>, no_workspace, fprop<Element<dtype>, Kind>, true};
}

template <DType dtype, int width, int stride>
KernelEntry<DgradArgs> dgrad_mma_nhwc(const char* name) {
  using namespace mma_nhwc;
  using Kind = Dgrad<width, stride>;
  return {name, why_not<Element<dtype>, Kind>, no_workspace, dgrad<Element<dtype>, Kind>};
}

}  // namespace resnext::cuda
