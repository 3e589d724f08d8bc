#pragma once
// Groups of floats on tensor cores, by mma m16n8k8 in TF32 (a float's sign and exponent, 10 bits of its fraction).
//
//   products 1  "tf32": both operands are rounded to nearest, ties away from zero
//   products 3  "tf32x3": each float is the sum of a TF32 number and what is left of it, again cut off to TF32, and
//               x * w = x_big * w_small + x_small * w_big + x_big * w_big; all that is left out is 2^-21 of it at most
//
// 16 bytes are 4 floats, and an A operand is 16 pixels x 8 channels, 32 bytes of each. So up to the registers a group
// of 8, 16 or 32 floats is one of 16, 32 or 64 16-bit channels: the ring, its copies, ldmatrix, which moves words as
// well as halves of them, and the walks are those. A warp makes one tile of 8 channels, which are a sector of a pixel.
//
// Infinities. An infinite operand leaves inf - inf, as does one whose rounding is infinite, and then the sum is NaN. A
// lane that has had a sum that is not finite lets the warp sum those once more, in floats: see mma_nhwc_edges.h.
#include "mma_nhwc_load.h"

namespace resnext::cuda::mma_nhwc {

// `Halves`: the kernel of groups of as many bytes, of 16-bit channels.
template <class Halves, int products_of_one>
struct Tf32 : Halves {
  static_assert(!Halves::pairs && Halves::width == Halves::channels);
  static constexpr int warp_channels = 8, vector_channels = 4;
  static constexpr int width = Halves::width / 2, channels = width, sources = 8, tiles = 1;
  static constexpr int products = products_of_one;
  static constexpr bool watches = products == 3;
  static constexpr int teams = Halves::warps == 2 ? 4 : Halves::teams, threads = 32 * Halves::warps * teams;
  static constexpr int blocks = Halves::warps == 1   ? (products == 1 ? 8 : 5)
                                : Halves::warps == 2 ? (products == 1 ? 3 : 2)
                                                     : (products == 1 ? 2 : 1);
};

template <class Kind>
constexpr bool splits = Kind::products == 3;

// What a kernel multiplies of a value.
template <class Kind, class T>
__device__ __forceinline__ T as_multiplied(T value) {
  if constexpr (Kind::products == 1) {
    const uint32_t bits = ptx::round_to_tf32(value);
    __builtin_memcpy(&value, &bits, sizeof(bits));
  }
  return value;
}

// Makes a TF32 number of a float, by round_to_tf32 but for its care of NaN, which the rest keeps, and what is left of
// it, which is exact; of that mma does not read the last 13 bits, of which no more than one is set.
__device__ __forceinline__ void split(uint32_t& big, uint32_t& small) {
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

}  // namespace resnext::cuda::mma_nhwc
