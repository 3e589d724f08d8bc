#pragma once
// Groups of 8, 16 and 32 floats in the NCHW tensor-core kernels, by TF32 (tf32.h). Units, their copies and their stores
// are those of mma_nchw.h. But a float is a word of shared memory, so lanes read any column, and operands are shifted
// as the taps want it on their way to registers:
//
//   warp   8 result channels x two eights of columns, of one row or of two images, down some rows of the unit
//   lane   (g = lane / 4, t = lane % 4) column g of either eight x channels t and t + 4
//
//          pixels (A, 32-bit loads)             weights (B, in registers)           sums
//          16 columns x 8 source channels   x   8 source x 8 result channels   =    16 columns x 8 result channels
//
// A row of the source is read once for each tap column and serves three tap rows, into three rows of sums that move up
// with each row. In Spread it makes the odd result row before it, the even one, and the first half of the next odd one.
//
// Banks. A load reads 8 columns of 4 channels. These are 8 or 24 words apart modulo 32, so at stride 1 all lanes
// differ. At stride 2, where lanes read every second column, two meet in each bank.
//
// Padding. Rows outside the image are skipped. Columns outside it are zeros in registers, which spoil the sums only of
// weights that are not finite: a block whose sums are not all finite makes those results once more in the end, without
// what is not there.
#include "mma_nchw_store.h"

namespace resnext::cuda::mma_nchw {

// Gather or Spread in floats.
template <class Halves, int products_of_one>
struct Tf32 : Halves {
  static constexpr bool floats = true;
  static constexpr int products = products_of_one, width = Halves::width;
  static constexpr int rows = 1, warp_channels = 8, parts = width / 8, steps = width / 8, step_sources = 8;
  static constexpr int half_channels = 4;
  static constexpr int fragments = 2 * taps * taps, registers = products == 3 ? 2 * fragments : fragments;
  static constexpr int cell = 1, vector_pixels = 4;
  // Two blocks of an A100 or one of the smaller GPUs; a plane of 28x28 in 8 channels, or four of 7x7 in 32.
  static constexpr int usual_bytes = 80 * 1024;
  static constexpr int blocks = steps * products >= 4 ? 1 : 2;

  // How far beside a lane's pixel a tap column reads, and to which of its sums tap rows and columns add.
  static constexpr int beside(int s) { return Halves::spread == 2 ? s == 0 : s - 1; }
  static constexpr int result_of(int s) { return Halves::spread == 2 ? s != 1 : 0; }
  static constexpr int row_of(int r) { return Halves::spread == 2 ? r : Halves::stride == 1 ? 2 - r : r == 0; }
};

// Result rows (or rows of the source that spread) of an image in their order; those that wait for source rows.
template <class Kind>
using Sums = float[taps][Kind::spread][4];

// What a lane has of a tile: two pixels, g of either eight. Those beyond a row read its last column, those of an eight
// that is not there the first eight.
template <class Kind>
struct Lane {
  const float* source[2];  // the pixel's column in the lane's first source channel and the unit's first source row
  float* result[2];        // its (first) result in the unit's first result row and the lane's first channel
  bool exists[2], has_left[2], has_right[2];  // has: source columns beside the pixel

  __device__ __forceinline__ Lane(const Planes& g, const Channel<Kind>& channel, const Unit& unit, int tile,
                                  const float* stage, float* results) {
    const int lane = threadIdx.x % 32, columns = Kind::spread == 2 ? g.columns : g.result_columns;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      SmallSplit eight = split(2 * tile + i, g.by_tile_columns);
      exists[i] = eight.quotient < unit.images;
      if (!exists[i]) eight = split(2 * tile, g.by_tile_columns);
      int column = eight.remainder * tile_columns + lane / 4;
      exists[i] &= column < columns;
      column = min(column, columns - 1);
      const int x = Kind::stride * column;
      has_left[i] = x > 0;
      has_right[i] = x + 1 < g.columns;
      source[i] = stage + lane % 4 * g.channel_pitch + eight.quotient * g.source_rows * g.row_pitch + x;
      result[i] = results + (eight.quotient * Kind::channels + channel.of_block) * g.unit_rows * g.result_columns +
                  Kind::spread * column;
    }
  }
};

// The A operands of a row, so many columns beside the lane's pixels, and what is left of them if they are split.
template <class Kind>
using Pixels = uint32_t[splits<Kind> ? 2 : 1][4];

template <class Kind, int beside>
__device__ __forceinline__ void load_pixels(Pixels<Kind>& pixels, const Planes& g, const Lane<Kind>& lane, int offset) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* at = lane.source[i % 2] + offset + i / 2 * 4 * g.channel_pitch + beside;
    const bool exists = beside == 0 || (beside < 0 ? lane.has_left[i % 2] : lane.has_right[i % 2]);
    const float value = exists ? *at : 0;
    pixels[0][i] = __float_as_uint(value);
    if constexpr (splits<Kind>)
      split_tf32(pixels[0][i], pixels[1][i]);
    else
      pixels[0][i] = rounded_for_mma(value);
  }
}

// Adds the products of those pixels by the tap columns that read them and by the tap rows that act on the row.
template <class Kind, int beside>
__device__ __forceinline__ void multiply_pixels(Sums<Kind>& sums, const Planes& g, const Lane<Kind>& lane, int offset,
                                                const uint32_t (&weights)[Kind::registers], const bool (&acts)[taps]) {
  constexpr int words = Kind::registers / (taps * taps);
  Pixels<Kind> pixels;
  load_pixels<Kind, beside>(pixels, g, lane, offset);
#pragma unroll
  for (int r = 0; r < taps; ++r) {
    if (!acts[r]) continue;
#pragma unroll
    for (int s = 0; s < taps; ++s) {
      if (Kind::beside(s) != beside) continue;
      uint32_t operand[words];
#pragma unroll
      for (int i = 0; i < words; ++i) operand[i] = weights[(r * taps + s) * words + i];
      multiply_tf32<Kind>(sums[Kind::row_of(r)][Kind::result_of(s)], pixels, operand);
    }
  }
}

// Adds the products of a source row, `offset` from the unit's first.
template <class Kind>
__device__ __forceinline__ void multiply_row(Sums<Kind>& sums, const Planes& g, const Lane<Kind>& lane, int offset,
                                             const Weights<Kind>& weights, const bool (&acts)[taps]) {
#pragma unroll
  for (int step = 0; step < Kind::steps; ++step, offset += 8 * g.channel_pitch) {
    if constexpr (Kind::spread == 1) multiply_pixels<Kind, -1>(sums, g, lane, offset, weights[step], acts);
    multiply_pixels<Kind, 0>(sums, g, lane, offset, weights[step], acts);
    multiply_pixels<Kind, 1>(sums, g, lane, offset, weights[step], acts);
  }
}

// Scales, shifts and stages the lane's results of a row, `offset` from the unit's first. `watch` becomes NaN if one of
// them is not finite.
template <class Kind>
__device__ __forceinline__ void stage_row(const Planes& g, const Channel<Kind>& channel, const Lane<Kind>& lane,
                                          int offset, const float (&sums)[Kind::spread][4], float& watch) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (!lane.exists[i / 2]) continue;
    const int own = i % 2;
    float* to = lane.result[i / 2] + offset + own * g.half_step;
    float values[Kind::spread];
#pragma unroll
    for (int j = 0; j < Kind::spread; ++j) {
      watch += 0 * sums[j][i];
      values[j] = sums[j][i] * channel.scale[own] + channel.bias[own];
    }
    if constexpr (Kind::spread == 1) {
      to[0] = values[0];
    } else if (g.result_columns % 2 == 0) {
      *reinterpret_cast<float2*>(to) = make_float2(values[0], values[1]);
    } else {
      to[0] = values[0];
      if (lane.has_right[i / 2]) to[1] = values[1];
    }
  }
}

// Makes a tile's results in rows `first` to `last` of the image; in Spread rows of the source.
template <class Kind>
__device__ __forceinline__ void walk_down(const Planes& g, const Channel<Kind>& channel, const Unit& unit,
                                          const Lane<Kind>& lane, const Weights<Kind>& weights, int first, int last,
                                          float& watch) {
  constexpr bool spreads = Kind::spread == 2;
  int y = spreads ? first : max(Kind::stride * first - 1, 0);
  const int end = min(spreads ? last + 1 : Kind::stride * (last - 1) + 2, g.rows);
  const auto store = [&](int row, const float (&sums)[Kind::spread][4]) {
    if (!spreads || row < g.result_rows)
      stage_row<Kind>(g, channel, lane, (row - unit.row) * g.result_columns, sums, watch);
  };
  Sums<Kind> sums{};
#pragma unroll 1
  for (; y < end; ++y) {
    const bool odd = Kind::stride == 1 || y % 2 != 0;  // at stride 2 an even source row is the middle one of a result's
    const int above = spreads ? y - 1 : (y - 1) / Kind::stride;  // its result is complete
    const int below = spreads ? y : (y + 1) / Kind::stride;
    const bool has_above = odd && y > 0 && above >= first;
    bool acts[taps] = {odd && below < last, spreads || Kind::stride == 1 ? y >= first && y < last : !odd, has_above};
    if (spreads) acts[0] = has_above, acts[2] = y < last;
    multiply_row<Kind>(sums, g, lane, (y - unit.first_source_row) * g.row_pitch, weights, acts);
    if (has_above) store(spreads ? 2 * above + 1 : above, sums[0]);
    if (spreads && y < last) store(2 * y, sums[1]);
    if (!odd) continue;
#pragma unroll
    for (int i = 0; i < Kind::spread * 4; ++i) {
      sums[0][i / 4][i % 4] = sums[spreads ? 2 : 1][i / 4][i % 4];
      sums[1][i / 4][i % 4] = spreads ? 0 : sums[2][i / 4][i % 4];
      sums[2][i / 4][i % 4] = 0;
    }
  }
  const bool ends = spreads ? last == g.rows : Kind::stride * (last - 1) + 1 >= g.rows;  // with the row below missing
  if (ends) store(spreads ? 2 * last - 1 : last - 1, sums[0]);
}

// Makes a unit's results, in the order of memory.
template <class Kind>
__device__ __forceinline__ void make_unit_of_floats(const Planes& g, const Channel<Kind>& channel, const Unit& unit,
                                                    const Weights<Kind>& weights, const uint4* stage, float* results,
                                                    float& watch) {
  const int rows = (unit.rows + Kind::spread - 1) / Kind::spread, start = unit.row / Kind::spread;
  const int eights = unit.images * g.by_tile_columns.value, count = (eights + 1) / 2 * g.by_tile_rows.value;
#pragma unroll 1
  for (int i = threadIdx.x / 32 / Kind::parts; i < count; i += warps / Kind::parts) {
    const SmallSplit at = split(i, g.by_tile_rows);
    const int first = at.remainder * g.walk_rows, last = min(first + g.walk_rows, rows);
    if (first >= last) continue;
    const Lane<Kind> lane(g, channel, unit, at.quotient, reinterpret_cast<const float*>(stage), results);
    walk_down<Kind>(g, channel, unit, lane, weights, start + first, start + last, watch);
  }
}

// One result in plain floats, of factors as they are multiplied, without what lies beside the image.
template <class Kind>
__device__ __forceinline__ float result_at(const Planes& g, int64_t image, int p, int q, int channel) {
  const float* source =
      static_cast<const float*>(g.source) + (image * g.channels + channel / Kind::width * Kind::width) * g.source_plane;
  const float* weight = static_cast<const float*>(g.weight) + channel / Kind::width * g.weight_group +
                        channel % Kind::width * g.weight_result;
  float sum = 0;
#pragma unroll 1
  for (int tap = 0; tap < taps * taps; ++tap) {
    const int y = source_position<Kind>(p, tap / taps, g.rows), x = source_position<Kind>(q, tap % taps, g.columns);
    if (y < 0 || x < 0) continue;
    const float* pixel = source + static_cast<int64_t>(y) * g.columns + x;
    const float* of_tap = weight + tap / taps * g.weight_r + tap % taps * g.weight_s;
#pragma unroll 1
    for (int c = 0; c < Kind::width; ++c)
      sum += as_multiplied<Kind>(pixel[c * g.source_plane]) * as_multiplied<Kind>(of_tap[c * g.weight_source]);
  }
  return sum;
}

// Makes those of the block's results once more that are not finite, if a warp has had such sums. With one product only
// those in the first and last columns can be wrong. `flags`: shared memory that nobody reads any more.
template <class Kind, class Sync>
__device__ __forceinline__ void mend(const Planes& g, const Channels<Kind>& channels, const Own& units, float watch,
                                     int* flags) {
  const bool special = __any_sync(0xffffffffu, !is_finite(watch));
  if (threadIdx.x % 32 == 0) flags[threadIdx.x / 32] = special;
  Sync::stored();
  bool any = false;
#pragma unroll 1
  for (int i = 0; i < warps; ++i) any |= flags[i] != 0;
  if (!any) return;
#pragma unroll 1
  for (int own = 0; own < units.count; ++own) {
    const Unit unit = Unit::at<Kind>(g, units.first + own);
#pragma unroll 1
    for (int i = threadIdx.x; i < unit.images * channels.count * unit.rows * g.result_columns; i += threads) {
      const int line = i / g.result_columns, q = i % g.result_columns, row = unit.row + line % unit.rows;
      if (Kind::products == 1 && q > 0 && q < g.result_columns - 1) continue;
      const int channel = channels.first + line / unit.rows % channels.count;
      const int64_t image = unit.image + line / unit.rows / channels.count;
      const int64_t to =
          (image * g.channels + channel) * g.result_plane + static_cast<int64_t>(row) * g.result_columns + q;
      float* result = static_cast<float*>(g.result) + to;
      if (is_finite(*result)) continue;
      const float sum = result_at<Kind>(g, image, row, q, channel);
      const float bias = g.bias ? static_cast<const float*>(g.bias)[channel] : 0;
      *result = finished<Kind, 1>(g, g.scale ? sum * g.scale[channel] + g.shift[channel] : sum + bias, result);
    }
  }
}

}  // namespace resnext::cuda::mma_nchw
