#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// The AVX-512 instructions that csrc/cpu uses, in plain C++, for tests on CPUs that have AVX2 alone (`make avx512`).
// RESNEXT_EMULATE_AVX512 is 1, or 2 with the products of pairs of bfloat16.
#define __AVX512F__ 1
#if RESNEXT_EMULATE_AVX512 == 2
#define __AVX512BF16__ 1
#endif

namespace resnext::cpu {
namespace {
namespace emulated {

using Floats = float __attribute__((vector_size(64)));
using Halves16 = uint16_t __attribute__((vector_size(32)));
using Halves32 = uint16_t __attribute__((vector_size(64)));

// One half of a vector's bytes.
template <class Half, class Whole>
Half half_of(const Whole& whole, int half) {
  Half result;
  std::memcpy(&result, reinterpret_cast<const char*>(&whole) + half * sizeof(Half), sizeof(Half));
  return result;
}

// The elements of a set, by their bytes: no other is touched, and those that are loaded are zero.
template <class Vector>
Vector load(uint32_t set, const void* from) {
  Vector result{};
  for (size_t i = 0; i < sizeof(Vector) / sizeof(result[0]); ++i) {
    auto element = result[i];
    if (set >> i & 1) std::memcpy(&element, static_cast<const char*>(from) + i * sizeof(element), sizeof(element));
    result[i] = element;
  }
  return result;
}

template <class Vector>
void store(void* to, uint32_t set, Vector value) {
  for (size_t i = 0; i < sizeof(Vector) / sizeof(value[0]); ++i) {
    const auto element = value[i];
    if (set >> i & 1) std::memcpy(static_cast<char*>(to) + i * sizeof(element), &element, sizeof(element));
  }
}

inline void stream(float* to, Floats value) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(value)) std::abort();
  std::memcpy(to, &value, sizeof(value));
}

inline Floats splat(float number) { return number - Floats{}; }

inline Floats multiply_add(Floats x, Floats y, Floats sum, uint32_t set) {
  for (int i = 0; i < 16; ++i)
    if (set >> i & 1) sum[i] = std::fma(x[i], y[i], sum[i]);
  return sum;
}

inline Floats low_half(__m256 half) {
  Floats result{};
  std::memcpy(&result, &half, sizeof(half));
  return result;
}

// Each four lanes are four of `a` or, from the eighth lane on, of `b`, picked by two bits of `picks`.
inline Floats pick_fours(Floats a, Floats b, int picks) {
  Floats result;
  for (int i = 0; i < 16; ++i) result[i] = (i < 8 ? a : b)[(picks >> i / 4 * 2 & 3) * 4 + i % 4];
  return result;
}

inline Floats repeat_four(Floats others, uint32_t set, __m128 four) {
  for (int i = 0; i < 16; ++i)
    if (set >> i & 1) others[i] = four[i % 4];
  return others;
}

inline __m512i widen_numbers(__m256i numbers) {
  uint32_t narrow[8];
  std::memcpy(narrow, &numbers, sizeof(narrow));
  __m512i result;
  for (int i = 0; i < 8; ++i) result[i] = narrow[i];
  return result;
}

inline Floats widen_halves(__m256i halves) {
  const __m256 both[] = {_mm256_cvtph_ps(half_of<__m128i>(halves, 0)), _mm256_cvtph_ps(half_of<__m128i>(halves, 1))};
  Floats result;
  std::memcpy(&result, both, sizeof(result));
  return result;
}

template <int rounding>
__m256i round_to_halves(Floats value) {
  const __m128i both[] = {_mm256_cvtps_ph(half_of<__m256>(value, 0), rounding),
                          _mm256_cvtps_ph(half_of<__m256>(value, 1), rounding)};
  __m256i result;
  std::memcpy(&result, both, sizeof(result));
  return result;
}

// The instructions for bfloat16 take denormal numbers for zero.
inline float normal_or_zero(float number) {
  return std::fpclassify(number) == FP_SUBNORMAL ? std::copysign(0.0f, number) : number;
}

inline float from_bf16(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float number;
  std::memcpy(&number, &bits, sizeof(number));
  return normal_or_zero(number);
}

inline Halves16 round_to_bf16(Floats value) {
  Halves16 result;
  for (int i = 0; i < 16; ++i) {
    const float number = normal_or_zero(value[i]);
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof(bits));
    result[i] = std::isnan(number) ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
  return result;
}

inline Floats multiply_add_pairs(Floats sum, __m512bh x, __m512bh y) {
  uint16_t a[32], b[32];
  std::memcpy(a, &x, sizeof(a));
  std::memcpy(b, &y, sizeof(b));
  for (int i = 0; i < 16; ++i)
    for (int half : {1, 0})
      sum[i] = normal_or_zero(std::fma(from_bf16(a[2 * i + half]), from_bf16(b[2 * i + half]), normal_or_zero(sum[i])));
  return sum;
}

}  // namespace emulated
}  // namespace
}  // namespace resnext::cpu

#undef _mm512_maskz_cvtps_ph
#undef _mm512_maskz_shuffle_f32x4
#define _mm256_mask_storeu_epi16(to, set, value) emulated::store(to, set, reinterpret_cast<emulated::Halves16>(value))
#define _mm256_maskz_loadu_epi16(set, from) reinterpret_cast<__m256i>(emulated::load<emulated::Halves16>(set, from))
#define _mm512_castps256_ps512(half) emulated::low_half(half)
#define _mm512_cvtneps_pbh(value) emulated::round_to_bf16(value)
#define _mm512_dpbf16_ps(sum, x, y) emulated::multiply_add_pairs(sum, x, y)
#define _mm512_mask3_fmadd_ps(x, y, sum, set) emulated::multiply_add(x, y, sum, set)
#define _mm512_mask_broadcast_f32x4(others, set, four) emulated::repeat_four(others, set, four)
#define _mm512_mask_storeu_epi16(to, set, value) emulated::store(to, set, reinterpret_cast<emulated::Halves32>(value))
#define _mm512_mask_storeu_ps(to, set, value) emulated::store<emulated::Floats>(to, set, value)
#define _mm512_maskz_broadcast_f32x4(set, four) emulated::repeat_four(emulated::Floats{}, set, four)
#define _mm512_maskz_cvtepu32_epi64(set, numbers) emulated::widen_numbers(numbers)
#define _mm512_maskz_cvtph_ps(set, halves) emulated::widen_halves(halves)
#define _mm512_maskz_cvtps_ph(set, value, rounding) emulated::round_to_halves<rounding>(value)
#define _mm512_maskz_loadu_epi16(set, from) reinterpret_cast<__m512i>(emulated::load<emulated::Halves32>(set, from))
#define _mm512_maskz_loadu_ps(set, from) emulated::load<emulated::Floats>(set, from)
#define _mm512_maskz_shuffle_f32x4(set, a, b, picks) emulated::pick_fours(a, b, picks)
#define _mm512_set1_ps(number) emulated::splat(number)
#define _mm512_stream_ps(to, value) emulated::stream(to, value)
