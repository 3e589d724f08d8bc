#pragma once
// The multiplication of the NCHW tensor-core kernels: two tiles of 8 source columns by the taps. mma_nchw.h says how it
// all fits together.
#include "mma_nchw_load.h"

namespace resnext::cuda::mma_nchw {

// Where the source rows of a tile are in a stage: from `slot` on. `exists`: bit k of the kth of them, in groups of 16
// and more by tap row: there tap row r reads slot + r or, in Spread, slot + 1 for r = 0, else slot.
struct Row {
  int slot, exists;
};

template <class Kind>
__device__ __forceinline__ Row row_of(const Planes& g, const Unit& unit, int image, int result_row) {
  const int y = Kind::spread == 2 ? result_row / 2 : Kind::stride * result_row - 1, first = unit.first_source_row;
  Row row{image * g.source_rows + y - first, 0};
  if constexpr (Kind::rows == 1 && Kind::spread == 2) {
    row.exists = result_row % 2 == 0 ? 2 : 4 + (y + 1 < g.rows);
  } else {
#pragma unroll
    for (int k = 0; k < Kind::sources; ++k)
      row.exists |= (y + k >= 0 && y + k < min(g.rows, first + g.source_rows)) << k;
  }
  return row;
}

// What a lane addresses for ldmatrix: 8 columns of a channel and a row, in vectors from the start of a stage. By source
// row, in groups of 16 and more by tap row, and in groups of 4 by half, where the lane has a tap row of its own. Rows
// that do not exist have the address of one that does, and are not multiplied; in groups of 4 they are zeros.
template <class Kind>
struct Address {
  static constexpr int count = Kind::width == 4 ? 2 : Kind::width == 8 ? Kind::sources : taps;
  static constexpr int always = Kind::spread == 2 ? 0 : 1;  // a source row that exists
  int at[count];

  __device__ __forceinline__ static int own_tile() {  // which the lane addresses
    const int lane = threadIdx.x % 32;
    return Kind::width == 8 ? lane / 8 % 2 : lane / 16;
  }

  __device__ __forceinline__ Address(const Planes& g, const Row& row) {
    const int lane = threadIdx.x % 32;
    const int channel = Kind::width == 4 ? lane % 4 : Kind::width == 8 ? lane % 8 : lane % 16;
    const int base = channel * g.channel_pitch + row.slot * g.row_pitch;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if constexpr (Kind::width == 4) {
        const int r = lane % 16 / 4;
        const int k = r == 0 ? Kind::source_of(0, i) : r == 1 ? Kind::source_of(1, i) : Kind::source_of(2, i);
        at[i] = r < 3 && k >= 0 && (row.exists >> k & 1) ? base + k * g.row_pitch : -1;
      } else {
        const int offset = Kind::width > 8 && Kind::spread == 2 ? i == 0 : i;
        at[i] = base + (row.exists >> i & 1 ? offset : always) * g.row_pitch;
      }
    }
  }
};

// Accumulators: of a tile, as mma leaves them. In groups of 16 and more [tap column], rows g and g + 8 being channels.
// In groups of 8 [0] and [1] have the tap columns 0 and 1 of a channel, in either half, and [2] tap column 2 of both.
// In groups of 4 [half][group], as in Weights.
template <class Kind>
using Products = float[Kind::products][2][4];

// The weights of a tile in groups of 4, zero for tap rows that do not exist, whose pixels are zero too.
template <class Kind, bool masked>
__device__ __forceinline__ void of_rows(uint32_t (&to)[4], const uint32_t* from, int half, int exists) {
  const auto has = [&](int r) { return Kind::source_of(r, half) >= 0 && (exists >> Kind::source_of(r, half) & 1); };
  const bool first = !masked || (threadIdx.x % 4 < 2 ? has(0) : has(1)), second = !masked || has(2);
  to[0] = first ? from[0] : 0;
  to[1] = first ? from[1] : 0;
  to[2] = second ? from[2] : 0;
  to[3] = second ? from[3] : 0;
}

// `masked`: not all source rows of both tiles exist.
template <class Kind, class T, bool masked>
__device__ __forceinline__ void multiply_fours(const Planes& g, Products<Kind>& sums, const Weights<Kind>& weights,
                                               const uint4* zero, const uint4* stage, const Address<Kind>& address,
                                               int column, const int (&exists)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      uint32_t pixels[4];
      const uint4* from = stage + address.at[half] + column + group * 4 * g.channel_pitch;
      ptx::ldmatrix<4, true>(pixels, address.at[half] < 0 ? zero : from);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        uint32_t of_tile[4];
        of_rows<Kind, masked>(of_tile, &weights[0][4 * group], half, exists[tile]);
        ptx::mma_m16n8k16<T>(sums[2 * half + group][tile], of_tile, {pixels[2 * tile], pixels[2 * tile + 1]});
      }
    }
  }
}

// The two halves of the accumulator of tap column 2 begin and end with different source rows. A half that does not take
// part is multiplied by zero, which may give NaN: it is cleared when it begins, and kept when it ends.
template <class Kind, class T>
__device__ __forceinline__ void multiply_eights(Products<Kind>& sums, const Weights<Kind>& weights, const uint4* stage,
                                                const Address<Kind>& address, int column, const int (&exists)[2]) {
  float kept[2][2];
  const auto& taps_of = weights[0];
#pragma unroll
  for (int k = 0; k < Kind::sources; ++k) {
    const int upper = Kind::tap_of(k, 0), lower = Kind::tap_of(k, 1);
    const bool lower_begins = k > 0 && lower == 0, upper_ends = upper < 0 && (k == 0 || Kind::tap_of(k - 1, 0) >= 0);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      float (&both)[4] = sums[2][tile];
      if (upper_ends) kept[tile][0] = both[0], kept[tile][1] = both[1];
      if (Kind::spread == 1 && lower_begins) both[2] = both[3] = 0;
    }
    if (((exists[0] | exists[1]) >> k & 1) == 0) continue;
    uint32_t pixels[2];
    ptx::ldmatrix<2, true>(pixels, stage + address.at[k] + column);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      if ((exists[tile] >> k & 1) == 0) continue;
      if (upper >= 0) ptx::mma_m16n8k8<T>(sums[0][tile], {taps_of[3 * upper], taps_of[3 * upper + 1]}, {pixels[tile]});
      if (lower >= 0) ptx::mma_m16n8k8<T>(sums[1][tile], {taps_of[3 * lower], taps_of[3 * lower + 1]}, {pixels[tile]});
      ptx::mma_m16n8k8<T>(sums[2][tile],
                          {upper >= 0 ? taps_of[3 * upper + 2] : 0, lower >= 0 ? taps_of[3 * lower + 2] : 0},
                          {pixels[tile]});
    }
  }
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) sums[2][tile][0] = kept[tile][0], sums[2][tile][1] = kept[tile][1];
}

template <class Kind, class T>
__device__ __forceinline__ void multiply_wide(const Planes& g, Products<Kind>& sums, const Weights<Kind>& weights,
                                              const uint4* stage, const Address<Kind>& address, int column,
                                              const int (&exists)[2]) {
#pragma unroll
  for (int r = 0; r < taps; ++r) {
    if (((exists[0] | exists[1]) >> r & 1) == 0) continue;
#pragma unroll
    for (int step = 0; step < Kind::steps; ++step) {
      if constexpr (Kind::pads)
        if (step >= Channels<Kind>::steps(g)) break;
      uint32_t pixels[4];
      ptx::ldmatrix<4, true>(pixels, stage + address.at[r] + column + step * 16 * g.channel_pitch);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        if ((exists[tile] >> r & 1) == 0) continue;
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

// Multiplies the tiles at a column of the stage. `exists`: that of the Row of each tile, 0 for a tile that is not.
template <class Kind, class T>
__device__ __forceinline__ void multiply(const Planes& g, Products<Kind>& sums, const Weights<Kind>& weights,
                                         const uint4* zero, const uint4* stage, const Address<Kind>& address,
                                         int column, const int (&exists)[2]) {
#pragma unroll
  for (auto& product : sums)
    for (auto& tile : product)
      for (float& sum : tile) sum = 0;
  constexpr int all = (1 << Kind::sources) - 1;
  if constexpr (Kind::width == 4) {
    if (Kind::spread == 1 && (exists[0] & exists[1]) == all)
      multiply_fours<Kind, T, Kind::spread == 2>(g, sums, weights, zero, stage, address, column, exists);
    else
      multiply_fours<Kind, T, true>(g, sums, weights, zero, stage, address, column, exists);
  } else if constexpr (Kind::width == 8)
    multiply_eights<Kind, T>(sums, weights, stage, address, column, exists);
  else
    multiply_wide<Kind, T>(g, sums, weights, stage, address, column, exists);
}

// The same by tap column: of columns 2t and 2t + 1 of a tile, in the lane's halves.
template <class Kind>
struct Columns {
  float of[taps][2][2][2];  // [tap column][tile][half][column]

  __device__ __forceinline__ explicit Columns(const Products<Kind>& sums) {
    const bool second = threadIdx.x % 32 >= 16;  // in groups of 4: of the second group
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int tile = i / 4, half = i / 2 % 2, column = i % 2;
      const auto to = [&](int s) -> float& { return of[s][tile][half][column]; };
      if constexpr (Kind::width == 4) {
        const float (&one)[4] = sums[2 * half][tile], (&two)[4] = sums[2 * half + 1][tile];
        to(0) = second ? two[column] : one[column];
        to(1) = __shfl_xor_sync(0xffffffffu, second ? one[column] : two[column], 16);
        to(2) = second ? two[2 + column] : one[2 + column];
      } else if constexpr (Kind::width == 8) {
        to(0) = sums[half][tile][column];
        to(1) = sums[half][tile][2 + column];
        to(2) = sums[2][tile][2 * half + column];
      } else {
        for (int s = 0; s < taps; ++s) to(s) = sums[s][tile][2 * half + column];
      }
    }
  }
};

}  // namespace resnext::cuda::mma_nchw
