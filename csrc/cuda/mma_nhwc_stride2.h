#pragma once
// The walks at stride 2. fprop: source row 2p - 1 completes result row p - 1 and begins row p, and row 2p is multiplied
// by one tap row only. The ring keeps even columns before odd ones, so that each tap reads neighbouring pixels. dgrad:
//
//   grad_input[n,2i,  w,c] = sum over s,k of grad_output[n,i,  (w+1-s)/2,k] * weight[k,c,1,s]
//   grad_input[n,2i+1,w,c] = sum over s,k of grad_output[n,i,  (w+1-s)/2,k] * weight[k,c,2,s]
//                          + sum over s,k of grad_output[n,i+1,(w+1-s)/2,k] * weight[k,c,0,s]
//
// over the taps s for which w + 1 - s is even: s = 1 for even w, s = 0 and 2 for odd w. So results fall into four
// classes, of one, two, two and four taps, and nothing is multiplied by zero.
//
// A warp's 16 pixels are source columns; it keeps the sums of their even and odd result columns apart. Source row i
// completes result row 2i - 1, makes up row 2i alone and begins row 2i + 1, one after the other.
#include "mma_nhwc_tile.h"

namespace resnext::cuda::mma_nhwc {

// Adds the products of a source row with tap row r, of so many steps.
template <class Kind, class T>
__device__ __forceinline__ void add_tap_row(Sums<Kind>& sums, const uint4* row, const Weights<Kind>& weights, int r,
                                            int steps) {
#pragma unroll
  for (int s = 0; s < Kind::operands; ++s) {
#pragma unroll
    for (int step = 0; step < Kind::steps; ++step) {
      if (Kind::pads && step >= steps) break;
      Pixels<Kind> pixels;
      load_pixels<Kind>(pixels, row, Kind::start(s), step);
      multiply<Kind, T>(sums, pixels, weights[step][r * Kind::operands + s]);
    }
  }
}

// Of even and odd result columns; in pairs they share an mma.
template <class Kind>
using SpreadSums = Sums<Kind>[Kind::pairs ? 1 : 2];

// Adds the products of a source row with tap row r to the sums of even and odd result columns.
template <class Kind, class T>
__device__ __forceinline__ void spread_row(SpreadSums<Kind>& sums, const uint4* row, const Weights<Kind>& weights,
                                           int r, int steps) {
  if constexpr (Kind::pairs) {
    add_tap_row<Kind, T>(sums[0], row, weights, r, steps);
  } else {
#pragma unroll
    for (int step = 0; step < Kind::steps; ++step) {
      if (Kind::pads && step >= steps) break;
      Pixels<Kind> pixels;
      load_pixels<Kind>(pixels, row, Kind::start(1), step);
      multiply<Kind, T>(sums[0], pixels, weights[step][r * taps + 1]);
      multiply<Kind, T>(sums[1], pixels, weights[step][r * taps + 2]);
      load_pixels<Kind>(pixels, row, Kind::start(0), step);
      multiply<Kind, T>(sums[1], pixels, weights[step][r * taps + 0]);
    }
  }
}

template <class Kind, class T>
__device__ __forceinline__ void store_columns(const Lines& g, const SpreadSums<Kind>& sums, const Bias<Kind>& bias,
                                              Watch<Kind>& watch, T* result, const Tile<T>& tile) {
  store_row<Kind>(g, sums[0], bias, watch, result, tile.exists);
  if constexpr (!Kind::pairs) {
    const bool second[2] = {tile.exists[0] && tile.second_exists[0], tile.exists[1] && tile.second_exists[1]};
    store_row<Kind>(g, sums[1], bias, watch, result + result_channels<Kind>(g), second);
  }
}

template <class Kind, class T, class Sync>
__device__ __forceinline__ void stream_stride2(const Lines& g, const Walk& walk, const Weights<Kind>& weights,
                                               const Bias<Kind>& bias, Watch<Kind>& watch, uint4* stages) {
  const int first = first_source_row<Kind>(walk), end = end_source_row<Kind>(g, walk), steps = warp_steps<Kind>(g);
  Ring<Kind, T, Sync> ring(g, walk, stages);
  int stage = 0;
  for (int segment = 0; segment < (Kind::walks ? walk.segments : 1); ++segment) {
    const Tile<T> tile = tile_of<Kind, T>(g, walk, segment);
    T* result = tile.result;
    Sums<Kind> sums;
    clear(sums);
    for (int y = first; y < end; ++y) {
      const uint4* row = ring.next(g, walk, stage, left_of_walk<Kind>(walk, segment, end - y));
      stage = (stage + 1) % Kind::stages;
      if (y % 2 == 0) {
        add_tap_row<Kind, T>(sums, row, weights, 1, steps);
        continue;
      }
      if (y > 2 * walk.row) {
        add_tap_row<Kind, T>(sums, row, weights, 2, steps);
        store_row<Kind>(g, sums, bias, watch, result, tile.exists);
        result = advance(result, g.result_row);
      }
      clear(sums);
      add_tap_row<Kind, T>(sums, row, weights, 0, steps);
    }
    if (end % 2 != 0 && end == g.rows)  // the last result row has no source row below
      store_row<Kind>(g, sums, bias, watch, result, tile.exists);
  }
}

template <class Kind, class T, class Sync>
__device__ __forceinline__ void stream_spread(const Lines& g, const Walk& walk, const Weights<Kind>& weights,
                                              const Bias<Kind>& bias, Watch<Kind>& watch, uint4* stages) {
  Ring<Kind, T, Sync> ring(g, walk, stages);
  const int steps = warp_steps<Kind>(g);
  int stage = 0;
  for (int segment = 0; segment < (Kind::walks ? walk.segments : 1); ++segment) {
    const Tile<T> tile = tile_of<Kind, T>(g, walk, segment);
    T* result = tile.result;
    SpreadSums<Kind> sums;
    for (int left = walk.source_rows; left > 0; --left) {
      const uint4* row = ring.next(g, walk, stage, left_of_walk<Kind>(walk, segment, left));
      stage = (stage + 1) % Kind::stages;
      if (left < walk.source_rows) {
        spread_row<Kind, T>(sums, row, weights, 0, steps);
        store_columns<Kind>(g, sums, bias, watch, advance(result, -g.result_row), tile);
      }
      if (walk.source_rows - left < g.run_rows) {
        SpreadSums<Kind> even;
        for (auto& column : even) clear(column);
        spread_row<Kind, T>(even, row, weights, 1, steps);
        store_columns<Kind>(g, even, bias, watch, result, tile);
        for (auto& column : sums) clear(column);
        spread_row<Kind, T>(sums, row, weights, 2, steps);
      }
      result = advance(result, 2 * g.result_row);
    }
    if (walk.row + g.run_rows >= g.rows && 2 * g.rows - 1 < g.result_rows)
      store_columns<Kind>(g, sums, bias, watch, advance(result, -g.result_row), tile);
  }
}

}  // namespace resnext::cuda::mma_nhwc
