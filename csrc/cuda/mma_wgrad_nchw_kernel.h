#pragma once
// Wgrad by the tensor cores in NCHW: the sums of mma_wgrad_kernel.h, and its teams, slices and registers. Memory has
// the columns of a row side by side there, and they are what is summed over: a vector of 8 columns is a row of a matrix
// of ldmatrix, which need not be transposed. What is not aligned are the columns of taps s = 0 and 2, one to the left
// or right of the others: a lane makes them of two neighbouring words of two columns each.
//
//   block   16 channels of both tensors (a group of 32 or 64; in groups of 64 half of its output channels), over the
//           walks of a slice, one after the other
//   walk    `run_rows` rows of grad_output of `walk_images` images
//   chunk   of a walk: `band` steps of all its images, each of one row of grad_output and `stride` of input; whole
//           walks where they fit
//   team    of warps, as in NHWC: some pairs of a chunk
//   pair    of octets: 16 columns of a step, or 8 of two images if that are all
//
//     words of a row of input in a lane    a b | c d | e f    stride 1: c d are the columns of grad_output's 2t and
//                                                             2t + 1, and meet b c by s = 0, c d by 1 and d e by 2
//                                                             stride 2: c and e are, and meet b d, c e and d f
//
// Shared memory: a vector of zeros, then the ring of input and that of grad_output, [channel][image][slot][column].
// Rows are padded with zeros to whole pairs of octets, input by one column at least; the copies never touch them.
// Channels are an odd number of vectors apart, so the 8 channels that are read at a time lie in different banks,
// wherever their columns begin; those of input in stride 2, of which lanes read 8 bytes each, twice an odd number of
// vectors. The ring holds the chunk in use, the one that is on its way, and the last rows of grad_output of the one
// before.
//
// Synchronisation. chunk(): the copies that all have waited for are visible, and all are done with the chunk before,
// whose place is filled anew; at the first, the zeros are there. At the end as in NHWC.
//
// Padding is absent: where a column of one tensor has no partner in the other both are made zero, by `and` unless they
// are padding; rows are skipped.
//
// Limits: those of NHWC, but for channels in multiples of 8; a step fits into the ring.
#include "mma_wgrad_nchw_load.h"

namespace resnext::cuda::mma_wgrad {

template <class Gw>
union PlanesSmem {
  uint4 ring[1];  // and on
  Totals<Gw> totals;
};

// What is left of the two columns of a register in a pair of octets: of grad_output as in NHWC, of input for s = 0; and
// whether the word after a lane's is one of the row, in stride 1. What follows a row's padding is another row, which
// may be on its way.
template <class Gw>
struct Edges {
  uint32_t kept[2][taps], left[2];
  bool after[2];

  __device__ __forceinline__ Edges(const MmaWgrad& g, int column) {
#pragma unroll
    for (int octet = 0; octet < 2; ++octet) {
      const int q = (g.narrow ? 0 : column + 8 * octet) + threadIdx.x % 4 * 2;
      kept[octet][0] = q == 0 ? 0xffff0000u : 0xffffffffu;
      kept[octet][2] =
          (Gw::stride * q + 1 < g.columns ? 0x0000ffffu : 0) | (Gw::stride * (q + 1) + 1 < g.columns ? 0xffff0000u : 0);
      left[octet] = (q < g.grad_columns ? 0x0000ffffu : 0) | (q + 1 < g.grad_columns ? 0xffff0000u : 0);
      after[octet] = q + 2 < g.columns;
    }
  }
};

// Where a lane reads, as byte offsets from a pair's first vector in the first channel.
template <class Gw>
struct Lane {
  int input, words, grad;  // for ldmatrix of input, for words of it, and for ldmatrix of grad_output

  __device__ __forceinline__ explicit Lane(const MmaWgrad& g) {
    const Stream &in = g.input_stream, &out = g.grad_stream;
    const int lane = threadIdx.x % 32, high = lane / 16, low = lane / 8 % 2, warp = threadIdx.x / 32;
    const bool narrow = g.narrow;
    const int channel = 16 * (warp % Gw::c_tiles), k = 16 * (warp / Gw::c_tiles % Gw::k_tiles);
    const int plane = input_plane(g), octet = input_octet(g), start = 16 * (in.start + channel * in.channel_pitch);
    input = start + lane % 8 * 16 * in.channel_pitch + (Gw::width < 16 ? low : high) * octet +
            (Gw::width < 16 ? high : low) * plane;
    words = start + lane / 4 * 16 * in.channel_pitch + lane % 4 * 4 * Gw::stride;
    grad = 16 *
           (out.start + (k + 8 * high + lane % 8) * out.channel_pitch + low * (narrow ? out.slots * out.row_pitch : 1));
  }

  // From a plane of 8 channels of input to the next, and from an octet.
  __device__ __forceinline__ static int input_plane(const MmaWgrad& g) { return 16 * 8 * g.input_stream.channel_pitch; }
  __device__ __forceinline__ static int input_octet(const MmaWgrad& g) {
    return 16 * (g.narrow ? g.input_stream.slots * g.input_stream.row_pitch : Gw::stride);
  }

  // Reads a pair of octets of a row of input for each s; `pair` is where they are in the first channel.
  __device__ __forceinline__ void read_input(const MmaWgrad& g, Pair (&x)[taps], const char* pair,
                                             const Edges<Gw>& edges) const {
    if (Gw::stride == 1) ptx::ldmatrix<4>(x[1], pair + input);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int octet = Gw::width < 16 ? i % 2 : i / 2, plane = Gw::width < 16 ? i / 2 : i % 2;
      const char* place = pair + words + octet * input_octet(g) + plane * input_plane(g);
      const uint32_t before = *reinterpret_cast<const uint32_t*>(place - 4);
      if constexpr (Gw::stride == 1) {
        const uint32_t after = edges.after[octet] ? *reinterpret_cast<const uint32_t*>(place + 4) : 0;
        x[0][i] = (before >> 16 | x[1][i] << 16) & edges.left[octet];
        x[2][i] = x[1][i] >> 16 | after << 16;
      } else {
        const uint2 own = *reinterpret_cast<const uint2*>(place);
        x[0][i] = (before >> 16 | (own.x & 0xffff0000u)) & edges.left[octet];
        x[1][i] = (own.x & 0x0000ffffu) | own.y << 16;
        x[2][i] = own.x >> 16 | (own.y & 0xffff0000u);
      }
    }
  }
};

// Adds the products of a pair of octets by taps of column s, as add_taps does in NHWC.
template <int s, class Gw, Rows rows>
__device__ __forceinline__ void add_outer(Sums<Gw>& sums, const Pair& x, const Pair& first_row, const Pair& last_row,
                                          const Edges<Gw>& edges) {
  Pair a, b;
  keep<s>(a, first_row, edges.kept);
  keep<s>(b, last_row, edges.kept);
  sums.template outer<s, rows>(x, a, b);
}

template <int s, class Gw>
__device__ __forceinline__ void add_middle(Sums<Gw>& sums, const Pair& x, const Pair& row, const Edges<Gw>& edges,
                                           bool bias) {
  Pair a;
  keep<s>(a, row, edges.kept);
  sums.template middle<s>(x, a, bias);
}

// Where the rows of a step are: of input, of which stride 1 has one, and of grad_output, of which the middle one is
// the newest in stride 2.
struct Places {
  const char *input, *second_input, *newest, *one_before, *oldest;
};

// Adds the products of a pair of octets in a step, as add_step does in NHWC.
template <class Gw, Rows rows>
__device__ __forceinline__ void add_pair(const MmaWgrad& g, Sums<Gw>& sums, const Lane<Gw>& lane,
                                         const Edges<Gw>& edges, const Places& at, bool middle, bool bias) {
  Pair x[taps], first_row = {}, last_row = {}, middle_row;
  if (rows != neither || Gw::stride == 1) lane.read_input(g, x, at.input, edges);
  if (rows == first || rows == both) ptx::ldmatrix<4>(first_row, at.newest + lane.grad);
  if (rows == last || rows == both) ptx::ldmatrix<4>(last_row, at.oldest + lane.grad);
  if (rows != neither) {
    add_outer<0, Gw, rows>(sums, x[0], first_row, last_row, edges);
    add_outer<1, Gw, rows>(sums, x[1], first_row, last_row, edges);
    add_outer<2, Gw, rows>(sums, x[2], first_row, last_row, edges);
  }
  if (rows != both && !middle) return;
  if (Gw::stride == 2) lane.read_input(g, x, at.second_input, edges);
  ptx::ldmatrix<4>(middle_row, (Gw::stride == 1 ? at.one_before : at.newest) + lane.grad);
  add_middle<0>(sums, x[0], middle_row, edges, bias);
  add_middle<1>(sums, x[1], middle_row, edges, bias);
  add_middle<2>(sums, x[2], middle_row, edges, bias);
}

// Adds the products of the team's pairs in a chunk. Some teams are side by side, as many as there are pairs in a step
// or a half or a quarter of them; the others take other steps.
template <class Gw>
__device__ __forceinline__ void add_chunk(const MmaWgrad& g, const Chunk<Gw>& chunk, const Lane<Gw>& lane,
                                          Edges<Gw>& edges, int& edges_column, const char* ring, bool bias,
                                          Sums<Gw>& sums) {
  const int count = min(g.band, chunk.steps - chunk.step), input_row = 16 * g.input_stream.row_pitch;
  const int grad_row = 16 * g.grad_stream.row_pitch, grad_ring = g.grad_stream.slots * grad_row;
  const int team = threadIdx.x / Gw::team_threads, first_step = team >> g.side_bits, by = Gw::teams >> g.side_bits;
#pragma unroll 1
  for (int pair = team & ((1 << g.side_bits) - 1); pair < g.step_pairs; pair += 1 << g.side_bits) {
    const SmallSplit place = split(pair, g.by_row_pairs);
    const int image = g.narrow ? 2 * pair : place.quotient, column = g.narrow ? 0 : 16 * place.remainder;
    if (chunk.image + image >= g.images) break;
    if (column != edges_column) {
      edges = Edges<Gw>(g, column);
      edges_column = column;
    }
    const char* row = ring + 2 * column;  // of grad_output, of the image's first slot
    row += image * grad_ring;
    int input = (image * g.input_stream.slots + chunk.input_slot + Gw::stride * first_step) * input_row +
                2 * column * Gw::stride;
    int newest = (chunk.grad_slot + first_step) * grad_row;
#pragma unroll 1
    for (int i = first_step; i < count; i += by, input += by * Gw::stride * input_row, newest += by * grad_row) {
      if (newest >= grad_ring) newest -= grad_ring;
      constexpr int back = 3 - Gw::stride;  // rows from the newest to the oldest that the step meets
      const Places at{ring + input, ring + input + input_row, row + newest,
                      row + newest - grad_row + (newest < grad_row ? grad_ring : 0),
                      row + newest - back * grad_row + (newest < back * grad_row ? grad_ring : 0)};
      const int step = chunk.step + i;
      const bool has_first = step < chunk.rows, has_last = step >= back;
      const bool outer = chunk.row > 0 || step > 0;  // the image has that row of input
      const bool middle = step >= 2 - Gw::stride && step < chunk.rows + 2 - Gw::stride;
      if (has_first && has_last)
        add_pair<Gw, both>(g, sums, lane, edges, at, true, bias);
      else if (outer && has_first)
        add_pair<Gw, first>(g, sums, lane, edges, at, middle, bias);
      else if (outer && has_last)
        add_pair<Gw, last>(g, sums, lane, edges, at, middle, bias);
      else if (middle)
        add_pair<Gw, neither>(g, sums, lane, edges, at, middle, bias);
    }
  }
}

// Sums the pixels of walks [first_walk, end).
template <class Gw, class Sync>
__device__ __forceinline__ void walk_chunks(const MmaWgrad& g, int first_walk, int end, const Channels& channels,
                                            uint4* ring, Sums<Gw>& sums) {
  for (int i = threadIdx.x; i < g.ring_vectors; i += Gw::threads) ring[i] = make_uint4(0, 0, 0, 0);
  const bool bias = g.grad_bias && threadIdx.x / 32 % Gw::c_tiles == 0;
  const ChunkCopies<Gw> copies(g, channels);
  const Lane<Gw> lane(g);
  Edges<Gw> edges(g, 0);
  int edges_column = 0;
  Chunk<Gw> chunk{};  // none, before the first
  chunk.walk = first_walk - 1;
#pragma unroll 1
  do {
    Sync::template copies<0>();
    Sync::chunk();
    const Chunk<Gw> next = chunk.next(g);
    if (next.walk < end) copies.start(g, channels, next, ring);
    ptx::cp_async_commit();
    add_chunk(g, chunk, lane, edges, edges_column, reinterpret_cast<const char*>(ring), bias, sums);
    chunk = next;
  } while (chunk.walk < end);
}

template <class T, int width, int stride, class Sync>
__global__ void __launch_bounds__(Gw<T, width, stride>::threads, Gw<T, width, stride>::blocks)
    wgrad_mma_nchw(MmaWgrad g) {
  using Gw = Gw<T, width, stride>;
  if constexpr (architecture >= 80) {
    auto& smem = dynamic_smem<PlanesSmem<Gw>>();
    const int blocks = g.channel_blocks * Gw::parts, slice = blockIdx.x / blocks, block = blockIdx.x % blocks;
    const int first_walk = slice * g.slice_walks, c = block / Gw::parts * Gw::channels;
    const Channels channels{c, c + block % Gw::parts * 16 * Gw::k_tiles};
    Sums<Gw> sums;
    walk_chunks<Gw, Sync>(g, first_walk, min(first_walk + g.slice_walks, g.walks), channels, smem.ring, sums);
    finish_block<Gw, Sync>(g, slice, channels.k, sums, smem.totals);
  }
}

}  // namespace resnext::cuda::mma_wgrad
