#pragma once
// What the kernels for 3x3 windows with padding 1 accept, and the fields that those of fprop and dgrad have in common.
#include <utility>

#include "grouped_conv.h"

namespace resnext::cuda {

// Null, or the first reason why a kernel of this type, layout, group widths and stride cannot compute the problem.
inline const char* padded_3x3_widths_why_not(const Problem& problem, DType dtype, Layout layout, int64_t c_width,
                                             int64_t k_width, int stride) {
  const ConvShape& s = problem.shape;
  if (problem.dtype != dtype)
    return dtype == DType::f32 ? "float32 only" : dtype == DType::f16 ? "float16 only" : "bfloat16 only";
  if (problem.layout != layout) return layout == Layout::nhwc ? "NHWC only" : "NCHW only";
  if (s.c_per_group() != c_width || s.k_per_group() != k_width) return "another group width";
  if (s.r != 3 || s.s != 3) return "3x3 only";
  if (s.stride_h != stride || s.stride_w != stride) return "another stride";
  if (s.pad_h != 1 || s.pad_w != 1) return "padding 1 only";
  if (s.dilation_h != 1 || s.dilation_w != 1) return "dilation 1 only";
  if (problem.alignment < 16) return "activations are not 16-byte aligned";
  return nullptr;
}

inline const char* padded_3x3_why_not(const Problem& problem, DType dtype, Layout layout, int width, int stride) {
  return padded_3x3_widths_why_not(problem, dtype, layout, width, width, stride);
}

// The same for a kernel of instructions that came with compute capability 8.0.
inline const char* padded_3x3_mma_why_not(const Problem& problem, DType dtype, Layout layout, int width, int stride) {
  if (const char* reason = padded_3x3_why_not(problem, dtype, layout, width, stride)) return reason;
  return problem.architecture < 80 ? "needs compute capability 8.0" : nullptr;
}

// `Fields` of a kernel: from `source` and `weight` to `result`, which in dgrad are grad_output and grad_input.
template <class Fields>
Fields padded_3x3_fields(const FpropArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const auto& w = args.weight;
  Fields g{};
  g.source = static_cast<decltype(g.source)>(args.input);
  g.weight = static_cast<decltype(g.weight)>(w.data);
  g.bias = static_cast<decltype(g.bias)>(args.bias);
  g.result = static_cast<decltype(g.result)>(args.output);
  g.weight_result = w.stride_k;
  g.weight_source = w.stride_c;
  g.weight_group = shape.k_per_group() * w.stride_k;
  g.weight_r = w.stride_r;
  g.weight_s = w.stride_s;
  g.channels = static_cast<decltype(g.channels)>(shape.c);
  g.images = static_cast<decltype(g.images)>(shape.n);
  g.rows = static_cast<int>(shape.h);
  g.columns = static_cast<int>(shape.w);
  g.result_rows = static_cast<int>(shape.p());
  g.result_columns = static_cast<int>(shape.q());
  if (args.problem.fused) {
    g.relu = args.epilogue.relu;
    g.scale = static_cast<const float*>(args.epilogue.scale);
    g.shift = static_cast<const float*>(args.epilogue.shift);
    g.residual = static_cast<decltype(g.residual)>(args.epilogue.residual);
  }
  return g;
}

template <class Fields>
Fields padded_3x3_fields(const DgradArgs& args) {
  Fields g = padded_3x3_fields<Fields>(
      FpropArgs{args.problem, args.grad_output, args.weight, nullptr, args.grad_input, args.launch});
  g.weight_result = args.weight.stride_c;
  g.weight_source = args.weight.stride_k;
  std::swap(g.rows, g.result_rows);
  std::swap(g.columns, g.result_columns);
  return g;
}

// The weight of a dgrad at stride 1, which is fprop with the taps turned by 180 degrees.
template <class Fields>
void turn_taps(Fields& g, DType dtype) {
  g.weight = static_cast<const char*>(g.weight) + 2 * (g.weight_r + g.weight_s) * bytes_of(dtype);
  g.weight_r = -g.weight_r;
  g.weight_s = -g.weight_s;
}

}  // namespace resnext::cuda
