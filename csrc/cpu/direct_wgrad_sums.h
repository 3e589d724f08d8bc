#pragma once
#include "spread.h"

// The innermost loops of wgrad: one row of grad_output and the input row that it meets by the taps r (direct_wgrad.h).
namespace resnext::cpu {
namespace {

// The slot as spread() takes it: here groups of eight come in halves, of which the second begins in the middle of a
// vector.
template <int slot>
constexpr int apart = slot == 8 && lanes == 16 ? two_apart : slot;

constexpr int wgrad_channels = lanes == 16 ? 4 : 2;  // as many as there are registers for three sums each

// Three taps' sums of some channels, in registers.
template <int channels>
class TapSums {
 public:
  // From pixel to pixel (or from pair to pair) of the input and of grad_output, and between the starts of the groups
  // that are spread.
  [[gnu::always_inline]] TapSums(int64_t pixel, int64_t grad_pixel, int64_t group_distance)
      : pixel_(pixel), grad_pixel_(grad_pixel), group_distance_(group_distance) {}

  [[gnu::always_inline]] void begin(const float* packed, bool first) {
    unroll<count>([&](auto i)
                      RESNEXT_INLINE { sums_[i] = first ? Vec{} : load(packed + (i / 3 * 9 + i % 3) * lanes); });
  }

  [[gnu::always_inline]] void end(float* packed) const {
    unroll<count>([&](auto i) RESNEXT_INLINE { store(packed + (i / 3 * 9 + i % 3) * lanes, sums_[i]); });
  }

 protected:
  static constexpr int count = channels * 3;

  Vec sums_[count];
  int64_t pixel_, grad_pixel_, group_distance_;
};

// A pixel at a time. Lanes are output channels and the input's are spread, or the other way round.
template <int slot, int stride, bool lanes_are_inputs = false, int channels = wgrad_channels>
class RowSums : public TapSums<channels> {
 public:
  using TapSums<channels>::TapSums;

  [[gnu::always_inline]] void add_row(const float* input, const float* grad, int64_t inputs, int64_t outputs) {
    if constexpr (lanes_are_inputs)
      add_row_of_inputs(input, grad, inputs, outputs);
    else if constexpr (stride == 1)
      add_row_of_stride_1(input, grad, outputs);
    else
      add_row_of_stride_2(input, grad, inputs, outputs);
  }

 private:
  using TapSums<channels>::sums_, TapSums<channels>::pixel_, TapSums<channels>::grad_pixel_;
  using TapSums<channels>::group_distance_;

  template <int s>
  [[gnu::always_inline]] void add(const float* input, Vec grad) {
    unroll<channels>(
        [&](auto j) RESNEXT_INLINE { sums_[j * 3 + s] += spread<apart<slot>, 1, j>(input, group_distance_) * grad; });
  }

  // Input column w meets the outputs w + 1, w and w - 1 by the taps 0, 1 and 2, if they exist.
  [[gnu::always_inline]] void add_row_of_stride_1(const float* input, const float* grad, int64_t columns) {
    Vec before = load(grad);
    if (columns == 1) return add<1>(input, before);
    Vec here = load(grad + grad_pixel_);
    add<0>(input, here);
    add<1>(input, before);
    for (int64_t column = 1; column < columns - 1; ++column) {
      const Vec after = load(grad + (column + 1) * grad_pixel_);
      const float* x = input + column * pixel_;
      unroll<channels>([&](auto j) RESNEXT_INLINE {
        const Vec spread_x = spread<apart<slot>, 1, j>(x, group_distance_);
        sums_[j * 3] += spread_x * after;
        sums_[j * 3 + 1] += spread_x * here;
        sums_[j * 3 + 2] += spread_x * before;
      });
      before = here;
      here = after;
    }
    add<1>(input + (columns - 1) * pixel_, here);
    add<2>(input + (columns - 1) * pixel_, before);
  }

  // Input column 2q meets output q by tap 1; column 2q + 1 meets q by tap 2 and q + 1 by tap 0.
  [[gnu::always_inline]] void add_row_of_stride_2(const float* input, const float* grad, int64_t inputs,
                                                  int64_t outputs) {
    Vec here = load(grad);
    for (int64_t q = 0; q < outputs - 1; ++q) {
      const Vec after = load(grad + (q + 1) * grad_pixel_);
      const float* x = input + 2 * q * pixel_;
      add<1>(x, here);
      unroll<channels>([&](auto j) RESNEXT_INLINE {
        const Vec spread_x = spread<apart<slot>, 1, j>(x + pixel_, group_distance_);
        sums_[j * 3] += spread_x * after;
        sums_[j * 3 + 2] += spread_x * here;
      });
      here = after;
    }
    const float* x = input + 2 * (outputs - 1) * pixel_;
    add<1>(x, here);
    if (2 * outputs - 1 < inputs) add<2>(x + pixel_, here);
  }

  // Lanes are input channels: output q meets input columns 2q - 1, 2q and 2q + 1 by the taps 0, 1 and 2.
  [[gnu::always_inline]] void add_row_of_inputs(const float* input, const float* grad, int64_t inputs,
                                                int64_t outputs) {
    static_assert(stride == 2);
    const Vec first = load(input);
    if (inputs == 1) return add_output<false, false>(grad, first, first, first);
    Vec before = load(input + pixel_);
    add_output<false, true>(grad, first, first, before);
    for (int64_t q = 1; q < outputs; ++q) {
      input += 2 * pixel_;
      grad += grad_pixel_;
      const Vec here = load(input);
      if (2 * q + 1 == inputs) return add_output<true, false>(grad, before, here, here);
      const Vec after = load(input + pixel_);
      add_output<true, true>(grad, before, here, after);
      before = after;
    }
  }

  template <bool has_before, bool has_after>
  [[gnu::always_inline]] void add_output(const float* grad, Vec before, Vec here, Vec after) {
    unroll<channels>([&](auto j) RESNEXT_INLINE {
      const Vec spread_grad = spread<apart<slot>, 1, j>(grad, group_distance_);
      if constexpr (has_before) sums_[j * 3] += spread_grad * before;
      sums_[j * 3 + 1] += spread_grad * here;
      if constexpr (has_after) sums_[j * 3 + 2] += spread_grad * after;
    });
  }
};

// The halves of a pair that exist.
enum class Half { none, first, second, both };

// Two pixels at a time: a lane holds one channel of a pair of neighbouring pixels, as bfloat16 (direct_wgrad_pairs.h).
//
//   stride 1   input pairs x(0,1) x(2,3) ...: x(w,w+1) meets g(w+1,w+2), g(w,w+1) and g(w-1,w) by the taps 0, 1 and 2
//   stride 2   pairs of even and of odd columns in turn, x(0,2) x(1,3) x(4,6) x(5,7) ...: with q even, x(2q,2q+2) meets
//              g(q,q+1) by tap 1; x(2q+1,2q+3) meets g(q+1,q+2) by tap 0 and g(q,q+1) by tap 2
//
// grad_output has a pair for each start from -1 on: g(-1,0) g(0,1) g(1,2) ... Pixels that do not exist are zero; where
// only one factor of a product exists, it is zeroed too, for zero times infinity would be NaN.
template <int slot, int stride>
class PairSums : public TapSums<wgrad_channels> {
 public:
  using TapSums::TapSums;

  [[gnu::always_inline]] void add_row(const float* input, const float* grad, int64_t inputs, int64_t outputs) {
    if constexpr (stride == 1)
      add_row_of_stride_1(input, grad, outputs);
    else
      add_row_of_stride_2(input, grad, inputs, outputs);
  }

 private:
  template <Half half>
  [[gnu::always_inline]] static Vec keep(Vec pairs) {
    if constexpr (half == Half::both) return pairs;
    return reinterpret_cast<Vec>(reinterpret_cast<Bits>(pairs) & (half == Half::first ? 0xffffu : 0xffff0000u));
  }

  // A pair of pixels by tap s, or those of its products that exist.
  template <int j, int s, Half half>
  [[gnu::always_inline]] void add(Vec spread_x, Vec grad) {
    if constexpr (half != Half::none)
      sums_[j * 3 + s] = multiply_add<2>(sums_[j * 3 + s], keep<half>(spread_x), keep<half>(grad));
  }

  // A pair of which none exists lies beside the row, perhaps beside the workspace.
  template <Half half>
  [[gnu::always_inline]] static Vec load_existing(const float* pair) {
    if constexpr (half == Half::none) return Vec{};
    return load(pair);
  }

  template <Half after, Half before>
  [[gnu::always_inline]] void add_pair(const float* x, const float* grad) {
    const Vec grad_before = load_existing<before>(grad), here = load(grad + lanes);
    const Vec grad_after = load_existing<after>(grad + 2 * lanes);
    unroll<wgrad_channels>([&](auto j) RESNEXT_INLINE {
      const Vec spread_x = spread<apart<slot>, 1, j>(x, group_distance_);
      add<j, 0, after>(spread_x, grad_after);
      add<j, 1, Half::both>(spread_x, here);
      add<j, 2, before>(spread_x, grad_before);
    });
  }

  [[gnu::always_inline]] void add_row_of_stride_1(const float* input, const float* grad, int64_t columns) {
    if (columns == 1) return add_pair<Half::none, Half::none>(input, grad);
    if (columns == 2) return add_pair<Half::first, Half::second>(input, grad);
    add_pair<Half::both, Half::second>(input, grad);
    int64_t column = 2;
    for (; column < columns - 2; column += 2) {
      input += pixel_;
      grad += 2 * lanes;
      add_pair<Half::both, Half::both>(input, grad);
    }
    input += pixel_;
    grad += 2 * lanes;
    if (columns % 2)
      add_pair<Half::none, Half::first>(input, grad);
    else
      add_pair<Half::first, Half::both>(input, grad);
  }

  template <Half after, Half here>
  [[gnu::always_inline]] void add_two_pairs(const float* x, const float* grad) {
    const Vec grad_here = load(grad + lanes), grad_after = load_existing<after>(grad + 2 * lanes);
    unroll<wgrad_channels>([&](auto j) RESNEXT_INLINE {
      add<j, 1, Half::both>(spread<apart<slot>, 1, j>(x, group_distance_), grad_here);
      const Vec odd = spread<apart<slot>, 1, j>(x + pixel_, group_distance_);
      add<j, 0, after>(odd, grad_after);
      add<j, 2, here>(odd, grad_here);
    });
  }

  [[gnu::always_inline]] void add_row_of_stride_2(const float* input, const float* grad, int64_t inputs,
                                                  int64_t outputs) {
    for (int64_t q = 0; q < outputs - 2; q += 2) {
      add_two_pairs<Half::both, Half::both>(input, grad);
      input += 2 * pixel_;
      grad += 2 * lanes;
    }
    if (outputs % 2)
      inputs % 2 ? add_two_pairs<Half::none, Half::none>(input, grad)
                 : add_two_pairs<Half::none, Half::both>(input, grad);
    else
      inputs % 2 ? add_two_pairs<Half::both, Half::first>(input, grad)
                 : add_two_pairs<Half::first, Half::both>(input, grad);
  }
};

}  // namespace
}  // namespace resnext::cpu
