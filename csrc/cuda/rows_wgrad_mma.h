#pragma once
// How the row-streaming wgrad multiplies by tensor cores, in TF32 (a float's sign and exponent, 10 bits of its
// fraction): factors that are rounded to it, to nearest, ties away from zero, or floats by three products (tf32.h).
// rows_wgrad_kernel.h says how it all fits together.
//
//   warp   16 input channels x 16 output channels of a tile, or all 32 in two halves, by mma m16n8k8: the sum over k is
//          that over the tile's 7 columns, and an eighth one which is zero. Of groups of 8 it has two, whose products
//          with one another nobody reads
//   lane   two columns, u and v, and channels 2 * (lane / 4) and the next, of both operands. In stride 1 and by one
//          product columns 2 * (lane % 4) and the next, so that three taps take four columns of input; else lane % 4
//          and lane % 4 + 4, so that no two products share an operand, whose four words lie side by side in registers
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
// Padding is absent: a column whose partner is not there is zero in both operands, without being read. Of three
// products in one operand, as sums that are not finite are made once more in the end (rows_wgrad_mend.h).
//
// Three products. An mma starts from zero and its sums are added by FADD: tensor cores cut off instead of rounding, and
// here, unlike in fprop, as many sums follow one another as there are rows. For the registers' sake a lane has one row
// of grad_output at a time.
#include "rows_wgrad_store.h"
#include "tf32.h"

namespace resnext::cuda::rows_wgrad {

// Whether a lane's columns are neighbours.
template <class Gw>
constexpr bool neighbours = Gw::stride == 1 && !splits<typename Gw::Form>;

// A lane's first column, and how far the second one is.
template <class Gw>
__device__ __forceinline__ int first_column() {
  return threadIdx.x % 4 * (neighbours<Gw> ? 2 : 1);
}

template <class Gw>
constexpr int apart = neighbours<Gw> ? 1 : 4;

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

// What a lane has of a row of input, rounded unless it is to be split: its two channels in the column of tap s for its
// first column, then in those for its second one of which the first has none.
template <class Gw>
using Inputs = uint32_t[neighbours<Gw> ? 4 : 6][2];

// Where in it the jth column has tap s.
template <class Gw>
__device__ __forceinline__ constexpr int place_in_inputs(int j, int s) {
  return (neighbours<Gw> ? 1 : taps) * j + s;
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
      constexpr bool three = splits<typename Gw::Form>;
      to[i][0] = three ? __float_as_uint(pair.x) : rounded_for_mma(pair.x);
      to[i][1] = three ? __float_as_uint(pair.y) : rounded_for_mma(pair.y);
    }
}

// And of a row of grad_output: its two channels of each half, in its first column, then in its second; then what is
// left of them if they are split.
template <class Gw>
using Grad = uint32_t[splits<typename Gw::Form> ? 4 : 2][2 * Gw::at_once];

// Reads it, `half` floats being from a half to the next, from the `first` half on, and adds its floats to the bias.
template <class Gw>
__device__ __forceinline__ void read_grad(Grad<Gw>& to, const float* from, int column, int channel, int half,
                                          unsigned kept, float (&bias)[2 * Gw::halves], int first = 0) {
  from += first * half;
#pragma unroll
  for (int h = 0; h < Gw::at_once; ++h, from += half) {
    const float* second = from + channel;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float2 pair = make_float2(0, 0);
      if ((kept & kept_bit(j, 1)) != 0)  // whatever is there has a partner by tap 1
        pair = read_pair<Gw>(from, second, apart<Gw> * j * column);
      bias[2 * (first + h)] += pair.x;
      bias[2 * (first + h) + 1] += pair.y;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float value = i == 0 ? pair.x : pair.y;
        to[j][2 * h + i] = __float_as_uint(value);
        if constexpr (splits<typename Gw::Form>)
          split_tf32(to[j][2 * h + i], to[j + 2][2 * h + i]);
        else
          to[j][2 * h + i] = rounded_for_mma(value);
      }
    }
  }
}

// Adds the products of a row of input with a row of grad_output, to the sums for the tap row by which they meet.
// `first`: of the halves of these.
template <class Gw>
__device__ __forceinline__ void multiply(float (&sums)[taps][2 * Gw::halves][4], const Inputs<Gw>& inputs,
                                         const Grad<Gw>& grad, unsigned kept, int first = 0) {
#pragma unroll
  for (int s = 0; s < taps; ++s) {
    constexpr bool three = splits<typename Gw::Form>;
    uint32_t input[three ? 2 : 1][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = i / 2;
      const uint32_t word = inputs[place_in_inputs<Gw>(j, s)][i % 2];
      // The first of neighbours has what is there for the second one too, which may not be the tile's.
      input[0][i] = !neighbours<Gw> || j == 0 || s == 2 || (kept & kept_bit(1, 1)) != 0 ? word : 0;
      if constexpr (three) split_tf32(input[0][i], input[1][i]);
    }
    // What is there has a partner by tap 1. Of narrow groups in NHWC the compiler, if it knew, would keep more in
    // registers than fits.
    const bool all = s == 1 && (Gw::Form::layout == Layout::nchw || Gw::halves > 1);
#pragma unroll
    for (int k = 0; k < 2 * Gw::at_once; ++k) {
      auto& sum = sums[s][2 * first + k];
      if constexpr (three) {
        const uint32_t columns[4] = {grad[0][k], grad[1][k], grad[2][k], grad[3][k]};
        float products[4] = {};
        multiply_tf32<typename Gw::Form>(products, input, columns);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] += products[i];
      } else {
        const uint32_t columns[2] = {all || kept & kept_bit(0, s) ? grad[0][k] : 0,
                                     all || kept & kept_bit(1, s) ? grad[1][k] : 0};
        ptx::mma_m16n8k8_tf32(sum, input[0], columns);
      }
    }
  }
}

}  // namespace resnext::cuda::rows_wgrad
