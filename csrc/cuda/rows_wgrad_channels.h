#pragma once
// How the row-streaming wgrad walks down images in NCHW. rows_wgrad_kernel.h says how it all fits together.
//
// In memory a channel's columns follow one another, and its rows: a part of a channel is a stream of floats. Each step
// brings the next `band` rows of grad_output, and as many times the stride of input, of all channels of the block, by
// copies of 16 bytes: half of the threads copy input, the other half grad_output.
//
//   shared memory   a line for each channel: a ring of whole rows, one right behind the other
//   small images    whose channels are no multiples of 16 bytes (7x7): a line has four channels, one behind the other,
//                   and a step is an image
//   wide images     are cut into strips: a row in shared memory has only the strip's columns
//   tile            7 columns of a row of grad_output; the tiles of a step go to the block's `tiles` groups of threads,
//                   which side by side have 1, 2, 4 or 8 tiles of a row, and several rows
//
// A thread reads the rows of its four output channels once, and with them multiplies three rows of each of its two
// input channels. Bands begin at whole sectors where they can: those of odd lines four floats earlier, if channels are
// half sectors long. Images that fit into none of it (odd numbers of columns, but small ones) are copied by 4 bytes.
//
// Banks. Lines lie an odd number of vectors apart, in an order that sets those side by side which a warp reads at once:
// every second line of input, eight of them, and every fourth of grad_output. At the same column these are in banks 0,
// 4, .. 28, and the tiles of a warp, 7 columns apart each, in the banks between them.
#include "rows_wgrad_mma.h"

namespace resnext::cuda::rows_wgrad {

// Floats of the ring of both tensors.
template <class Gw>
constexpr int ring_floats = Gw::width == 32   ? 15872
                            : Gw::span < 16   ? 12160
                            : Gw::stride == 2 ? 11200
                            : Gw::Form::mma   ? 11264
                                              : 8000;

// Where a line of the block begins in shared memory: of every `mix` lines the first, then the second of each, ...
__device__ __forceinline__ int line_start(const Stream& s, int line) {
  return s.start + line % s.mix * s.mix_pitch + line / s.mix * s.pitch;
}

// Where a channel begins in shared memory, if a thread reads some from it on.
__device__ __forceinline__ int channel_start(const Stream& s, int channel) {
  return s.line == 1 ? line_start(s, channel) : line_start(s, channel / 4) + channel % 4 * s.channel;
}

// `at`, less than twice the ring's floats, in the ring; and `at`, at least minus the ring's floats.
__device__ __forceinline__ int wrapped(const Stream& s, int at) {
  return static_cast<int>(min(static_cast<unsigned>(at), static_cast<unsigned>(at - s.ring)));
}

__device__ __forceinline__ int wrapped_back(const Stream& s, int at) {
  return static_cast<int>(min(static_cast<unsigned>(at), static_cast<unsigned>(at + s.ring)));
}

// The thread, which as far as the compiler knows depends on something that changes, never negative: else it would keep
// what is made of the thread in registers all the way.
__device__ __forceinline__ int own_thread(int changing) { return static_cast<int>(threadIdx.x) + (changing >> 31); }

// A thread's part in bringing rows to the ring, step by step, for walks [walk, end): the first half of the threads
// copies input, the other half grad_output. In every step a thread copies four floats of some lines.
template <class Gw>
struct ChannelLoader {
  int walk, end, step = 0;
  int place, lane;      // of its first line in shared memory, and there in the ring
  const float* from;    // the next four floats of its first line
  int position, count;  // of these among what there is to copy of a line, and how much that is

  static constexpr int threads = Gw::threads / 2, nowhere = -(1 << 30);

  __device__ __forceinline__ ChannelLoader(const Wgrad& g, int first, int end, int first_channel)
      : walk(first), end(end) {
    const Stream& s = of_input() ? g.input_stream : g.grad_stream;
    place = line_start(s, line(s, own_thread(walk)));
    lane = wrapped_back(s, offset(s, own_thread(walk)) - odd(s, own_thread(walk)));
    if (walk < end) start_walk(g, first_channel);
  }

  // Starts the copies of the next step and makes a group of them, an empty one if there is no such step. `input_to` and
  // `grad_to`: of the chunks in their rings.
  __device__ __forceinline__ void copy_next(const Wgrad& g, int first_channel, float* smem, int input_to, int grad_to) {
    if (walk < end) {
      if (of_input())
        copy_chunk(g, g.input_stream, g.columns, first_channel, smem, input_to);
      else
        copy_chunk(g, g.grad_stream, g.grad_columns, first_channel, smem, grad_to);
      if (++step == g.steps) {
        step = 0;
        if (++walk < end) next_walk(g, first_channel);
      }
    }
    ptx::cp_async_commit();
  }

 private:
  __device__ static bool of_input() { return threadIdx.x < threads; }

  // The first of the thread's lines, its place in their chunks, and by how much these begin earlier.
  __device__ static int line(const Stream& s, int thread) { return thread % threads >> s.lane_bits; }
  __device__ static int offset(const Stream& s, int thread) { return 4 * (thread & ((1 << s.lane_bits) - 1)); }
  __device__ static int odd(const Stream& s, int thread) { return line(s, thread) % 2 * s.odd; }

  // Whole images follow one another at the same distance.
  __device__ __forceinline__ void next_walk(const Wgrad& g, int first_channel) {
    if (g.strips > 1 || g.runs > 1) return start_walk(g, first_channel);
    const Stream& s = of_input() ? g.input_stream : g.grad_stream;
    from += s.image_jump;
    position -= g.steps * s.step;
  }

  __device__ __forceinline__ void start_walk(const Wgrad& g, int first_channel) {
    const Segment run = segment_at(g, walk);
    const int64_t channel = static_cast<int64_t>(run.image) * g.channels + first_channel;
    const int row = Gw::stride * run.row, end_row = row + Gw::stride * (run.rows - 1) + taps - 1;
    if (of_input())
      start_copies(g, g.input_stream, g.input + channel * (g.rows * g.columns), g.columns, row, Gw::stride * run.column,
                   max(row - 1, 0), min(end_row, g.rows));
    else
      start_copies(g, g.grad_stream, g.grad_output + channel * (g.grad_rows * g.grad_columns), g.grad_columns, run.row,
                   run.column, run.row, run.row + run.rows);
  }

  // `row` is the first of the first step, in strips `column` that of all rows; rows [first_row, end_row) are needed.
  __device__ __forceinline__ void start_copies(const Wgrad& g, const Stream& s, const float* tensor, int columns,
                                               int row, int column, int first_row, int end_row) {
    const int thread = own_thread(walk);
    const bool whole_rows = g.vectors && g.strips == 1;
    const int y = whole_rows ? 0 : offset(s, thread) / s.row,
              x = whole_rows ? 0 : column - s.lead + offset(s, thread) - y * s.row;
    const int at = row * columns - (g.lag - s.behind) * s.step +
                   (whole_rows ? offset(s, thread) - odd(s, thread) : y * columns + x);
    const int first = g.vectors ? (first_row * columns) & ~3 : first_row * columns;
    from = tensor + line(s, thread) * s.line_floats + at;
    position = offset(s, thread) < s.chunk && x >= 0 && x < columns ? at - first : nowhere;
    count = end_row * columns * s.line - first;
  }

  // `to`: of the chunk in the ring.
  __device__ __forceinline__ void copy_chunk(const Wgrad& g, const Stream& s, int columns, int first_channel,
                                             float* smem, int to) {
    if (static_cast<unsigned>(position) < static_cast<unsigned>(count)) {
      float* stage = smem + place + wrapped(s, to + lane);
      const float* source = from;
      const int channels = g.channels - first_channel;
      const int lines = min(s.lines, s.line == 1 ? channels : channels / 4) - line(s, own_thread(to));
      if (g.vectors) {
        const auto copy = [&] {
          ptx::cp_async<16>(stage, source);
          source += s.jump;
          stage += s.stage_jump;
        };
        int left = lines;
#pragma unroll 1
        for (; left > s.together; left -= 2 * s.together) {
          copy();
          copy();
        }
        if (left > 0) copy();
      } else {
        const int floats = min(4, columns - position % columns);
#pragma unroll 1
        for (int i = lines; i > 0; i -= s.together, source += s.jump, stage += s.stage_jump)
#pragma unroll 1
          for (int j = 0; j < floats; ++j) ptx::cp_async<4>(stage + j, source + j);
      }
    }
    from += s.step;
    position += s.step;
  }
};

// What a thread's tiles have of a row: columns of grad_output, and of input from the one before on, which may not
// exist.
struct Columns {
  int owned, inputs;
  bool left;
};

// The three rows of input that a row of grad_output meets, from the tile's first column on, in the thread's first input
// channel, and whether they are in the image; `channel` floats behind lies the second one.
struct InputRows {
  const float* row[taps];
  bool inside[taps];
  int channel;
};

// From row `y` on, which perhaps is -1; `at` is where that is in the ring.
template <class Gw>
__device__ __forceinline__ InputRows input_rows(const Wgrad& g, const float* smem, int y, int at) {
  InputRows rows;
  rows.channel = g.input_stream.channel;
#pragma unroll
  for (int r = 0; r < taps; ++r) {
    rows.row[r] = smem + wrapped(g.input_stream, at + r * g.input_stream.row);
    rows.inside[r] = static_cast<unsigned>(y + r) < static_cast<unsigned>(g.rows);
  }
  return rows;
}

// Adds the products of some columns, from the tile's column `first` on: of a row of grad_output in four channels with
// three rows of input in two. What is not in the image is not multiplied: `left` and `right` tell whether the first and
// last column of input are.
template <class Gw, int columns>
__device__ __forceinline__ void add_columns(Sums<Gw>& sums, const InputRows& input, const float* grad, int grad_channel,
                                            int first, bool left, bool right) {
  constexpr int inputs = Gw::stride * (columns - 1) + taps;
  float dy[4][columns];
#pragma unroll
  for (int k = 0; k < 4; ++k, grad += grad_channel)
#pragma unroll
    for (int i = 0; i < columns; ++i) dy[k][i] = grad[first + i];
#pragma unroll
  for (int r = 0; r < taps; ++r) {
    if (!input.inside[r]) continue;
    const float* row = input.row[r] + Gw::stride * first - 1;
#pragma unroll
    for (int c = 0; c < 2; ++c, row += input.channel) {
      float x[inputs];
#pragma unroll
      for (int i = inputs - 1; i >= 0; --i)
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

// Adds some columns of a row of grad_output, from the `first` on and round, to what the thread has of the bias.
template <int columns, int biases>
__device__ __forceinline__ void add_bias(float (&bias)[biases], const float* grad, int channel, int first) {
  const float *row = grad + first, *rest = first > 0 ? row - columns : row;
#pragma unroll
  for (int k = 0; k < biases; ++k, row += 2 * channel, rest += 2 * channel)
#pragma unroll
    for (int i = 0; i < columns; ++i) bias[k] += i < columns - 2 ? row[i] : rest[i];
}

// Adds a tile to the sums. A few columns at a time, so that what is multiplied stays in registers; one by one if the
// tile is not whole. `own`: the channel with which the thread's part of the bias begins.
template <class Gw>
__device__ __forceinline__ void add_tile(Sums<Gw>& sums, float (&bias)[own_biases<Gw>], const Wgrad& g,
                                         const InputRows& input, const float* grad, int own, const Columns& columns) {
  const int channel = g.grad_stream.channel;
  if (columns.owned >= tile_columns) {
    constexpr int half = 3;
    add_columns<Gw, half>(sums, input, grad, channel, 0, columns.left, true);
    add_columns<Gw, tile_columns - half>(sums, input, grad, channel, half, true,
                                         Gw::stride * (tile_columns - 1) + 2 < columns.inputs);
    // Channels 16 floats apart share banks in twos, unless every second two begin two columns later. Groups of 16 and
    // 32 at stride 1 have no register for that.
    const int first = (Gw::width < 16 || Gw::stride == 2) && own >= 2 && channel % 16 == 0 ? 2 : 0;
    if (g.grad_bias) add_bias<tile_columns>(bias, grad + own * channel, channel, first);
    return;
  }
#pragma unroll 1
  for (int i = 0; i < columns.owned; ++i) {
    add_columns<Gw, 1>(sums, input, grad, channel, i, i > 0 || columns.left, Gw::stride * i + 2 < columns.inputs);
    if (g.grad_bias) add_bias<1>(bias, grad + own * channel + i, channel, 0);
  }
}

// The same by tensor cores, for the columns that a lane has of `rows` rows of grad_output at most. The first one is at
// `dy` in its ring, the first row of input, `y`, which perhaps is -1, at `x`.
template <class Gw>
__device__ __forceinline__ void add_products(Sums<Gw>& sums, float (&bias)[2 * Gw::halves], const Wgrad& g,
                                             const float* input, const float* grad, int rows, int y, int x, int dy,
                                             unsigned kept) {
  constexpr int most = Gw::rows_together;
#pragma unroll
  for (int half = 0; half < Gw::halves; half += Gw::at_once) {
    Grad<Gw> grads[most];
#pragma unroll
    for (int i = 0; i < most; ++i)
      if (i == 0 || i < rows)
        read_grad<Gw>(grads[i], grad + (i > 0 ? wrapped(g.grad_stream, dy + i * g.grad_stream.row) : dy), 1,
                      g.grad_stream.channel, g.grad_stream.half, kept, bias, half);
#pragma unroll
    for (int j = 0; j < Gw::stride * (most - 1) + taps; ++j) {
      if (static_cast<unsigned>(y + j) >= static_cast<unsigned>(g.rows) || (j >= taps && rows < most)) continue;
      Inputs<Gw> inputs;
      read_input<Gw>(inputs, input + (j > 0 ? wrapped(g.input_stream, x + j * g.input_stream.row) : x) - 1, 1,
                     g.input_stream.channel, kept);
#pragma unroll
      for (int i = 0; i < most; ++i) {
        const int r = j - Gw::stride * i;
        if (r >= 0 && r < taps && (i == 0 || i < rows)) multiply<Gw>(sums[r], inputs, grads[i], kept, half);
      }
    }
  }
}

// Where a thread reads: its first channel of input in the block, and where that begins in shared memory, and its first
// channel of grad_output. Of plain floats also the channel of these with which its part of the bias begins.
struct Place {
  int channel, input, grad, own;
};

template <class Gw>
__device__ __forceinline__ Place place_of(const Wgrad& g, int tile_column) {
  const Stream &in = g.input_stream, &out = g.grad_stream;
  const int input = in.lead + Gw::stride * tile_column;
  if constexpr (Gw::Form::mma) {
    const int column = first_column<Gw>(), pair = threadIdx.x % 32 / 4 * 2, own = threadIdx.x % Gw::tile_threads;
    const int c = Gw::Form::template c_tile<Gw>(own) + pair, k = Gw::Form::template k_tile<Gw>(own);
    return {c, channel_start(in, c) + input + Gw::stride * column, channel_start(out, k + pair) + tile_column + column,
            0};
  } else {
    const Pair pair = Nchw::pair<Gw>(Nchw::thread_of_tile<Gw>(threadIdx.x));
    const int c = pair.k_vector / Gw::group_vectors * Gw::width + 2 * pair.c2;
    return {c, channel_start(in, c) + input, channel_start(out, 4 * pair.k_vector) + tile_column, pair.c2 % 4};
  }
}

// Sums the pixels of walks [first_walk, end) that the thread's tiles have.
template <class Gw, class Sync>
__device__ __forceinline__ void walk_channels(const Wgrad& g, int first_walk, int end, int first_channel, float* smem,
                                              Sums<Gw>& sums, float (&bias)[own_biases<Gw>]) {
  const Stream &in = g.input_stream, &out = g.grad_stream;
  ChannelLoader<Gw> loader(g, first_walk, end, first_channel);
  int input_to = 0, grad_to = 0;  // of the next chunks to be copied
  for (int i = 0; i < Gw::ahead; ++i) {
    loader.copy_next(g, first_channel, smem, input_to, grad_to);
    input_to += in.chunk;
    grad_to += out.chunk;
  }
  const int tile = Gw::Form::template tile<Gw>(threadIdx.x);
  const int tile_column = (tile & (g.segment_tiles - 1)) * tile_columns;
  const Place place = place_of<Gw>(g, tile_column);
  const bool there = first_channel + place.channel < g.channels;
  for (int walk = first_walk; walk < end; ++walk) {
    const Segment run = segment_at(g, walk);
    const int q = run.column + tile_column;
    const Columns columns = {g.grad_columns - q, g.columns - Gw::stride * q + 1, q > 0};
    const unsigned kept = Gw::Form::mma && there ? kept_columns<Gw>(q, columns.owned, g.columns) : 0;
    // `row`: the step's first of grad_output.
    for (int row = run.row - g.lag * g.band; row < run.row + g.run_rows; row += g.band) {
      Sync::template copies<Gw::ahead - 1>();
      Sync::row();
      loader.copy_next(g, first_channel, smem, input_to, grad_to);
      const int step_end = min(row + g.band, run.row + run.rows);
      const int own_tile = Gw::Form::template tile<Gw>(own_thread(grad_to));
      const int first_row = there || Gw::Form::mma ? own_tile * g.tile_rows / Gw::tiles * Gw::rows_together : 1 << 29;
      for (int p = row < run.row ? step_end : row + first_row; p < step_end; p += g.tile_rows * Gw::rows_together) {
        const int dy = wrapped(out, wrapped_back(out, grad_to - out.since) + (p - row) * out.row);
        const int x = wrapped(in, wrapped_back(in, input_to - in.since - in.row) + Gw::stride * (p - row) * in.row);
        const int y = Gw::stride * p - 1;
        const float *input = smem + place.input, *grad = smem + place.grad;
        if constexpr (Gw::Form::mma)
          add_products<Gw>(sums, bias, g, input, grad, step_end - p, y, x, dy,
                           kept & ~(p >> 31));  // as own_thread() does
        else
          add_tile<Gw>(sums, bias, g, input_rows<Gw>(g, input, y, x), grad + dy, place.own, columns);
      }
      input_to = wrapped(in, input_to + in.chunk);
      grad_to = wrapped(out, grad_to + out.chunk);
    }
  }
}

}  // namespace resnext::cuda::rows_wgrad
