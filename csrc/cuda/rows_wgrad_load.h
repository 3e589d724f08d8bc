#pragma once
// What the row-streaming wgrad is made of up to shared memory: sizes, the problem, its cut into slices, walks and
// segments, and the copies of rows. rows_wgrad_kernel.h says how it all fits together.
#include "device.h"
#include "generic_index.h"

namespace resnext::cuda::rows_wgrad {

constexpr int taps = 3, tile_columns = 7;

// How a tensor in NCHW streams through shared memory, in floats (rows_wgrad_channels.h).
struct Stream {
  int64_t line_floats, jump;  // from one line to the next in memory, from one line of a thread to its next
  int64_t image_jump;         // from the end of a walk to the next one's start, if these are whole images
  int lines, line;            // lines of a block, channels of a line
  int lane_bits, together;    // threads that copy a line, a power of two; lines that are copied at a time
  int stage_jump;             // as jump, in shared memory
  int mix, mix_pitch;         // lines begin with every `mix`th one, then the ones after these, `mix_pitch` further, ..
  int chunk, step;            // what a line gets in a step, in shared memory and in memory
  int row, lead;              // from a row to the next in shared memory; columns before those of the strip
  int start, ring, pitch;     // of the first line; what a line keeps; from one line to the next
  int channel, half;          // from one channel of a line, or of its neighbour, to the next, and to the 16th
  int behind, since;          // steps that a chunk is there before its use; from it to the chunk that is being copied
  int odd;                    // that odd lines begin earlier
};

// Pointers, strides and sizes in elements, and how the work is cut.
struct Wgrad {
  const float *input, *grad_output;
  float *grad_weight, *grad_bias;  // grad_bias may be null
  float* workspace;                // [slice][sums of all blocks, then of the bias]
  int64_t weight_k, weight_c, weight_r, weight_s;
  int64_t row, grad_row, step, grad_step;  // NHWC: from a row of a tensor, or a thread's column, to the next
  Stream input_stream, grad_stream;        // NCHW
  int channels, rows, columns, grad_rows, grad_columns;
  int k_vectors;  // of 4 output channels, in all blocks
  int channel_blocks, segments, strips, runs, run_rows, segment_tiles;
  int walks, slices, slice_walks, walk_segments;
  // NCHW: rows of grad_output in a step, and of these in tiles side by side; steps before the first product, of a walk.
  int band, tile_rows, lag, steps;
  bool vectors;          // copies are of 16 bytes
  bool channels_closer;  // in the weight's memory, than taps
};

struct Segment {
  int image;
  int row, column;  // the first of grad_output
  int rows;         // of grad_output, 0 if there is no such segment
};

// The segment of an index, which are as many as the problem has.
__device__ __forceinline__ Segment segment_at(const Wgrad& g, int index) {
  int strip = index, row = 0, column = 0;
  if (g.runs > 1) {
    strip = index / g.runs;
    row = index % g.runs * g.run_rows;
  }
  int image = strip;
  if (g.strips > 1) {
    image = strip / g.strips;
    column = strip % g.strips * g.segment_tiles * tile_columns;
  }
  return {image, row, column, min(g.run_rows, g.grad_rows - row)};
}

// One of the two tensors as a thread copies it in NHWC: one vector of every `step`th column of a segment, which
// `threads` threads share. A segment has `tile` columns for each
// of its tiles, and `halo` more. In a stage columns are `pitch` vectors apart.
template <class Gw, int vectors, int pitch, int tile, int halo>
struct PixelRows {
  const float* next;  // the thread's first column of the next row
  int place;          // of the first in a stage
  unsigned inside;    // bit i: the thread's ith column is one of the segment; bit i + 16: and of the image

  static constexpr int step = Gw::tile_threads / vectors, count = (tile + halo + step - 1) / step;

  // The first column of a thread: of eight threads that copy together those with the second of two columns of 4 vectors
  // have one half a turn of the banks further, whatever the pitch.
  __device__ static int first(int thread) {
    if (pitch == vectors || vectors == 8) return thread / vectors;
    constexpr int bit = pitch % 2 == 0 ? 1 : 2;
    const int at = thread / vectors;
    return (at & ~(1 | 1 << bit)) | (at & 1) << bit | (at >> bit & 1);
  }

  // Begins at (row, column), where `column` may be -1.
  __device__ __forceinline__ void start(const float* tensor, int channels, int first_channel, int rows, int columns,
                                        const Segment& segment, int row, int column, int threads, int segment_columns) {
    const int vector = threadIdx.x % vectors, at = first(threadIdx.x % threads);
    const int64_t pixel = (static_cast<int64_t>(segment.image) * rows + row) * columns + column + at;
    next = tensor + pixel * channels + first_channel + 4 * vector;
    place = (static_cast<int>(threadIdx.x) / threads * segment_columns + at) * pitch + vector;
    inside = 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int index = at + i * (threads / vectors), x = column + index;
      if (index >= segment_columns) continue;
      inside |= 1u << i;
      if (segment.rows > 0 && x >= 0 && x < columns && first_channel + 4 * vector < channels) inside |= 1u << (i + 16);
    }
  }

  // Starts the copies of the next row, `step` elements from one column to the next: zeros where the image has no such
  // column, or if the row is not there at all.
  __device__ __forceinline__ void copy(int64_t step, int threads, bool there, float4* stage) const {
    const float* from = next;
    float4* to = stage + place;
#pragma unroll
    for (int i = 0; i < count; ++i, from += step, to += threads / vectors * pitch)
      if ((inside & 1u << i) != 0) ptx::cp_async<16>(to, from, there && (inside & 1u << (i + 16)) != 0 ? 16 : 0);
  }
};

// The output vector and the pair of input channels of a thread of a tile: c2 counts the pairs of the group.
struct Pair {
  int k_vector, c2;
};

// Tiles have threads next to one another.
struct TileByTile {
  template <class Gw>
  __device__ static int tile(int thread) {
    return thread / Gw::tile_threads;
  }

  template <class Gw>
  __device__ static int thread_of_tile(int thread) {
    return thread % Gw::tile_threads;
  }
};

// The layout of both activation tensors, and how the threads of a block share its tiles and weights.
struct Nhwc : TileByTile {
  static constexpr Layout layout = Layout::nhwc;
  static constexpr bool mma = false;
  static constexpr int products = 0;

  // Low bits alternate, so that of four lanes two each read the same vector, and so two each the same pair.
  template <class Gw>
  __device__ static Pair pair(int thread) {
    const int low = thread % (2 * Gw::vectors);
    return {low / 4 * 2 + low % 2, thread / (2 * Gw::vectors) * 2 + low / 2 % 2};
  }
};

struct Nchw {
  static constexpr Layout layout = Layout::nchw;
  static constexpr bool mma = false;
  static constexpr int products = 0;

  // Eight lanes have pairs of input channels next to one another, four times, for each output vector that their groups
  // have or, in narrow groups, for several tiles.
  template <class Gw>
  __device__ static int tile(int thread) {
    return thread / (8 * Gw::group_vectors) % Gw::tiles;
  }

  template <class Gw>
  __device__ static int thread_of_tile(int thread) {
    constexpr int run = 8 * Gw::group_vectors;
    return thread / (run * Gw::tiles) * run + thread % run;
  }

  template <class Gw>
  __device__ static Pair pair(int thread) {
    constexpr int group_pairs = Gw::width / 2;
    const int pair = thread / (8 * Gw::group_vectors) * 8 + thread % 8;
    return {pair / group_pairs * Gw::group_vectors + thread / 8 % Gw::group_vectors, pair % group_pairs};
  }
};

// Either of them for tensor cores (rows_wgrad_mma.h): a warp has 16 input channels of a tile and 16 output channels or,
// of groups of 32, all of them.
template <class Tensors, int products_of_one>
struct Tf32 : TileByTile {
  static constexpr Layout layout = Tensors::layout;
  static constexpr bool mma = true;
  static constexpr int products = products_of_one;

  // The first input and the first output channel of the warp of a tile's thread; those of threads from `tile_threads`
  // on are a warp's second half.
  template <class Gw>
  __device__ static int c_tile(int thread) {
    return thread / 32 % (Gw::span / 16) * 16;
  }

  template <class Gw>
  __device__ static int k_tile(int thread) {
    return thread / 32 / (Gw::span / 16) * 16;
  }

  // What accumulators of mma have in a lane. In groups of 8 half of the lanes have products of two groups.
  template <class Gw>
  __device__ static Pair pair(int thread) {
    const int lane = thread % 32;
    return {k_tile<Gw>(thread) / 4 + lane % 4, c_tile<Gw>(thread) / 2 + lane / 4 % (Gw::width == 8 ? 4 : 8)};
  }

  template <class Gw>
  __device__ static bool wanted(int thread) {
    return Gw::width > 8 || thread % 32 / 16 == thread % 4 / 2;
  }
};

// The sizes for one width of groups, one stride and one layout, Nhwc or Nchw, or Tf32 of it.
template <int group_width, int map_stride, class Tensors>
struct Gw {
  using Form = Tensors;
  static constexpr int width = group_width, stride = map_stride;
  static constexpr int span = Form::mma && width < 16 ? 16 : width;  // input channels that an output channel meets
  static constexpr int vectors = span == 16 ? 4 : 8;  // of 4 output channels, and of 4 input channels, in a block
  static constexpr int channels = 4 * vectors, group_vectors = width / 4;
  // As leave room for other blocks, and registers for operands that are split.
  static constexpr int tiles = span == 32 || (stride == 2 && span < 16) || Form::products == 3 ? 4 : 8;
  static constexpr int halves = Form::mma && span == 32 ? 2 : 1;  // of 16 output channels, that a warp has
  static constexpr int tile_sums = vectors * span / 2;            // of 4 output channels x 2 input channels x 9 taps
  static constexpr int tile_threads = tile_sums / halves, threads = tiles * tile_threads;
  static constexpr int blocks = threads < 128    ? 4  // that the registers of a multiprocessor must hold
                                : threads == 128 ? (Form::layout == Layout::nhwc && !Form::mma ? 4 : 3)
                                                 : 512 / threads / halves;
  // Rows of grad_output in NCHW that a thread multiplies together: by one product in stride 1 two, which share two of
  // the four rows of input that they meet.
  static constexpr int rows_together = Form::products == 1 && stride == 1 ? 2 : 1;
  // Halves that it multiplies at a time, as registers allow.
  static constexpr int at_once = Form::products == 3 ? 1 : halves;
  // Steps being copied while one is in use.
  static constexpr int ahead =
      span < 16 || stride == 2 || Form::products == 3 || (Form::layout == Layout::nchw && rows_together > 1) ? 1 : 2;
  static constexpr int elements = width * taps * taps;  // weights of an output channel

  // Vectors from a column to the next in NHWC: for tensor cores such that the four columns that a warp reads, side by
  // side or every second one, of grad_output or those of input that meet them, begin 8 banks apart.
  static constexpr int grad_step = Form::products == 1 && stride == 1 ? 2 : 1;
  static constexpr int grad_pitch = Form::mma ? vectors + 2 / grad_step : vectors;
  static constexpr int input_pitch = Form::mma ? vectors + 2 / (grad_step * stride) : vectors;

  // In NHWC, tap row r meets the row of grad_output of this many steps before. By one product these wait in registers.
  static constexpr int back(int r) { return r / stride; }
  static constexpr int stages = ahead + 1, grad_stages = Form::products == 1 ? stages : stages + back(taps - 1);
};

// A step brings one row of grad_output and `stride` rows of input, the last steps of a run only input.
template <class Gw>
__device__ __forceinline__ int steps(const Wgrad& g) {
  return g.run_rows + Gw::back(taps - 1);
}

// Columns of a segment in a stage of input: those of its tiles, and the neighbours that their taps reach.
template <class Gw>
__device__ __forceinline__ int segment_columns(const Wgrad& g) {
  return Gw::stride * g.segment_tiles * tile_columns + taps - Gw::stride;
}

// The segment of a walk that a thread copies and multiplies.
template <class Gw>
__device__ __forceinline__ Segment segment_of(const Wgrad& g, int walk) {
  const int index = walk * g.walk_segments + threadIdx.x / (Gw::tile_threads * g.segment_tiles);
  const int strip = index / g.runs, row = index % g.runs * g.run_rows;
  return {strip / g.strips, row, strip % g.strips * g.segment_tiles * tile_columns,
          index < g.segments ? min(g.run_rows, g.grad_rows - row) : 0};
}

// A thread's part in bringing rows to the ring, step by step, for walks [walk, end).
template <class Gw>
struct Loader {
  int walk, end, step = 0;
  int y, rows;  // the next row of input, and the rows of grad_output in the segment
  PixelRows<Gw, Gw::vectors, Gw::input_pitch, Gw::stride * tile_columns, taps - Gw::stride> input;
  PixelRows<Gw, Gw::vectors, Gw::grad_pitch, tile_columns, 0> grad;

  __device__ __forceinline__ Loader(int first, int end) : walk(first), end(end) {}

  // Starts the copies of the next step and makes a group of them, an empty one if there is no such step.
  template <class Stage>
  __device__ __forceinline__ void copy_next(const Wgrad& g, int first_channel, Stage& input_stage, float4* grad_stage) {
    if (walk < end) {
      if (step == 0) start_walk(g, first_channel);
      const int threads = Gw::tile_threads * g.segment_tiles;
#pragma unroll
      for (int i = 0; i < Gw::stride; ++i, ++y, input.next += g.row)
        if (y >= 0 && y < g.rows && (i == 0 || step < g.run_rows)) input.copy(g.step, threads, true, input_stage[i]);
      if (step < g.run_rows) grad.copy(g.grad_step, threads, step < rows, grad_stage);
      grad.next += g.grad_row;
      if (++step == steps<Gw>(g)) {
        step = 0;
        ++walk;
      }
    }
    ptx::cp_async_commit();
  }

 private:
  __device__ __forceinline__ void start_walk(const Wgrad& g, int first_channel) {
    const Segment segment = segment_of<Gw>(g, walk);
    const int threads = Gw::tile_threads * g.segment_tiles;
    y = Gw::stride * segment.row - 1;
    rows = segment.rows;
    input.start(g.input, g.channels, first_channel, g.rows, g.columns, segment, y, Gw::stride * segment.column - 1,
                threads, segment_columns<Gw>(g));
    grad.start(g.grad_output, g.channels, first_channel, g.grad_rows, g.grad_columns, segment, segment.row,
               segment.column, threads, g.segment_tiles * tile_columns);
  }
};

}  // namespace resnext::cuda::rows_wgrad
