// The entries of the tensor-core kernels of mma_nhwc.h, and what they accept.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "mma_nhwc.h"
#include "mma_nhwc_entries.h"

namespace resnext::cuda {
namespace mma_nhwc {

// `oldest`: the architecture that it needs.
template <DType dtype, int width, int stride, int oldest>
const char* why_not(const Problem& problem) {
  const ConvShape& s = problem.shape;
  if (problem.dtype != dtype) return dtype == DType::f16 ? "float16 only" : "bfloat16 only";
  if (problem.layout != Layout::nhwc) return "NHWC only";
  if (s.c_per_group() != width || s.k_per_group() != width) return "another group width";
  if (s.r != taps || s.s != taps) return "3x3 only";
  if (s.stride_h != stride || s.stride_w != stride) return "another stride";
  if (s.pad_h != 1 || s.pad_w != 1) return "padding 1 only";
  if (s.dilation_h != 1 || s.dilation_w != 1) return "dilation 1 only";
  if (problem.architecture < oldest)
    return oldest == 75           ? "needs compute capability 7.5"
           : dtype == DType::bf16 ? "bfloat16 needs compute capability 8.0"
                                  : "needs compute capability 8.0";
  if (problem.alignment < 16) return "activations are not 16-byte aligned";
  if (s.c % 8 != 0) return "the channels of a pixel are no multiple of 16 bytes";
  return std::max({s.n, s.h, s.w, s.c}) >= 1 << 30 ? "2^30 images, rows, columns or channels" : nullptr;
}

template <int width>
Lines lines(const FpropArgs& args) {
  const ConvShape& s = args.problem.shape;
  const auto& w = args.weight;
  Lines g{};
  g.source = args.input;
  g.weight = w.data;
  g.bias = args.bias;
  g.result = args.output;
  g.weight_result = w.stride_k;
  g.weight_source = w.stride_c;
  g.weight_group = width * w.stride_k;
  g.weight_r = w.stride_r;
  g.weight_s = w.stride_s;
  g.channels = static_cast<int>(s.c);
  g.images = static_cast<int>(s.n);
  g.source_row = s.w * s.c * bytes_of(args.problem.dtype);
  g.result_row = s.q() * s.k * bytes_of(args.problem.dtype);
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

template <int width>
Lines lines(const DgradArgs& args) {
  const ConvShape& s = args.problem.shape;
  Lines g = lines<width>(FpropArgs{args.problem, args.grad_output, args.weight, nullptr, args.grad_input, args.launch});
  g.weight_result = args.weight.stride_c;
  g.weight_source = args.weight.stride_k;
  if (s.stride_h == 1) {  // fprop with the taps turned by 180 degrees
    g.weight = static_cast<const uint16_t*>(g.weight) + 2 * (g.weight_r + g.weight_s);
    g.weight_r = -g.weight_r;
    g.weight_s = -g.weight_s;
  }
  std::swap(g.source_row, g.result_row);
  std::swap(g.rows, g.result_rows);
  std::swap(g.columns, g.result_columns);
  return g;
}

template <DType dtype>
using Element = std::conditional_t<dtype == DType::f16, __half, __nv_bfloat16>;

template <DType dtype, int width, int stride>
void fprop(const FpropArgs& args) {
  using Kind = Gather<width, stride>;
  if (args.problem.fused)
    launch_lines<Element<dtype>, Fused<Kind>>(lines<width>(args), args.launch.stream);
  else
    launch_lines<Element<dtype>, Kind>(lines<width>(args), args.launch.stream);
}

template <int width, int stride>
using Dgrad = std::conditional_t<stride == 1, Gather<width, 1>, Spread<width>>;

template <DType dtype, int width, int stride>
void dgrad(const DgradArgs& args) {
  launch_lines<Element<dtype>, Dgrad<width, stride>>(lines<width>(args), args.launch.stream);
}

inline int64_t no_workspace(const Problem&, int) { return 0; }

}  // namespace mma_nhwc

template <DType dtype, int width, int stride>
KernelEntry<FpropArgs> fprop_mma_nhwc(const char* name) {
  using namespace mma_nhwc;
  constexpr int oldest = oldest_architecture<Element<dtype>, Gather<width, stride>>;
  return {name, why_not<dtype, width, stride, oldest>, no_workspace, fprop<dtype, width, stride>, true};
}

template <DType dtype, int width, int stride>
KernelEntry<DgradArgs> dgrad_mma_nhwc(const char* name) {
  using namespace mma_nhwc;
  constexpr int oldest = oldest_architecture<Element<dtype>, Dgrad<width, stride>>;
  return {name, why_not<dtype, width, stride, oldest>, no_workspace, dgrad<dtype, width, stride>};
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
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 24, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 24, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 24, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 24, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 24, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 24, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 24, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 24, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 40, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 40, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 40, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 40, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 40, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 40, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 40, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 40, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 48, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 48, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 48, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 48, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 48, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 48, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 48, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 48, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 56, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 56, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 56, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 56, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 56, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 56, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 56, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 56, 2>(const char* name);

}  // namespace resnext::cuda
