#pragma once
// Row-streaming fprop and dgrad in float, NCHW, 3x3, padding 1, groups of 4, 8, 16 or 32 channels.
//
//   fprop  output[n,k,p,q]     = bias[k] + sum over c,r,s of input[n,c,t*p+r-1,t*q+s-1]     * weight[k,c,r,s]
//   dgrad  grad_input[n,c,h,w] = sum over k,r,s of grad_output[n,k,p,q] * weight[k,c,r,s] where t*p+r-1=h, t*q+s-1=w
//
// with stride t, 1 or 2. At stride 1 dgrad is fprop with the weight's taps turned by 180 degrees and its channels
// swapped, which is how it is loaded. At stride 2 each pixel of grad_output spreads to two rows and two columns of
// grad_input: even ones meet one tap, odd ones two, so nothing is multiplied by zero. Below, "source" and "result" are
// the tensors read and written; one kernel does all of it.
//
//   block  a group x some rows of an image, or some small images x several warps
//   warp   4 or 8 result channels x 32 tiles; `tile_warps` warps side by side, as many for each part of the channels
//   lane   4 or 8 channels x a tile of 7 columns, in 28 or 56 registers. Dgrad at stride 2: 4 channels x 2 rows x 14
//          columns, the tile being 7 columns of grad_output, in 112
//
//       columns    0..6  | 7..13 | ..           tiles are numbered along rows: in maps of 7, 14, 28 or 56 columns
//       row 0     tile 0  tile 1   ..           tile i starts at pixel 7 * i
//       row 1     tile 8  ..
//
// A stage of the ring holds the rows that a block's tiles read, of some source channels. Each source channel is
// multiplied by all taps while the following ones are on their way, three stages ahead; no sum leaves its register.
//
// Shared memory. ring: [stage][image][channel][line][column] (rows_nchw_plan.h). A line is a row of the image without
// anything beside it, or where whole planes are read, they are just behind one another. So lane i reads 7 * i apart,
// which is a bank of its own. At stride 2 it reads pairs 7 * i pairs apart: the even rows are stored before the odd
// ones, so that this holds across rows. weight: [tap][source channel][result channel], read by all lanes at once.
// results: staged in the same memory when the sums are complete, and written from there in the order of memory.
//
// Synchronisation. __syncthreads once per stage: what all threads have waited for is visible to all, and all are done
// with the stage before, which is filled anew; the first one is for the weights too. Once more before results take the
// operands' memory. __syncwarp around each round of staging, which no other warp sees.
//
// Padding. Rows and columns outside the image are not read: zeros take their place, which is the same as skipping
// unless a weight is infinite or NaN. A block with such a weight takes the same path with a test of each row and
// column.
//
// Limits: activations start at a multiple of 16 bytes, maps have fewer than 2^28 pixels. At most 63 KB of shared
// memory, so every architecture runs all of it. Weights are read by 4-byte loads, as their order is the user's.
#include "launch.h"
#include "rows_nchw_store.h"

namespace resnext::cuda::rows_nchw {

// The source columns of a tile in one row; those outside the image are zero.
template <class K>
__device__ __forceinline__ void load_row(float (&x)[K::source_columns], const float* at, bool exists,
                                         const Tile<K>& tile) {
  if constexpr (K::before == 1) x[0] = exists && tile.has_column(-1) ? at[-1] : 0;
  if constexpr (K::stride == 2) {
#pragma unroll
    for (int i = 0; i < tile_columns; ++i) {
      const float2 pair = exists ? reinterpret_cast<const float2*>(at)[i] : make_float2(0, 0);
      x[2 * i + 1] = pair.x;
      x[2 * i + 2] = pair.y;
    }
  } else {
#pragma unroll
    for (int i = 0; i < tile_columns; ++i) x[K::before + i] = exists ? at[i] : 0;
    x[K::before + tile_columns] = exists && tile.has_column(tile_columns) ? at[tile_columns] : 0;
  }
}

// Where tap (r, s) acts for the ith column of a tile: x[] of source row `source_row`, sums[`sum_row`][].
template <class K>
struct Tap {
  int source_row, sum_row, x0, sum0;
  __device__ constexpr Tap(int r, int s)
      : source_row(K::spread == 2 ? r == 0 : r),
        sum_row(K::spread == 2 ? r != 1 : 0),
        x0(K::spread == 2 ? s == 0 : s),
        sum0(K::spread == 2 ? s != 1 : 0) {}
};

__device__ __forceinline__ void unpack(float (&to)[4], const float4& from) {
  to[0] = from.x;
  to[1] = from.y;
  to[2] = from.z;
  to[3] = from.w;
}

// Adds the products of a source channel. `weight`: that of tap 0 and the lane's first result. `checked` skips rows and
// columns outside the image, which are zero, for weights that are not finite.
template <class K, bool checked>
__device__ __forceinline__ void add_channel(Sums<K>& sums, const float* source, const float* weight,
                                            const Tile<K>& tile) {
#pragma unroll
  for (int row = 0; row < K::source_rows; ++row) {
    float x[K::source_columns];
    load_row<K>(x, source + tile.source[row], row == K::before || tile.has_row[row], tile);
#pragma unroll
    for (int r = 0; r < taps; ++r) {
#pragma unroll
      for (int s = 0; s < taps; ++s) {
        const Tap<K> tap(r, s);
        if (tap.source_row != row) continue;
#pragma unroll
        for (int quad = 0; quad < K::lane_results / 4; ++quad) {
          float w[4];
          unpack(w, *reinterpret_cast<const float4*>(weight + (r * taps + s) * weight_pitch<K> + 4 * quad));
#pragma unroll
          for (int i = 0; i < tile_columns; ++i) {
            if constexpr (checked)
              if (!tile.has_row[row] || !tile.has_column(K::stride * i + tap.x0 - K::before)) continue;
#pragma unroll
            for (int k = 0; k < 4; ++k)
              sums[tap.sum_row][K::spread * i + tap.sum0][4 * quad + k] += x[K::stride * i + tap.x0] * w[k];
          }
        }
      }
    }
  }
}

template <class K, bool checked>
__device__ __forceinline__ void add_chunk(const Plan& g, Sums<K>& sums, const float* source, const float* weight,
                                          const Tile<K>& tile) {
#pragma unroll 1
  for (int i = 0; i < g.chunk; ++i, weight += K::width, source += g.channel_pitch)
    add_channel<K, checked>(sums, source, weight, tile);
}

template <class K, class Sync>
__global__ void __launch_bounds__(K::threads, K::resident_threads / K::threads) stream_tiles(Plan g) {
  auto& smem = dynamic_smem<Smem<K>>();
  const int warp = threadIdx.x / warp_lanes, lane = threadIdx.x % warp_lanes;
  const int tile_warp = warp % K::tile_warps, first_result = warp / K::tile_warps * K::lane_results;
  const Place place = place_of<K>(g, blockIdx.x);
  Loader<K> loader(g, place);
  int chunks = K::width / g.chunk;  // yet to be multiplied
  for (int i = 0; i < K::stages - 1; ++i) loader.copy_next(g, i < chunks, smem.operands.ring[i]);
  load_weights(g, place.group, smem);

  const Tile<K> tile(g, place, tile_warp * warp_lanes + lane);
  const bool works = __any_sync(0xffffffffu, tile.exists);
  Sums<K> sums;
#pragma unroll
  for (int k = 0; k < K::lane_results; ++k) {
    const float bias = g.bias ? g.bias[place.group * K::width + first_result + k] : 0;
    for (auto& row : sums)
      for (auto& column : row) column[k] = bias;
  }
  const float* weight = smem.operands.weight[0] + first_result;
  for (int stage = 0; chunks > 0; --chunks) {
    Sync::template copies<K::stages - 2>();
    Sync::stage();
    loader.copy_next(g, chunks >= K::stages, smem.operands.ring[(stage + K::stages - 1) % K::stages]);
    if (works) {
      bool special = false;
      for (int i = 0; i < K::warps; ++i) special |= smem.special[i] != 0;
      const float* source = smem.operands.ring[stage];
      if (special)
        add_chunk<K, true>(g, sums, source, weight, tile);
      else
        add_chunk<K, false>(g, sums, source, weight, tile);
      weight += g.chunk * K::width;
    }
    stage = (stage + 1) % K::stages;
  }
  Sync::operands_done();
  if (works && K::spread == 1 && g.scale)
    write<K, Sync, true>(g, place, tile, sums, first_result, smem.results[warp]);
  else if (works)
    write<K, Sync, false>(g, place, tile, sums, first_result, smem.results[warp]);
}

template <class K, class Sync = Sync>
void launch_tiles(Plan& g, void* stream) {
  complete<K>(g);
  const int64_t blocks = g.groups * g.image_blocks * g.strips * g.runs;
  if (blocks > 0) launch(stream_tiles<K, Sync>, {blocks}, {K::threads}, sizeof(Smem<K>), stream, g);
}

}  // namespace resnext::cuda::rows_nchw
