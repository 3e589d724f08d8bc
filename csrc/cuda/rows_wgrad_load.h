#pragma once
// What the row-streaming wgrad is made of up to shared memory: sizes, the problem, its cut into slices, walks and
// segments, and the copies of rows. rows_wgrad_kernel.h says how it all fits together.
#include "device.h"
#include "generic_index.h"

namespace resnext::cuda::rows_wgrad {

constexpr int taps = 3, tile_columns = 7;

// Pointers, strides and sizes in elements, and how the work is cut.
struct Wgrad {
  const float *input, *grad_output;
  float *grad_weight, *grad_bias;  // grad_bias may be null
  float* workspace;                // [slice][sums of all blocks, then of the bias]
  int64_t weight_k, weight_c, weight_r, weight_s;
  int64_t row, grad_row, step, grad_step;  // from a row of an activation tensor, or a thread's column, to the next
  int channels, rows, columns, grad_rows, grad_columns;
  int channel_blocks, segments, strips, runs, run_rows, segment_tiles;
  int walks, slices, slice_walks;
  bool channels_closer;  // in the weight's memory, than taps
};

struct Segment {
  int image;
  int row, column;  // the first of grad_output
  int rows;         // of grad_output, 0 if there is no such segment
};

// One of the two tensors as a thread copies it in NHWC: one vector of every `step`th column of a segment, which
// `threads` threads share. `pitch`: vectors from a column to the next in a stage. A segment has `tile` columns for each
// of its tiles, and `halo` more.
template <class Gw, int vectors, int pitch, int tile, int halo>
struct PixelRows {
  const float* next;  // the thread's first column of the next row
  int place;          // of the first in a stage
  unsigned inside;    // bit i: the thread's ith column is one of the segment; bit i + 16: and of the image

  static constexpr int step = Gw::tile_threads / vectors, count = (tile + halo + step - 1) / step;

  // Begins at (row, column), where `column` may be -1.
  __device__ __forceinline__ void start(const float* tensor, int channels, int first_channel, int rows, int columns,
                                        const Segment& segment, int row, int column, int threads, int segment_columns) {
    const int vector = threadIdx.x % vectors, at = threadIdx.x % threads / vectors;
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
  // column, or if the row is not there at all. The unnamed number is that of channels that the block has.
  __device__ __forceinline__ void copy(int64_t step, int threads, int, bool there, float4* stage) const {
    const float* from = next;
    float4* to = stage + place;
#pragma unroll
    for (int i = 0; i < count; ++i, from += step, to += threads / vectors * pitch)
      if ((inside & 1u << i) != 0) ptx::cp_async<16>(to, from, there && (inside & 1u << (i + 16)) != 0 ? 16 : 0);
  }
};

// The same in NCHW: element by element, every 8th column of every `threads / 8`th channel. A warp copies eight columns
// of four channels at a time, whole sectors where rows begin at one; as columns lie an odd number of vectors apart in a
// stage, these are 32 different banks.
template <class Gw, int vectors, int pitch, int tile, int halo>
struct PlaneRows {
  const float* next;  // the thread's first column and channel of the next row
  int place;          // of it in a stage, in elements
  unsigned inside;    // as above

  static constexpr int count = (Gw::tiles * tile + halo + 7) / 8;

  __device__ __forceinline__ void start(const float* tensor, int channels, int first_channel, int rows, int columns,
                                        const Segment& segment, int row, int column, int threads, int segment_columns) {
    const int at = threadIdx.x % 8, channel = threadIdx.x % threads / 8;
    const int64_t plane = static_cast<int64_t>(segment.image) * channels + first_channel + channel;
    next = tensor + (plane * rows + row) * columns + column + at;
    place = (static_cast<int>(threadIdx.x) / threads * segment_columns + at) * 4 * pitch + channel;
    inside = 0;
    for (int i = 0; at + 8 * i < segment_columns; ++i) {
      const int x = column + at + 8 * i;
      inside |= (segment.rows > 0 && x >= 0 && x < columns ? 0x10001u : 1u) << i;
    }
  }

  // Here `step` elements lie between one of the thread's channels and the next.
  __device__ __forceinline__ void copy(int64_t step, int threads, int channels, bool there, float4* stage) const {
    const float* from = next;
    float* to = reinterpret_cast<float*>(stage) + place;
    const int channel = threadIdx.x % threads / 8;
    for (int c = 0; channel + c < 4 * vectors; c += threads / 8, from += step, to += threads / 8) {
      const bool valid = there && channel + c < channels;
#pragma unroll
      for (int i = 0; i < count; ++i) {
        if ((inside & 1u << i) == 0) break;
        ptx::cp_async<4>(to + i * 32 * pitch, from + 8 * i, valid && (inside & 1u << (i + 16)) != 0 ? 4 : 0);
      }
    }
  }
};

// The layout of both activation tensors. `pad`: vectors that are added to each column of a stage.
struct Nhwc {
  static constexpr Layout layout = Layout::nhwc;
  static constexpr int pad = 0;
  template <class Gw, int... sizes>
  using Rows = PixelRows<Gw, sizes...>;
};

struct Nchw {
  static constexpr Layout layout = Layout::nchw;
  static constexpr int pad = 1;
  template <class Gw, int... sizes>
  using Rows = PlaneRows<Gw, sizes...>;
};

// The sizes for one width of groups, one stride and one layout, Nhwc or Nchw.
template <int group_width, int map_stride, class Tensors>
struct Gw {
  using Form = Tensors;
  static constexpr int width = group_width, stride = map_stride;
  static constexpr int k_vectors = width == 16 ? 4 : 8;  // of 4 output channels, in a block
  static constexpr int c_vectors = width < 16 ? 8 : 4;   // of 4 input channels, in a block
  static constexpr int k_pitch = k_vectors + Form::pad, c_pitch = c_vectors + Form::pad;  // of columns in a stage
  static constexpr int group_c = width == 32 ? 16 : width;  // input channels of a group, in a block
  static constexpr int parts = width / group_c;             // blocks that share their output channels
  // In a block; as many as leave room for others, but strips of 56 columns in NCHW, where narrower ones share sectors.
  static constexpr int tiles = width == 32 || (stride == 2 && (width < 16 || Form::pad > 0)) ? 4 : 8;
  static constexpr int tile_threads = k_vectors * group_c / 2, threads = tiles * tile_threads;
  static constexpr int blocks = threads < 256 ? 4 : 2;             // that the registers of a multiprocessor must hold
  static constexpr int ahead = width < 16 || stride == 2 ? 1 : 2;  // steps being copied while one is in use
  static constexpr int elements = group_c * taps * taps;           // weights of an output channel, in a block

  // In a step, tap row r meets the row of grad_output of this many steps before.
  static constexpr int back(int r) { return r / stride; }
  static constexpr int stages = ahead + 1, grad_stages = ahead + 1 + back(taps - 1);
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
  const int index = walk * (Gw::tiles / g.segment_tiles) + threadIdx.x / (Gw::tile_threads * g.segment_tiles);
  const int strip = index / g.runs, row = index % g.runs * g.run_rows;
  return {strip / g.strips, row, strip % g.strips * g.segment_tiles * tile_columns,
          index < g.segments ? min(g.run_rows, g.grad_rows - row) : 0};
}

// The first output and input channels of a block, and which part of their groups these input channels are.
struct Channels {
  int k, c, part;
};

template <class Gw>
__device__ __forceinline__ Channels channels_of(int block) {
  const int part = block % Gw::parts, k = block / Gw::parts * 4 * Gw::k_vectors;
  return {k, k + part * Gw::group_c, part};
}

// A thread's part in bringing rows to the ring, step by step, for walks [walk, end).
template <class Gw>
struct Loader {
  int walk, end, step = 0;
  int y, rows;  // the next row of input, and the rows of grad_output in the segment
  typename Gw::Form::template Rows<Gw, Gw::c_vectors, Gw::c_pitch, Gw::stride * tile_columns, taps - Gw::stride> input;
  typename Gw::Form::template Rows<Gw, Gw::k_vectors, Gw::k_pitch, tile_columns, 0> grad;

  __device__ __forceinline__ Loader(int first, int end) : walk(first), end(end) {}

  // Starts the copies of the next step and makes a group of them, an empty one if there is no such step.
  template <class Stage>
  __device__ __forceinline__ void copy_next(const Wgrad& g, const Channels& first, Stage& input_stage,
                                            float4* grad_stage) {
    if (walk < end) {
      if (step == 0) start_walk(g, first);
      const int threads = Gw::tile_threads * g.segment_tiles;
#pragma unroll
      for (int i = 0; i < Gw::stride; ++i, ++y, input.next += g.row)
        if (y >= 0 && y < g.rows && (i == 0 || step < g.run_rows))
          input.copy(g.step, threads, g.channels - first.c, true, input_stage[i]);
      if (step < g.run_rows) grad.copy(g.grad_step, threads, g.channels - first.k, step < rows, grad_stage);
      grad.next += g.grad_row;
      if (++step == steps<Gw>(g)) {
        step = 0;
        ++walk;
      }
    }
    ptx::cp_async_commit();
  }

 private:
  __device__ __forceinline__ void start_walk(const Wgrad& g, const Channels& first) {
    const Segment segment = segment_of<Gw>(g, walk);
    const int threads = Gw::tile_threads * g.segment_tiles;
    y = Gw::stride * segment.row - 1;
    rows = segment.rows;
    input.start(g.input, g.channels, first.c, g.rows, g.columns, segment, y, Gw::stride * segment.column - 1, threads,
                segment_columns<Gw>(g));
    grad.start(g.grad_output, g.channels, first.k, g.grad_rows, g.grad_columns, segment, segment.row, segment.column,
               threads, g.segment_tiles * tile_columns);
  }
};

}  // namespace resnext::cuda::rows_wgrad
