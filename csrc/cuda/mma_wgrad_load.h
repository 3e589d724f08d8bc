#pragma once
// What the tensor cores' wgrad is made of up to shared memory: the problem, its cut into slices, walks and segments,
// the sizes, and the copies of rows. mma_wgrad_kernel.h says how it all fits together.
#include "device.h"
#include "rows_nchw_plan.h"

namespace resnext::cuda::mma_wgrad {

using rows_nchw::Divisor;
using rows_nchw::divisor;
using rows_nchw::SmallSplit;
using rows_nchw::split;

constexpr int taps = 3;
constexpr int octets = 4;  // of 8 columns of grad_output each, that a team has at a time

// How rows of one tensor come to shared memory in NCHW. Places and pitches count vectors of 8 elements.
struct Stream {
  int start, channel_pitch, row_pitch, slots;  // in the ring; slots are the rows that an image has there
  int vector, row_copies, copies;  // elements of a copy; copies of a row, and of a chunk's rows of a channel
  int copy_threads, copy_groups;   // threads that share a channel, and channels copied at a time
};

// Pointers, strides and sizes in elements, and how the work is cut.
struct MmaWgrad {
  const void *input, *grad_output;
  void *grad_weight, *grad_bias;  // grad_bias may be null
  float* workspace;               // [slice][all weights, each output channel's in their order in memory; then the bias]
  int64_t weight_k, weight_c, weight_r, weight_s;
  int64_t row, grad_row, step, grad_step;  // vectors from a row to the next, and from a thread's column to its next
  int channels, images, rows, columns, grad_rows, grad_columns;
  int channel_blocks, strips, strip_columns, runs, run_rows, walks, slices, slice_walks;
  int segment_bits;  // a segment has 2^segment_bits octets
  // In NCHW, instead of what is said of segments and strips; see mma_wgrad_nchw_kernel.h.
  Stream input_stream, grad_stream;
  Divisor by_row_pairs;                                        // pairs of octets in a row
  int walk_images, band, step_pairs, side_bits, ring_vectors;  // pairs of a step of all images
  bool narrow;                                                 // a pair has octets of two images
  bool channels_closer;                                        // in the weight's memory, than taps
};

// The smallest number from `least` on that is congruent to `rest` modulo 8.
constexpr int congruent(int least, int rest) { return least + (rest + 8 - least % 8) % 8; }

// The sizes for one type, one width of groups and one stride. A team of warps has `channels` channels of input, two
// groups of 8 or one larger one, and of grad_output the same, or one of `parts` equal parts of them. Planes are of 8
// channels; places and pitches count vectors of 8 elements.
template <class Element, int group_width, int map_stride>
struct Gw {
  using T = Element;
  static constexpr int width = group_width, stride = map_stride;
  static constexpr int channels = width < 16 ? 16 : width, parts = width < 64 ? 1 : 2;
  static constexpr int c_planes = channels / 8, k_planes = c_planes / parts;
  static constexpr int c_tiles = c_planes / 2, k_tiles = k_planes / 2;  // a warp has 16 channels of both
  static constexpr int teams = width <= 16 ? 4 : width == 32 ? 2 : 1, team_threads = 32 * c_tiles * k_tiles;
  static constexpr int threads = teams * team_threads;
  static constexpr int blocks = threads == 256 ? 1 : width < 16 && stride == 2 ? 2 : 3;  // that registers must hold
  static constexpr int ahead = stride == 1 ? 2 : 1, stages = ahead + 1;  // steps being copied while one is in use
  static constexpr int accumulators = width < 16 ? 12 : 20;              // of 16 x 8 sums, in a warp

  // A stage: for each row of input its planes and a block of zeros, then the planes of a row of grad_output. In stride
  // 2 a plane of input has the even columns first, then the odd ones.
  static constexpr int odd = 8 * octets + 4 / c_planes;  // where the odd columns begin
  static constexpr int input_pitch = congruent(stride == 1 ? 8 * octets + 2 : odd + 8 * octets + 1, 8 / c_planes);
  static constexpr int grad_pitch = congruent(8 * octets, 8 / k_planes);
  static constexpr int zeros = c_planes * input_pitch, input_row = zeros + 8;
  static constexpr int grad = stride * input_row, stage = grad + k_planes * grad_pitch;

  // The place in a plane of the input's column `column`, counted from stride times the first one of grad_output in the
  // segment, -1 being the first there can be.
  __device__ static int place(const MmaWgrad& g, int segment, int column) {
    const int first = 8 * segment << g.segment_bits;
    if (stride == 1) return first + column + 1;
    return first + (column >> 1) + (column % 2 == 0 ? 0 : odd + 1);
  }
};

// The part of the images that a team has in a walk: `rows` rows and `columns` columns of grad_output, from (row,
// column) on, of as many images as there are segments, from `image` on, of which the last walk may have fewer.
struct Walk {
  int image, row, rows, column, columns;
  int steps;  // each brings the next row of grad_output and `stride` rows of input, from row stride * row - 1 on
};

template <class Gw>
__device__ __forceinline__ Walk walk_of(const MmaWgrad& g, int index) {
  const int row = index % g.runs * g.run_rows, rows = min(g.run_rows, g.grad_rows - row);
  const int last = min(Gw::stride * (row + rows - 1) + 1, g.rows - 1);  // of input
  const int strip = index / g.runs, column = strip % g.strips * g.strip_columns;
  return {
      strip / g.strips * (octets >> g.segment_bits), row, rows, column, min(g.strip_columns, g.grad_columns - column),
      (last - Gw::stride * row + 1) / Gw::stride + 1};
}

// One of the two tensors as a thread copies it: a vector of every `step`th column of a segment, of which a row in a
// stage has `width` at most in all segments together.
template <class Gw, int planes, int width>
struct Columns {
  static constexpr int all_steps = Gw::team_threads / planes, count = (width + all_steps - 1) / all_steps;
  const uint4* next;  // in the next row
  int place;          // in a stage
  unsigned inside;    // bit i: the image has the thread's ith column

  // Threads share the columns of all segments of a walk.
  __host__ __device__ static int step(const MmaWgrad& g) { return (all_steps << g.segment_bits) / octets; }
  __device__ static int plane() { return threadIdx.x % planes; }
  __device__ static int segment(const MmaWgrad& g) {
    return threadIdx.x % Gw::team_threads / (Gw::team_threads / octets) >> g.segment_bits;
  }
  __device__ static int first(const MmaWgrad& g) { return threadIdx.x / planes % all_steps & (step(g) - 1); }

  // Takes, of a segment, `columns` columns from `column` on, the image having `all`. `next` is to be the one at `row`.
  __device__ __forceinline__ void start(const MmaWgrad& g, const void* tensor, int64_t row, int all, int column,
                                        int columns, int channel) {
    channel += 8 * plane();
    next = static_cast<const uint4*>(tensor) + ((row * all + column + first(g)) * g.channels + channel) / 8;
    inside = 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int at = first(g) + i * step(g);
      if (channel < g.channels && at < columns && column + at >= 0 && column + at < all) inside |= 1u << i;
    }
  }

  // Starts the copies of a row, a step in which is `vectors` in memory and `places` in a stage.
  __device__ __forceinline__ void copy(int64_t vectors, int places, uint4* stage) const {
    const uint4* from = next;
    uint4* to = stage + place;
#pragma unroll
    for (int i = 0; i < count; ++i, from += vectors, to += places)
      if ((inside & 1u << i) != 0) ptx::cp_async<16>(to, from);
  }
};

// A segment's columns of input are one more on either side in stride 1, on the left side in stride 2.
template <class Gw>
using InputColumns = Columns<Gw, Gw::c_planes, Gw::stride * 8 * octets + 8 / Gw::stride>;
template <class Gw>
using GradColumns = Columns<Gw, Gw::k_planes, 8 * octets>;

// The first channels of a block.
struct Channels {
  int c, k;
};

// A thread's part in bringing rows to its team's ring, step by step, for every `teams`th walk of [walk, end).
template <class Gw>
class Loader {
 public:
  __device__ __forceinline__ Loader(int first, int end) : walk_(first), end_(end) {}

  // Starts the copies of the next step and makes a group of them, an empty one if there is no such step.
  __device__ __forceinline__ void copy_next(const MmaWgrad& g, const Channels& first, uint4* stage) {
    if (walk_ < end_) {
      if (step_ == 0) start_walk(g, first);
#pragma unroll
      for (int i = 0; i < Gw::stride; ++i, ++y_, input_.next += g.row)
        if (y_ >= 0 && y_ < g.rows && (i == 0 || step_ < rows_))
          input_.copy(g.step, Input::step(g) / Gw::stride, stage + i * Gw::input_row);
      if (step_ < rows_) grad_.copy(g.grad_step, Grad::step(g), stage + Gw::grad);
      grad_.next += g.grad_row;
      if (++step_ == steps_) {
        step_ = 0;
        walk_ += Gw::teams;
      }
    }
    ptx::cp_async_commit();
  }

 private:
  using Input = InputColumns<Gw>;
  using Grad = GradColumns<Gw>;

  __device__ __forceinline__ void start_walk(const MmaWgrad& g, const Channels& first) {
    const Walk walk = walk_of<Gw>(g, walk_);
    rows_ = walk.rows;
    steps_ = walk.steps;
    y_ = Gw::stride * walk.row - 1;
    int image = walk.image + Input::segment(g);
    input_.start(g, g.input, int64_t(image) * g.rows + y_, g.columns, Gw::stride * walk.column - 1,
                 image < g.images ? Gw::stride * walk.columns + 3 - Gw::stride : 0, first.c);
    input_.place = Input::plane() * Gw::input_pitch + Gw::place(g, Input::segment(g), Input::first(g) - 1);
    image = walk.image + Grad::segment(g);
    grad_.start(g, g.grad_output, int64_t(image) * g.grad_rows + walk.row, g.grad_columns, walk.column,
                image < g.images ? walk.columns : 0, first.k);
    grad_.place = Grad::plane() * Gw::grad_pitch + (8 * Grad::segment(g) << g.segment_bits) + Grad::first(g);
  }

  int walk_, end_, step_ = 0;
  int y_, rows_, steps_;  // the next row of input; of the run
  Input input_;
  Grad grad_;
};

}  // namespace resnext::cuda::mma_wgrad
