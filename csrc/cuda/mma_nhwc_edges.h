#pragma once
// What blocks do whose weights are not all finite. The columns beside the image are zeros in the ring, which is the
// same as none unless they meet an infinite or NaN weight: then results in the first and last columns are NaN that
// should not be. Those that are not finite are summed once more, one by one and without what is not there. In pairs
// (mma_nhwc_pairs.h) pixels meet zeros, too, so there this is done to all columns.
#include "mma_nhwc_tile.h"

namespace resnext::cuda::mma_nhwc {

template <class Kind, class T>
__device__ __forceinline__ float result_at(const Lines& g, int64_t image, int p, int q, int channel) {
  const int from = source_width<Kind>(g), to = result_width<Kind>(g);
  const T* source = static_cast<const T*>(g.source) + channel / to * from;
  const T* weight = static_cast<const T*>(g.weight) + channel / to * g.weight_group + channel % to * g.weight_result;
  float sum = g.bias ? to_acc(static_cast<const T*>(g.bias)[channel]) : 0;
#pragma unroll 1
  for (int tap = 0; tap < taps * taps; ++tap) {
    const int y = source_position<Kind>(p, tap / taps, g.rows), x = source_position<Kind>(q, tap % taps, g.columns);
    if (y < 0 || x < 0) continue;
    const T* pixel =
        advance(source, (image * g.rows + y) * g.source_row) + static_cast<int64_t>(x) * source_channels<Kind>(g);
    const T* of_tap = weight + tap / taps * g.weight_r + tap % taps * g.weight_s;
#pragma unroll 1
    for (int c = 0; c < from; ++c)
      sum += to_acc(as_multiplied<Kind>(pixel[c])) * to_acc(as_multiplied<Kind>(of_tap[c * g.weight_source]));
  }
  return sum;
}

// What a fused fprop makes of a sum, of result channel `channel`. `result`: where it will be stored.
template <class T>
__device__ __forceinline__ float with_epilogue(const Lines& g, float sum, int channel, const T* result) {
  float value = sum * g.scale[channel] + g.shift[channel];
  if (g.residual) value += to_acc(static_cast<const T*>(g.residual)[result - static_cast<const T*>(g.result)]);
  return g.relu && value < 0 ? 0 : value;  // NaN stays
}

// Mends the columns from `column` on in what the warp has made.
template <class Kind, class T>
__device__ __forceinline__ void mend_columns(const Lines& g, const Walk& walk, int column, int end) {
  constexpr int channels = Kind::warp_channels;
  const int of_team = threadIdx.x / 32 % Kind::warps * channels, first = Kind::spread * walk.row,
            rows = min(Kind::spread * g.run_rows, g.result_rows - first);
  const int images = min((Kind::walks ? walk.segments : 1) * g.tile_images, g.images - walk.image);
#pragma unroll 1
  for (; column < end; ++column) {
#pragma unroll 1
    for (int64_t i = threadIdx.x % 32; i < int64_t{channels} * rows * images; i += 32) {
      const int own = of_team + static_cast<int>(i % channels), channel = first_result<Kind>(g) + own;
      if (Kind::pads ? own >= g.result_width : own >= Kind::channels || channel >= g.channels) continue;
      const int64_t image = walk.image + i / channels / rows;
      const int p = first + static_cast<int>(i / channels % rows);
      T* result = advance(static_cast<T*>(g.result), (image * g.result_rows + p) * g.result_row) +
                  static_cast<int64_t>(column) * result_channels<Kind>(g) + channel;
      if (is_finite(*result)) continue;
      const float sum = result_at<Kind, T>(g, image, p, column, channel);
      *result = from_acc<T>(Kind::fuses && (!Kind::pads || g.scale) ? with_epilogue(g, sum, channel, result) : sum);
    }
  }
}

// Mends the first and last column of the image in what the warp has made, or all if it watches.
template <class Kind, class T>
__device__ __forceinline__ void mend(const Lines& g, const Walk& walk) {
  const int strip = Kind::spread * walk.column, last = g.result_columns - 1;
  const int strip_end = strip + Kind::spread * Kind::across * tile_pixels;
  if constexpr (Kind::watches) {
    mend_columns<Kind, T>(g, walk, strip, min(strip_end, g.result_columns));
  } else {
#pragma unroll 1
    for (int side = 0; side < 2; ++side) {
      const int column = side == 0 ? 0 : last;
      if (strip <= column && column < strip_end) mend_columns<Kind, T>(g, walk, column, column + 1);
    }
  }
}

}  // namespace resnext::cuda::mma_nhwc
