#pragma once
// How the row-streaming wgrad multiplies by tensor cores, in TF32 (a float's sign and exponent, 10 bits of its
// fraction), to which both factors are rounded, to nearest, ties away from zero. rows_wgrad_kernel.h says how it all
// fits together.
//
//   warp   16 input channels x 16 output channels of a tile, or all 32 in two halves, by mma m16n8k8: the sum over k is
//          that over the tile's 7 columns, and an eighth one which is zero. Of groups of 8 it has two, whose products
//          with one another nobody reads
//   lane   two columns, u and v, and channels 2 * (lane / 4) and the next, of both operands. In stride 1 columns
//          2 * (lane % 4) and the next, so that three taps take four columns of input; else lane % 4 and lane % 4 + 4
//
//        A  16 channels x 8 columns       column  u   v        B  8 columns x 8 channels, even ones and odd ones
//        rows    0..7, even channels              a0  a2          even channels   b0  b1
//        rows   8..15, odd channels               a1  a3          odd channels    b0  b1  of the next mma
//
// so that an operand is two reads of a lane, of 8 bytes in NHWC, of 4 for each channel in NCHW, wherever the columns
// begin: those of tap s are one to the left or right of others.
//
// Banks. NHWC: columns of four lanes are 8 banks apart, modulo 16, and half a warp reads 4 columns x 8 channels, 8 of
// every 16 banks apart. NCHW: even channels are an odd number of vectors apart, and so are odd ones: 8 channels x 4
// columns; two of these are in a bank where columns are two apart.
//
// Padding is absent: a column whose partner is not there is zero in both operands, without being read.
#include "rows_wgrad_store.h"
#include "tf32.h"

namespace resnext::cuda::rows_wgrad {

// A lane's first column, and how far the second one is.
template <class Gw>
__device__ __forceinline__ int first_column() {
  return threadIdx.x % 4 * (Gw::stride == 1 ? 2 : 1);
}

template <class Gw>
constexpr int apart = Gw::stride == 1 ? 1 : 4;

// A bit for the jth column of a lane and tap s: whether grad_output there has a partner in the input.
__device__ __forceinline__ constexpr unsigned kept_bit(int j, int s) { return 1u << (taps * j + s); }

// Those of a tile that has `owned` columns of grad_output from column `q` on, the input having `inputs`.
template <class Gw>
__device__ __forceinline__ unsigned kept_columns(int q, int owned, int inputs) {
  unsigned kept = 0;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int column = first_column<Gw>() + apart<Gw> * j;
#pragma unroll
    for (int s = 0; s < taps; ++s) {
      const int x = Gw::stride * (q + column) + s - 1;
      if (column < min(owned, tile_columns) && x >= 0 && x < inputs) kept |= kept_bit(j, s);
    }
  }
  return kept;
}

// What a lane has of a row of input, rounded: its two channels in the column of tap s for its first column, then in
// those for its second one of which the first has none.
template <class Gw>
using Inputs = uint32_t[Gw::stride == 1 ? 4 : 6][2];

// Where in it the jth column has tap s.
template <class Gw>
__device__ __forceinline__ constexpr int place_in_inputs(int j, int s) {
  return (Gw::stride == 1 ? 1 : taps) * j + s;
}

// Two channels of the `at`th float, the second of which in NCHW lies at `second`.
template <class Gw>
__device__ __forceinline__ float2 read_pair(const float* first, const float* second, int at) {
  if constexpr (Gw::Form::layout == Layout::nhwc) return *reinterpret_cast<const float2*>(first + at);
  return make_float2(first[at], second[at]);
}

// Reads a row of input, from the place of tap 0 of the lane's first channel and column, `column` floats being from a
// column to the next.
template <class Gw>
__device__ __forceinline__ void read_input(Inputs<Gw>& to, const float* from, int column, int channel, unsigned kept) {
  const float* second = from + channel;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int s = 0; s < taps; ++s) {
      const int i = place_in_inputs<Gw>(j, s);
      if (j > 0 && i < taps) continue;
      float2 pair = make_float2(0, 0);
      if ((kept & kept_bit(j, s)) != 0) pair = read_pair<Gw>(from, second, (apart<Gw> * Gw::stride * j + s) * column);
      to[i][0] = rounded_for_mma(pair.x);
      to[i][1] = rounded_for_mma(pair.y);
    }
}

// And of a row of grad_output: its two channels of each half, in its first column, then in its second.
template <class Gw>
using Grad = uint32_t[2][2 * Gw::halves];

// Reads it, `half` floats being from a half to the next, and adds its floats to the bias.
template <class Gw>
__device__ __forceinline__ void read_grad(Grad<Gw>& to, const float* from, int column, int channel, int half,
                                          unsigned kept, float (&bias)[2 * Gw::halves]) {
#pragma unroll
  for (int h = 0; h < Gw::halves; ++h, from += half) {
    const float* second = from + channel;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float2 pair = make_float2(0, 0);
      if ((kept & kept_bit(j, 1)) != 0)  // whatever is there has a partner by tap 1
        pair = read_pair<Gw>(from, second, apart<Gw> * j * column);
      bias[2 * h] += pair.x;
      bias[2 * h + 1] += pair.y;
      to[j][2 * h] = rounded_for_mma(pair.x);
      to[j][2 * h + 1] = rounded_for_mma(pair.y);
    }
  }
}

// Adds the products of a row of input with a row of grad_output, to the sums for the tap row by which they meet.
template <class Gw>
__device__ __forceinline__ void multiply(float (&sums)[taps][2 * Gw::halves][4], const Inputs<Gw>& inputs,
                                         const Grad<Gw>& grad, unsigned kept) {
#pragma unroll
  for (int s = 0; s < taps; ++s) {
    uint32_t input[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = i / 2;
      const uint32_t word = inputs[place_in_inputs<Gw>(j, s)][i % 2];
      // In stride 1 the first column has what is there for the second one too, which may not be the tile's.
      input[i] = Gw::stride > 1 || j == 0 || s == 2 || (kept & kept_bit(1, 1)) != 0 ? word : 0;
    }
    // What is there has a partner by tap 1. Of narrow groups in NHWC the compiler, if it knew, would keep more in
    // registers than fits.
    const bool all = s == 1 && (Gw::Form::layout == Layout::nchw || Gw::halves > 1);
#pragma unroll
    for (int k = 0; k < 2 * Gw::halves; ++k) {
      const uint32_t columns[2] = {all || kept & kept_bit(0, s) ? grad[0][k] : 0,
                                   all || kept & kept_bit(1, s) ? grad[1][k] : 0};
      ptx::mma_m16n8k8_tf32(sums[s][k], input, columns);
    }
  }
}

}  // namespace resnext::cuda::rows_wgrad
