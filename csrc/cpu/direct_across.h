#pragma once
#include <algorithm>
#include <type_traits>

#include "direct_entries.h"
#include "simd.h"

// Between NHWC, where a pixel has one group's channels after the other's, and vectors in which a group has one lane and
// each of its channels a vector (slot 1 in direct_lanes.h):
//
//   memory   a0 a1 a2 a3 b0 b1 b2 b3 c0 c1 c2 c3 ...       vectors   a0 b0 c0 ... | a1 b1 c1 ... | a2 ... | a3 ...
namespace resnext::cpu {
namespace {

// Element `lane` of vector `channel`, as a place in memory, and the other way round.
constexpr int place_in_memory(int width, int channel, int lane) { return lane * width + channel; }
constexpr int place_across(int width, int vector, int lane) {
  const int place = vector * lanes + lane;
  return place % width * lanes + place / width;
}

// What `place(vector, lane)` says, from an odd number of vectors: each merges what it has into the result.
template <int width, class Place>
[[gnu::always_inline]] inline void rearrange(Vec (&vectors)[width], const Place& place) {
  Vec result[width];
  unroll<width>([&](auto to) RESNEXT_INLINE {
    result[to] = vectors[0];
    unroll<width>([&](auto from) RESNEXT_INLINE {
      if constexpr (from > 0) {
        Index index;
        for (int lane = 0; lane < lanes; ++lane) {
          const int at = place(to, lane);
          index[lane] = at / lanes == from ? lanes + at % lanes : from > 1 ? lane : at % lanes;
        }
        result[to] = __builtin_shuffle(result[to], vectors[from], index);
      }
    });
  });
  unroll<width>([&](auto i) RESNEXT_INLINE { vectors[i] = result[i]; });
}

// From the order of memory. Where the width is even, even channels first, and odd ones: two groups of half the width.
template <int width>
[[gnu::always_inline]] inline void deal_across(Vec (&vectors)[width]) {
  if constexpr (width % 2 == 0) {
    Vec even[width / 2], odd[width / 2];
    unroll<width / 2>([&](auto i) RESNEXT_INLINE {
      even[i] = every_other<0>(vectors[2 * i], vectors[2 * i + 1]);
      odd[i] = every_other<1>(vectors[2 * i], vectors[2 * i + 1]);
    });
    deal_across(even);
    deal_across(odd);
    unroll<width / 2>([&](auto i) RESNEXT_INLINE {
      vectors[2 * i] = even[i];
      vectors[2 * i + 1] = odd[i];
    });
  } else if constexpr (width > 1) {
    rearrange(vectors, [](int channel, int lane) { return place_in_memory(width, channel, lane); });
  }
}

// And back.
template <int width>
[[gnu::always_inline]] inline void collect_across(Vec (&vectors)[width]) {
  if constexpr (width % 2 == 0) {
    Vec even[width / 2], odd[width / 2];
    unroll<width / 2>([&](auto i) RESNEXT_INLINE {
      even[i] = vectors[2 * i];
      odd[i] = vectors[2 * i + 1];
    });
    collect_across(even);
    collect_across(odd);
    unroll<width / 2>([&](auto i) RESNEXT_INLINE {
      vectors[2 * i] = in_turn<0>(even[i], odd[i]);
      vectors[2 * i + 1] = in_turn<1>(even[i], odd[i]);
    });
  } else if constexpr (width > 1) {
    rearrange(vectors, [](int vector, int lane) { return place_across(width, vector, lane); });
  }
}

// Calls body with a group's width as a constant.
template <int width = 1, class Body>
void with_width(int64_t wanted, const Body& body) {
  if (wanted == width)
    body(std::integral_constant<int, width>());
  else if constexpr (width < widest_across)
    with_width<width + 1>(wanted, body);
}

// Copies `channels` channels of neighbouring groups from `pixels` pixels of NHWC to tiles: `to` has a vector for each
// channel of 16 groups, `vector_distance` apart.
template <class T, class S>
[[gnu::noinline]] void load_across(const T* from, int64_t pixel_stride, int64_t channels, int64_t width, int64_t pixels,
                                   S* to, int64_t to_pixel, int64_t to_vector) {
  with_width(width, [&](auto constant) RESNEXT_INLINE {
    constexpr int unit = constant * lanes;
    T all[unit] = {};  // zero for the groups that there are not
    for (int64_t pixel = 0; pixel < pixels; ++pixel, from += pixel_stride, to += to_pixel) {
      S* place = to;
      for (int64_t channel = 0; channel < channels; channel += unit) {
        const bool whole = channel + unit <= channels;
        if (!whole) std::copy_n(from + channel, channels - channel, all);
        const T* first = whole ? from + channel : all;
        Vec vectors[constant];
        unroll<constant>([&](auto i) RESNEXT_INLINE { vectors[i] = load(first + i * lanes); });
        deal_across(vectors);
        unroll<constant>([&](auto i) RESNEXT_INLINE {
          store(place, vectors[i]);
          place += to_vector;
        });
      }
    }
  });
}

// The other way, rounded.
template <class T>
[[gnu::noinline]] void store_across(const float* from, int64_t from_pixel, int64_t channels, int64_t width,
                                    int64_t pixels, T* to, int64_t pixel_stride) {
  with_width(width, [&](auto constant) RESNEXT_INLINE {
    constexpr int unit = constant * lanes;
    T all[unit];
    for (int64_t pixel = 0; pixel < pixels; ++pixel, from += from_pixel, to += pixel_stride) {
      const float* place = from;
      for (int64_t channel = 0; channel < channels; channel += unit, place += unit) {
        Vec vectors[constant];
        unroll<constant>([&](auto i) RESNEXT_INLINE { vectors[i] = load(place + i * lanes); });
        collect_across(vectors);
        const bool whole = channel + unit <= channels;
        T* first = whole ? to + channel : all;
        unroll<constant>([&](auto i) RESNEXT_INLINE { store(first + i * lanes, vectors[i]); });
        if (!whole) std::copy_n(all, channels - channel, to + channel);
      }
    }
  });
}

}  // namespace
}  // namespace resnext::cpu
