// The entries of the row-streaming kernels of rows_nchw.h, and what they accept.
#include "rows_nchw.h"
#include "rows_nchw_entries.h"

namespace resnext::cuda {
namespace {

using namespace rows_nchw;

const char* why_not(const Problem& problem, int64_t width, int64_t stride) {
  const ConvShape& s = problem.shape;
  if (problem.dtype != DType::f32) return "float only";
  if (problem.layout != Layout::nchw) return "NCHW only";
  if (s.c_per_group() != width || s.k_per_group() != width) return "another group width";
  if (s.r != 3 || s.s != 3) return "3x3 only";
  if (s.stride_h != stride || s.stride_w != stride) return "another stride";
  if (s.pad_h != 1 || s.pad_w != 1) return "padding 1 only";
  if (s.dilation_h != 1 || s.dilation_w != 1) return "dilation 1 only";
  if (problem.alignment < 16) return "activations are not 16-byte aligned";
  if (s.h >= most_floats || s.w >= most_floats / s.h) return "the map has 2^28 pixels";
  return nullptr;
}

}  // namespace

template <int width, int stride>
const char* rows_nchw_why_not(const Problem& problem) {
  return why_not(problem, width, stride);
}

template <int width, int stride>
void fprop_rows_nchw(const FpropArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const auto& w = args.weight;
  Plan g{};
  g.source = static_cast<const float*>(args.input);
  g.weight = static_cast<const float*>(w.data);
  g.bias = static_cast<const float*>(args.bias);
  g.result = static_cast<float*>(args.output);
  g.weight_result = w.stride_k;
  g.weight_source = w.stride_c;
  g.weight_group = width * w.stride_k;
  g.weight_r = w.stride_r;
  g.weight_s = w.stride_s;
  g.images = shape.n;
  g.channels = shape.c;
  g.rows = static_cast<int>(shape.h);
  g.columns = static_cast<int>(shape.w);
  g.result_rows = static_cast<int>(shape.p());
  g.result_columns = static_cast<int>(shape.q());
  launch_tiles<Gw<width, stride>>(g, args.launch.stream);
}

template <int width, int stride>
void dgrad_rows_nchw(const DgradArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const auto& w = args.weight;
  Plan g{};
  g.source = static_cast<const float*>(args.grad_output);
  g.weight = static_cast<const float*>(w.data);
  g.result = static_cast<float*>(args.grad_input);
  g.weight_result = w.stride_c;
  g.weight_source = w.stride_k;
  g.weight_group = width * w.stride_k;
  g.weight_r = w.stride_r;
  g.weight_s = w.stride_s;
  g.turned = stride == 1;
  g.images = shape.n;
  g.channels = shape.c;
  g.rows = static_cast<int>(shape.p());
  g.columns = static_cast<int>(shape.q());
  g.result_rows = static_cast<int>(shape.h);
  g.result_columns = static_cast<int>(shape.w);
  launch_tiles<std::conditional_t<stride == 1, Gw<width, 1>, Spread<width>>>(g, args.launch.stream);
}

template const char* rows_nchw_why_not<4, 1>(const Problem&);
template void fprop_rows_nchw<4, 1>(const FpropArgs&);
template void dgrad_rows_nchw<4, 1>(const DgradArgs&);
template const char* rows_nchw_why_not<4, 2>(const Problem&);
template void fprop_rows_nchw<4, 2>(const FpropArgs&);
template void dgrad_rows_nchw<4, 2>(const DgradArgs&);
template const char* rows_nchw_why_not<8, 1>(const Problem&);
template void fprop_rows_nchw<8, 1>(const FpropArgs&);
template void dgrad_rows_nchw<8, 1>(const DgradArgs&);
template const char* rows_nchw_why_not<8, 2>(const Problem&);
template void fprop_rows_nchw<8, 2>(const FpropArgs&);
template void dgrad_rows_nchw<8, 2>(const DgradArgs&);
template const char* rows_nchw_why_not<16, 1>(const Problem&);
template void fprop_rows_nchw<16, 1>(const FpropArgs&);
template void dgrad_rows_nchw<16, 1>(const DgradArgs&);
template const char* rows_nchw_why_not<16, 2>(const Problem&);
template void fprop_rows_nchw<16, 2>(const FpropArgs&);
template void dgrad_rows_nchw<16, 2>(const DgradArgs&);
template const char* rows_nchw_why_not<32, 1>(const Problem&);
template void fprop_rows_nchw<32, 1>(const FpropArgs&);
template void dgrad_rows_nchw<32, 1>(const DgradArgs&);
template const char* rows_nchw_why_not<32, 2>(const Problem&);
template void fprop_rows_nchw<32, 2>(const FpropArgs&);
template void dgrad_rows_nchw<32, 2>(const DgradArgs&);

}  // namespace resnext::cuda
