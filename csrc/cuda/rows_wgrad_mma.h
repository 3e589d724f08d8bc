#pragma once
// How the row-streaming wgrad multiplies by tensor cores, in TF32 (a float's sign and exponent, 10 bits of its
// fraction), to which both factors are rounded, to nearest, ties away from zero. rows_wgrad_kernel.h says how it all
// fits together.
//
//   warp   16 input channels x 16 output channels of a tile, by mma m16n8k8: the sum over k is that over the tile's 7
//          columns, and an eighth one which is zero. Of groups of 8 it has two, whose products with one another nobody
//          reads
//   lane   columns lane % 4 and lane % 4 + 4, channels 2 * (lane / 4) and the next, of both operands
//
//        A  16 channels x 8 columns       column  t   t+4      B  8 columns x 8 channels, even ones and odd ones
//        rows    0..7, even channels              a0  a2          even channels   b0  b1
//        rows   8..15, odd channels               a1  a3          odd channels    b0  b1  of the next mma
//
// so that an operand is two reads of a lane, of 8 bytes in NHWC, of 4 for each channel in NCHW, wherever the columns
// begin: those of tap s are one to the left or right of others.
//
// Banks. NHWC: columns are 8 banks apart, modulo 16, and half a warp reads 4 columns x 8 channels, 8 of every 16 banks
// apart. NCHW: even channels are an odd number of vectors apart, and so are odd ones: 8 channels x 4 columns.
//
// Padding is absent: a column whose partner is not there is zero in both operands, without being read.
#include "rows_wgrad_store.h"

namespace resnext::cuda::rows_wgrad {

// A lane's part of an operand: its two channels in the first column, then in the second.
using Operand = uint32_t[4];

// A bit for the jth column of a lane and tap s: whether grad_output there has a partner in the input.
__device__ __forceinline__ constexpr unsigned kept_bit(int j, int s) { return 1u << (taps * j + s); }

// Those of a tile that has `owned` columns of grad_output from column `q` on, the input having `inputs`.
template <class Gw>
__device__ __forceinline__ unsigned kept_columns(int q, int owned, int inputs) {
  unsigned kept = 0;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int column = threadIdx.x % 4 + 4 * j;
#pragma unroll
    for (int s = 0; s < taps; ++s) {
      const int x = Gw::stride * (q + column) + s - 1;
      if (column < min(owned, tile_columns) && x >= 0 && x < inputs) kept |= kept_bit(j, s);
    }
  }
  return kept;
}

// The floats that a lane reads for tap s, from the place of its first channel and column; the second column is `next`
// floats further, in NCHW the second channel `channel` floats.
template <class Gw>
__device__ __forceinline__ void read(float (&to)[4], const float* from, int next, int channel, unsigned kept, int s) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float2 pair = make_float2(0, 0);
    if ((kept & kept_bit(j, s)) != 0) {
      if constexpr (Gw::Form::layout == Layout::nhwc)
        pair = *reinterpret_cast<const float2*>(from + j * next);
      else
        pair = make_float2(from[j * next], from[channel + j * next]);
    }
    to[2 * j] = pair.x;
    to[2 * j + 1] = pair.y;
  }
}

// The operand of a row of input for tap s, `column` floats being from a column to the next.
template <class Gw>
__device__ __forceinline__ void read_input(Operand& to, const float* from, int column, int channel, unsigned kept,
                                           int s) {
  float values[4];
  read<Gw>(values, from + s * column, 4 * Gw::stride * column, channel, kept, s);
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = ptx::round_to_tf32(values[i]);
}

// The operand of a row of grad_output, whose floats are added to the bias.
template <class Gw>
__device__ __forceinline__ void read_grad(Operand& to, const float* from, int column, int channel, unsigned kept,
                                          float (&bias)[2]) {
  float values[4];
  read<Gw>(values, from, 4 * column, channel, kept, 1);  // whatever is there has a partner by tap 1
  bias[0] += values[0] + values[2];
  bias[1] += values[1] + values[3];
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = ptx::round_to_tf32(values[i]);
}

// Adds the products of a row of input with a row of grad_output for tap s, to the sums for the tap row by which they
// meet.
__device__ __forceinline__ void multiply(float (&sums)[taps][2][4], const Operand& input, const Operand& grad,
                                         unsigned kept, int s) {
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const uint32_t columns[2] = {kept & kept_bit(0, s) ? grad[k] : 0, kept & kept_bit(1, s) ? grad[2 + k] : 0};
    ptx::mma_m16n8k8_tf32(sums[s][k], input, columns);
  }
}

}  // namespace resnext::cuda::rows_wgrad
