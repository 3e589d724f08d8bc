#pragma once
// A lane's tile, and how its results get to memory. rows_nchw.h says how it all fits together.
#include "rows_nchw_load.h"

namespace resnext::cuda::rows_nchw {

template <class K>
using Sums = float[K::spread][K::spread * tile_columns][K::lane_results];

// A lane's tile. A lane without one multiplies what the first lane of its half-warp, or of its warp, does: the same
// addresses are no bank conflict.
template <class K>
struct Tile {
  bool exists;
  int row, column;               // of the result or, in dgrad at stride 2, of the source
  int columns;                   // of the source from the tile's first to the last of the image
  int source[K::source_rows];    // where the tile's source rows lie in a stage
  bool has_row[K::source_rows];  // whether they are in the image

  __device__ __forceinline__ bool has_column(int i) const { return i < 0 ? column > 0 : i < columns; }

  __device__ __forceinline__ Tile(const Plan& g, const Place& place, int number) {
    const int rows = K::spread == 2 ? g.rows : g.result_rows, last = K::spread == 2 ? g.columns : g.result_columns;
    int image = 0;
    const auto locate = [&](int tile) {
      const SmallSplit image_at = split(tile, g.image_tiles), row_at = split(image_at.remainder, g.row_tiles);
      image = image_at.quotient;
      row = place.row + row_at.quotient;
      column = place.column + tile_columns * row_at.remainder;
      return image < place.images && row < min(rows, place.row + g.tile_rows) && column < last;
    };
    exists = locate(number);
    if (!exists && !locate(number / 16 * 16)) locate(number / warp_lanes * warp_lanes);
    columns = g.columns - K::stride * column;
    const int line = row - place.row;
    const int first = image * g.image_pitch + K::stride * (column - place.column) + g.lead;
#pragma unroll
    for (int r = 0; r < K::source_rows; ++r) {
      const int source_row = K::stride * row + r - K::before;
      const int at = K::stride == 1 ? (line + r) * g.pitch : r % 2 * g.odd + (line + r / 2) * g.pitch;
      source[r] = first + (g.planes ? source_row * g.pitch : at);
      has_row[r] = source_row >= 0 && source_row < g.rows;
    }
  }
};

// Results are staged in rounds of four channels or, where a tile has two rows, of one.
template <class K>
constexpr int round_channels = K::spread == 2 ? 1 : 4;

template <class K>
constexpr int result_columns = K::spread == 2 ? 2 * tile_columns : tile_columns;

// A row of a tile, value(0), value(1) ..., to shared memory, as far as it is `owned`. By twos where addresses allow it,
// as lanes with two result columns for each source column would meet in a bank otherwise.
template <class K, class Value>
__device__ __forceinline__ void stage_row(float* to, Value value, int owned, bool by_twos) {
  if (K::spread == 2 && by_twos) {
#pragma unroll
    for (int i = 0; i < result_columns<K>; i += 2)
      if (i < owned) *reinterpret_cast<float2*>(to + i) = make_float2(value(i), value(i + 1));
  } else {
#pragma unroll
    for (int i = 0; i < result_columns<K>; ++i)
      if (i < owned) to[i] = value(i);
  }
}

// From shared memory to the result, with what follows scale and shift in a fused fprop.
template <int vector, bool fused>
__device__ __forceinline__ void move(const Plan& g, float* to, const float* from) {
  using Vector = std::conditional_t<vector == 4, float4, float>;
  struct alignas(Vector) {
    float value[vector];
  } sums, residual;
  reinterpret_cast<Vector&>(sums) = *reinterpret_cast<const Vector*>(from);
  if constexpr (fused) {
    if (g.residual)
      reinterpret_cast<Vector&>(residual) = *reinterpret_cast<const Vector*>(g.residual + (to - g.result));
#pragma unroll
    for (int i = 0; i < vector; ++i) {
      if (g.residual) sums.value[i] += residual.value[i];
      if (g.relu && sums.value[i] < 0) sums.value[i] = 0;  // NaN stays
    }
  }
  *reinterpret_cast<Vector*>(to) = reinterpret_cast<const Vector&>(sums);
}

// Scale and shift of a fused fprop, of the sums from `k` on that are staged in one round. Result channels count from
// the group's first.
template <class K>
__device__ __forceinline__ void scale_and_shift(const Plan& g, const Place& place, Sums<K>& sums, int channel, int k) {
#pragma unroll
  for (int i = 0; i < round_channels<K>; ++i) {
    const int64_t at = place.group * K::width + channel + k + i;
    const float scale = g.scale[at], shift = g.shift[at];
    for (auto& row : sums)
      for (auto& column : row) column[k + i] = column[k + i] * scale + shift;
  }
}

// For warps with whole planes: a round's channels are staged as they lie in memory, image behind image with a gap.
template <class K, class Sync, bool fused>
__device__ __forceinline__ void write_planes(const Plan& g, const Place& place, const Tile<K>& tile, Sums<K>& sums,
                                             int channel, float* staged) {
  constexpr int channels = round_channels<K>;
  const int lane = threadIdx.x % warp_lanes, warp = threadIdx.x / warp_lanes % K::tile_warps;
  const int warp_images = warp_lanes / g.image_tiles.value, first = warp * warp_images;
  const int images = min(warp_images, place.images - first);
  const int plane = static_cast<int>(g.result_plane), floats = channels * plane, pitch = (floats + 7) / 4 * 4;
  const int owned = tile.exists ? g.result_columns - K::spread * tile.column : 0;
  float* mine = staged + lane / g.image_tiles.value * pitch;
  mine += K::spread * (tile.row * g.result_columns + tile.column);
  const int odd = K::spread == 2 ? lane / 8 % 2 : 0;  // these take their rows in turned order, from other banks
#pragma unroll
  for (int k = 0; k < K::lane_results; k += channels) {
    if constexpr (fused) scale_and_shift<K>(g, place, sums, channel, k);
    Sync::warp();
#pragma unroll
    for (int i = 0; i < channels * K::spread; ++i) {
      const int row = i % K::spread, of_round = i / K::spread, at = row ^ odd;
      const auto value = [&](int column) {
        const float straight = sums[row][column][k + of_round],
                    turned = sums[K::spread - 1 - row][column][k + of_round];
        return odd ? turned : straight;
      };
      if (K::spread * tile.row + at < g.result_rows)
        stage_row<K>(mine + of_round * plane + at * g.result_columns, value, owned, g.result_columns % 2 == 0);
    }
    Sync::warp();
    for (int image = 0; image < images; ++image) {
      float* to = place.result + ((first + image) * g.channels + channel + k) * g.result_plane;
      const float* from = staged + image * pitch;
      if (floats % 4 == 0)
        for (int at = 4 * lane; at < floats; at += 4 * warp_lanes) move<4, fused>(g, to + at, from + at);
      else
        for (int at = lane; at < floats; at += warp_lanes) move<1, fused>(g, to + at, from + at);
    }
  }
}

// For all others: staged tile behind tile, which in full rows of whole tiles is as in memory.
template <class K, class Sync, bool fused, int vector>
__device__ __forceinline__ void write_tiles(const Plan& g, const Place& place, const Tile<K>& tile, Sums<K>& sums,
                                            int channel, float* staged) {
  constexpr int columns = result_columns<K>, segment = warp_lanes * columns, channels = round_channels<K>;
  const int lane = threadIdx.x % warp_lanes;
  const int owned = tile.exists ? g.result_columns - K::spread * tile.column : 0;
  const int rows = g.result_rows - K::spread * tile.row;
  const int plane = static_cast<int>(g.result_plane), image_floats = static_cast<int>(g.channels * g.result_plane);
  const int image = static_cast<int>(threadIdx.x) % (K::tile_warps * warp_lanes) / g.image_tiles.value;
  const int first = image * image_floats + K::spread * (tile.row * g.result_columns + tile.column);
  const int step = K::spread == 2 ? g.result_columns : plane;  // from segment to segment in memory
  float* result = place.result + channel * g.result_plane;
#pragma unroll
  for (int k = 0; k < K::lane_results; k += channels) {
    if constexpr (fused) scale_and_shift<K>(g, place, sums, channel, k);
    Sync::warp();
#pragma unroll
    for (int i = 0; i < channels * K::spread; ++i) {
      const auto value = [&](int column) { return sums[i % K::spread][column][k + i / K::spread]; };
      stage_row<K>(staged + i * segment + lane * columns, value, columns, true);
    }
    Sync::warp();
    for (int start = 0; start < segment; start += vector * warp_lanes) {
      const int at = start + vector * lane, owner = min(at / columns, warp_lanes - 1), column = at - owner * columns;
      const int to = __shfl_sync(0xffffffffu, first, owner) + column;
      const int owner_columns = __shfl_sync(0xffffffffu, owned, owner);
      const int owner_rows = K::spread == 2 ? __shfl_sync(0xffffffffu, rows, owner) : 1;
      if (at >= segment || column >= owner_columns) continue;
#pragma unroll
      for (int i = 0; i < channels * K::spread; ++i)
        if (K::spread == 1 || i < owner_rows) move<vector, fused>(g, result + to + i * step, staged + i * segment + at);
    }
    result += channels * g.result_plane;
  }
}

template <class K, class Sync, bool fused>
__device__ __forceinline__ void write(const Plan& g, const Place& place, const Tile<K>& tile, Sums<K>& sums,
                                      int channel, float* staged) {
  if (g.whole)
    write_planes<K, Sync, fused>(g, place, tile, sums, channel, staged);
  else if (g.result_columns % (4 * tile_columns) == 0)
    write_tiles<K, Sync, fused, 4>(g, place, tile, sums, channel, staged);
  else
    write_tiles<K, Sync, fused, 1>(g, place, tile, sums, channel, staged);
}

}  // namespace resnext::cuda::rows_nchw
