// The entries of the row-streaming kernels of rows_nhwc.h, and what they accept.
#include <type_traits>

#include "rows.h"
#include "rows_nhwc.h"

namespace resnext::cuda {
using namespace rows_nhwc;

template <int width, int stride>
const char* rows_nhwc_why_not(const Problem& problem) {
  const ConvShape& s = problem.shape;
  if (problem.dtype != DType::f32) return "float only";
  if (problem.layout != Layout::nhwc) return "NHWC only";
  if (s.c_per_group() != width || s.k_per_group() != width) return "another group width";
  if (s.r != 3 || s.s != 3) return "3x3 only";
  if (s.stride_h != stride || s.stride_w != stride) return "another stride";
  if (s.pad_h != 1 || s.pad_w != 1) return "padding 1 only";
  if (s.dilation_h != 1 || s.dilation_w != 1) return "dilation 1 only";
  if (problem.alignment < 16) return "activations are not 16-byte aligned";
  if (s.h >= 1 << 30 || s.w >= 1 << 30) return "the map has 2^30 rows or columns";
  return nullptr;
}

template <int width, int stride>
void fprop_rows_nhwc(const FpropArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const auto& w = args.weight;
  Rows g{};
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
  launch_rows<Gw<width, stride>>(g, shape.n, args.launch.stream);
}

template <int width, int stride>
void dgrad_rows_nhwc(const DgradArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const auto& w = args.weight;
  Rows g{};
  g.source = static_cast<const float*>(args.grad_output);
  g.weight = static_cast<const float*>(w.data);
  g.result = static_cast<float*>(args.grad_input);
  g.weight_result = w.stride_c;
  g.weight_source = w.stride_k;
  g.weight_group = width * w.stride_k;
  g.weight_r = w.stride_r;
  g.weight_s = w.stride_s;
  g.turned = stride == 1;
  g.channels = shape.c;
  g.rows = static_cast<int>(shape.p());
  g.columns = static_cast<int>(shape.q());
  g.result_rows = static_cast<int>(shape.h);
  g.result_columns = static_cast<int>(shape.w);
  launch_rows<std::conditional_t<stride == 1, Gw<width, 1>, Spread<width>>>(g, shape.n, args.launch.stream);
}

int64_t no_workspace(const Problem&, int) { return 0; }

template const char* rows_nhwc_why_not<4, 1>(const Problem&);
template const char* rows_nhwc_why_not<8, 1>(const Problem&);
template const char* rows_nhwc_why_not<16, 1>(const Problem&);
template const char* rows_nhwc_why_not<32, 1>(const Problem&);
template const char* rows_nhwc_why_not<4, 2>(const Problem&);
template const char* rows_nhwc_why_not<8, 2>(const Problem&);
template const char* rows_nhwc_why_not<16, 2>(const Problem&);
template const char* rows_nhwc_why_not<32, 2>(const Problem&);
template void fprop_rows_nhwc<4, 1>(const FpropArgs&);
template void fprop_rows_nhwc<8, 1>(const FpropArgs&);
template void fprop_rows_nhwc<16, 1>(const FpropArgs&);
template void fprop_rows_nhwc<32, 1>(const FpropArgs&);
template void fprop_rows_nhwc<4, 2>(const FpropArgs&);
template void fprop_rows_nhwc<8, 2>(const FpropArgs&);
template void fprop_rows_nhwc<16, 2>(const FpropArgs&);
template void fprop_rows_nhwc<32, 2>(const FpropArgs&);
template void dgrad_rows_nhwc<4, 1>(const DgradArgs&);
template void dgrad_rows_nhwc<8, 1>(const DgradArgs&);
template void dgrad_rows_nhwc<16, 1>(const DgradArgs&);
template void dgrad_rows_nhwc<32, 1>(const DgradArgs&);
template void dgrad_rows_nhwc<4, 2>(const DgradArgs&);
template void dgrad_rows_nhwc<8, 2>(const DgradArgs&);
template void dgrad_rows_nhwc<16, 2>(const DgradArgs&);
template void dgrad_rows_nhwc<32, 2>(const DgradArgs&);

}  // namespace resnext::cuda
