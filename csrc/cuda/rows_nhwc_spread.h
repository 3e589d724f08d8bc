#pragma once
// The walk of dgrad at stride 2:
//
//   grad_input[n,2i,  w,c] = sum over s,k of grad_output[n,i,  (w+1-s)/2,k] * weight[k,c,1,s]
//   grad_input[n,2i+1,w,c] = sum over s,k of grad_output[n,i,  (w+1-s)/2,k] * weight[k,c,2,s]
//                          + sum over s,k of grad_output[n,i+1,(w+1-s)/2,k] * weight[k,c,0,s]
//
// over the taps s for which w + 1 - s is even: s = 1 for even w, s = 0 and 2 for odd w. So results fall into four
// classes, of one, two, two and four taps, and nothing is multiplied by zero.
//
// A lane owns 4 channels x 14 result columns, those of 7 source columns and of the taps to their right, and a run of
// source rows owns twice as many result rows and reads one row more. Source row i completes result row 2i - 1, makes up
// row 2i alone and begins row 2i + 1, one after the other, so a lane needs the sums of one row: 56 registers.
//
// Occupancy. Registers allow 8 or 9 warps on a multiprocessor, each with a source row of 3.6 KB under way. Shared
// memory allows as many where there are 164 KB (6 for groups of 32), 3 to 8 in 100 KB and 3 or 4 in 64 KB.
#include "rows_nhwc_tile.h"

namespace resnext::cuda::rows_nhwc {

using SpreadSums = float[2 * tile_columns][4];

// Adds the products of a source row with tap row r. `checked` skips a column outside the image.
template <class Gw, bool checked>
__device__ __forceinline__ void spread_row(SpreadSums& sums, const float4 (*stage)[Gw::part_vectors],
                                           const float4 (*weight)[vectors], const Tile& tile, int r) {
#pragma unroll 1
  for (int c4 = 0; c4 < Gw::group_vectors; ++c4, weight += 4 * taps * taps) {
    float x[tile_columns + 1][4];
    load_columns<Gw>(x, stage, tile, tile.vector / Gw::group_vectors * Gw::group_vectors + c4);
#pragma unroll
    for (int s = 0; s < taps; ++s) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int row = (c * taps + r) * taps + s;
        float w[4];
        unpack(w, weight[row][tile.vector ^ (c4 & 1) * 4 ^ row % 8]);
#pragma unroll
        for (int i = 0; i < tile_columns; ++i) {
          if constexpr (checked)
            if (s == 0 && i >= tile.right) continue;
#pragma unroll
          for (int k = 0; k < 4; ++k) sums[2 * i + (s != 1)][k] += x[i + (s == 0)][c] * w[k];
        }
      }
    }
  }
}

template <class Gw, class Map, class Sync, bool checked>
__device__ __forceinline__ void spread_walk(const Rows& g, int64_t first_segment, int64_t first_channel,
                                            Smem<Gw, Map>& smem) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Tile tile = tile_of<Gw, Map>(g, first_segment, first_channel, lane);
  const int64_t result_row = g.result_columns * g.channels;
  auto& ring = smem.ring[warp];
  Loader<Gw, Map> loader(g, first_segment, first_channel, lane);
  loader.copy_next(g, ring[0]);
  const float4 zero = make_float4(0, 0, 0, 0);
  SpreadSums sums = {};
  for (int i = 0; i <= g.run_rows; ++i) {
    Sync::template copies<0>();
    Sync::row();
    loader.copy_next(g, ring[(i + 1) % 2]);
    const auto& stage = ring[i % 2];
    const int y = tile.row + i;
    const bool exists = tile.owned > 0 && y < g.rows;
    if (i > 0) {
      if (exists) spread_row<Gw, checked>(sums, stage, smem.weight, tile, 0);
      if (2 * y - 1 < g.result_rows) store_row(sums, tile.result - result_row, g.channels, tile.owned);
    }
    if (i < g.run_rows && exists) {
      start_row(sums, zero);
      spread_row<Gw, checked>(sums, stage, smem.weight, tile, 1);
      store_row(sums, tile.result, g.channels, tile.owned);
      start_row(sums, zero);
      spread_row<Gw, checked>(sums, stage, smem.weight, tile, 2);
    }
    tile.result += 2 * result_row;
  }
}

}  // namespace resnext::cuda::rows_nhwc
