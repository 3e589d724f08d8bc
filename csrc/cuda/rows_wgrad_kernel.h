#pragma once
// Row-streaming wgrad in float, 3x3, padding 1, groups of 4, 8, 16 or 32 channels, stride t = 1 or 2.
//
//   grad_weight[k,c,r,s] = sum over n,p,q of grad_output[n,p,q,k] * input[n,t*p+r-1,t*q+s-1,c]
//   grad_bias[k]         = sum over n,p,q of grad_output[n,p,q,k]
//
// A block walks down the image. Each step brings the next row of grad_output and the next t rows of input to a ring in
// shared memory; there each row of input is multiplied with the rows of grad_output that it meets by the three tap
// rows, so that both tensors are read once. The sums stay in registers all the way.
//
//   block   the weights of 32 output channels (16 for groups of 16) with the input channels of their groups, over
//           the pixels of a slice
//   slice   walks, one after the other. A walk is `segments` strips of an image, `run_rows` rows of grad_output each,
//           side by side; a segment has 1, 2, 4 or 8 tiles of 7 columns, a walk 8 or 4 tiles in all
//   tile    16 to 128 threads, which have all sums of the block for the tile's columns
//   thread  4 output channels x 2 input channels x 9 taps, in 72 registers
//
//       columns   q..q+6 | ..     | ..     | ..         step p:  grad_output row p   (in stride 1)
//       channels   tile 0   tile 1   tile 2   tile 3             input row p - 1, which meets rows p, p-1 and p-2
//                                                                of grad_output by the tap rows 0, 1 and 2
//
// At the end of its slice a block adds up the sums of its tiles, in order, through the ring's memory, and writes them:
// the results if there is one slice, else to the workspace, where a second kernel adds the slices. How a problem is cut
// depends on its shape alone, and there are no atomics: equal inputs give equal bits, on every GPU.
//
// Shared memory. Rows lie as [column][vector of 4 channels]. All threads of a tile read the same column at a time, its
// vectors of grad_output and pairs of input channels side by side, several threads the same one: no two in a bank.
// `Totals` says why the sums meet in no bank either.
//
// Synchronisation. Once per step: the copies that all threads waited for are visible to all, and all are done with
// the step before, whose stage is filled anew. At the end, per tap row: the ring, or the sums of the tap row before,
// are no longer read; the sums of all tiles are written. Once more: the results are.
//
// Padding. What is outside the image is skipped, not multiplied: rows and tiles by branches, the first and last column
// by predicates. So an infinity reaches only weights whose windows contain it. A tile that the map does not fill takes
// a path with a test of each column.
//
// All of this is so in NHWC. In NCHW the slices, the sums of a thread and what becomes of them are the same, but a step
// brings a few rows and a thread's tiles are in several of them: rows_wgrad_channels.h has that part of the story.
//
// Limits: whole vectors of 4 channels at multiples of 16 bytes, fewer than 2^30 output pixels; in NCHW maps of fewer
// than 2^25 pixels. At most 62 KB of shared memory.
#include <type_traits>

#include "rows_wgrad_channels.h"

namespace resnext::cuda::rows_wgrad {

// Rows on their way, and the rows in use.
template <class Gw>
struct Ring {
  float4 input[Gw::stages][Gw::stride][Gw::tiles * (Gw::stride * tile_columns + taps - Gw::stride) * Gw::input_pitch];
  float4 grad[Gw::grad_stages][Gw::tiles * tile_columns * Gw::grad_pitch];
};

template <class Gw>
struct ChannelRing {
  alignas(16) float lines[ring_floats<Gw>];
};

template <class Gw>
union Smem {
  std::conditional_t<Gw::Form::layout == Layout::nhwc, Ring<Gw>, ChannelRing<Gw>> ring;
  Totals<Gw> totals;
};

// What a thread's tile has of the image in the current walk.
struct Tile {
  int y, rows;      // the first row of input, perhaps -1, and the rows of grad_output
  int owned;        // columns of grad_output, from the tile's first on
  int right;        // how many of them have a column of input to the right
  bool left;        // whether the first has one to the left
  int input, grad;  // in a stage: the thread's first pair of floats, and vector; by tensor cores, first floats
  unsigned kept;    // by tensor cores: see kept_columns
};

template <class Gw>
__device__ __forceinline__ Tile tile_of(const Wgrad& g, int walk) {
  const int tile = threadIdx.x / Gw::tile_threads, segment_index = tile / g.segment_tiles;
  const int tile_column = tile % g.segment_tiles * tile_columns;
  const Segment segment = segment_of<Gw>(g, walk);
  const int q = segment.column + tile_column;
  Tile at;
  at.y = Gw::stride * segment.row - 1;
  at.rows = segment.rows;
  at.owned = segment.rows > 0 ? g.grad_columns - q : 0;
  at.left = q > 0;
  at.right = (g.columns - 2 + Gw::stride) / Gw::stride - q;
  const int input_column = segment_index * segment_columns<Gw>(g) + Gw::stride * tile_column;
  const int grad_column = tile * tile_columns;
  if constexpr (Gw::Form::mma) {
    const int column = first_column<Gw>(), channel = threadIdx.x % 32 / 4 * 2, own = threadIdx.x % Gw::tile_threads;
    at.kept = kept_columns<Gw>(q, at.owned, g.columns);
    at.input = (input_column + Gw::stride * column) * 4 * Gw::input_pitch + Gw::Form::template c_tile<Gw>(own);
    at.grad = (grad_column + column) * 4 * Gw::grad_pitch + Gw::Form::template k_tile<Gw>(own);
    at.input += channel;
    at.grad += channel;
  } else {
    const Pair pair = Nhwc::pair<Gw>(threadIdx.x % Gw::tile_threads);
    const int channel = pair.k_vector * 4 / Gw::width * Gw::width + 2 * pair.c2;
    at.input = input_column * 2 * Gw::vectors + channel / 2;
    at.grad = grad_column * Gw::vectors + pair.k_vector;
  }
  return at;
}

// Adds the products of a tile's part of a row of input and of the row of grad_output that it meets by a tap row. What
// is not in the image is not multiplied. `whole`: the tile has all its columns.
template <class Gw, bool whole>
__device__ __forceinline__ void add_row(float (&sums)[taps][2][4], const float2* input, const float4* grad,
                                        const Tile& tile) {
  constexpr int inputs = Gw::stride * (tile_columns - 1) + taps;
  float2 x[inputs];
#pragma unroll
  for (int i = 0; i < inputs; ++i) x[i] = input[i * 2 * Gw::vectors];
#pragma unroll
  for (int i = 0; i < tile_columns; ++i) {
    if (!whole && i >= tile.owned) continue;
    const float4 vector = grad[i * Gw::vectors];
    const float dy[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int s = 0; s < taps; ++s) {
      if (s == 0 && i == 0 && !tile.left) continue;
      if (s == 2 && (!whole || i == tile_columns - 1) && i >= tile.right) continue;
      const float2 pair = x[Gw::stride * i + s];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sums[s][0][k] += pair.x * dy[k];
        sums[s][1][k] += pair.y * dy[k];
      }
    }
  }
}

// `stage`, less than twice the number of stages, modulo that number.
template <int stages>
__device__ __forceinline__ int wrapped(int stage) {
  return stage < stages ? stage : stage - stages;
}

// Adds the products of a step: of each tap row with the rows that it brings together.
template <class Gw, bool whole>
__device__ __forceinline__ void add_step(Sums<Gw>& sums, const Wgrad& g, const Ring<Gw>& ring, const Tile& tile,
                                         int step, int stage, int grad_stage) {
#pragma unroll
  for (int r = 0; r < taps; ++r) {
    const int p = step - Gw::back(r), y = tile.y + Gw::stride * p + r;
    if (p < 0 || p >= tile.rows || y < 0 || y >= g.rows) continue;
    const float4* input = ring.input[stage][r - Gw::stride * Gw::back(r)];
    const float4* grad = ring.grad[wrapped<Gw::grad_stages>(grad_stage + Gw::grad_stages - Gw::back(r))];
    add_row<Gw, whole>(sums[r], reinterpret_cast<const float2*>(input) + tile.input, grad + tile.grad, tile);
  }
}

// The rows of grad_output that a row of input meets, newest first, as tensor cores take them.
template <class Gw>
using Grads = Grad<Gw>[4 - Gw::stride];

// Adds the products of row `i` of input of a step. `whole`: every row of grad_output that it meets is there, else those
// of steps from `first` to `last`, counted back from this one.
template <class Gw, bool whole>
__device__ __forceinline__ void add_products(Sums<Gw>& sums, const Grads<Gw>& grads, const float* row, unsigned kept,
                                             int i, int first, int last) {
  Inputs<Gw> inputs;
  read_input<Gw>(inputs, row, 4 * Gw::input_pitch, 1, kept);
#pragma unroll
  for (int r = i; r < taps; r += Gw::stride)
    if (whole || (Gw::back(r) >= first && Gw::back(r) <= last)) multiply<Gw>(sums[r], inputs, grads[Gw::back(r)], kept);
}

// Adds the products of a step by tensor cores and three products, where a lane has one row of grad_output at a time.
template <class Gw>
__device__ __forceinline__ void add_split_products(Sums<Gw>& sums, const Wgrad& g, const Ring<Gw>& ring,
                                                   const Tile& tile, int step, int stage, int grad_stage,
                                                   float (&bias)[2 * Gw::halves]) {
#pragma unroll
  for (int back = 0; back < 4 - Gw::stride; ++back) {
    const int p = step - back;
    if (p < 0 || p >= tile.rows) continue;
    const auto& row = ring.grad[wrapped<Gw::grad_stages>(grad_stage + Gw::grad_stages - back)];
#pragma unroll
    for (int half = 0; half < Gw::halves; half += Gw::at_once) {
      Grad<Gw> grad;
      float other[2 * Gw::halves] = {};
      read_grad<Gw>(grad, reinterpret_cast<const float*>(row) + tile.grad, 4 * Gw::grad_pitch, 1, 16, tile.kept,
                    back == 0 ? bias : other, half);
#pragma unroll
      for (int r = Gw::stride * back; r < min(taps, Gw::stride * (back + 1)); ++r) {
        const int i = r - Gw::stride * back, y = tile.y + Gw::stride * step + i;
        if (y < 0 || y >= g.rows) continue;
        Inputs<Gw> inputs;
        read_input<Gw>(inputs, reinterpret_cast<const float*>(ring.input[stage][i]) + tile.input, 4 * Gw::input_pitch,
                       1, tile.kept);
        multiply<Gw>(sums[r], inputs, grad, tile.kept, half);
      }
    }
  }
}

// Adds the products of a step by tensor cores, where rows of grad_output wait in registers.
template <class Gw>
__device__ __forceinline__ void add_products(Sums<Gw>& sums, Grads<Gw>& grads, const Wgrad& g, const Ring<Gw>& ring,
                                             const Tile& tile, int step, int stage, int grad_stage,
                                             float (&bias)[2 * Gw::halves]) {
#pragma unroll
  for (int row = 3 - Gw::stride; row > 0; --row)
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int k = 0; k < 2 * Gw::halves; ++k) grads[row][j][k] = grads[row - 1][j][k];
  if (step < tile.rows) {
    const float* row = reinterpret_cast<const float*>(ring.grad[grad_stage]);
    read_grad<Gw>(grads[0], row + tile.grad, 4 * Gw::grad_pitch, 1, 16, tile.kept, bias);
  }
  const int first = max(step - tile.rows + 1, 0), last = min(step, 3 - Gw::stride);
#pragma unroll
  for (int i = 0; i < Gw::stride; ++i) {
    const int y = tile.y + Gw::stride * step + i;
    if (y < 0 || y >= g.rows) continue;
    const float* row = reinterpret_cast<const float*>(ring.input[stage][i]) + tile.input;
    if (first == 0 && last == 3 - Gw::stride)
      add_products<Gw, true>(sums, grads, row, tile.kept, i, first, last);
    else
      add_products<Gw, false>(sums, grads, row, tile.kept, i, first, last);
  }
}

// Adds a row of grad_output, as it lies in its stage, to what the thread has of the bias.
template <class Gw>
__device__ __forceinline__ void add_bias(float4& bias, const float4* row) {
  constexpr int columns = Gw::tiles * tile_columns, step = Gw::threads / Gw::vectors;
  const int column = threadIdx.x / Gw::vectors;
  row += column * Gw::vectors + threadIdx.x % Gw::vectors;
#pragma unroll
  for (int i = 0; i < columns; i += step)
    if (i + step <= columns || column < columns - i) add(bias, row[i * Gw::vectors]);
}

// Sums the pixels of walks [first_walk, end) that the thread's tile has.
template <class Gw, class Sync, class Bias>
__device__ __forceinline__ void walk_rows(const Wgrad& g, int first_walk, int end, int first_channel, Ring<Gw>& ring,
                                          Sums<Gw>& sums, Bias& bias) {
  Loader<Gw> loader(first_walk, end);
  for (int i = 0; i < Gw::ahead; ++i) loader.copy_next(g, first_channel, ring.input[i], ring.grad[i]);
  int stage = 0, grad_stage = 0;
  [[maybe_unused]] std::conditional_t<Gw::Form::products == 1, Grads<Gw>, int> grads = {};
  for (int walk = first_walk; walk < end; ++walk) {
    const Tile tile = tile_of<Gw>(g, walk);
    for (int step = 0; step < steps<Gw>(g); ++step) {
      Sync::template copies<Gw::ahead - 1>();
      Sync::row();
      loader.copy_next(g, first_channel, ring.input[wrapped<Gw::stages>(stage + Gw::ahead)],
                       ring.grad[wrapped<Gw::grad_stages>(grad_stage + Gw::ahead)]);
      if constexpr (Gw::Form::mma) {
        if (tile.owned > 0) {
          if constexpr (splits<typename Gw::Form>)
            add_split_products<Gw>(sums, g, ring, tile, step, stage, grad_stage, bias);
          else
            add_products<Gw>(sums, grads, g, ring, tile, step, stage, grad_stage, bias);
        }
      } else {
        if (g.grad_bias && step < g.run_rows) add_bias<Gw>(bias, ring.grad[grad_stage]);
        if (tile.owned >= tile_columns)
          add_step<Gw, true>(sums, g, ring, tile, step, stage, grad_stage);
        else if (tile.owned > 0)
          add_step<Gw, false>(sums, g, ring, tile, step, stage, grad_stage);
      }
      stage = wrapped<Gw::stages>(stage + 1);
      grad_stage = wrapped<Gw::grad_stages>(grad_stage + 1);
    }
  }
}

template <int width, int stride, class Form, class Sync>
__global__ void __launch_bounds__(Gw<width, stride, Form>::threads, Gw<width, stride, Form>::blocks)
    wgrad_rows(Wgrad g) {
  using Gw = Gw<width, stride, Form>;
  if constexpr (!Form::mma || architecture >= 80) {
    auto& smem = dynamic_smem<Smem<Gw>>();
    const int block = blockIdx.x % g.channel_blocks, slice = blockIdx.x / g.channel_blocks;
    const int first_channel = block * Gw::channels, first_walk = slice * g.slice_walks;
    const int end = min(first_walk + g.slice_walks, g.walks);
    Sums<Gw> sums = {};
    if constexpr (Form::layout == Layout::nhwc) {
      std::conditional_t<Form::mma, float[2 * Gw::halves], float4> bias = {};
      walk_rows<Gw, Sync>(g, first_walk, end, first_channel, smem.ring, sums, bias);
      add_tiles<Gw, Sync>(sums, bias, smem.totals);
    } else {
      float bias[own_biases<Gw>] = {};
      walk_channels<Gw, Sync>(g, first_walk, end, first_channel, smem.ring.lines, sums, bias);
      add_tiles<Gw, Sync>(sums, bias, smem.totals);
    }
    store_totals<Gw>(g, slice, block, smem.totals);
  }
}

}  // namespace resnext::cuda::rows_wgrad
