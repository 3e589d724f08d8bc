// Generic fprop and dgrad: both sum, for each element of their result, over the taps and the other side's channels.
//
//   fprop  output[n,k,p,q]     = bias[k] + sum over r,s,c of input[n,c,h,w]       * weight[k,c,r,s]
//   dgrad  grad_input[n,c,h,w] =           sum over r,s,k of grad_output[n,k,p,q] * weight[k,c,r,s]
//
// or, in a fused fprop, activation(the sum * scale[k] + shift[k] + residual[n,k,p,q]),
// with h = p * stride - pad + r * dilation, w likewise, k and c of one group. Below, "result" and "source" are the
// tensor written and the one read, so one kernel does both passes; they differ in how positions map (Pass::source).
//
// A thread owns four elements of the result, placed so that it uses each value it loads from the operand that is
// costlier to load four times, and so that consecutive threads write consecutive addresses:
//
//   NCHW: 4 channels of a group x 1 pixel;  threads run along the pixels of a map
//   NHWC: 1 channel x 4 columns of a row;   threads run along the channels
//
// In NCHW all threads of a warp mostly read the same weights, so any strides will do. In NHWC consecutive threads read
// weights of consecutive channels, which are far apart in memory: a first kernel packs them as [tap][source channel]
// [group][result channel] into the workspace.
//
// Padding is skipped, not multiplied by zero: an infinite weight never meets it. No shared memory, no barriers; sums
// in float (double for f64), rounded once. Source loads are coalesced in both layouts (NCHW up to the stride).
#include "generic.h"
#include "generic_index.h"
#include "launch.h"
#include "numeric.h"

namespace resnext::cuda::generic {

constexpr int block_threads = 128;
// What gather asks the compiler for. Without a number ptxas saves registers by spilling some around its divisions.
constexpr int blocks_per_multiprocessor = 5;

struct Fprop {
  static constexpr bool fused = false;
  __device__ static int64_t source(const Axis& axis, int64_t result, int64_t tap) {
    return input_position(axis, result, tap);
  }
};

struct FusedFprop : Fprop {
  static constexpr bool fused = true;
};

struct Dgrad {
  static constexpr bool fused = false;
  __device__ static int64_t source(const Axis& axis, int64_t result, int64_t tap) {
    return output_position(axis, result, tap);
  }
};

// What a thread owns; consecutive threads follow the fastest axis of the layout.
struct ChannelsOfAPixel {  // NCHW
  static constexpr int channels = 4, columns = 1;
};

struct ColumnsOfAChannel {  // NHWC
  static constexpr int channels = 1, columns = 4;
};

// Pointers and sizes in the words of "result" and "source". A weight is w[result channel][source channel][r][s], the
// channels counted within the group.
template <class T>
struct Gather {
  const T *source, *weight, *bias;
  T* result;
  Strides source_strides, result_strides;
  int64_t weight_group, weight_result, weight_source, weight_r, weight_s;  // strides; weight_group: from group to group
  int64_t images, groups, result_channels, source_channels;                // channels of one group
  int64_t result_rows, result_columns;
  Axis rows, columns;
  const Acc<T>*scale, *shift;  // of a fused fprop, as are the following
  const T* residual;           // or null
  bool relu;
};

// The first of a thread's elements; `channel` counts within the group.
struct Position {
  int64_t image, group, channel, row, column;
};

template <class T>
__host__ __device__ int64_t weight_count(const Gather<T>& g) {
  return g.rows.taps * g.columns.taps * g.source_channels * g.groups * g.result_channels;
}

template <class Tile, class T>
__host__ __device__ int64_t thread_count(const Gather<T>& g) {
  const int64_t channel_tiles = (g.result_channels + Tile::channels - 1) / Tile::channels;
  const int64_t column_tiles = (g.result_columns + Tile::columns - 1) / Tile::columns;
  return g.images * g.groups * channel_tiles * g.result_rows * column_tiles;
}

template <class Tile, class T>
__device__ Position position_of(const Gather<T>& g, int64_t thread) {
  if constexpr (Tile::columns == 1) {  // image, group, channel tile, row, column: the columns fastest
    const Split column = split(thread, g.result_columns), row = split(column.quotient, g.result_rows);
    const Split channel = split(row.quotient, (g.result_channels + Tile::channels - 1) / Tile::channels);
    const Split group = split(channel.quotient, g.groups);
    return {group.quotient, group.remainder, channel.remainder * Tile::channels, row.remainder, column.remainder};
  } else {  // image, row, column tile, group, channel: the channels fastest
    const Split channel = split(thread, g.result_channels), group = split(channel.quotient, g.groups);
    const Split column = split(group.quotient, (g.result_columns + Tile::columns - 1) / Tile::columns);
    const Split row = split(column.quotient, g.result_rows);
    return {row.quotient, group.remainder, channel.remainder, row.remainder, column.remainder * Tile::columns};
  }
}

// Adds the products of one tap. offset[j] is where column j's pixel lies in the source row, or -1.
template <class Tile, class T>
__device__ __forceinline__ void add_tap(const Gather<T>& g, const T* source, const T* weight, int channels,
                                        const int64_t (&offset)[Tile::columns],
                                        Acc<T> (&sums)[Tile::channels][Tile::columns]) {
#pragma unroll 2  // four times, as compilers for sm_100 and up choose, is more than fits into registers
  for (int64_t c = 0; c < g.source_channels; ++c) {
    Acc<T> pixels[Tile::columns];
#pragma unroll
    for (int j = 0; j < Tile::columns; ++j) pixels[j] = offset[j] >= 0 ? to_acc(source[offset[j]]) : Acc<T>(0);
#pragma unroll
    for (int i = 0; i < Tile::channels; ++i) {
      if (i >= channels) continue;
      const Acc<T> w = to_acc(weight[i * g.weight_result]);
#pragma unroll
      for (int j = 0; j < Tile::columns; ++j)
        if (offset[j] >= 0) sums[i][j] += w * pixels[j];
    }
    source += g.source_strides.channel;
    weight += g.weight_source;
  }
}

// Makes of a sum, of result channel `channel`, what is to be stored.
template <class T>
__device__ __forceinline__ void apply(const Gather<T>& g, int64_t channel, int64_t result, Acc<T>& sum) {
  sum = sum * g.scale[channel] + g.shift[channel];
  if (g.residual) sum += to_acc(g.residual[result]);
  if (g.relu && sum < 0) sum = 0;  // NaN stays
}

template <class Pass, class Tile, class T>
__global__ void __launch_bounds__(block_threads, blocks_per_multiprocessor) gather(Gather<T> g) {
  const int64_t thread = int64_t(blockIdx.x) * block_threads + threadIdx.x;
  if (thread >= thread_count<Tile>(g)) return;
  const Position at = position_of<Tile>(g, thread);
  const int64_t left = g.result_channels - at.channel;
  const int channels = left < Tile::channels ? static_cast<int>(left) : Tile::channels;
  const int64_t first_channel = at.group * g.result_channels + at.channel;

  Acc<T> sums[Tile::channels][Tile::columns];
#pragma unroll
  for (int i = 0; i < Tile::channels; ++i)
#pragma unroll
    for (int j = 0; j < Tile::columns; ++j)
      sums[i][j] = g.bias && i < channels ? to_acc(g.bias[first_channel + i]) : Acc<T>(0);

  const T* image =
      g.source + at.image * g.source_strides.image + at.group * g.source_channels * g.source_strides.channel;
  const T* weights = g.weight + at.group * g.weight_group + at.channel * g.weight_result;
  for (int64_t r = 0; r < g.rows.taps; ++r) {
    const int64_t source_row = Pass::source(g.rows, at.row, r);
    if (source_row < 0) continue;
    for (int64_t s = 0; s < g.columns.taps; ++s) {
      int64_t offset[Tile::columns];
      bool any = false;
#pragma unroll
      for (int j = 0; j < Tile::columns; ++j) {
        const int64_t source_column = Pass::source(g.columns, at.column + j, s);
        offset[j] = source_column < 0 ? -1 : source_column * g.source_strides.column;
        any |= source_column >= 0;
      }
      if (any)
        add_tap<Tile>(g, image + source_row * g.source_strides.row, weights + r * g.weight_r + s * g.weight_s, channels,
                      offset, sums);
    }
  }

  const int64_t first = at.image * g.result_strides.image + first_channel * g.result_strides.channel +
                        at.row * g.result_strides.row + at.column * g.result_strides.column;
#pragma unroll
  for (int i = 0; i < Tile::channels; ++i)
#pragma unroll
    for (int j = 0; j < Tile::columns; ++j)
      if (i < channels && at.column + j < g.result_columns) {
        const int64_t result = first + i * g.result_strides.channel + j * g.result_strides.column;
        if constexpr (Pass::fused) apply(g, first_channel + i, result, sums[i][j]);
        g.result[result] = from_acc<T>(sums[i][j]);
      }
}

// A thread per weight, in the order of the packed ones.
template <class T>
__global__ void __launch_bounds__(block_threads) pack_weight(Gather<T> g, T* packed) {
  const int64_t thread = int64_t(blockIdx.x) * block_threads + threadIdx.x;
  if (thread >= weight_count(g)) return;
  const Split result = split(thread, g.result_channels), group = split(result.quotient, g.groups);
  const Split source = split(group.quotient, g.source_channels), tap = split(source.quotient, g.columns.taps);
  packed[thread] =
      g.weight[group.remainder * g.weight_group + result.remainder * g.weight_result +
               source.remainder * g.weight_source + tap.quotient * g.weight_r + tap.remainder * g.weight_s];
}

// The same sums with the weight packed in the workspace.
template <class T>
Gather<T> with_packed_weight(Gather<T> g, const Launch& to) {
  T* packed = static_cast<T*>(to.workspace);
  launch(pack_weight<T>, {blocks_for(weight_count(g), block_threads)}, {block_threads}, 0, to.stream, g, packed);
  g.weight = packed;
  g.weight_group = g.result_channels;
  g.weight_result = 1;
  g.weight_source = g.groups * g.result_channels;
  g.weight_s = g.source_channels * g.weight_source;
  g.weight_r = g.columns.taps * g.weight_s;
  return g;
}

template <class Pass, class Tile, class T>
void launch_tile(const Gather<T>& g, void* stream) {
  const int64_t threads = thread_count<Tile>(g);
  if (threads > 0) launch(gather<Pass, Tile, T>, {blocks_for(threads, block_threads)}, {block_threads}, 0, stream, g);
}

template <class Pass, class T>
void launch_gather(const Gather<T>& g, Layout layout, const Launch& to) {
  if (g.images == 0) return;
  if (layout == Layout::nchw)
    launch_tile<Pass, ChannelsOfAPixel>(g, to.stream);
  else
    launch_tile<Pass, ColumnsOfAChannel>(with_packed_weight(g, to), to.stream);
}

template <class T>
void fprop(const FpropArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const auto& w = args.weight;
  const Gather<T> g{static_cast<const T*>(args.input),
                    static_cast<const T*>(w.data),
                    static_cast<const T*>(args.bias),
                    static_cast<T*>(args.output),
                    input_strides(args.problem),
                    output_strides(args.problem),
                    shape.k_per_group() * w.stride_k,
                    w.stride_k,
                    w.stride_c,
                    w.stride_r,
                    w.stride_s,
                    shape.n,
                    shape.groups,
                    shape.k_per_group(),
                    shape.c_per_group(),
                    shape.p(),
                    shape.q(),
                    rows(shape),
                    columns(shape),
                    static_cast<const Acc<T>*>(args.epilogue.scale),
                    static_cast<const Acc<T>*>(args.epilogue.shift),
                    static_cast<const T*>(args.epilogue.residual),
                    args.epilogue.relu};
  if (args.problem.fused)
    launch_gather<FusedFprop>(g, args.problem.layout, args.launch);
  else
    launch_gather<Fprop>(g, args.problem.layout, args.launch);
}

template <class T>
void dgrad(const DgradArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const auto& w = args.weight;
  const Gather<T> g{static_cast<const T*>(args.grad_output),
                    static_cast<const T*>(w.data),
                    nullptr,
                    static_cast<T*>(args.grad_input),
                    output_strides(args.problem),
                    input_strides(args.problem),
                    shape.k_per_group() * w.stride_k,
                    w.stride_c,
                    w.stride_k,
                    w.stride_r,
                    w.stride_s,
                    shape.n,
                    shape.groups,
                    shape.c_per_group(),
                    shape.k_per_group(),
                    shape.h,
                    shape.w,
                    rows(shape),
                    columns(shape),
                    nullptr,
                    nullptr,
                    nullptr,
                    false};
  launch_gather<Dgrad>(g, args.problem.layout, args.launch);
}

}  // namespace resnext::cuda::generic

namespace resnext::cuda {

const char* generic_why_not(const Problem&) { return nullptr; }

int64_t generic_gather_workspace(const Problem& problem, int) {
  const ConvShape& shape = problem.shape;
  const int64_t size = problem.dtype == DType::f64 ? 8 : problem.dtype == DType::f32 ? 4 : 2;
  return problem.layout == Layout::nhwc ? shape.k * shape.c_per_group() * shape.r * shape.s * size : 0;
}

void fprop_generic(const FpropArgs& args) {
  switch (args.problem.dtype) {
    case DType::f64:
      return generic::fprop<double>(args);
    case DType::f32:
      return generic::fprop<float>(args);
    case DType::f16:
      return generic::fprop<__half>(args);
    case DType::bf16:
      return generic::fprop<__nv_bfloat16>(args);
  }
}

void dgrad_generic(const DgradArgs& args) {
  switch (args.problem.dtype) {
    case DType::f64:
      return generic::dgrad<double>(args);
    case DType::f32:
      return generic::dgrad<float>(args);
    case DType::f16:
      return generic::dgrad<__half>(args);
    case DType::bf16:
      return generic::dgrad<__nv_bfloat16>(args);
  }
}

}  // namespace resnext::cuda
