#pragma once
#include <cstdint>
#include <type_traits>

#include "simd.h"

namespace resnext::cpu {
namespace {

// Copies channel j of every four lanes to all four.
template <int j>
[[gnu::always_inline]] inline Vec copy_within_fours(Vec v) {
  Index index;
  for (int lane = 0; lane < lanes; ++lane) index[lane] = lane / 4 * 4 + j;
  return __builtin_shuffle(v, index);  // one vpermilps
}

// The slot of vectors with channels of two groups of which the second starts some distance behind the first.
constexpr int two_apart = 2;

// For the groups that share a vector, `slot` lanes each (or the one group, if it fills vectors), whose channels start
// at `pixel`: in every lane, channel j of the group to which the lane belongs. With two channels in a lane, channel
// means pair of channels. Of two groups apart, the second starts `distance` elements behind the first; other vectors
// begin at `pixel`. Groups that lie across vectors (slot 1) have nothing to spread.
//
//   slot 4, 16 lanes, j = 1   pixel   a0 a1 a2 a3 b0 b1 b2 b3 c0 c1 c2 c3 d0 d1 d2 d3
//                             result  a1 a1 a1 a1 b1 b1 b1 b1 c1 c1 c1 c1 d1 d1 d1 d1
template <int slot, int per_lane, int j>
[[gnu::always_inline]] inline Vec spread(const float* pixel, [[maybe_unused]] int64_t distance) {
  if constexpr (slot == lanes) {
    return splat(pixel + j);
  } else if constexpr (slot == 1) {
    return in_register(load(pixel + j * lanes));
  } else if constexpr (slot == 4 && per_lane == 1) {
    return copy_within_fours<j>(load(pixel));
  } else {
#ifdef __AVX512F__
    if constexpr (slot == 4) {  // a0 a1 b0 b1 ... with zeros between
      const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pixel));
      return copy_within_fours<2 * j>(reinterpret_cast<Vec>(_mm512_maskz_cvtepu32_epi64(0xff, pairs)));
    } else if constexpr (slot == 8 && per_lane == 1) {
      const __m512 both = load(pixel);
      constexpr int four = j / 4, fours = four | four << 2 | (2 + four) << 4 | (2 + four) << 6;
      return copy_within_fours<j % 4>(_mm512_maskz_shuffle_f32x4(0xffff, both, both, fours));
    } else if constexpr (slot == 8) {
      const __m512 both = _mm512_castps256_ps512(_mm256_loadu_ps(pixel));
      return copy_within_fours<j>(_mm512_maskz_shuffle_f32x4(0xffff, both, both, 0b01010000));
    } else {
      static_assert(slot == two_apart);
      pixel += j / 4 * 4;
      const __m512 low = _mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(pixel));
      return copy_within_fours<j % 4>(_mm512_mask_broadcast_f32x4(low, 0xff00, _mm_loadu_ps(pixel + distance)));
    }
#endif
  }
}

// Such a channel of a pixel, to be multiplied with several vectors. One that all lanes share (where a group fills
// vectors) is read by each product: multiply_add_splat is no slower than multiply_add.
template <int slot, int per_lane, int j, bool from_memory = lanes == 16 && slot == lanes>
class Spread {
 public:
  [[gnu::always_inline]] Spread(const float* pixel, int64_t distance) {
    if constexpr (from_memory)
      channel_ = pixel + j;
    else
      channel_ = spread<slot, per_lane, j>(pixel, distance);
  }

  [[gnu::always_inline]] Vec add_product(Vec sum, Vec y) const {
    if constexpr (from_memory)
      return multiply_add_splat<per_lane>(sum, channel_, y);
    else
      return multiply_add<per_lane>(sum, channel_, y);
  }

 private:
  std::conditional_t<from_memory, const float*, Vec> channel_;
};

// From one of a group's channels to the next, in elements.
template <int slot>
constexpr int channel_step = slot == 1 ? lanes : 1;

}  // namespace
}  // namespace resnext::cpu
