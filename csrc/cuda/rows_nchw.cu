// The entries of the row-streaming kernels of rows_nchw.h, and what they accept.
#include "padded_3x3.h"
#include "rows_nchw.h"
#include "rows_nchw_entries.h"

namespace resnext::cuda {
using namespace rows_nchw;

template <int width, int stride>
const char* rows_nchw_why_not(const Problem& problem) {
  const ConvShape& s = problem.shape;
  if (const char* reason = padded_3x3_why_not(problem, DType::f32, Layout::nchw, width, stride)) return reason;
  return s.h >= most_floats || s.w >= most_floats / s.h ? "the map has 2^28 pixels" : nullptr;
}

template <int width, int stride>
void fprop_rows_nchw(const FpropArgs& args) {
  Plan g = padded_3x3_fields<Plan>(args);
  launch_tiles<Gw<width, stride>>(g, args.launch.stream);
}

template <int width, int stride>
void dgrad_rows_nchw(const DgradArgs& args) {
  Plan g = padded_3x3_fields<Plan>(args);
  g.turned = stride == 1;
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
