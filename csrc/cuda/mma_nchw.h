#pragma once
// Tensor-core fprop and dgrad in fp16 and bf16, NCHW, 3x3, padding 1, groups of 4, 8, 16, 32 or 64 channels:
//
//   fprop  output[n,k,p,q]     = bias[k] + sum over c,r,s of input[n,c,t*p+r-1,t*q+s-1] * weight[k,c,r,s]
//   dgrad  grad_input[n,c,h,w] = sum over k,r,s of grad_output[n,k,p,q] * weight[k,c,r,s] where t*p+r-1=h, t*q+s-1=w
//
// with stride t, 1 or 2. At stride 1 dgrad is fprop with the weight's taps turned by 180 degrees and its channels
// swapped, which strides do. Below, "source" and "result" are the tensors read and written.
//
//   block  8 channels (groups of 16 and more: one group) x some units, one after the other: whole planes, or runs of
//   rows warp   8 channels of two rows, or 16 channels of one: pairs of tiles of 8 source columns, along the row. In
//   maps of
//          up to 8 columns the tiles of a pair are of different rows
//   lane   (g = lane / 4, t = lane % 4) channel g (and g + 8) x columns 2t and 2t + 1 of each tile
//
//          weights (A, in registers)        pixels (B, by ldmatrix.trans)      sums
//          result x source channels    x    source channels x 8 columns   =    result channels x 8 source columns
//
// for each tap column apart; a result adds the sums of three neighbouring source columns up, one of each tap column. So
// pixels are read where they lie, in vectors, and nothing beside the map is multiplied into a result.
//
// Shared memory. zero: a vector. stages: two of [channel][image][row][column], rows padded to vectors; the distance of
// channels is such that the rows that ldmatrix reads lie in different banks. results: of a unit, in the order of
// memory; before, the weights pass through it in the registers' order.
//
// Synchronisation. weights(): all have stored, or all have read, a step's weights. unit(): the copies that the threads
// have waited for are visible to all, and all have stored the results before. results(): all are staged, and the stage
// may be filled anew. Meanwhile the next unit is on its way, 8 to 16 KB for each block. stored(): in floats, what warps
// say of their sums and what they have stored is visible to all.
//
// Limits: compute capability 8.0; activations are 16-byte aligned; a unit of the least rows fits into 96 KB.
#include "launch.h"
#include "mma_nchw_store.h"
#include "mma_nchw_tf32.h"

namespace resnext::cuda::mma_nchw {

// Makes a unit's results, in the order of memory. `narrow`: maps of up to 8 columns, where a warp has tiles of
// different rows; else two tiles side by side.
template <class Kind, class T, bool narrow, bool fused, bool paired>
__device__ __forceinline__ void make_unit(const Planes& g, const Channels<Kind>& channels, const Channel<Kind>& channel,
                                          const Unit& unit, const Weights<Kind>& weights, const uint4* zero,
                                          const uint4* stage, T* results) {
  if (Kind::pads && static_cast<int>(threadIdx.x / 32 % Kind::parts) * Kind::warp_channels >= channels.count) return;
  const int count = unit.images * ((unit.rows + Kind::rows - 1) / Kind::rows);
  constexpr int together = narrow ? 2 : 1, by = warps / Kind::parts * together;
#pragma unroll 1
  for (int i = threadIdx.x / 32 / Kind::parts * together; i < count; i += by) {
    const bool has_lower = !narrow || i + 1 < count;
    const SmallSplit one = split(i, g.by_tile_rows), two = split(narrow && has_lower ? i + 1 : i, g.by_tile_rows);
    const int row = one.remainder * Kind::rows, row2 = two.remainder * Kind::rows;
    const Row upper = row_of<Kind>(g, unit, one.quotient, unit.row + row);
    const Row lower = narrow ? row_of<Kind>(g, unit, two.quotient, unit.row + row2) : upper;
    const Target<Kind, T> target(g, channels, channel, unit, one.quotient, row, results);
    const Target<Kind, T> target2(g, channels, channel, unit, two.quotient, row2, results);
    const int tile = Address<Kind>::own_tile();
    const Row own{tile == 0 ? upper.slot : lower.slot, tile == 0 ? upper.exists : lower.exists};
    const Address<Kind> address(g, own);
    Carry carry{};
#pragma unroll 1
    for (int column = 0; column < g.columns; column += 2 * tile_columns) {
      const bool has_second = narrow ? has_lower : column + tile_columns < g.columns;
      Products<Kind> sums;
      multiply<Kind, T>(g, sums, weights, zero, stage, address,
                        column / tile_columns + (!narrow && has_second ? tile : 0),
                        {upper.exists, has_second ? lower.exists : 0});
      add_up<Kind, T, narrow, fused, paired>(g, Columns<Kind>(sums), carry, channel, target, target2, has_second,
                                             column);
    }
    if constexpr (!narrow && Kind::stride == 1) {  // the last tile, if it was the second of its pair
      if (g.row_pitch % 2 == 0) {
        const int x = (g.row_pitch - 1) * tile_columns + 2 * static_cast<int>(threadIdx.x % 4);
#pragma unroll
        for (int half = 0; half < 2; ++half)
          put<fused, paired>(g, channel, target, half, Kind::spread == 2 ? 2 * x + 2 : x, carry.late[half]);
      }
    }
  }
}

template <class Kind, class T, bool fused, class... Args>
__device__ __forceinline__ void make_unit(const Planes& g, const Args&... args) {
  // PaddedGroups take all maps alike, which is a quarter of the code.
  const bool narrow = !Kind::pads && g.columns <= tile_columns, paired = !Kind::pads && g.result_columns % 2 == 0;
  if (narrow && paired)
    make_unit<Kind, T, true, fused, true>(g, args...);
  else if (narrow)
    make_unit<Kind, T, true, fused, false>(g, args...);
  else if (paired)
    make_unit<Kind, T, false, fused, true>(g, args...);
  else
    make_unit<Kind, T, false, fused, false>(g, args...);
}

// Per multiprocessor; 128 registers are too few for what some fused fprops keep.
template <class Kind, bool fused>
constexpr int resident_blocks =
    fused && ((Kind::width == 16 && Kind::stride == 2) || Kind::width == 4) ? 1 : Kind::blocks;

template <class T, class Kind, bool fused, class Sync>
__global__ void __launch_bounds__(threads, resident_blocks<Kind, fused>) stream_planes(Planes g) {
  if constexpr (architecture >= 80) {
    auto& smem = dynamic_smem<Smem>();
    uint4* zero = &smem.zero;
    uint4 *stages = zero + fixed_vectors, *results = stages + 2 * g.stage_vectors;
    const Channels<Kind> channels(g);
    const Own computed = own_units(g);
    copy_unit<Kind, T>(g, channels, computed, 0, stages);
    if (threadIdx.x == 0) {
      if (Kind::floats)
        smem.own = computed;
      else
        *zero = make_uint4(0, 0, 0, 0);
    }
    const Own& units = Kind::floats ? smem.own : computed;
    if constexpr (Kind::pads) clear_padding<Kind>(g, stages);
    Weights<Kind> weights;
    load_weights<Kind, T, Sync>(g, channels, results, weights);
    const auto channel = Channel<Kind>::template at<T>(g, channels);
    T* staged = reinterpret_cast<T*>(results);
    int current = 0;
    float watch = 0;  // in floats: NaN after sums that are not finite
#pragma unroll 1
    for (int own = 0; own < units.count; ++own, current ^= g.stage_vectors) {
      copy_unit<Kind, T>(g, channels, units, own + 1, stages + (current ^ g.stage_vectors));
      Sync::template copies<1>();
      Sync::unit();
      const Unit unit = Unit::at<Kind>(g, units.first + own);
      if constexpr (Kind::floats)
        make_unit_of_floats<Kind>(g, channel, unit, weights, stages + current, staged, watch);
      else
        make_unit<Kind, T, fused>(g, channels, channel, unit, weights, zero, stages + current, staged);
      Sync::results();
      store_unit<Kind, T>(g, channels, Kind::floats ? Unit::at<Kind>(g, units.first + own) : unit, staged);
    }
    if constexpr (Kind::floats && Sync::mends)
      mend<Kind, Sync>(g, channels, units, watch, reinterpret_cast<int*>(stages));
  }
}

template <class T, class Kind, class Sync = Sync>
void launch_planes(Planes g, void* stream, int least_walk = 1) {
  plan<Kind>(g);
  g.walk = std::max(g.walk, least_walk);
  const int64_t count = g.channel_blocks * blocks_for(g.units, g.walk);
  const int vectors = fixed_vectors + 2 * g.stage_vectors + g.result_vectors;
  if (count == 0) return;
  if (Kind::spread == 1 && (g.scale || Kind::pads) && !Kind::floats)  // which finish where they store
    launch(stream_planes < T, Kind, Kind::spread == 1 && !Kind::floats, Sync >, {count}, {threads},
           16 * size_t(vectors), stream, g);
  else
    launch(stream_planes < T, Kind, Kind::pads && Kind::spread == 1, Sync >, {count}, {threads}, 16 * size_t(vectors),
           stream, g);
}

}  // namespace resnext::cuda::mma_nchw
