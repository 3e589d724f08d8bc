#pragma once
// Row-streaming fprop and dgrad in float, NHWC, 3x3, padding 1, groups of 4, 8, 16 or 32 channels. Here what gathers:
//
//   fprop  output[n,p,q,k]     = bias[k] + sum over r,s,c of input[n,t*p+r-1,t*q+s-1,c]     * weight[k,c,r,s]
//   dgrad  grad_input[n,h,w,c] =           sum over r,s,k of grad_output[n,h+1-r,w+1-s,k]   * weight[k,c,r,s]
//
// with stride t, 1 or 2 in fprop and 1 in dgrad. The second is the first with the weight's taps turned by 180 degrees
// and its channels swapped, which is how it is loaded; below, "source" and "result" are the tensors read and written,
// and one kernel does both passes. dgrad at stride 2 differs in the lanes' walk only, see rows_nhwc_spread.h.
//
// A warp walks down the image: each source row passes once through a ring in shared memory and is multiplied there by
// the taps of the result rows it touches (three, or at stride 2 one and two in turns), whose sums the lanes hold in
// registers. After source row y, result row y - 1 is complete or, at stride 2 and for odd y, (y - 1) / 2.
//
//   block  32 channels (one 128-byte line of each pixel) x several warps, which share the weights and nothing else
//   warp   32 channels x 4 tiles of 7 columns x `run_rows` rows (1 more above and below is read). The tiles lie
//          side by side (Wide), or two and two in two segments (Medium), or each in its own (Narrow): a segment is a
//          strip of columns in a run of rows of an image, and segments of a warp are walked in step.
//   lane   4 channels x 7 columns x a ring of 3 rows, in 84 registers (2 rows in 56 at stride 2)
//
//       columns   q ..q+6 | ..      | ..      | ..          lane bits   4  3  2  1  0
//       4 channels  tile 0   tile 1    tile 2    tile 3                 |  '--+--'  '- tile, low bit
//       4 channels     8 vectors of 4 channels each         tile, high -'     vector
//
// Shared memory. ring: [warp][stage][column][vector of 4 channels]. A stage is a row or, for groups of 16 and 32
// channels, a part of it: a half or a quarter of each group, as their weights leave less room. Lanes 2i and 2i + 1 read
// columns 7 * stride apart or, in Narrow, of neighbouring segments. Every other column, or pair of columns at stride 2,
// is stored with vectors exchanged (vector ^ swizzle), so that what 8 lanes read, or 16 where pairs of lanes read the
// same, lies in different banks. weight: [source channel of the group][tap][vector], with vector ^ (row % 8) against
// conflicts in the one transposing store; lanes 2i and 2i + 1 read the same one.
//
// Synchronisation. __syncthreads, once: the weights are complete. __syncwarp, once per part: after it the copies that
// all lanes waited for are visible to all, and every lane is done with the part before, whose stage is filled anew.
//
// Occupancy. Registers allow 8 warps on a multiprocessor, each with a row (two parts) under way: 28 KB at least, more
// than the 18 KB that hide the latency of an H100's memory at its full rate. Shared memory allows as many where there
// are 164 KB (6 in Narrow, at stride 2, of groups of 16), 4 to 8 in 100 KB and 2 to 4 in 64 KB.
//
// Padding. Rows outside the image are skipped. Columns outside are read as zeros, which is the same as skipping unless
// a weight is infinite or NaN: a block with such a weight takes the same path with a test of each edge.
//
// Limits: activations are 16-byte aligned and their channels whole vectors of 4, maps have fewer than 2^30 rows and
// columns. At most 64 KB of shared memory, so every architecture runs all of it. Weights are read by 4-byte loads, as
// their order is the user's.
#include "launch.h"
#include "rows_nhwc_spread.h"

namespace resnext::cuda::rows_nhwc {

// A lane's sums: row 0 is the next to be complete. A source row meets three of them or, at stride 2, two.
template <class Gw>
using Sums = float[Gw::stride == 1 ? 3 : 2][tile_columns][4];

// The tap rows by which the run's ith source row meets results of the run, one bit each.
template <class Gw>
__device__ __forceinline__ unsigned tap_rows(int i, int run_rows) {
  unsigned mask = 0;
#pragma unroll
  for (int r = 0; r < taps; ++r)
    if (i >= r && (i - r) % Gw::stride == 0 && (i - r) / Gw::stride < run_rows) mask |= 1u << r;
  return mask;
}

// Adds the products of a part of a source row with the tap rows in `mask`. `checked` skips columns outside the image.
template <class Gw, bool checked>
__device__ __forceinline__ void add_part(Sums<Gw>& sums, const float4 (*stage)[Gw::part_vectors],
                                         const float4 (*weight)[vectors], const Tile& tile, unsigned mask) {
  constexpr int columns = Gw::stride * (tile_columns - 1) + taps;
  const int first = tile.vector / Gw::group_vectors * Gw::group_part;
#pragma unroll 1
  for (int c4 = 0; c4 < Gw::group_part; ++c4, weight += 4 * taps * taps) {
    float x[columns][4];
    load_columns<Gw>(x, stage, tile, first + c4);
    const int at = tile.vector ^ (c4 & 1) * 4;  // row % 8 is c4 % 2 * 4 more than in the first block of 36 rows
#pragma unroll
    for (int r = 0; r < taps; ++r) {
      if (!(mask >> r & 1)) continue;
      const int sum = Gw::stride == 1 ? taps - 1 - r : r == 0;
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
              if ((s == 0 && i == 0 && !tile.left) || (s == 2 && i >= tile.right)) continue;
#pragma unroll
            for (int k = 0; k < 4; ++k) sums[sum][i][k] += x[Gw::stride * i + s][c] * w[k];
          }
        }
      }
    }
  }
}

// Moves every row of sums one place on, and starts the last with the bias.
template <int count>
__device__ __forceinline__ void next_row(float (&sums)[count][tile_columns][4], const float4& bias) {
#pragma unroll
  for (int row = 0; row + 1 < count; ++row) {
#pragma unroll
    for (int i = 0; i < tile_columns; ++i) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[row][i][k] = sums[row + 1][i][k];
    }
  }
  start_row(sums[count - 1], bias);
}

template <class Gw, class Map, class Sync, bool checked>
__device__ __forceinline__ void gather_walk(const Rows& g, int64_t first_segment, int64_t first_channel,
                                            Smem<Gw, Map>& smem) {
  constexpr int part_rows = 4 * Gw::group_part * taps * taps;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Tile tile = tile_of<Gw, Map>(g, first_segment, first_channel, lane);
  const float4& bias = smem.bias[tile.vector];

  auto& ring = smem.ring[warp];
  Loader<Gw, Map> loader(g, first_segment, first_channel, lane);
  for (int i = 0; i < Gw::stages - 1; ++i) loader.copy_next(g, ring[i]);
  Sums<Gw> sums;
  for (auto& row : sums) start_row(row, bias);
  int stage = 0, free_stage = Gw::stages - 1, p = tile.row;
  for (int i = 0; i < source_rows<Gw>(g); ++i) {
    const int y = Gw::stride * tile.row - 1 + i;
    const unsigned mask = tile.owned > 0 && y >= 0 && y < g.rows ? tap_rows<Gw>(i, g.run_rows) : 0;
#pragma unroll 1
    for (int part = 0; part < Gw::parts; ++part) {
      Sync::template copies<Gw::stages - 2>();
      Sync::row();
      loader.copy_next(g, ring[free_stage]);
      if (mask) add_part<Gw, checked>(sums, ring[stage], smem.weight + part * part_rows, tile, mask);
      free_stage = stage;
      stage = stage + 1 < Gw::stages ? stage + 1 : 0;
    }
    if (i % Gw::stride == 0) {  // row i was the last of result row p, counted from two before the run's first
      if (i >= 2) {
        if (p < g.result_rows) {
          if (g.scale) apply_epilogue(g, sums[0], tile, first_channel + 4 * tile.vector);
          store_row(sums[0], tile.result, g.channels, tile.owned);
        }
        tile.result += g.result_columns * g.channels;
        ++p;
      }
      next_row(sums, bias);
    }
  }
}

template <class Gw, class Map, class Sync, bool checked>
__device__ __forceinline__ void walk(const Rows& g, int64_t first_segment, int64_t first_channel, Smem<Gw, Map>& smem) {
  if constexpr (Gw::spread == 1)
    gather_walk<Gw, Map, Sync, checked>(g, first_segment, first_channel, smem);
  else
    spread_walk<Gw, Map, Sync, checked>(g, first_segment, first_channel, smem);
}

template <class Gw, class Map, class Sync>
__global__ void __launch_bounds__(32 * Gw::warps, Gw::blocks) stream_rows(Rows g) {
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
void launch_map(Rows g, void* stream) {
  constexpr int most_rows = 7;
  const int64_t rows = blocks_for(g.result_rows, Gw::spread);
  g.runs = blocks_for(rows, most_rows);
  g.run_rows = static_cast<int>(blocks_for(rows, g.runs));
  g.strips = blocks_for(g.result_columns, Gw::spread * Map::segment_tiles * tile_columns);
  g.segments = g.images * g.strips * g.runs;
  g.channel_blocks = blocks_for(g.channels, block_channels);
  const int64_t blocks = g.channel_blocks * blocks_for(g.segments, Gw::warps * Map::segments);
  if (blocks > 0) launch(stream_rows<Gw, Map, Sync>, {blocks}, {32 * Gw::warps}, sizeof(Smem<Gw, Map>), stream, g);
}

template <class Gw, class Sync = Sync>
void launch_rows(const Rows& g, void* stream) {
  const int64_t columns = blocks_for(g.result_columns, Gw::spread);
  if (columns <= Narrow::segment_tiles * tile_columns)
    launch_map<Gw, Narrow, Sync>(g, stream);
  else if (columns <= Medium::segment_tiles * tile_columns)
    launch_map<Gw, Medium, Sync>(g, stream);
  else
    launch_map<Gw, Wide, Sync>(g, stream);
}

}  // namespace resnext::cuda::rows_nhwc
