#pragma once
#include <algorithm>

#include "simd.h"

// Copies between tensors and the scratch tiles of the direct kernels, in which a pixel's channels lie together.
namespace resnext::cpu {
namespace {

// Up to `lanes` pixels of `lanes` channels, from planes of `plane_stride` elements to pixels of `pixel_stride`.
[[gnu::noinline]] inline void transpose_tile(const float* from, int64_t from_stride, int from_count, float* to,
                                             int64_t to_stride, int to_count, int rows_in) {
  Vec rows[lanes];
  unroll<lanes>([&](auto i)
                    RESNEXT_INLINE { rows[i] = i < rows_in ? load_part(from + i * from_stride, from_count) : Vec{}; });
  transpose(rows);
  unroll<lanes>([&](auto i) RESNEXT_INLINE {
    if (i < from_count) store_part(to + i * to_stride, rows[i], to_count);
  });
}

[[gnu::noinline]] inline void transpose_whole_tile(const float* from, int64_t from_stride, float* to,
                                                   int64_t to_stride) {
  Vec rows[lanes];
  unroll<lanes>([&](auto i) RESNEXT_INLINE {
    rows[i] = load(from);
    from = opaque(from + from_stride);
  });
  transpose(rows);
  unroll<lanes>([&](auto i) RESNEXT_INLINE {
    store(to, rows[i]);
    to = opaque(to + to_stride);
  });
}

// `channels` planes, `plane_stride` elements apart, to `pixels` pixels of `channels` elements.
template <int channels>
void planes_to_pixels(const float* planes, int64_t plane_stride, int64_t pixels, float* to) {
  for (int64_t pixel = 0; pixel < pixels; pixel += lanes)
    for (int channel = 0; channel < channels; channel += lanes) {
      const float* from = planes + channel * plane_stride + pixel;
      float* tile = to + pixel * channels + channel;
      const int count = static_cast<int>(std::min<int64_t>(pixels - pixel, lanes));
      if (count == lanes)
        transpose_whole_tile(from, plane_stride, tile, channels);
      else
        transpose_tile(from, plane_stride, count, tile, channels, lanes, lanes);
    }
}

// `pixels` pixels of `lanes` channels to planes that are `plane_stride` elements apart.
inline void pixels_to_planes(const float* from, int64_t pixels, int64_t plane_stride, float* planes) {
  for (int64_t pixel = 0; pixel < pixels; pixel += lanes) {
    const int count = static_cast<int>(std::min<int64_t>(pixels - pixel, lanes));
    if (count == lanes)
      transpose_whole_tile(from + pixel * lanes, lanes, planes + pixel, plane_stride);
    else
      transpose_tile(from + pixel * lanes, lanes, lanes, planes + pixel, plane_stride, count, count);
  }
}

// Asks for part `part` of `parts` of a stretch of memory, to be read or (`write`) written soon.
template <bool write>
void prefetch_part(const float* from, int64_t size, int64_t part, int64_t parts) {
  constexpr int64_t line = 16;
  for (int64_t i = size * part / parts / line * line; i < size * (part + 1) / parts; i += line)
    __builtin_prefetch(from + i, write, 2);
}

}  // namespace
}  // namespace resnext::cpu
