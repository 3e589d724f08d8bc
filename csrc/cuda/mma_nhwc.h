#pragma once
// Tensor-core fprop and dgrad in fp16 and bf16, NHWC, 3x3, padding 1, groups of 4 or of 8 to 64 channels:
//
//   fprop  output[n,p,q,k]     = bias[k] + sum over r,s,c of input[n,t*p+r-1,t*q+s-1,c]     * weight[k,c,r,s]
//   dgrad  grad_input[n,h,w,c] =           sum over r,s,k of grad_output[n,h+1-r,w+1-s,k]   * weight[k,c,r,s]
//
// with stride t, 1 or 2 in fprop and 1 in dgrad. The second is the first with the weight's taps turned by 180 degrees
// and its channels swapped, which strides do; below, "source" and "result" are the tensors read and written. dgrad at
// stride 2 and fprop at stride 2 walk in their own ways, see mma_nhwc_stride2.h.
//
//   block  16 channels, or one or two wide groups, x several teams, which share the loading of weights, nothing else
//   team   those channels x 16 pixels of a row (or 2 x 8, 4 x 4 of images side by side) x a run of rows, by a warp for
//          every 16 channels, which share the source rows
//   warp   16 channels of the 16 pixels: two mma tiles of 16 x 8, in three rows of sums that take turns
//   lane   (g = lane / 4, t = lane % 4) the pixels g and g + 8 x two columns of either tile
//
//       pixels      0 .. 15            lane t stores channels 4t .. 4t + 3 of its pixels, a quad the sector
//       channels  ________________     at widths 8, 24, 40, 56 lanes t and t ^ 1 exchange halves first, else
//       0 .. 7    tile 0 | tile 1      channels 4i + 2j and 4i + 2j + 1 are columns 2i and 2i + 1 of tile j
//
// Registers hold the weights of a warp as B operands: 9 taps x two tiles x the group's source channels, 18 to 144
// registers. A operands come by ldmatrix.x4 from the ring: 16 pixels, shifted by the tap's column, x 16 channels, which
// serve both tiles, or 8 for either tile, where these may belong to two groups. Each serves three tap rows.
//
// Shared memory. ring: [team][stage][vector of 8 channels][pixel], a stage a source row with its neighbours on both
// sides; mma_nhwc_load.h says why no access meets itself in a bank. Weights pass through once, in the registers' order.
//
// Synchronisation. weights(): all have stored, or all have read, a step's weights. row(), of a team, once per source
// row: the copies that its lanes have waited for are visible to all, and all are done with the stage that is filled
// anew. Copies of two rows or more are under way meanwhile: 18 KB on a multiprocessor at the least up to width 32.
//
// Limits: compute capability 8.0, or 7.5 in fp16 (see oldest_architecture); activations are 16-byte aligned; all sizes
// are less than 2^30.
#include "launch.h"
#include "mma_nhwc_edges.h"
#include "mma_nhwc_stride2.h"

namespace resnext::cuda::mma_nhwc {

template <class Kind>
struct Smem {
  union {
    uint4 ring[Kind::teams][Kind::stages * stage_vectors<Kind>];
    uint4 packed_weights[packed_vectors<Kind>];  // before
  };
  WeightStage<Kind> weights;
  Walk walk[Kind::teams];  // here, as registers are short
};

// The oldest GPU that the kernel runs on. Those of compute capability 7.5 multiply fp16 alone, and have 64 KB.
template <class T, class Kind>
constexpr int oldest_architecture =
    std::is_same_v<T, __half> && sizeof(Smem<Kind>) <= 64 * 1024 && !Kind::pads ? 75 : 80;

// The walk at stride 1. Source row y meets result rows y - 1 (tap row 2), y and y + 1 (tap row 0), whose sums are in
// three places that take turns, as do the three stages of the ring: the loop is unrolled by three. A walk along several
// images begins each with the first sums, but goes on in the ring.
template <class Kind, class T, class Sync>
__device__ __forceinline__ void stream_stride1(const Lines& g, const Walk& walk, const Weights<Kind>& weights,
                                               const Bias<Kind>& bias, Watch<Kind>& watch, uint4* stages) {
  // Results of the run above come out first, and are not stored: one is made with every source row. The last row of an
  // image is complete with its last source row, as the one before it.
  Ring<Kind, T, Sync> ring(g, walk, stages);
  const int steps = warp_steps<Kind>(g);
  for (int segment = 0; segment < (Kind::walks ? walk.segments : 1); ++segment) {
    const Tile<T> tile = tile_of<Kind, T>(g, walk, segment);
    T* result = advance(tile.result, (walk.made - walk.source_rows) * g.result_row);
    Sums<Kind> sums[taps];
    for (auto& row : sums) clear(row);
    for (int left = walk.source_rows; left > 0;) {
#pragma unroll
      for (int turn = 0; turn < taps && left > 0; ++turn, --left) {
        const uint4* row = ring.next(g, walk, turn, left_of_walk<Kind>(walk, segment, left));
        clear(sums[(turn + 2) % taps]);
#pragma unroll
        for (int s = 0; s < Kind::operands; ++s)
#pragma unroll
          for (int step = 0; step < Kind::steps; ++step) {
            if (Kind::pads && step >= steps) break;
            Pixels<Kind> pixels;
            load_pixels<Kind>(pixels, row, Kind::start(s), step);
#pragma unroll
            for (int r = 0; r < taps; ++r)
              multiply<Kind, T>(sums[(turn + 2 - r) % taps], pixels, weights[step][r * Kind::operands + s]);
          }
        store_row<Kind, T>(g, sums[turn], bias, watch, result,
                           {left <= walk.made && tile.exists[0], left <= walk.made && tile.exists[1]});
        result = advance(result, g.result_row);
        if (left == 1) {
          const bool at_bottom = walk.row + g.run_rows >= g.rows;
          store_row<Kind, T>(g, sums[(turn + 1) % taps], bias, watch, result,
                             {at_bottom && tile.exists[0], at_bottom && tile.exists[1]});
        }
      }
    }
    if constexpr (Kind::walks)
#pragma unroll 1
      for (int turn = walk.source_rows % taps; turn % taps != 0; ++turn)  // without a row
        ring.next(g, walk, turn, left_of_walk<Kind>(walk, segment, walk.source_rows % taps - turn));
  }
}

template <class Kind, class T, class Sync>
__device__ __forceinline__ void stream(const Lines& g, const Walk& walk, const Weights<Kind>& weights,
                                       const Bias<Kind>& bias, Watch<Kind>& watch, uint4* stages) {
  if constexpr (Kind::spread == 2)
    stream_spread<Kind, T, Sync>(g, walk, weights, bias, watch, stages);
  else if constexpr (Kind::stride == 2)
    stream_stride2<Kind, T, Sync>(g, walk, weights, bias, watch, stages);
  else
    stream_stride1<Kind, T, Sync>(g, walk, weights, bias, watch, stages);
}

template <class T, class Kind, class Sync>
__global__ void __launch_bounds__(Kind::threads, Kind::blocks) stream_lines(Lines g) {
  if constexpr (architecture >= oldest_architecture<T, Kind>) {
    auto& smem = dynamic_smem<Smem<Kind>>();
    const int team = threadIdx.x / (32 * Kind::warps);
    const Walk& walk = smem.walk[team];
    if (threadIdx.x % (32 * Kind::warps) == 0) smem.walk[team] = walk_of<Kind>(g);
    Weights<Kind> weights;
    load_weights<Kind, T, Sync>(g, smem.packed_weights, smem.weights, weights);
    if (walk.segments == 0) return;
    const int warp = threadIdx.x / 32 % Kind::warps, t = threadIdx.x % 4;
    const Bias<Kind> bias{smem.weights.bias[warp][t], smem.weights.scale[warp][t]};
    Watch<Kind> watch;
    stream<Kind, T, Sync>(g, walk, weights, bias, watch, smem.ring[team]);
    if (!Sync::mends || !may_need_mending(smem.weights, watch)) return;
    __syncwarp();
    mend<Kind, T>(g, walk);
  }
}

template <class Kind>
int64_t blocks(const Lines& g, int64_t walk) {
  return g.channel_blocks * blocks_for(blocks_for(g.images, walk * g.tile_images) * g.strips * g.runs, Kind::teams);
}

// Bytes from the source of a lane's first copy to that of its ith.
template <class Kind>
int64_t copy_distance(const Lines& g, int i) {
  int64_t image = 0, columns = Kind::column(0, i) - Kind::column(0, 0);
  if (Kind::pairs && g.tile_images > 1) {
    image = tile_pixels * i / (Kind::stride * g.tile_columns);
    columns = tile_pixels * i % (Kind::stride * g.tile_columns);
  }
  return image * g.rows * g.source_row + columns * (g.source_row / g.columns);
}

// How the work is shared out, by the shape only. Images of few columns lie side by side in a tile. Runs are as tall as
// leaves 8 warps for each multiprocessor of a large GPU, since each reads two rows more than it makes; and a team walks
// along several images where the weights would else be a large part of what it reads.
template <class Kind>
void share_out(Lines& g) {
  constexpr int64_t enough_warps = 1024, enough_blocks = 128, least_rows = 7;
  constexpr int tile = tile_pixels * Kind::across;
  const int64_t columns = blocks_for(g.result_columns, Kind::spread), rows = blocks_for(g.result_rows, Kind::spread);
  g.tile_columns = columns <= 3 ? 4 : columns <= 7 ? 8 : columns <= 15 ? 16 : tile;
  g.tile_images = tile / g.tile_columns;
  g.lower_half = g.tile_images == 1 ? tile / 2 * Kind::spread * g.result_row / g.result_columns
                                    : g.tile_images / 2 * g.result_rows * g.result_row;
  g.copy_1 = copy_distance<Kind>(g, 1);
  g.copy_2 = copy_distance<Kind>(g, 2);
  g.channel_blocks = static_cast<int>(blocks_for(g.channels, Kind::channels));
  g.strips = static_cast<int>(blocks_for(columns, tile));
  const int64_t tiles = blocks_for(g.images, g.tile_images), whole = tiles * g.strips;
  int64_t runs = 1;
  while (whole * g.channel_blocks * Kind::warps * runs < enough_warps && rows / (2 * runs) >= least_rows) runs *= 2;
  g.run_rows = static_cast<int>(blocks_for(rows, runs));
  g.runs = static_cast<int>(blocks_for(rows, g.run_rows));
  const int64_t weights = taps * taps * Kind::width;  // of a channel; and what a team reads and writes of it
  const int64_t pixels = int64_t{Kind::stride * Kind::stride + Kind::spread * Kind::spread} * tile * g.run_rows;
  g.walk = 1;
  while (Kind::walks && 8 * weights > Kind::teams * g.walk * pixels && blocks<Kind>(g, 2 * g.walk) >= enough_blocks)
    g.walk *= 2;
}

template <class T, class Kind, class Sync = Sync>
void launch_lines(Lines g, void* stream) {
  share_out<Kind>(g);
  pack_weights<Kind>(g);
  const int64_t count = blocks<Kind>(g, g.walk);
  if (count > 0) launch(stream_lines<T, Kind, Sync>, {count}, {Kind::threads}, sizeof(Smem<Kind>), stream, g);
}

}  // namespace resnext::cuda::mma_nhwc
