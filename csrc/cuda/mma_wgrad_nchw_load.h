#pragma once
// How rows come to shared memory in the tensor cores' wgrad in NCHW. mma_wgrad_nchw_kernel.h says how it all fits
// together.
#include "mma_wgrad_store.h"

namespace resnext::cuda::mma_wgrad {

// Some consecutive steps of a walk, which lie in the ring at a time. Step i, as in NHWC, has grad_output's row row + i
// and `stride` rows of input from stride * (row + i) - 1 on.
template <class Gw>
struct Chunk {
  int walk, image, row, rows;  // rows of grad_output of the images from `image` on
  int steps, step;             // of the walk; the chunk's first
  int input_slot, grad_slot;   // in the ring, of the chunk's first row

  // The first chunk of a walk, if there is such a walk.
  __device__ __forceinline__ void start(const MmaWgrad& g, int index) {
    walk = index;
    image = index / g.runs * g.walk_images;
    row = index % g.runs * g.run_rows;
    rows = min(g.run_rows, g.grad_rows - row);
    steps = (min(Gw::stride * (row + rows - 1) + 1, g.rows - 1) - Gw::stride * row + 1) / Gw::stride + 1;
    step = 0;
  }

  __device__ __forceinline__ Chunk next(const MmaWgrad& g) const {
    Chunk chunk = *this;
    chunk.step += g.band;
    if (chunk.step >= steps) chunk.start(g, walk + 1);
    chunk.input_slot = input_slot == 0 ? g.input_stream.slots / 2 : 0;
    chunk.grad_slot = grad_slot + g.band;
    if (chunk.grad_slot >= g.grad_stream.slots) chunk.grad_slot -= g.grad_stream.slots;
    return chunk;
  }
};

// Of one tensor in a chunk: the first channel and image, and the map's rows from `row` on, of which those before `end`
// are wanted and there is none before 0; the first goes to `slot`.
struct Part {
  const void* tensor;
  int rows, columns;  // of the map
  int channel, image, row, end, slot;
};

// A thread's part in bringing one tensor to the ring: of a chunk's rows the same elements of every channel that is
// `copy_groups` after another; should there be more than threads, others follow.
template <class T>
class RowCopies {
 public:
  // Of `channels` channels from the part's first on, as far as they are there.
  __device__ __forceinline__ RowCopies(const MmaWgrad& g, const Stream& s, int channel, int channels)
      : group_(static_cast<int>(threadIdx.x) / s.copy_threads), first_(static_cast<int>(threadIdx.x) % s.copy_threads) {
    const int line = first_ / s.row_copies;
    line_column_ = line << 16 | (first_ - line * s.row_copies) * s.vector;
    count_ = min(channels, g.channels - channel) - group_ + s.copy_groups - 1;
    count_ = group_ >= s.copy_groups ? 0 : count_ / s.copy_groups;
  }

  __device__ __forceinline__ void start(const MmaWgrad& g, const Stream& s, const Part& part, uint4* ring) const {
    if (s.vector == 8)
      copy<8>(g, s, part, ring);
    else if (s.vector == 4)
      copy<4>(g, s, part, ring);
    else if (s.vector == 2)
      copy<2>(g, s, part, ring);
    else
      copy<1>(g, s, part, ring);
  }

 private:
  template <int vector>
  __device__ __forceinline__ void copy(const MmaWgrad& g, const Stream& s, const Part& part, uint4* ring) const {
    const int64_t plane = int64_t{part.rows} * part.columns, source_step = 2 * s.copy_groups * plane;
    const T* image =
        static_cast<const T*>(part.tensor) + (int64_t{part.image} * g.channels + part.channel + group_) * plane;
    int line = line_column_ >> 16, column = line_column_ & 0xffff;
#pragma unroll 1
    for (int at = first_; at < s.copies;) {
      const int row = part.row + line;
      if (row >= 0 && row < part.end) {
        int slot = part.slot + line;
        if (slot >= s.slots) slot -= s.slots;
        const T* source = image + (int64_t{row} * part.columns + column);
        T* stage = reinterpret_cast<T*>(ring + s.start + group_ * s.channel_pitch + slot * s.row_pitch) + column;
        copy_channels<vector>(s, source, source_step, stage);
#pragma unroll 1
        for (int i = 1; i < g.walk_images; ++i) {
          source += g.channels * plane;
          stage += 8 * s.slots * s.row_pitch;
          if (part.image + i < g.images)
            copy_channels<vector>(s, source, source_step, stage);
          else
            clear_channels<vector>(s, stage);
        }
      }
      at += s.copy_threads;
      if (at >= s.copies) break;
      line = at / s.row_copies;
      column = at % s.row_copies * s.vector;
    }
  }

  // Starts the copies of `vector` elements of each of the thread's channels, of which `source_step` bytes lead to the
  // next. cp.async copies 4 bytes at the least: rows of an odd number of columns go through registers.
  template <int vector>
  __device__ __forceinline__ void copy_channels(const Stream& s, const T* source, int64_t source_step, T* stage) const {
    constexpr int batch = vector == 1 ? 8 : 1;
    const int stage_step = 16 * s.copy_groups * s.channel_pitch;
    const char* from = reinterpret_cast<const char*>(source);
    char* to = reinterpret_cast<char*>(stage);
#pragma unroll 1
    for (int left = count_; left > 0; left -= batch) {
      if constexpr (vector > 1) {
        ptx::cp_async<2 * vector>(to, from);
        from += source_step;
        to += stage_step;
      } else {
        T values[batch];
#pragma unroll
        for (int i = 0; i < batch; ++i, from += source_step)
          if (i < left) values[i] = *reinterpret_cast<const T*>(from);
#pragma unroll
        for (int i = 0; i < batch; ++i, to += stage_step)
          if (i < left) *reinterpret_cast<T*>(to) = values[i];
      }
    }
  }

  // What is in the place of an image that is not there, as it may be beside one that is: zeros.
  template <int vector>
  __device__ __forceinline__ void clear_channels(const Stream& s, T* stage) const {
#pragma unroll 1
    for (int i = 0; i < count_; ++i, stage += 8 * s.copy_groups * s.channel_pitch)
#pragma unroll
      for (int j = 0; j < vector; ++j) stage[j] = from_acc<T>(0);
  }

  int group_, first_, count_;
  int line_column_;  // of the first copy: its row in the chunk and, in the lower half, its column
};

// A thread's part in bringing chunks to the ring.
template <class Gw>
class ChunkCopies {
 public:
  __device__ __forceinline__ ChunkCopies(const MmaWgrad& g, const Channels& first)
      : input_(g, g.input_stream, first.c, 8 * Gw::c_planes), grad_(g, g.grad_stream, first.k, 8 * Gw::k_planes) {}

  __device__ __forceinline__ void start(const MmaWgrad& g, const Channels& first, const Chunk<Gw>& chunk,
                                        uint4* ring) const {
    const int row = chunk.row + chunk.step, end = chunk.row + chunk.rows;
    const int input_row = Gw::stride * row - 1, input_end = min(g.rows, Gw::stride * (end - 1) + 2);
    input_.start(g, g.input_stream,
                 {g.input, g.rows, g.columns, first.c, chunk.image, input_row, input_end, chunk.input_slot}, ring);
    grad_.start(g, g.grad_stream,
                {g.grad_output, g.grad_rows, g.grad_columns, first.k, chunk.image, row, end, chunk.grad_slot}, ring);
  }

 private:
  RowCopies<typename Gw::T> input_, grad_;
};

}  // namespace resnext::cuda::mma_wgrad
