#pragma once
#include "simd.h"

// Winograd's minimal filtering of stride 1, F(2x2, 3x3): 16 products instead of 36 for each channel and square of 2x2
// targets. Along one axis, of four source pixels d, three taps g and two targets t:
//
//   t0 = d0 g0 + d1 g1 + d2 g2 = m0 + m1 + m2      m0 = (d0 - d2) g0      m1 = (d1 + d2) (g0 + g1 + g2) / 2
//   t1 = d1 g0 + d2 g1 + d3 g2 = m1 - m2 - m3      m3 = (d1 - d3) g2      m2 = (d2 - d1) (g0 - g1 + g2) / 2
//
// and so in both axes: pixels and taps are transformed to 4x4 positions, and the products of a position are summed over
// channels before targets are made of them. After S. Winograd, Arithmetic Complexity of Computations (1980), and
// A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks (2015).
namespace resnext::cpu {
namespace {

constexpr int positions = 16;

// Along one axis.
template <int count>
struct Axis {
  Vec at[count];
};

[[gnu::always_inline]] inline Axis<4> transform_pixels(const Axis<4>& d) {
  return {d.at[0] - d.at[2], d.at[1] + d.at[2], d.at[2] - d.at[1], d.at[1] - d.at[3]};
}

[[gnu::always_inline]] inline Axis<4> transform_taps(const Axis<3>& g) {
  const Vec half = Vec{} + 0.5f, outer = half * (g.at[0] + g.at[2]), middle = half * g.at[1];
  return {g.at[0], outer + middle, outer - middle, g.at[2]};
}

[[gnu::always_inline]] inline Axis<2> make_targets(const Axis<4>& m) {
  return {m.at[0] + (m.at[1] + m.at[2]), (m.at[1] - m.at[2]) - m.at[3]};
}

// The transposes of the latter two, for wgrad.
[[gnu::always_inline]] inline Axis<4> transform_targets(const Axis<2>& t) {
  return {t.at[0], t.at[0] + t.at[1], t.at[0] - t.at[1], -t.at[1]};
}

[[gnu::always_inline]] inline Axis<3> make_taps(const Axis<4>& m) {
  const Vec half = Vec{} + 0.5f, outer = half * (m.at[1] + m.at[2]);
  return {m.at[0] + outer, half * (m.at[1] - m.at[2]), outer + m.at[3]};
}

// Whether all numbers that were added to it are finite. Transforms make inf - inf of an infinite pixel or tap, and meet
// absent pixels as zeros: such results are not those of the sums, so the direct kernel computes them instead.
class AllFinite {
 public:
  [[gnu::always_inline]] void add(Vec numbers) { zero_ += numbers * 0.0f; }
  explicit operator bool() const {
    float zero = 0;
    for (int i = 0; i < lanes; ++i) zero += zero_[i];
    return zero == 0;
  }

 private:
  Vec zero_{};  // or NaN
};

// From the nine taps of a channel, one after the other, to its positions, `step` floats apart.
inline void transform_weights(const float* taps, int64_t step, float* to) {
  Axis<4> columns[3];
  unroll<3>([&](auto s) RESNEXT_INLINE {
    const auto tap = [&](int r) RESNEXT_INLINE { return load(taps + (r * 3 + s) * lanes); };
    columns[s] = transform_taps({tap(0), tap(1), tap(2)});
  });
  unroll<4>([&](auto r) RESNEXT_INLINE {
    const Axis<4> row = transform_taps({columns[0].at[r], columns[1].at[r], columns[2].at[r]});
    unroll<4>([&](auto s) RESNEXT_INLINE { store(to + (r * 4 + s) * step, row.at[s]); });
  });
}

}  // namespace
}  // namespace resnext::cpu
