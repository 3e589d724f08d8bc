#pragma once
// Groups of floats on tensor cores, by mma m16n8k8 in TF32 (a float's sign and exponent, 10 bits of its fraction).
//
//   products 1  "tf32": both operands are rounded to nearest, ties away from zero
//   products 3  "tf32x3": each float is the sum of a TF32 number and what is left of it, again cut off to TF32, and
//               x * w = x_big * w_small + x_small * w_big + x_big * w_big; all that is left out is 2^-21 of it at most
//
// Infinities. An infinite operand leaves inf - inf, as does one whose rounding is infinite, and then the sum is NaN, as
// it is where an infinite weight meets a zero that stands for padding. Sums that are not finite are made once more, in
// floats.
#include "kernel_table.h"
#include "numeric.h"

namespace resnext::cuda {

template <class Kind>
constexpr bool splits = Kind::products == 3;

// What a kernel multiplies of a value, as a float: unlike rounded_for_mma all 13 bits below are zero.
template <class Kind, class T>
__device__ __forceinline__ T as_multiplied(T value) {
  if constexpr (Kind::products == 1) {
    const uint32_t bits = ptx::round_to_tf32(value);
    __builtin_memcpy(&value, &bits, sizeof(bits));
  }
  return value;
}

// The bits of a float for mma, which does not read the last 13: half a unit of the last place that it reads is added,
// which rounds to nearest, ties away from zero, as round_to_tf32 does in one instruction more, which is for weights,
// once in the life of a warp. Subnormal numbers, whose power of two is lost in the mask, are cut off.
__device__ __forceinline__ uint32_t rounded_for_mma(float value) {
  const float power = __uint_as_float(__float_as_uint(value) & 0xff800000u);
  return __float_as_uint(fmaf(power, 0x1p-11f, value));
}

// Makes a TF32 number of a float, by round_to_tf32 but for its care of NaN, which the rest keeps, and what is left of
// it, which is exact; of that mma does not read the last 13 bits, of which no more than one is set.
__device__ __forceinline__ void split_tf32(uint32_t& big, uint32_t& small) {
  const float value = __uint_as_float(big);
  big = (big + 0x1000u) & 0xffffe000u;
  small = __float_as_uint(value - __uint_as_float(big));
}

// sums += pixels * weights, the small products first. What is left of an operand stands behind it.
template <class Kind, int parts, int words>
__device__ __forceinline__ void multiply_tf32(float (&sums)[4], const uint32_t (&pixels)[parts][4],
                                              const uint32_t (&weights)[words]) {
  const uint32_t big[2] = {weights[0], weights[1]};
  if constexpr (splits<Kind>) {
    const uint32_t small[2] = {weights[2], weights[3]};
    ptx::mma_m16n8k8_tf32(sums, pixels[0], small);
    ptx::mma_m16n8k8_tf32(sums, pixels[1], big);
  }
  ptx::mma_m16n8k8_tf32(sums, pixels[0], big);
}

// Whether the GPU multiplies floats no more than 4 times more slowly than TF32, so that three products gain nothing.
// Only the ones for servers do: by the data sheets 8 times (8.0), 7 times (9.0), 14 times (10.x), all others 1 or 2.
inline bool plain_floats_are_faster(const Problem& problem) {
  const int gpu = problem.architecture;
  return gpu != 80 && gpu != 90 && gpu / 10 != 10;
}

// Why a kernel of so many products does not run, or null: a single one rounds.
inline const char* why_no_tf32(const Problem& problem, int products) {
  return products == 1 && !problem.allow_tf32 ? "TF32 is not allowed" : nullptr;
}

// Of the table entries of `products`.
template <int products>
constexpr auto tf32_yields = products == 3 ? plain_floats_are_faster : nullptr;

}  // namespace resnext::cuda
