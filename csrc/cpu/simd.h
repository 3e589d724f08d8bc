#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "float16.h"
#ifdef RESNEXT_EMULATE_AVX512
#include "testing/avx512_emulated.h"
#endif

// One vector of floats, as wide as the instruction set that this file is compiled for: 16 lanes for AVX-512, else 8.
// The 16-bit types exist in memory only: loads widen them to float, stores round to nearest even.
// All in an anonymous namespace: a file compiled for AVX-512 must not lend its functions to one that is not.
namespace resnext::cpu {
namespace {

#ifdef __AVX512F__
constexpr int lanes = 16;
#else
constexpr int lanes = 8;
#endif

using Vec = float __attribute__((vector_size(lanes * sizeof(float))));
using UnalignedVec = float __attribute__((vector_size(lanes * sizeof(float)), aligned(2), may_alias));
using UnalignedFloat = float __attribute__((aligned(2), may_alias));
using Index = int32_t __attribute__((vector_size(lanes * sizeof(float))));
using Bits = uint32_t __attribute__((vector_size(lanes * sizeof(float))));
using Halves = uint16_t __attribute__((vector_size(lanes * sizeof(uint16_t))));
using UnalignedHalves = uint16_t __attribute__((vector_size(lanes * sizeof(uint16_t)), aligned(2), may_alias));

// For lambdas, which take no [[gnu::always_inline]].
#define RESNEXT_INLINE __attribute__((always_inline))

// Calls body(0), ..., body(count - 1) with the number as a constant, so that arrays of vectors stay in registers.
template <class Body, int... numbers>
[[gnu::always_inline]] inline void unroll(std::integer_sequence<int, numbers...>, Body&& body) {
  (body(std::integral_constant<int, numbers>()), ...);
}

template <int count, class Body>
[[gnu::always_inline]] inline void unroll(Body&& body) {
  unroll(std::make_integer_sequence<int, count>(), body);
}

[[gnu::always_inline]] inline Vec widen(Halves halves, bf16) {
  return reinterpret_cast<Vec>(__builtin_convertvector(halves, Bits) << 16);
}

// As to_bf16, for every lane.
[[gnu::always_inline]] inline Halves round_to(Vec value, bf16) {
#ifdef __AVX512BF16__
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(value));  // zero for denormal numbers, as products of pairs are
#endif
  const Bits bits = reinterpret_cast<Bits>(value);
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector(value == value ? rounded : bits >> 16 | 0x40u, Halves);
}

[[gnu::always_inline]] inline Vec widen(Halves halves, f16) {
#ifdef __AVX512F__
  return _mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(halves));
#else
  return _mm256_cvtph_ps(reinterpret_cast<__m128i>(halves));
#endif
}

[[gnu::always_inline]] inline Halves round_to(Vec value, f16) {
  constexpr int nearest_even = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
#ifdef __AVX512F__
  return reinterpret_cast<Halves>(_mm512_maskz_cvtps_ph(0xffff, value, nearest_even));
#else
  return reinterpret_cast<Halves>(_mm256_cvtps_ph(value, nearest_even));
#endif
}

[[gnu::always_inline]] inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }

[[gnu::always_inline]] inline void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }

template <class T>
[[gnu::always_inline]] inline Vec load(const T* from) {
  return widen(*reinterpret_cast<const UnalignedHalves*>(from), T());
}

template <class T>
[[gnu::always_inline]] inline void store(T* to, Vec value) {
  *reinterpret_cast<UnalignedHalves*>(to) = round_to(value, T());
}

// Stores a whole cache line without reading it first. Aligned; only for vectors that are a cache line.
[[gnu::always_inline]] inline void store_past_cache(float* to, Vec value) {
#ifdef __AVX512F__
  _mm512_stream_ps(to, value);
#else
  store(to, value);
#endif
}

[[gnu::always_inline]] inline Vec splat(const float* from) {
#ifdef __AVX512F__
  return _mm512_set1_ps(*reinterpret_cast<const UnalignedFloat*>(from));
#else
  return _mm256_set1_ps(*reinterpret_cast<const UnalignedFloat*>(from));
#endif
}

// A lane holds one float, or a pair of bfloat16 that are multiplied with another pair at once; pairs are moved about as
// if they were floats. The products' sum is kept in float either way (vdpbf16ps takes denormal numbers for zero).
#ifdef __AVX512BF16__
template <class T>
constexpr int per_lane = std::is_same_v<T, bf16> ? 2 : 1;
#else
template <class T>
constexpr int per_lane = 1;
#endif

template <int per_lane>
[[gnu::always_inline]] inline Vec multiply_add(Vec sum, Vec x, Vec y) {
#ifdef __AVX512BF16__
  if constexpr (per_lane == 2)
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(y));
#endif
  return sum + x * y;
}

// The same with one x, or one pair, for all lanes. In AVX-512 that is one instruction, but GCC fills a register first,
// which keeps busy what multiplies. AddressSanitizer does not see what assembly reads.
template <int per_lane>
[[gnu::always_inline]] inline Vec multiply_add_splat(Vec sum, const float* x, Vec y) {
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__) && !defined(RESNEXT_EMULATE_AVX512)
  const UnalignedFloat& number = *reinterpret_cast<const UnalignedFloat*>(x);
  if constexpr (per_lane == 2)
    asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(y), "m"(number));
  else
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(y), "m"(number));
  return sum;
#else
  return multiply_add<per_lane>(sum, splat(x), y);
#endif
}

// Pairs of numbers that bfloat16 holds, the first in the lower halves.
[[gnu::always_inline]] inline Vec make_pairs(Vec first, Vec second) {
  return reinterpret_cast<Vec>(reinterpret_cast<Bits>(first) >> 16 | (reinterpret_cast<Bits>(second) & 0xffff0000u));
}

inline float make_pair(float first, float second) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(first) >> 16 | (std::bit_cast<uint32_t>(second) & 0xffff0000u));
}

// Eight elements to the lower lanes; the others are undefined.
[[gnu::always_inline]] inline Vec load_eight(const float* from) {
#ifdef __AVX512F__
  return _mm512_castps256_ps512(_mm256_loadu_ps(from));
#else
  return load(from);
#endif
}

template <class T>
[[gnu::always_inline]] inline Vec load_eight(const T* from) {
#ifdef __AVX512F__
  const Halves halves =
      reinterpret_cast<Halves>(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  return widen(halves, T());
#else
  return load(from);
#endif
}

#ifdef __AVX512F__
// Some of a vector's lanes: the others are zero in what is loaded, and sums and memory keep what they hold there. Masks
// cost AVX-512 nothing.
using LaneSet = __mmask16;
constexpr LaneSet all_lanes = 0xffff;

[[gnu::always_inline]] inline Vec load_lanes(const float* from, LaneSet set) {
  return _mm512_maskz_loadu_ps(set, from);
}

[[gnu::always_inline]] inline void store_lanes(float* to, Vec value, LaneSet set) {
  _mm512_mask_storeu_ps(to, set, value);
}

template <class T>
[[gnu::always_inline]] inline Vec load_lanes(const T* from, LaneSet set) {
  return widen(reinterpret_cast<Halves>(_mm256_maskz_loadu_epi16(set, from)), T());
}

template <class T>
[[gnu::always_inline]] inline void store_lanes(T* to, Vec value, LaneSet set) {
  _mm256_mask_storeu_epi16(to, set, reinterpret_cast<__m256i>(round_to(value, T())));
}

// Keeps a set in a mask register, where GCC would rather read it anew for each use.
[[gnu::always_inline]] inline LaneSet kept(LaneSet set) {
#ifndef RESNEXT_EMULATE_AVX512
  asm("" : "+k"(set));
#endif
  return set;
}

[[gnu::always_inline]] inline Vec multiply_add_lanes(Vec sum, Vec x, Vec y, LaneSet set) {
  return _mm512_mask3_fmadd_ps(x, y, sum, set);
}
#endif

// The first `count` elements, zero in the other lanes; memory behind them is not touched.
#ifdef __AVX512F__
inline LaneSet first_lanes(int count) { return static_cast<LaneSet>((1u << count) - 1); }

template <class T>
Vec load_part(const T* from, int count) {
  return load_lanes(from, first_lanes(count));
}

template <class T>
void store_part(T* to, Vec value, int count) {
  store_lanes(to, value, first_lanes(count));
}

// 16-bit numbers as they are, in the lower halves of the lanes.
template <class T>
Vec load_lower_halves(const T* from, int count) {
  const Halves halves = reinterpret_cast<Halves>(_mm256_maskz_loadu_epi16(first_lanes(count), from));
  return reinterpret_cast<Vec>(__builtin_convertvector(halves, Bits));
}
#else
inline __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Vec load_part(const float* from, int count) {
  return count == lanes ? load(from) : _mm256_maskload_ps(from, first_lanes(count));
}

inline void store_part(float* to, Vec value, int count) {
  count == lanes ? store(to, value) : _mm256_maskstore_ps(to, first_lanes(count), value);
}

template <class T>
Vec load_part(const T* from, int count) {
  if (count == lanes) return load(from);
  Halves halves{};
  std::memcpy(&halves, from, count * sizeof(T));
  return widen(halves, T());
}

template <class T>
void store_part(T* to, Vec value, int count) {
  if (count == lanes) return store(to, value);
  const Halves halves = round_to(value, T());
  std::memcpy(to, &halves, count * sizeof(T));
}
#endif

// What a vector holds of neighbouring elements of memory: a float in each lane, or two 16-bit numbers, the first in the
// lower half.
template <class T>
constexpr int in_lane = sizeof(float) / sizeof(T);

template <class T>
[[gnu::always_inline]] inline Vec load_bits(const T* from) {
  return *reinterpret_cast<const UnalignedVec*>(from);
}

template <class T>
[[gnu::always_inline]] inline void store_bits(T* to, Vec bits) {
  *reinterpret_cast<UnalignedVec*>(to) = bits;
}

// The same for the first `count` elements.
inline Vec load_bits_part(const float* from, int count) { return load_part(from, count); }

inline void store_bits_part(float* to, Vec bits, int count) { store_part(to, bits, count); }

#ifdef __AVX512F__
inline __mmask32 first_halves(int count) { return static_cast<__mmask32>((uint64_t(1) << count) - 1); }

template <class T>
Vec load_bits_part(const T* from, int count) {
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_epi16(first_halves(count), from));
}

template <class T>
void store_bits_part(T* to, Vec bits, int count) {
  _mm512_mask_storeu_epi16(to, first_halves(count), reinterpret_cast<__m512i>(bits));
}
#else
template <class T>
Vec load_bits_part(const T* from, int count) {
  Vec bits{};
  std::memcpy(&bits, from, count * sizeof(T));
  return bits;
}

template <class T>
void store_bits_part(T* to, Vec bits, int count) {
  std::memcpy(to, &bits, count * sizeof(T));
}
#endif

// The lower (0) or upper (1) halves of the lanes as floats, and two vectors of halves to one.
template <int half>
[[gnu::always_inline]] inline Vec widen_half(Vec bits, bf16) {
  const Bits lanes_bits = reinterpret_cast<Bits>(bits);
  return reinterpret_cast<Vec>(half ? lanes_bits & 0xffff0000u : lanes_bits << 16);
}

template <int half>
[[gnu::always_inline]] inline Vec widen_half(Vec bits, f16) {
  return widen(__builtin_convertvector(reinterpret_cast<Bits>(bits) >> 16 * half, Halves), f16());
}

[[gnu::always_inline]] inline Vec join_halves(Halves lower, Halves upper) {
  return reinterpret_cast<Vec>(__builtin_convertvector(lower, Bits) | __builtin_convertvector(upper, Bits) << 16);
}

// Asks for the line of memory at `address`, to be in the second-level cache when it is needed. Assembly, because GCC
// takes a function that does nothing but __builtin_prefetch for one without effect, and drops the calls of it.
[[gnu::always_inline]] inline void prefetch(const void* address) {
  asm volatile("prefetcht1 %0" ::"m"(*static_cast<const char*>(address)));
}

// Makes the compiler forget how a pointer or a number came about. Walking a row of pixels with it costs one addition a
// pixel; without it GCC keeps the multiples of the pixel stride in more registers than there are.
template <class T>
[[gnu::always_inline]] inline T opaque(T value) {
  asm("" : "+r"(value));
  return value;
}

// Loads a vector once, where GCC would rather load it for each use: as many loads as multiply-adds are too many.
[[gnu::always_inline]] inline Vec in_register(Vec vector) {
#ifndef RESNEXT_EMULATE_AVX512
  asm("" : "+v"(vector));
#endif
  return vector;
}

// The elements of two vectors whose numbers are even (0) or odd (1).
template <int odd>
[[gnu::always_inline]] inline Vec every_other(Vec a, Vec b) {
  Index index;
  for (int lane = 0; lane < lanes; ++lane) index[lane] = 2 * lane + odd;
  return __builtin_shuffle(a, b, index);
}

// The first (0) or second (1) vector of what has these elements in turn.
template <int half>
[[gnu::always_inline]] inline Vec in_turn(Vec even, Vec odd) {
  Index index;
  for (int lane = 0; lane < lanes; ++lane) index[lane] = lane % 2 * lanes + half * lanes / 2 + lane / 2;
  return __builtin_shuffle(even, odd, index);
}

}  // namespace
}  // namespace resnext::cpu
