#pragma once
// What the row-streaming kernels of both layouts accept, and the fields of Rows and Plan that they have in common.
#include "grouped_conv.h"

namespace resnext::cuda {

inline const char* rows_why_not(const Problem& problem, Layout layout, int width, int stride) {
  const ConvShape& s = problem.shape;
  if (problem.dtype != DType::f32) return "float only";
  if (problem.layout != layout) return layout == Layout::nhwc ? "NHWC only" : "NCHW only";
  if (s.c_per_group() != width || s.k_per_group() != width) return "another group width";
  if (s.r != 3 || s.s != 3) return "3x3 only";
  if (s.stride_h != stride || s.stride_w != stride) return "another stride";
  if (s.pad_h != 1 || s.pad_w != 1) return "padding 1 only";
  if (s.dilation_h != 1 || s.dilation_w != 1) return "dilation 1 only";
  if (problem.alignment < 16) return "activations are not 16-byte aligned";
  return nullptr;
}

template <class Fields, int width>
Fields rows_fields(const FpropArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const auto& w = args.weight;
  Fields g{};
  g.source = static_cast<const float*>(args.input);
  g.weight = static_cast<const float*>(w.data);
  g.bias = static_cast<const float*>(args.bias);
  g.result = static_cast<float*>(args.output);
  g.weight_result = w.stride_k;
  g.weight_source = w.stride_c;
  g.weight_group = width * w.stride_k;
  g.weight_r = w.stride_r;
  g.weight_s = w.stride_s;
  g.channels = shape.c;
  g.rows = static_cast<int>(shape.h);
  g.columns = static_cast<int>(shape.w);
  g.result_rows = static_cast<int>(shape.p());
  g.result_columns = static_cast<int>(shape.q());
  if (args.problem.fused) {
    g.relu = args.epilogue.relu;
    g.scale = static_cast<const float*>(args.epilogue.scale);
    g.shift = static_cast<const float*>(args.epilogue.shift);
    g.residual = static_cast<const float*>(args.epilogue.residual);
  }
  return g;
}

template <class Fields, int width>
Fields rows_fields(const DgradArgs& args) {
  const ConvShape& shape = args.problem.shape;
  Fields g = rows_fields<Fields, width>(
      FpropArgs{args.problem, args.grad_output, args.weight, nullptr, args.grad_input, args.launch});
  g.weight_result = args.weight.stride_c;
  g.weight_source = args.weight.stride_k;
  g.turned = shape.stride_h == 1;
  g.rows = static_cast<int>(shape.p());
  g.columns = static_cast<int>(shape.q());
  g.result_rows = static_cast<int>(shape.h);
  g.result_columns = static_cast<int>(shape.w);
  return g;
}

}  // namespace resnext::cuda
