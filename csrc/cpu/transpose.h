#pragma once
#include "simd.h"

// Squares of numbers in registers, turned about their diagonal.
namespace resnext::cpu {
namespace {

// The first eight elements of two vectors of 16.
[[gnu::always_inline]] inline Vec lower_eights(Vec a, Vec b) {
  Index index;
  for (int lane = 0; lane < lanes; ++lane) index[lane] = lane < 8 ? lane : lanes + lane - 8;
  return __builtin_shuffle(a, b, index);
}

// Swaps ever larger blocks across the diagonal: transposes a square of lanes x lanes, or two squares of eight side by
// side.
template <int count>
[[gnu::always_inline]] inline void transpose(Vec (&rows)[count]) {
  const auto swap_blocks = [&](auto size) RESNEXT_INLINE {
    unroll<count>([&](auto row) RESNEXT_INLINE {
      if constexpr ((row & size) == 0) {
        const Vec a = rows[row], b = rows[row + size];
        Index upper, lower;  // element l of a is l, of b is lanes + l
        for (int l = 0; l < lanes; ++l) {
          upper[l] = l & size ? lanes + l - size : l;
          lower[l] = l & size ? lanes + l : l + size;
        }
        rows[row] = __builtin_shuffle(a, b, upper);
        rows[row + size] = __builtin_shuffle(a, b, lower);
      }
    });
  };
  swap_blocks(std::integral_constant<int, 1>());
  swap_blocks(std::integral_constant<int, 2>());
  swap_blocks(std::integral_constant<int, 4>());
  if constexpr (count == 16) swap_blocks(std::integral_constant<int, 8>());
}

}  // namespace
}  // namespace resnext::cpu
