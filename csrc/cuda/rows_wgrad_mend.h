#pragma once
// What becomes of sums that are not finite where floats are multiplied by three products of TF32 numbers, of which an
// infinity, or what rounds to one, makes inf - inf, as it does where it meets a zero that stands for padding: a block
// makes those of its slice once more, in plain floats. rows_wgrad_kernel.h says how it all fits together.
#include "numeric.h"
#include "rows_wgrad_load.h"

namespace resnext::cuda::rows_wgrad {

// An element of the weight.
struct Element {
  int c, tap;
};

// Where in a tensor an image has a channel of a pixel.
template <class Gw>
__device__ __forceinline__ int64_t offset_of(int64_t channels, int64_t rows, int64_t columns, int64_t image,
                                             int channel, int row, int column) {
  if constexpr (Gw::Form::layout == Layout::nhwc) return ((image * rows + row) * columns + column) * channels + channel;
  return ((image * channels + channel) * rows + row) * columns + column;
}

// A slice's sum for one weight.
template <class Gw>
__device__ __forceinline__ float plain_sum(const Wgrad& g, int slice, int k, Element at) {
  const int count = g.slice_walks * g.walk_segments, first = slice * count, end = min(first + count, g.segments);
  const int c = k / Gw::width * Gw::width + at.c, r = at.tap / taps - 1, s = at.tap % taps - 1;
  float sum = 0;
#pragma unroll 1
  for (int index = first; index < end; ++index) {
    const Segment segment = segment_at(g, index);
    const int end_column = min(segment.column + g.segment_tiles * tile_columns, g.grad_columns);
#pragma unroll 1
    for (int p = segment.row; p < segment.row + segment.rows; ++p) {
      const int y = Gw::stride * p + r;
      if (y < 0 || y >= g.rows) continue;
#pragma unroll 1
      for (int q = segment.column; q < end_column; ++q) {
        const int x = Gw::stride * q + s;
        if (x < 0 || x >= g.columns) continue;
        sum += g.input[offset_of<Gw>(g.channels, g.rows, g.columns, segment.image, c, y, x)] *
               g.grad_output[offset_of<Gw>(g.channels, g.grad_rows, g.grad_columns, segment.image, k, p, q)];
      }
    }
  }
  return sum;
}

// Makes those of a slice's sums once more that are not finite, of four output channels from `k` on.
template <class Gw>
__device__ __forceinline__ void mend(float4& sums, const Wgrad& g, int slice, int k, Element at) {
  float* sum = reinterpret_cast<float*>(&sums);
#pragma unroll 1
  for (int i = 0; i < 4 && k + i < g.channels; ++i)
    if (!is_finite(sum[i])) sum[i] = plain_sum<Gw>(g, slice, k + i, at);
}

}  // namespace resnext::cuda::rows_wgrad
