#pragma once
// CUDA's two 16-bit float types and their conversions, rounding to nearest even.
#include <bit>
#include <cstdint>

struct __half {
  uint16_t bits;
};

struct __nv_bfloat16 {
  uint16_t bits;
};

// By hand: where a CPU may lack instructions for it, the compiler makes a call of each, and products have hundreds.
inline float __half2float(__half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, rest = (value.bits & 0x7fffu) << 13, infinity = 0x7c00u << 13;
  if (rest >= infinity) return std::bit_cast<float>(sign | 0x7f800000u | rest | (rest > infinity ? 0x400000u : 0u));
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(std::bit_cast<float>(rest) * 0x1p112f));  // another bias
}

inline __half __float2half_rn(float value) { return {std::bit_cast<uint16_t>(static_cast<_Float16>(value))}; }

inline float __bfloat162float(__nv_bfloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};                       // CUDA's one NaN
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};  // ties to even
}
