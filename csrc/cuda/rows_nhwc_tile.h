#pragma once
// What a lane of the row-streaming kernels owns of a result; rows_nhwc.h says how it all fits together.
#include "rows_nhwc_load.h"

namespace resnext::cuda::rows_nhwc {

__device__ __forceinline__ void unpack(float (&to)[4], const float4& from) {
  to[0] = from.x;
  to[1] = from.y;
  to[2] = from.z;
  to[3] = from.w;
}

// Four channels of some columns of a result row.
template <int columns>
__device__ __forceinline__ void start_row(float (&row)[columns][4], const float4& bias) {
#pragma unroll
  for (int i = 0; i < columns; ++i) unpack(row[i], bias);
}

template <int columns>
__device__ __forceinline__ void store_row(const float (&row)[columns][4], float* result, int64_t channels, int owned) {
#pragma unroll
  for (int i = 0; i < columns; ++i)
    if (i < owned)
      *reinterpret_cast<float4*>(result + i * channels) = make_float4(row[i][0], row[i][1], row[i][2], row[i][3]);
}

// A lane's tile, and the edges of the image as it sees them.
struct Tile {
  int column, parity, vector;  // in the ring: the first column, and which of its columns are swizzled
  int owned;                   // columns that exist in the result
  int right;                   // how many of its positions have a source column to the right
  bool left;                   // whether the first has one to the left
  int row;                     // the segment's first
  float* result;               // the first row's first column
};

template <class Gw, class Map>
__device__ __forceinline__ Tile tile_of(const Rows& g, int64_t first_segment, int64_t first_channel, int lane) {
  const int number = lane % 2 + lane / 16 * 2;
  const int segment_index = number / Map::segment_tiles, tile_column = number % Map::segment_tiles * tile_columns;
  const Segment segment = segment_of<Map>(g, first_segment + segment_index);
  const int q = segment.column + tile_column, result_q = Gw::spread * q;
  const int64_t result_row = segment.image * g.result_rows + Gw::spread * segment.row;
  Tile tile;
  tile.vector = lane / 2 % vectors;
  tile.column = segment_index * segment_columns<Gw, Map> + Gw::stride * tile_column;
  tile.parity = (tile_column + segment_index) % 2;
  const int64_t channel = first_channel + 4 * tile.vector;
  tile.owned = segment.exists && channel < g.channels ? g.result_columns - result_q : 0;
  tile.left = q > 0;
  tile.right = (g.columns - 2 + Gw::stride) / Gw::stride - q;
  tile.row = segment.row;
  tile.result = g.result + (result_row * g.result_columns + result_q) * g.channels + channel;
  return tile;
}

// What follows the sums of a result row in a fused fprop. `channel`: the lane's first.
template <int columns>
__device__ __forceinline__ void apply_epilogue(const Rows& g, float (&row)[columns][4], const Tile& tile,
                                               int64_t channel) {
  const float* residual = tile.result + (g.residual - g.result);  // the other way round, stores become generic ones
  const float least = g.relu ? 0 : -INFINITY;  // so that stores stay together: with branches, they come apart
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (tile.owned <= 0) continue;
    const float scale = g.scale[channel + k], shift = g.shift[channel + k];
#pragma unroll
    for (int i = 0; i < columns; ++i) row[i][k] = row[i][k] * scale + shift;
  }
#pragma unroll
  for (int i = 0; i < columns; ++i) {
    if (i >= tile.owned) continue;
    float other[4] = {};
    if (g.residual) unpack(other, *reinterpret_cast<const float4*>(residual + i * g.channels));
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      row[i][k] += other[k];
      row[i][k] = row[i][k] < least ? least : row[i][k];  // NaN stays
    }
  }
}

// Four channels of the source columns of a tile, from its stage of the ring.
template <class Gw, int columns>
__device__ __forceinline__ void load_columns(float (&x)[columns][4], const float4 (*stage)[Gw::part_vectors],
                                             const Tile& tile, int vector) {
  const float4* straight = &stage[tile.column][vector ^ tile.parity * Gw::swizzle];
  const float4* flipped = &stage[tile.column][vector ^ (1 - tile.parity) * Gw::swizzle];
#pragma unroll
  for (int i = 0; i < columns; ++i) unpack(x[i], (i / Gw::stride % 2 ? flipped : straight)[i * Gw::part_vectors]);
}

}  // namespace resnext::cuda::rows_nhwc
