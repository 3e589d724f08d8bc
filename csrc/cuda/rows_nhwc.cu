// The entries of the row-streaming kernels of rows_nhwc.h, and what they accept.
#include <type_traits>

#include "padded_3x3.h"
#include "rows.h"
#include "rows_nhwc.h"

namespace resnext::cuda {
using namespace rows_nhwc;

template <int width, int stride>
const char* rows_nhwc_why_not(const Problem& problem) {
  const ConvShape& s = problem.shape;
  if (const char* reason = padded_3x3_why_not(problem, DType::f32, Layout::nhwc, width, stride)) return reason;
  return s.h >= 1 << 30 || s.w >= 1 << 30 ? "the map has 2^30 rows or columns" : nullptr;
}

template <int width, int stride>
void fprop_rows_nhwc(const FpropArgs& args) {
  launch_rows<Gw<width, stride>>(padded_3x3_fields<Rows>(args), args.launch.stream);
}

template <int width, int stride>
void dgrad_rows_nhwc(const DgradArgs& args) {
  using Kind = std::conditional_t<stride == 1, Gw<width, 1>, Spread<width>>;
  Rows g = padded_3x3_fields<Rows>(args);
  g.turned = stride == 1;
  launch_rows<Kind>(g, args.launch.stream);
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
