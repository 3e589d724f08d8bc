#pragma once
// The multiplication of the NCHW tensor-core kernels: two tiles of 8 source columns by the taps. mma_nchw.h says how it
// all fits together.
#include "mma_nchw_load.h"

namespace resnext::cuda::mma_nchw {

// The source rows of a result row: tap row r reads `slot` + r of the stage, or in Spread slot + 1 for r = 0, else
// slot. `exists`: bit r.
struct Row {
  int slot, exists;
};

template <class Kind>
__device__ __forceinline__ Row row_of(const Planes& g, const Unit& unit, int image, int result_row) {
  if constexpr (Kind::spread == 2) {
    const int y = result_row / 2, below = y + 1 < g.rows;
    return {image * g.source_rows + y - unit.first_source_row, result_row % 2 == 0 ? 2 : 4 + below};
  }
  const int y = Kind::stride * result_row - 1;
  return {image * g.source_rows + y - unit.first_source_row, (y >= 0) + 2 + 4 * (y + 2 < g.rows)};
}

template <class Kind>
__device__ constexpr int row_offset(int r) {
  return Kind::spread == 2 ? r == 0 : r;
}

// What a lane addresses for ldmatrix: for each tap row 8 columns of a channel, in vectors from the start of a stage.
// Rows that do not exist have that of one that does; they are not multiplied but in groups of 4, where they are zero.
template <class Kind>
struct Address {
  int at[taps];

  // The lane's tile is `own_tile()`.
  __device__ __forceinline__ static int own_tile() {
    const int lane = threadIdx.x % 32;
    return Kind::width == 8 ? lane / 8 % 2 : lane / 16;
  }

  __device__ __forceinline__ Address(const Planes& g, const Row& row) {
    const int lane = threadIdx.x % 32;
    const int channel = Kind::width == 4 ? lane % 4 : Kind::width == 8 ? lane % 8 : lane % 16;
#pragma unroll
    for (int r = 0; r < taps; ++r) {
      // one that exists in any case: in Spread row `slot`, else row `slot` + 1
      const int offset = row.exists >> r & 1 ? row_offset<Kind>(r) : Kind::spread == 2 ? 0 : 1;
      at[r] = channel * g.channel_pitch + (row.slot + offset) * g.row_pitch;
    }
    if constexpr (Kind::width == 4) {  // the lane's tap row is the one of its row of B
      const int r = lane % 16 / 4;
      at[0] = r == 0 ? at[0] : r == 1 ? at[1] : at[2];
      if (r == 3 || !(row.exists >> r & 1)) at[0] = -1;
    }
  }
};

// Accumulators: of a tile, as mma leaves them. Rows g and g + 8 are result channels of a tap column, in groups of 8 two
// tap columns of a channel, and in groups of 4 as in Weights.
template <class Kind>
using Products = float[Kind::products][2][4];

// The weights of a tile in groups of 4, zero for tap rows that do not exist, whose pixels are zero too.
template <class Kind>
__device__ __forceinline__ void of_rows(uint32_t (&to)[4], const uint32_t* from, int exists) {
  const int t = threadIdx.x % 4;
  const bool first = exists >> t / 2 & 1, second = exists >> 2 & 1;
  to[0] = first ? from[0] : 0;
  to[1] = first ? from[1] : 0;
  to[2] = second ? from[2] : 0;
  to[3] = second ? from[3] : 0;
}

// Multiplies the tiles at a column of the stage. `exists`: the tap rows of each tile, none for a tile that is not.
template <class Kind, class T>
__device__ __forceinline__ void multiply(const Planes& g, Products<Kind>& sums, const Weights<Kind>& weights,
                                         const uint4* zero, const uint4* stage, const Address<Kind>& address,
                                         int column, const int (&exists)[2]) {
#pragma unroll
  for (auto& product : sums)
    for (auto& tile : product)
      for (float& sum : tile) sum = 0;
  if constexpr (Kind::width == 4) {
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      uint32_t pixels[4];
      const uint4* from = stage + address.at[0] + column + group * 4 * g.channel_pitch;
      ptx::ldmatrix<4, true>(pixels, address.at[0] < 0 ? zero : from);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        uint32_t of_tile[4];
        of_rows<Kind>(of_tile, &weights[0][4 * group], exists[tile]);
        ptx::mma_m16n8k16<T>(sums[group][tile], of_tile, {pixels[2 * tile], pixels[2 * tile + 1]});
      }
    }
  } else {
#pragma unroll
    for (int r = 0; r < taps; ++r) {
      if (((exists[0] | exists[1]) >> r & 1) == 0) continue;
#pragma unroll
      for (int step = 0; step < Kind::steps; ++step) {
        uint32_t pixels[Kind::width == 8 ? 2 : 4];
        ptx::ldmatrix<Kind::width == 8 ? 2 : 4, true>(pixels,
                                                      stage + address.at[r] + column + step * 16 * g.channel_pitch);
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          if ((exists[tile] >> r & 1) == 0) continue;
          if constexpr (Kind::width == 8) {
            const uint32_t* tap = &weights[0][r * taps];
            ptx::mma_m16n8k8<T>(sums[0][tile], {tap[0], tap[1]}, {pixels[tile]});
            ptx::mma_m16n8k8<T>(sums[1][tile], {tap[2], 0}, {pixels[tile]});
          } else {
#pragma unroll
            for (int s = 0; s < taps; ++s) {
              const uint32_t* tap = &weights[step][(r * taps + s) * 4];
              ptx::mma_m16n8k16<T>(sums[s][tile], {tap[0], tap[1], tap[2], tap[3]},
                                   {pixels[2 * tile], pixels[2 * tile + 1]});
            }
          }
        }
      }
    }
  }
}

// The same by tap column: of columns 2t and 2t + 1 of a tile, in the lane's channels (g and g + 8, or g).
template <class Kind>
struct Columns {
  float of[taps][2][2 * Kind::halves];

  __device__ __forceinline__ explicit Columns(const Products<Kind>& sums) {
    const bool second = threadIdx.x % 32 >= 16;  // in groups of 4: of the second group
#pragma unroll
    for (int tile = 0; tile < 2; ++tile)
#pragma unroll
      for (int i = 0; i < 2 * Kind::halves; ++i) {
        if constexpr (Kind::width == 4) {
          of[0][tile][i] = second ? sums[1][tile][i] : sums[0][tile][i];
          of[2][tile][i] = second ? sums[1][tile][2 + i] : sums[0][tile][2 + i];
          of[1][tile][i] = __shfl_xor_sync(0xffffffffu, second ? sums[0][tile][i] : sums[1][tile][i], 16);
        } else if constexpr (Kind::width == 8) {
          of[0][tile][i] = sums[0][tile][i];
          of[1][tile][i] = sums[0][tile][2 + i];
          of[2][tile][i] = sums[1][tile][i];
        } else {
          for (int s = 0; s < taps; ++s) of[s][tile][i] = sums[s][tile][i];
        }
      }
  }
};

}  // namespace resnext::cuda::mma_nchw
