#pragma once
// How a warp multiplies rows in shared memory by mma instructions. mma_wgrad_kernel.h says how it all fits together.
#include "mma_wgrad_load.h"

namespace resnext::cuda::mma_wgrad {

// What a warp has of the image in the current walk, as byte offsets in a stage, and masks. Lane 8 * m + i gives
// ldmatrix column i of matrix m: both octets of a pair in plane 0, then in plane 1. The input of groups of 16 and more,
// which is the first operand of mma, has its matrices in another order: both planes of the first octet, then of the
// second.
struct Tile {
  int input[octets / 2][taps];  // of the column that tap s reads, or of a zero
  int grad[octets / 2];         // of the column of grad_output, or of a zero
  uint32_t kept[octets][taps];  // ands the two columns of a register to zero for which tap s has no input
};

template <class Gw>
__device__ __forceinline__ Tile tile_of(const MmaWgrad& g, const Walk& walk, int input_plane, int grad_plane) {
  const int lane = threadIdx.x % 32, high = lane / 16, low = lane / 8 % 2;
  const int input_octet = Gw::width < 16 ? low : high;
  input_plane += Gw::width < 16 ? high : low;
  grad_plane += high;
  const auto segment = [&](int octet) { return octet >> g.segment_bits; };
  const auto first = [&](int octet) { return 8 * (octet & ((1 << g.segment_bits) - 1)); };
  // Whether a column of the segment is there, and what tap s reads for it.
  const auto there = [&](int octet, int column) {
    return walk.image + segment(octet) < g.images && column < walk.columns;
  };
  const auto reads = [&](int octet, int column, int s) {
    const int x = Gw::stride * (walk.column + column) + s - 1;
    return there(octet, column) && x >= 0 && x < g.columns;
  };
  Tile tile;
#pragma unroll
  for (int pair = 0; pair < octets / 2; ++pair) {
    int octet = 2 * pair + input_octet, column = first(octet) + lane % 8;
#pragma unroll
    for (int s = 0; s < taps; ++s) {
      const int place = input_plane * Gw::input_pitch + Gw::place(g, segment(octet), Gw::stride * column + s - 1);
      tile.input[pair][s] = 16 * (reads(octet, column, s) ? place : Gw::zeros + place % 8);
    }
    octet = 2 * pair + low, column = first(octet) + lane % 8;
    const int place = Gw::grad + grad_plane * Gw::grad_pitch + octet * 8 + lane % 8;
    tile.grad[pair] = 16 * (there(octet, column) ? place : Gw::zeros + place % 8);
  }
#pragma unroll
  for (int octet = 0; octet < octets; ++octet) {
    const int column = first(octet) + lane % 4 * 2;
#pragma unroll
    for (int s = 0; s < taps; ++s)
      tile.kept[octet][s] =
          (reads(octet, column, s) ? 0x0000ffffu : 0) | (reads(octet, column + 1, s) ? 0xffff0000u : 0);
  }
  return tile;
}

// Registers of a pair of octets, one for each matrix.
using Pair = uint32_t[4];

// A row of grad_output less the columns for which tap s has no input, by what is kept of two octets.
template <int s>
__device__ __forceinline__ void keep(Pair& to, const Pair& grad, const uint32_t (*kept)[taps]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) to[i] = s == 1 ? grad[i] : grad[i] & kept[i % 2][s];
}

// Two numbers one.
template <class T>
constexpr uint32_t ones = std::is_same_v<T, __half> ? 0x3c003c00u : 0x3f803f80u;

// Rows of grad_output that a row of input meets.
enum Rows { neither, first, last, both };

// The sums of a warp, as accumulators of 16 x 8, and what is added to them: for a pair of octets and a row of input, by
// taps of column s, the products with the rows of grad_output that it meets by tap row 0 (the first) and 2 (the last),
// which are `outer`, or by tap row 1.
template <class Gw, bool narrow = (Gw::width < 16)>
struct Sums;

// Groups of 16 and more: rows are input channels, columns output channels of plane j, of which sums[18 + j] is the
// bias.
template <class Gw>
struct Sums<Gw, false> {
  using T = typename Gw::T;
  float sums[Gw::accumulators][4] = {};

  template <int s>
  __device__ __forceinline__ void add(int r, const Pair& input, const Pair& grad) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint32_t b[2] = {grad[2 * j], grad[2 * j + 1]};
      ptx::mma_m16n8k16<T>(sums[(r * taps + s) * 2 + j], input, b);
    }
  }

  template <int s, Rows rows>
  __device__ __forceinline__ void outer(const Pair& input, const Pair& first, const Pair& last) {
    if (rows != Rows::last) add<s>(0, input, first);
    if (rows != Rows::first) add<s>(2, input, last);
  }

  template <int s>
  __device__ __forceinline__ void middle(const Pair& input, const Pair& grad, bool bias) {
    add<s>(1, input, grad);
    if (s != 1 || !bias) return;
    constexpr uint32_t a[4] = {ones<T>, ones<T>, ones<T>, ones<T>};
    const uint32_t b[2][2] = {{grad[0], grad[1]}, {grad[2], grad[3]}};
    ptx::mma_m16n8k16<T>(sums[2 * taps * taps], a, b[0]);
    ptx::mma_m16n8k16<T>(sums[2 * taps * taps + 1], a, b[1]);
  }
};

// Groups of at most 8: planes are multiplied with themselves only. Tap rows 0 and 2 share an mma, whose rows are the
// output channels of the two rows of grad_output and whose columns input channels. Tap row 1 has one whose rows are the
// input channels, then ones, so that half of it is the bias, and whose columns are output channels.
template <class Gw>
struct Sums<Gw, true> {
  using T = typename Gw::T;
  float sums[Gw::accumulators][4] = {};

  template <int s, Rows rows>
  __device__ __forceinline__ void outer(const Pair& input, const Pair& first, const Pair& last) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      float (&sum)[4] = sums[s * 2 + j];
      float next[4] = {sum[0], sum[1], sum[2], sum[3]};
      const uint32_t a[4] = {first[2 * j], last[2 * j], first[2 * j + 1], last[2 * j + 1]};
      const uint32_t b[2] = {input[2 * j], input[2 * j + 1]};
      ptx::mma_m16n8k16<T>(next, a, b);
      if (rows != Rows::last) sum[0] = next[0], sum[1] = next[1];
      if (rows != Rows::first) sum[2] = next[2], sum[3] = next[3];
    }
  }

  template <int s>
  __device__ __forceinline__ void middle(const Pair& input, const Pair& grad, bool) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint32_t a[4] = {input[2 * j], ones<T>, input[2 * j + 1], ones<T>};
      const uint32_t b[2] = {grad[2 * j], grad[2 * j + 1]};
      ptx::mma_m16n8k16<T>(sums[2 * taps + s * 2 + j], a, b);
    }
  }
};

}  // namespace resnext::cuda::mma_wgrad
