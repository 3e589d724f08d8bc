#pragma once
// Wgrad by the tensor cores, half or bfloat16 in NHWC, 3x3, padding 1, groups of 4, 8, 16, 32 or 64 channels, stride
// t = 1 or 2. Sums are kept in float and rounded once.
//
//   grad_weight[k,c,r,s] = sum over n,p,q of grad_output[n,p,q,k] * input[n,t*p+r-1,t*q+s-1,c]
//   grad_bias[k]         = sum over n,p,q of grad_output[n,p,q,k]
//
// The sum over pixels is the sum over k of mma: 16 columns at a time, an mma multiplies 16 channels of one tensor, or 8
// channels of two rows of it, with 8 of the other. Both operands come from shared memory by ldmatrix.trans, since there
// pixels lie as rows of channels. Rows stream by: each row of input meets the rows of grad_output that its three tap
// rows reach, which wait in registers, so that each element is read from memory once and from shared memory once
// (grad_output) or once for each s (input).
//
//   block   16 channels of both tensors (a group of 32 or 64; in groups of 64 half of its output channels), over the
//           pixels of a slice, which its teams share
//   slice   walks, each team of the block every `teams`th of them
//   walk    of a team: `run_rows` rows of grad_output of one segment of 4 octets of columns, of two of 2 octets or of
//           four of 1 octet. A segment is a whole image, or a strip of one that is wider than 32
//   team    one warp; in groups of 32 and 64 as many as there are tiles of 16 x 16 channels, which share a ring of rows
//   warp    9 taps x 16 input x 16 output channels of a group; of smaller groups only the products of planes with
//           themselves
//
//     octet 0 | octet 1   octet 2 | octet 3         step i of a walk from row p on, in stride 1:
//     q..q+7  | q+8..     q+16..  | q+24..q+31        grad_output row p+i    by tap row 0 |
//     --- one mma ---     ---- the next ----          grad_output row p+i-1  by tap row 1 |  meets input row p+i-1
//                                                     grad_output row p+i-2  by tap row 2 |
//
//     and in stride 2 grad_output row p+i, which meets the input rows 2(p+i)-1 by tap row 0 and 2(p+i) by tap row 1,
//     and grad_output row p+i-1, which meets the former by tap row 2
//
// At the end of its slice a block adds up its teams, in order, through shared memory, and writes the sums: the results
// if there is one slice, else to the workspace, where a second kernel adds the slices. How a problem is cut depends on
// its shape alone, and there are no atomics: equal inputs give equal bits, on every GPU.
//
// Shared memory. Each team has a ring of stages of its own. A stage holds rows as planes of 8 channels, of a vector of
// 16 bytes for each column. The 8 columns that ldmatrix reads at a time are consecutive, so they fill all banks; planes
// begin where the 8 vectors that a quarter of a warp copies, of consecutive columns and all planes, do too. In stride 2
// the even and the odd columns of a plane are apart, so that columns of a tap are consecutive again.
//
// Synchronisation. Once per step, for a team: the copies that its threads waited for are visible to all, and all are
// done with the step before, whose stage is filled anew. At the end, for half of the accumulators of 16 output channels
// at a time: the rings, or the sums before, are no longer read; the sums of all teams are written. Then: the totals
// are.
//
// Padding is absent, not multiplied by zero, so that an infinity reaches only weights whose windows contain it. Rows
// outside are skipped: by branches, or by taking back the half of an mma that concerns one. Of columns that are not
// there both operands are zero: a lane whose column has no partner in the other tensor has ldmatrix read a zero of the
// stage's instead of input, and clears it in the register that holds it of grad_output. Products of groups of 4 with
// their neighbours land in sums that nobody reads.
//
// Limits: sm_80, as many input as output channels, in multiples of 8, 16-byte aligned, fewer than 2^30 output pixels.
// At most 57 KB of shared memory.
#include "mma_wgrad_store.h"

namespace resnext::cuda::mma_wgrad {

template <class Gw>
union Smem {
  uint4 ring[Gw::teams][Gw::stages][Gw::stage];
  Totals<Gw> totals;
};

// The rows of grad_output that a row of input meets, newest first, in registers.
template <class Gw>
using Grads = Pair[octets / 2][4 - Gw::stride];

// Moves the rows on by one, and reads the newest if there is one.
template <class Gw>
__device__ __forceinline__ void next_grads(Grads<Gw>& grads, bool there, const char* stage, const Tile& tile) {
#pragma unroll
  for (int pair = 0; pair < octets / 2; ++pair) {
#pragma unroll
    for (int row = 3 - Gw::stride; row > 0; --row)
#pragma unroll
      for (int j = 0; j < 4; ++j) grads[pair][row][j] = grads[pair][row - 1][j];
    if (there) ptx::ldmatrix<4, true>(grads[pair][0], stage + tile.grad[pair]);
  }
}

// Adds the products of a step by taps of column s.
template <int s, class Gw, Rows rows>
__device__ __forceinline__ void add_taps(Sums<Gw>& sums, Grads<Gw>& grads, int pair, const char* stage,
                                         const Tile& tile, bool middle, bool bias) {
  Pair x, a, b;
  if (rows != neither || Gw::stride == 1) ptx::ldmatrix<4, true>(x, stage + tile.input[pair][s]);
  if (rows != neither) {
    keep<s>(a, grads[pair][0], tile.kept + 2 * pair);
    keep<s>(b, grads[pair][3 - Gw::stride], tile.kept + 2 * pair);
    sums.template outer<s, rows>(x, a, b);
  }
  if (rows != both && !middle) return;
  if (Gw::stride == 2) ptx::ldmatrix<4, true>(x, stage + 16 * Gw::input_row + tile.input[pair][s]);
  keep<s>(a, grads[pair][2 - Gw::stride], tile.kept + 2 * pair);
  sums.template middle<s>(x, a, bias);
}

// Adds the products of a step: of its row of input that two rows of grad_output meet, of which `rows` are there, and,
// if `middle`, of the row that one meets, the same row in stride 1.
template <class Gw, Rows rows>
__device__ __forceinline__ void add_step(Sums<Gw>& sums, Grads<Gw>& grads, const char* stage, const Tile& tile,
                                         bool middle, bool bias) {
#pragma unroll
  for (int pair = 0; pair < octets / 2; ++pair) {
    add_taps<0, Gw, rows>(sums, grads, pair, stage, tile, middle, bias);
    add_taps<1, Gw, rows>(sums, grads, pair, stage, tile, middle, bias);
    add_taps<2, Gw, rows>(sums, grads, pair, stage, tile, middle, bias);
  }
}

// Sums the pixels of every `teams`th walk of [first_walk, end).
template <class Gw, class Sync>
__device__ __forceinline__ void walk_rows(const MmaWgrad& g, int first_walk, int end, const Channels& channels,
                                          uint4 (&ring)[Gw::stages][Gw::stage], Sums<Gw>& sums) {
  const int thread = threadIdx.x % Gw::team_threads, c_tile = thread / 32 % Gw::c_tiles;
  const bool bias = g.grad_bias && c_tile == 0;
  for (int i = thread; i < Gw::stages * Gw::stride * 8; i += Gw::team_threads)
    ring[i / (Gw::stride * 8)][i / 8 % Gw::stride * Gw::input_row + Gw::zeros + i % 8] = make_uint4(0, 0, 0, 0);
  Loader<Gw> loader(first_walk, end);
  for (int i = 0; i < Gw::ahead; ++i) loader.copy_next(g, channels, ring[i]);
  int now = 0;
  Grads<Gw> grads = {};
  for (; first_walk < end; first_walk += Gw::teams) {
    const Walk walk = walk_of<Gw>(g, first_walk);
    const Tile tile = tile_of<Gw>(g, walk, 2 * c_tile, thread / 32 / Gw::c_tiles * 2);
    for (int i = 0; i < walk.steps; ++i) {
      Sync::template copies<Gw::ahead - 1>();
      Sync::template row<Gw>();
      loader.copy_next(g, channels, ring[now == 0 ? Gw::ahead : now - 1]);
      const bool has_first = i < walk.rows, has_last = i >= 3 - Gw::stride;
      const bool middle = i >= 2 - Gw::stride && i < walk.rows + 2 - Gw::stride;
      const char* stage = reinterpret_cast<const char*>(ring[now]);
      next_grads<Gw>(grads, has_first, stage, tile);
      const bool outer = walk.row > 0 || i > 0;  // the image has that row of input
      if (outer && has_first && has_last)
        add_step<Gw, both>(sums, grads, stage, tile, middle, bias);
      else if (outer && has_first)
        add_step<Gw, first>(sums, grads, stage, tile, middle, bias);
      else if (outer && has_last)
        add_step<Gw, last>(sums, grads, stage, tile, middle, bias);
      else if (middle)
        add_step<Gw, neither>(sums, grads, stage, tile, middle, bias);
      now = now == Gw::ahead ? 0 : now + 1;
    }
  }
}

template <class T, int width, int stride, class Sync>
__global__ void __launch_bounds__(Gw<T, width, stride>::threads, Gw<T, width, stride>::blocks) wgrad_mma(MmaWgrad g) {
  using Gw = Gw<T, width, stride>;
  if constexpr (architecture >= 80) {
    auto& smem = dynamic_smem<Smem<Gw>>();
    const int blocks = g.channel_blocks * Gw::parts, slice = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const int team = threadIdx.x / Gw::team_threads, first_walk = slice * g.slice_walks;
    const int c = block / Gw::parts * Gw::channels;
    const Channels channels{c, c + block % Gw::parts * 16 * Gw::k_tiles};
    Sums<Gw> sums;
    walk_rows<Gw, Sync>(g, first_walk + team, min(first_walk + g.slice_walks, g.walks), channels, smem.ring[team],
                        sums);
    finish_block<Gw, Sync>(g, slice, channels.k, sums, smem.totals);
  }
}

}  // namespace resnext::cuda::mma_wgrad
