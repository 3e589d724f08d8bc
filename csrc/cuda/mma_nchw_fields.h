#pragma once
// The entries of the NCHW tensor-core kernels of mma_nchw.h, and what they accept.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "mma_nchw.h"
#include "mma_nchw_entries.h"

namespace resnext::cuda {
namespace mma_nchw {

template <DType dtype, class Kind>
const char* why_not(const Problem& problem) {
  constexpr int stride = Kind::spread * Kind::stride;
  const ConvShape& s = problem.shape;
  if (problem.dtype != dtype) return dtype == DType::f16 ? "float16 only" : "bfloat16 only";
  if (problem.layout != Layout::nchw) return "NCHW only";
  if (s.c_per_group() != Kind::width || s.k_per_group() != Kind::width) return "another group width";
  if (s.r != taps || s.s != taps) return "3x3 only";
  if (s.stride_h != stride || s.stride_w != stride) return "another stride";
  if (s.pad_h != 1 || s.pad_w != 1) return "padding 1 only";
  if (s.dilation_h != 1 || s.dilation_w != 1) return "dilation 1 only";
  if (problem.architecture < 80) return "needs compute capability 8.0";
  if (problem.alignment < 16) return "activations are not 16-byte aligned";
  if (std::max({s.n, s.h, s.c}) >= 1 << 30) return "2^30 images, rows or channels";
  const bool gathers = Kind::spread == 1;
  return fits<Kind>(gathers ? s.w : s.q(), gathers ? s.q() : s.w) ? nullptr : "rows too long for shared memory";
}

inline Planes planes(const FpropArgs& args) {
  const ConvShape& s = args.problem.shape;
  const auto& w = args.weight;
  Planes g{};
  g.source = args.input;
  g.weight = w.data;
  g.bias = args.bias;
  g.result = args.output;
  g.weight_result = w.stride_k;
  g.weight_source = w.stride_c;
  g.weight_group = s.k_per_group() * w.stride_k;
  g.weight_r = w.stride_r;
  g.weight_s = w.stride_s;
  g.channels = static_cast<int>(s.c);
  g.images = static_cast<int>(s.n);
  g.rows = static_cast<int>(s.h);
  g.columns = static_cast<int>(s.w);
  g.result_rows = static_cast<int>(s.p());
  g.result_columns = static_cast<int>(s.q());
  if (args.problem.fused) {
    g.relu = args.epilogue.relu;
    g.scale = static_cast<const float*>(args.epilogue.scale);
    g.shift = static_cast<const float*>(args.epilogue.shift);
    g.residual = args.epilogue.residual;
  }
  return g;
}

inline Planes planes(const DgradArgs& args) {
  Planes g = planes(FpropArgs{args.problem, args.grad_output, args.weight, nullptr, args.grad_input, args.launch});
  g.weight_result = args.weight.stride_c;
  g.weight_source = args.weight.stride_k;
  if (args.problem.shape.stride_h == 1) {  // fprop with the taps turned by 180 degrees
    g.weight = static_cast<const uint16_t*>(g.weight) + 2 * (g.weight_r + g.weight_s);
    g.weight_r = -g.weight_r;
    g.weight_s = -g.weight_s;
  }
  std::swap(g.rows, g.result_rows);
  std::swap(g.columns, g.result_columns);
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
