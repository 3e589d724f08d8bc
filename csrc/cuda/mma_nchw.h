#pragma once
// Tensor-core fprop and dgrad in fp16 and bf16, NCHW, 3x3, padding 1, groups of 4, 8, 16, 32 or 64 channels:
//
//   fprop  output[n,k,p,q]     = bias[k] + sum over c,r,s of input[n,c,t*p+r-1,t*q+s-1] * weight[k,c,r,s]
//   dgrad  grad_input[n,c,h,w] = sum over k,r,s of grad_output[n,k,p,q] * weight[k,c,r,s] where t*p+r-1=h, t*q+s-1=w
//
// with stride t, 1 or 2. At stride 1 dgrad is fprop with the weight's taps turned by 180 degrees and its channels
// swapped, which strides do. Below, "source" and "result" are the tensors read and written.
#include "launch.h"
#include "mma_nchw_store.h"

namespace resnext::cuda::mma_nchw {

// Makes a unit's results, in the order of memory. `narrow`: maps of up to 8 columns, where a warp has a tile of each of
// two rows at a time; else two tiles of a row.
template <class Kind, class T, bool narrow>
__device__ __forceinline__ void make_unit(const Planes& g, const Channels<Kind>& channels, const Channel<Kind>& channel,
                                          const Unit& unit, const Weights<Kind>& weights, const uint4* zero,
                                          const uint4* stage, T* results) {
  const int rows = unit.images * unit.rows;
  constexpr int together = narrow ? 2 : 1, by = warps / Kind::parts * together;
#pragma unroll 1
  for (int i = threadIdx.x / 32 / Kind::parts * together; i < rows; i += by) {
    const SmallSplit first = split(i, g.by_rows), second = split(min(i + together - 1, rows - 1), g.by_rows);
    const Row upper = row_of<Kind>(g, unit, first.quotient, unit.row + first.remainder);
    const Row lower = row_of<Kind>(g, unit, second.quotient, unit.row + second.remainder);
    const Target<Kind, T> target(g, channels, channel, unit, first.quotient, first.remainder, results);
    const Target<Kind, T> target2(g, channels, channel, unit, second.quotient, second.remainder, results);
    const int tile = Address<Kind>::own_tile();
    const Address<Kind> address(g, tile == 0 ? upper : lower);
    Carry<Kind> carry{};
#pragma unroll 1
    for (int column = 0; column < g.columns; column += 2 * tile_columns) {
      const bool exists[2] = {true, narrow ? i + 1 < rows : column + tile_columns < g.columns};
      Products<Kind> sums;
      multiply<Kind, T>(g, sums, weights, zero, stage, address,
                        column / tile_columns + (!narrow && exists[1] ? tile : 0),
                        {upper.exists, exists[1] ? lower.exists : 0});
      add_up<Kind, T, narrow>(g, Columns<Kind>(sums), carry, channel, target, target2, exists, column);
    }
    if constexpr (!narrow && Kind::stride == 1) {  // the last tile, if it was the second of its pair
      if ((g.row_pitch & 1) == 0) {
        const int before = (g.row_pitch - 1) * tile_columns + 2 * static_cast<int>(threadIdx.x % 4);
#pragma unroll
        for (int half = 0; half < Kind::halves; ++half)
          put(g, channel, target, half, Kind::spread == 2 ? 2 * before + 2 : before, carry.late[half]);
      }
    }
  }
}

template <class T, class Kind, class Sync>
__global__ void __launch_bounds__(threads, Kind::blocks) stream_planes(Planes g) {
  if constexpr (architecture >= 80) {
    uint4* zero = &dynamic_smem<Smem>().zero;
    uint4 *stages = zero + fixed_vectors, *results = stages + 2 * g.stage_vectors;
    const Channels<Kind> channels(g);
    int64_t number = static_cast<int64_t>(blockIdx.x / static_cast<unsigned>(g.channel_blocks)) * g.walk;
    const int64_t end = min(number + g.walk, g.units);
    copy_unit<Kind, T>(g, channels, number, end, stages);
    if (threadIdx.x == 0) *zero = make_uint4(0, 0, 0, 0);
    Weights<Kind> weights;
    load_weights<Kind, T, Sync>(g, channels, results, weights);
    const auto channel = Channel<Kind>::template at<T>(g, channels);
    T* staged = reinterpret_cast<T*>(results);
    int current = 0;
#pragma unroll 1
    for (; number < end; ++number, current ^= g.stage_vectors) {
      copy_unit<Kind, T>(g, channels, number + 1, end, stages + (current ^ g.stage_vectors));
      Sync::template copies<1>();
      Sync::unit();
      const Unit unit = Unit::at<Kind>(g, number);
      const uint4* stage = stages + current;
      if (g.columns <= tile_columns)
        make_unit<Kind, T, true>(g, channels, channel, unit, weights, zero, stage, staged);
      else
        make_unit<Kind, T, false>(g, channels, channel, unit, weights, zero, stage, staged);
      Sync::results();
      if (g.store_vector == 8)
        store_unit<Kind, T, 8>(g, channels, unit, staged);
      else if (g.store_vector == 4)
        store_unit<Kind, T, 4>(g, channels, unit, staged);
      else if (g.store_vector == 2)
        store_unit<Kind, T, 2>(g, channels, unit, staged);
      else
        store_unit<Kind, T, 1>(g, channels, unit, staged);
    }
  }
}

template <class T, class Kind, class Sync = Sync>
void launch_planes(Planes g, void* stream, int least_walk = 1) {
  plan<Kind>(g);
  g.walk = std::max(g.walk, least_walk);
  const int64_t count = g.channel_blocks * blocks_for(g.units, g.walk);
  const int vectors = fixed_vectors + 2 * g.stage_vectors + g.result_vectors;
  if (count > 0) launch(stream_planes<T, Kind, Sync>, {count}, {threads}, 16 * size_t(vectors), stream, g);
}

}  // namespace resnext::cuda::mma_nchw
