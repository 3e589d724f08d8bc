#pragma once
// How the row-streaming wgrad walks down images in NCHW. rows_wgrad_kernel.h says how it all fits together.
//
// In memory a channel's columns follow one another, and its rows: a part of a channel is a stream of floats. Each step
// brings the next `band` rows of grad_output, and as many times the stride of input, of all channels of the block, by
// copies of 16 bytes which 16 to 64 threads make for each channel.
//
//   shared memory   a line for each channel: a ring of whole rows, one right behind the other
//   small images    whose channels are no multiples of 16 bytes (7x7): a line has four channels, one behind the other,
//                   and a step is an image
//   wide images     are cut into strips: a row in shared memory has only the strip's columns
//   tile            7 columns of a row of grad_output; the tiles of a step go to the block's `tiles` groups of threads,
//                   which side by side have 1, 2, 4 or 8 tiles of a row, and several rows
//
// A thread reads the rows of its four output channels once, and with them multiplies three rows of each of its two input
// channels. Bands begin at whole sectors where they can: those of odd lines four floats earlier, if channels are half
// sectors long. Images that fit into none of it (odd numbers of columns, but small ones) are copied by 4 bytes.
//
// Banks. Lines lie an odd number of vectors apart, and every eight of them one vector more. So the eight channels that a
// warp reads at once, every second of input or every fourth of grad_output, are in banks 0, 4, .. 28 at the same column,
// and the tiles of a warp, 7 columns apart each, in the banks between them.
#include "rows_wgrad_store.h"

namespace resnext::cuda::rows_wgrad {

// Floats of the ring of both tensors.
template <class Gw>
constexpr int ring_floats = Gw::width == 32   ? 15872
                            : Gw::width < 16  ? 12064
                            : Gw::stride == 2 ? 11200
                                              : 8000;

// The part of an image that a walk has.
struct Run {
  int image, row, rows, column;  // of grad_output
};

__device__ __forceinline__ Run run_of(const Wgrad& g, int walk) {
  int strip = walk, row = 0, column = 0;
  if (g.runs > 1) {
    strip = walk / g.runs;
    row = walk % g.runs * g.run_rows;
  }
  int image = strip;
  if (g.strips > 1) {
    image = strip / g.strips;
    column = strip % g.strips * g.segment_tiles * tile_columns;
  }
  return {image, row, min(g.run_rows, g.grad_rows - row), column};
}

__device__ __forceinline__ int line_start(const Stream& s, int line) {
  return s.start + line * s.pitch + line / 8 * 4;
}

// Where a channel of the block begins in shared memory.
__device__ __forceinline__ int channel_start(const Stream& s, int channel) {
  return s.line == 1 ? line_start(s, channel) : line_start(s, channel / 4) + channel % 4 * s.channel;
}

// `at`, less than twice the ring's floats and at least minus them, around the ring.
__device__ __forceinline__ int around(const Stream& s, int at) {
  return at < 0 ? at + s.ring : at < s.ring ? at : at - s.ring;
}

// One of the tensors, for the copies of a step.
struct Source {
  const float* line;  // the block's first in the image
  int columns;        // of the image
  int at;             // of the chunk in a line
  int first, end;     // the positions that there are to copy
  int column;         // of the chunk's rows, where they are not whole
};

// Starts the copies of a step, of channels up to `channels` of the block: a thread makes those of four floats of some
// lines. `to`: of the chunk in the ring.
template <class Gw>
__device__ __forceinline__ void copy_chunk(const Wgrad& g, const Stream& s, const Source& source, int channels,
                                           float* smem, int to) {
  const int own = static_cast<int>(threadIdx.x) >> s.lane_bits, odd = own % 2 * s.odd;
  const int offset = 4 * (static_cast<int>(threadIdx.x) & ((1 << s.lane_bits) - 1));
  int place = offset - odd, x = 0;
  if (g.strips > 1 || !g.vectors) {
    const int y = g.strips > 1 ? offset >= s.row : offset / s.row;
    x = source.column - s.lead + offset - y * s.row;
    place = y * source.columns + x;
  }
  const float* from = source.line + own * s.line_floats + (source.at + place);
  const int lines = min(s.lines, s.line == 1 ? channels : channels / 4), ring = around(s, to + offset - odd);
  const unsigned position = source.at + place - source.first, count = source.end - source.first;
  const unsigned columns = source.columns;
  if (offset >= s.chunk) return;
  if (g.vectors) {
    if (position < count && static_cast<unsigned>(x) < columns)
      for (int i = own; i < lines; i += Gw::threads >> s.lane_bits, from += s.jump)
        ptx::cp_async<16>(smem + line_start(s, i) + ring, from);
  } else {
    for (int i = own; i < lines; i += Gw::threads >> s.lane_bits, from += s.jump)
      for (int j = 0; j < 4; ++j)
        if (position + j < count && static_cast<unsigned>(x + j) < columns)
          ptx::cp_async<4>(smem + line_start(s, i) + ring + j, from + j);
  }
}

// Brings rows to the ring, step by step, for walks [walk, end).
template <class Gw>
struct ChannelLoader {
  int walk, end, step = 0;
  int row, column;           // of grad_output, the walk's first
  const float *input, *grad; // the walk's image, from the block's first channel on

  __device__ __forceinline__ ChannelLoader(int first, int end) : walk(first), end(end) {}

  // Starts the copies of the next step and makes a group of them, an empty one if there is no such step. `input_to` and
  // `grad_to`: of the chunks in their rings.
  __device__ __forceinline__ void copy_next(const Wgrad& g, int first_channel, float* smem, int input_to, int grad_to) {
    if (walk < end) {
      const Stream &in = g.input_stream, &out = g.grad_stream;
      if (step == 0) {
        const Run run = run_of(g, walk);
        const int64_t channel = static_cast<int64_t>(run.image) * g.channels + first_channel;
        input = g.input + channel * (g.rows * g.columns);
        grad = g.grad_output + channel * (g.grad_rows * g.grad_columns);
        row = run.row;
        column = run.column;
      }
      const int end_row = min(row + g.run_rows, g.grad_rows), channels = g.channels - first_channel;
      const int first = max(Gw::stride * row - 1, 0), last = min(Gw::stride * (end_row - 1) + 1, g.rows - 1);
      copy_chunk<Gw>(g, in,
                     {input, g.columns, Gw::stride * row * g.columns + (step - g.lag + in.behind) * in.step,
                      (first * g.columns) & ~3, (last + 1) * g.columns * in.line, Gw::stride * column},
                     channels, smem, input_to);
      copy_chunk<Gw>(g, out,
                     {grad, g.grad_columns, row * g.grad_columns + (step - g.lag + out.behind) * out.step,
                      (row * g.grad_columns) & ~3, end_row * g.grad_columns * out.line, column},
                     channels, smem, grad_to);
      if (++step == g.steps) {
        step = 0;
        ++walk;
      }
    }
    ptx::cp_async_commit();
  }
};

// What a thread's tiles have of a row: columns of grad_output, and of input from the one before on, which may not exist.
struct Columns {
  int owned, inputs;
  bool left;
};

// Adds the products of some columns: of a row of grad_output in four channels with three rows of input in two, from row
// `y` on, which perhaps is -1; `at` is where that is in the ring. What is not in the image is not multiplied: `left` and
// `right` tell whether the first and last column of input are.
template <class Gw, int columns>
__device__ __forceinline__ void add_columns(Sums& sums, const Wgrad& g, const float* input, const float* grad, int y,
                                            int at, bool left, bool right) {
  constexpr int inputs = Gw::stride * (columns - 1) + taps;
  float dy[4][columns];
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int i = 0; i < columns; ++i) dy[k][i] = grad[k * g.grad_stream.channel + i];
#pragma unroll
  for (int r = 0; r < taps; ++r) {
    if (static_cast<unsigned>(y + r) >= static_cast<unsigned>(g.rows)) continue;
    const float* row = input + around(g.input_stream, at + r * g.input_stream.row);
#pragma unroll
    for (int c = 0; c < 2; ++c, row += g.input_stream.channel) {
      float x[inputs];
#pragma unroll
      for (int i = 0; i < inputs; ++i)
        if ((i > 0 || left) && (i < inputs - 1 || right)) x[i] = row[i];
#pragma unroll
      for (int i = 0; i < inputs; ++i) {
        if ((i == 0 && !left) || (i == inputs - 1 && !right)) continue;
#pragma unroll
        for (int s = i % Gw::stride; s < taps; s += Gw::stride) {
          const int column = (i - s) / Gw::stride;
          if (i < s || column >= columns) continue;
#pragma unroll
          for (int k = 0; k < 4; ++k) sums[r][s][c][k] += x[i] * dy[k][column];
        }
      }
    }
  }
}

// Adds the products of a tile. A few columns at a time, so that what is multiplied stays in registers; one by one if the
// tile is not whole.
template <class Gw>
__device__ __forceinline__ void add_products(Sums& sums, const Wgrad& g, const float* input, const float* grad, int y,
                                             int at, const Columns& columns) {
  constexpr int half = 4;
  int done = 0;
  if (columns.owned >= half) {
    add_columns<Gw, half>(sums, g, input, grad, y, at, columns.left, Gw::stride * (half - 1) + 2 < columns.inputs);
    done = half;
  }
  if (columns.owned >= tile_columns) {
    add_columns<Gw, tile_columns - half>(sums, g, input + Gw::stride * half, grad + half, y, at, true,
                                         Gw::stride * (tile_columns - 1) + 2 < columns.inputs);
    return;
  }
#pragma unroll 1
  for (; done < columns.owned; ++done)
    add_columns<Gw, 1>(sums, g, input + Gw::stride * done, grad + done, y, at, done > 0 || columns.left,
                       Gw::stride * done + 2 < columns.inputs);
}

// Adds a tile's part of a row of grad_output to what the thread has of the bias.
template <class Gw>
__device__ __forceinline__ void add_bias(float (&bias)[own_biases<Gw>], const float* grad, int channel, int first,
                                         int columns) {
#pragma unroll
  for (int k = 0; k < own_biases<Gw>; ++k)
#pragma unroll
    for (int i = 0; i < tile_columns; ++i)
      if (first < 4 && i < columns) bias[k] += grad[(first + 2 * k) * channel + i];
}

// Sums the pixels of walks [first_walk, end) that the thread's tiles have.
template <class Gw, class Sync>
__device__ __forceinline__ void walk_channels(const Wgrad& g, int first_walk, int end, int first_channel, float* smem,
                                              Sums& sums, float (&bias)[own_biases<Gw>]) {
  const Stream &in = g.input_stream, &out = g.grad_stream;
  ChannelLoader<Gw> loader(first_walk, end);
  int input_to = 0, grad_to = 0;  // of the next chunks to be copied
  for (int i = 0; i < Gw::ahead; ++i) {
    loader.copy_next(g, first_channel, smem, input_to, grad_to);
    input_to += in.chunk;
    grad_to += out.chunk;
  }
  const int tile = Nchw::tile<Gw>(), first_row = tile / g.segment_tiles, next_row = Gw::tiles / g.segment_tiles;
  const int tile_column = tile % g.segment_tiles * tile_columns;
  const Pair pair = Nchw::pair<Gw>(Nchw::thread_of_tile<Gw>());
  const int channel = pair.k_vector / Gw::group_vectors * Gw::width + 2 * pair.c2;
  const float* input = smem + channel_start(in, channel) + in.lead + Gw::stride * tile_column - 1;
  const float* grad = smem + channel_start(out, 4 * pair.k_vector) + tile_column;
  for (int walk = first_walk; walk < end; ++walk) {
    const Run run = run_of(g, walk);
    const int q = run.column + tile_column;
    const Columns columns = {g.grad_columns - q, g.columns - Gw::stride * q + 1, q > 0};
    const bool exists = columns.owned > 0 && first_channel + channel < g.channels;
    const int end_row = exists ? run.row + run.rows : 0;
    int row = run.row - g.lag * g.band;  // the step's first of grad_output
    for (int step = 0; step < g.steps; ++step, row += g.band) {
      Sync::template copies<Gw::ahead - 1>();
      Sync::row();
      loader.copy_next(g, first_channel, smem, input_to, grad_to);
      const int step_end = min(row + g.band, end_row);
      for (int p = row < run.row ? step_end : row + first_row; p < step_end; p += next_row) {
        const float* dy = grad + around(out, around(out, grad_to - out.since) + (p - row) * out.row);
        const int at = around(in, around(in, input_to - in.since) + (Gw::stride * (p - row) - 1) * in.row);
        if (g.grad_bias) add_bias<Gw>(bias, dy, out.channel, pair.c2, columns.owned);
        add_products<Gw>(sums, g, input, dy, Gw::stride * p - 1, at, columns);
      }
      input_to = around(in, input_to + in.chunk);
      grad_to = around(out, grad_to + out.chunk);
    }
  }
}

}  // namespace resnext::cuda::rows_wgrad
