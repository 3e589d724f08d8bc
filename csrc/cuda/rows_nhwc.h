#pragma once
// Row-streaming fprop and dgrad in float, NHWC, 3x3, stride 1, padding 1, groups of 4, 8, 16 or 32 channels.
//
//   fprop  output[n,p,q,k]     = bias[k] + sum over r,s,c of input[n,p+r-1,q+s-1,c]         * weight[k,c,r,s]
//   dgrad  grad_input[n,h,w,c] =           sum over r,s,k of grad_output[n,h+1-r,w+1-s,k]   * weight[k,c,r,s]
//
// The second is the first with the weight's taps turned by 180 degrees and its channels swapped, which is how it is
// loaded; below, "source" and "result" are the tensors read and written, and both passes are one kernel.
//
// A warp walks down the image: each source row passes once through a ring in shared memory and is multiplied there by
// the taps of the three result rows it touches, whose sums the lanes hold in registers. After source row y, result row
// y - 1 is complete.
//
//   block  32 channels (one 128-byte line of each pixel) x several warps, which share the weights and nothing else
//   warp   32 channels x 4 tiles of 7 columns x `run_rows` rows (1 more above and below is read). The tiles lie
//          side by side (Wide), or two and two in two segments (Medium), or each in its own (Narrow): a segment is a
//          strip of columns in a run of rows of an image, and segments of a warp are walked in step.
//   lane   4 channels x 7 columns x a ring of 3 rows, in 84 registers
//
//       columns   q ..q+6 | ..      | ..      | ..          lane bits   4  3  2  1  0
//       4 channels  tile 0   tile 1    tile 2    tile 3                 |  '--+--'  '- tile, low bit
//       4 channels     8 vectors of 4 channels each         tile, high -'     vector
//
// Shared memory. ring: [warp][stage][column][vector of 4 channels]. Lanes 2i and 2i + 1 read columns an odd distance
// apart (7, or 9 where each tile has its own halo), of either the same vector or of four. Odd columns are stored with
// vectors exchanged (vector ^ swizzle), so that the different vectors that 8 lanes read, or 16 where pairs of lanes
// read the same, lie in different banks. weight: [source channel of the group][tap][vector], with vector ^ (row % 8)
// against conflicts in the one transposing store; lanes 2i and 2i + 1 read the same one.
//
// Synchronisation. __syncthreads, once: the weights are complete. __syncwarp, once per row: after it the copies that
// all lanes waited for are visible to all, and every lane is done with the row before, whose stage is filled anew.
//
// Padding. Rows outside the image are skipped. Columns outside are read as zeros, which is the same as skipping unless
// a weight is infinite or NaN: a block with such a weight takes the same path with a test of each edge.
//
// Limits: the channels of a tensor are whole vectors of 4, maps have fewer than 2^30 rows and columns. At most 63 KB of
// shared memory, so every architecture runs all of it. Weights are read by 4-byte loads, as their order is the user's.
#include "device.h"
#include "generic_index.h"
#include "launch.h"

namespace resnext::cuda::rows_nhwc {

constexpr int taps = 3, tile_columns = 7, vectors = 8, block_channels = 4 * vectors;

struct Gw4 {
  static constexpr int width = 4, warps = 4, stages = 3, swizzle = 4;
};
struct Gw8 {
  static constexpr int width = 8, warps = 4, stages = 3, swizzle = 1;
};
struct Gw16 {
  static constexpr int width = 16, warps = 3, stages = 3, swizzle = 1;
};
struct Gw32 {
  static constexpr int width = 32, warps = 2, stages = 3, swizzle = 1;
};

// How the four tiles of a warp are shared out to segments.
struct Wide {
  static constexpr int segment_tiles = 4, segments = 1;
};
struct Medium {
  static constexpr int segment_tiles = 2, segments = 2;
};
struct Narrow {
  static constexpr int segment_tiles = 1, segments = 4;
};

template <class Map>
constexpr int segment_columns = Map::segment_tiles * tile_columns + 2;  // with one column of halo on either side

template <class Gw, class Map>
struct Smem {
  float4 ring[Gw::warps][Gw::stages][Map::segments * segment_columns<Map>][vectors];
  float4 weight[Gw::width * taps * taps][vectors];
  float4 bias[vectors];
  int special[4];  // whether one of the warps has loaded a weight that is not finite
};

// Pointers, sizes and strides; `turned`: the taps act turned by 180 degrees.
struct Rows {
  const float *source, *weight, *bias;
  float* result;
  int64_t weight_result, weight_source, weight_group, weight_r, weight_s;
  int64_t channels, row_size, channel_blocks, segments, strips, runs;
  int rows, columns, run_rows;
  bool turned;
};

// What keeps the lanes in order; a parameter of the kernel so that tests can leave one out.
struct Sync {
  __device__ static void weights() { __syncthreads(); }
  __device__ static void row() { __syncwarp(); }
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest>();
  }
};

struct Segment {
  int64_t image;
  int row, column;  // the first of the result
  bool exists;
};

template <class Map>
__device__ __forceinline__ Segment segment_of(const Rows& g, int64_t index) {
  const Split run = split(index, g.runs), strip = split(run.quotient, g.strips);
  return {strip.quotient, static_cast<int>(run.remainder) * g.run_rows,
          static_cast<int>(strip.remainder) * Map::segment_tiles * tile_columns, index < g.segments};
}

// One weight of the block: the result channel counts from the block's first, the source channel within its group.
struct WeightAt {
  int result, source, tap;
};

// The weight that a lane loads in a warp's `step`th load: in order of source channels and taps, 8 lanes for each of the
// 4 result channels of a vector, where source channels are the closer ones in memory; else 32 lanes in order of result
// channels and taps. So loads are coalesced, and stores meet in a bank at most twice.
template <class Gw>
__device__ __forceinline__ WeightAt weight_at(bool sources_closer, int step, int lane) {
  constexpr int area = taps * taps;
  if (sources_closer) {
    const int row = step / vectors * 8 + lane % 8;
    return {step % vectors * 4 + lane / 8, row / area, row % area};
  }
  const int element = step % area * 32 + lane;
  return {element / area, step / area, element % area};
}

// The weights of the block's 32 result channels, and their bias.
template <class Gw, class Map>
__device__ __forceinline__ void load_weights(const Rows& g, int64_t first_channel, Smem<Gw, Map>& smem) {
  constexpr int weight_rows = Gw::width * taps * taps, threads = 32 * Gw::warps;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool sources_closer = g.weight_source < g.weight_result;
  bool finite = true;
#pragma unroll 4
  for (int step = warp; step < (weight_rows + 7) / 8 * vectors; step += Gw::warps) {
    const WeightAt at = weight_at<Gw>(sources_closer, step, lane);
    if (at.source >= Gw::width) continue;
    const int64_t channel = first_channel + at.result;
    float value = 0;
    if (channel < g.channels)
      value = g.weight[channel / Gw::width * g.weight_group + channel % Gw::width * g.weight_result +
                       at.source * g.weight_source + at.tap / taps * g.weight_r + at.tap % taps * g.weight_s];
    finite = finite && value - value == 0;
    const int row = at.source * taps * taps + (g.turned ? taps * taps - 1 - at.tap : at.tap);
    reinterpret_cast<float*>(&smem.weight[row][at.result / 4 ^ row % 8])[at.result % 4] = value;
  }
  for (int i = threadIdx.x; i < block_channels; i += threads)
    reinterpret_cast<float*>(smem.bias)[i] = g.bias && first_channel + i < g.channels ? g.bias[first_channel + i] : 0;
  const bool special = __any_sync(0xffffffffu, !finite);
  for (int i = warp; lane == 0 && i < 4; i += Gw::warps) smem.special[i] = special;
}

// A lane's part in copying rows to the ring: one vector of every `segment_tiles`th column of one segment.
template <class Gw, class Map>
struct Loader {
  const float* row;  // the lane's first column of row `y`
  int y, end;        // the rows yet to be copied
  unsigned valid;    // bit i: column i exists
  int first, vector;

  static constexpr int count = (segment_columns<Map> + Map::segment_tiles - 1) / Map::segment_tiles;

  __device__ __forceinline__ Loader(const Rows& g, int64_t first_segment, int64_t first_channel, int lane) {
    constexpr int lanes = 32 / Map::segments;
    const Segment segment = segment_of<Map>(g, first_segment + lane / lanes);
    const int column = lane % lanes / vectors, at = segment.column - 1 + column;
    vector = lane % vectors;
    first = lane / lanes * segment_columns<Map> + column;
    y = segment.row - 1;
    end = min(g.rows, segment.row + g.run_rows + 1);
    const int64_t pixel = (segment.image * g.rows + y) * g.columns + at;
    row = g.source + pixel * g.channels + first_channel + 4 * vector;
    valid = 0;
    for (int i = 0; i < count; ++i) {
      const int x = at + i * Map::segment_tiles;
      if (segment.exists && x >= 0 && x < g.columns && first_channel + 4 * vector < g.channels) valid |= 1u << i;
    }
  }

  // Starts the copy of the next row and makes a group of it, an empty one if there is no such row.
  __device__ __forceinline__ void copy_next(const Rows& g, float4 (*stage)[vectors]) {
    if (y >= 0 && y < end) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const int column = first + i * Map::segment_tiles;
        if (i * Map::segment_tiles + Map::segment_tiles > segment_columns<Map> &&
            column % segment_columns<Map> < i * Map::segment_tiles)
          continue;
        const bool exists = valid >> i & 1;
        ptx::cp_async<16>(&stage[column][vector ^ (column & 1) * Gw::swizzle],
                          exists ? row + i * Map::segment_tiles * g.channels : g.source, exists ? 16 : 0);
      }
    }
    ptx::cp_async_commit();
    row += g.row_size;
    ++y;
  }
};

// A lane's sums: row 0 is the one that the current source row completes.
using Sums = float[taps][tile_columns][4];

__device__ __forceinline__ void unpack(float (&to)[4], const float4& from) {
  to[0] = from.x;
  to[1] = from.y;
  to[2] = from.z;
  to[3] = from.w;
}

// Adds the products of a source row with tap rows first_tap to last_tap. `checked` skips columns outside the image:
// left says whether the tile's left neighbour exists, right how many columns from the tile's second on do.
template <class Gw, bool checked>
__device__ __forceinline__ void add_row(Sums& sums, const float4 (*stage)[vectors], const float4 (*weight)[vectors],
                                        int column, int vector, int first_tap, int last_tap, bool left, int right) {
  constexpr int group_vectors = Gw::width / 4;
#pragma unroll 1
  for (int c4 = 0; c4 < group_vectors; ++c4, weight += 4 * taps * taps) {
    const int source = vector / group_vectors * group_vectors + c4;
    const float4* even = &stage[column][source ^ (column & 1) * Gw::swizzle];
    const float4* odd = &stage[column][source ^ (~column & 1) * Gw::swizzle];
    float x[tile_columns + 2][4];
#pragma unroll
    for (int i = 0; i < tile_columns + 2; ++i) unpack(x[i], (i % 2 ? odd : even)[i * vectors]);
    const int at = vector ^ (c4 & 1) * 4;  // row % 8 of the block of 36 rows is c4 % 2 * 4 more than in the first
#pragma unroll
    for (int r = 0; r < taps; ++r) {
      if (r < first_tap || r > last_tap) continue;
#pragma unroll
      for (int s = 0; s < taps; ++s) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          const int row = (c * taps + r) * taps + s;
          float w[4];
          unpack(w, weight[row][at ^ row % 8]);
#pragma unroll
          for (int i = 0; i < tile_columns; ++i) {
            if constexpr (checked)
              if ((s == 0 && i == 0 && !left) || (s == 2 && i >= right)) continue;
#pragma unroll
            for (int k = 0; k < 4; ++k) sums[taps - 1 - r][i][k] += x[i + s][c] * w[k];
          }
        }
      }
    }
  }
}

__device__ __forceinline__ void start_row(float (&row)[tile_columns][4], const float4& bias) {
#pragma unroll
  for (int i = 0; i < tile_columns; ++i) unpack(row[i], bias);
}

template <class Gw, class Map, class Sync, bool checked>
__device__ __forceinline__ void walk(const Rows& g, int64_t first_segment, int64_t first_channel, Smem<Gw, Map>& smem) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, vector = lane / 2 % vectors;
  const int tile = lane % 2 + lane / 16 * 2, segment_index = tile / Map::segment_tiles;
  const int tile_column = tile % Map::segment_tiles * tile_columns;
  const Segment segment = segment_of<Map>(g, first_segment + segment_index);
  const int column = segment_index * segment_columns<Map> + tile_column, q = segment.column + tile_column;
  const int owned = segment.exists && first_channel + 4 * vector < g.channels ? g.columns - q : 0;
  const int64_t pixel = (segment.image * g.rows + segment.row - 2) * g.columns + q;
  float* result = g.result + pixel * g.channels + first_channel + 4 * vector;

  auto& ring = smem.ring[warp];
  Loader<Gw, Map> loader(g, first_segment, first_channel, lane);
  for (int i = 0; i < Gw::stages - 1; ++i) loader.copy_next(g, ring[i]);
  Sums sums;
  for (int i = 0; i < taps; ++i) start_row(sums[i], smem.bias[vector]);
  int stage = 0, free_stage = Gw::stages - 1;
  for (int i = 0; i < g.run_rows + 2; ++i) {  // source row segment.row - 1 + i, result row segment.row - 2 + i
    Sync::template copies<Gw::stages - 2>();
    Sync::row();
    loader.copy_next(g, ring[free_stage]);
    const int y = segment.row - 1 + i;
    if (owned > 0 && y >= 0 && y < g.rows)
      add_row<Gw, checked>(sums, ring[stage], smem.weight, column, vector, max(0, i + 1 - g.run_rows), min(2, i), q > 0,
                           owned - 1);
    if (i >= 2 && y - 1 < g.rows) {
#pragma unroll
      for (int j = 0; j < tile_columns; ++j)
        if (j < owned)
          *reinterpret_cast<float4*>(result + j * g.channels) =
              make_float4(sums[0][j][0], sums[0][j][1], sums[0][j][2], sums[0][j][3]);
    }
    result += g.row_size;
#pragma unroll
    for (int j = 0; j < tile_columns; ++j) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sums[0][j][k] = sums[1][j][k];
        sums[1][j][k] = sums[2][j][k];
      }
    }
    start_row(sums[2], smem.bias[vector]);
    free_stage = stage;
    stage = stage + 1 < Gw::stages ? stage + 1 : 0;
  }
}

template <class Gw, class Map, class Sync>
__global__ void __launch_bounds__(32 * Gw::warps) stream_rows(Rows g) {
  auto& smem = dynamic_smem<Smem<Gw, Map>>();
  const Split block = split(blockIdx.x, g.channel_blocks);
  const int64_t first_channel = block.remainder * block_channels;
  const int64_t first_segment = (block.quotient * Gw::warps + threadIdx.x / 32) * Map::segments;
  load_weights(g, first_channel, smem);
  Sync::weights();
  const bool special = (smem.special[0] | smem.special[1] | smem.special[2] | smem.special[3]) != 0;
  if (first_segment >= g.segments) return;
  if (special)
    walk<Gw, Map, Sync, true>(g, first_segment, first_channel, smem);
  else
    walk<Gw, Map, Sync, false>(g, first_segment, first_channel, smem);
}

template <class Gw, class Map, class Sync>
void launch_map(Rows g, int64_t images, void* stream) {
  constexpr int most_rows = 7;
  g.row_size = g.columns * g.channels;
  g.runs = blocks_for(g.rows, most_rows);
  g.run_rows = static_cast<int>(blocks_for(g.rows, g.runs));
  g.strips = blocks_for(g.columns, Map::segment_tiles * tile_columns);
  g.segments = images * g.strips * g.runs;
  g.channel_blocks = blocks_for(g.channels, block_channels);
  const int64_t blocks = g.channel_blocks * blocks_for(g.segments, Gw::warps * Map::segments);
  if (blocks > 0) launch(stream_rows<Gw, Map, Sync>, {blocks}, {32 * Gw::warps}, sizeof(Smem<Gw, Map>), stream, g);
}

template <class Gw, class Sync = Sync>
void launch_rows(const Rows& g, int64_t images, void* stream) {
  if (g.columns <= Narrow::segment_tiles * tile_columns)
    launch_map<Gw, Narrow, Sync>(g, images, stream);
  else if (g.columns <= Medium::segment_tiles * tile_columns)
    launch_map<Gw, Medium, Sync>(g, images, stream);
  else
    launch_map<Gw, Wide, Sync>(g, images, stream);
}

}  // namespace resnext::cuda::rows_nhwc
