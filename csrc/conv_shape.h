#pragma once
#include <cstdint>

namespace resnext {

// One grouped 2-D convolution: input (n, h, w, c), weight (k, r, s, c / groups), output (n, p, q, k).
// The same record describes all three passes: fprop computes the output, dgrad the input's gradient,
// wgrad the weight's. Plain data, for host and device.
struct ConvShape {
  int64_t n, c, h, w;
  int64_t k, r, s;
  int64_t groups;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;

  constexpr int64_t p() const { return (h + 2 * pad_h - dilation_h * (r - 1) - 1) / stride_h + 1; }
  constexpr int64_t q() const { return (w + 2 * pad_w - dilation_w * (s - 1) - 1) / stride_w + 1; }
  constexpr int64_t c_per_group() const { return c / groups; }
  constexpr int64_t k_per_group() const { return k / groups; }
};

}  // namespace resnext
