#pragma once
// What blocks of the NCHW tensor-core kernels own, and how weights and source rows come to them. mma_nchw.h says how it
// all fits together.
#include "mma_nchw_plan.h"
#include "tf32.h"

namespace resnext::cuda::mma_nchw {

// The units that a block makes.
struct Own {
  int64_t first;
  int count;
};

struct Smem {
  union {
    uint4 zero;
    Own own;  // in floats, where registers are short
  };
  // and behind it the two stages and the results
};

// What keeps the threads in order; a parameter of the kernel so that tests can leave one out.
struct Sync {
  static constexpr bool mends = true;  // in floats, results that are not finite
  __device__ static void weights() { __syncthreads(); }
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest>();
  }
  __device__ static void unit() { __syncthreads(); }
  __device__ static void results() { __syncthreads(); }
  __device__ static void stored() { __syncthreads(); }
};

// A block's channels, and how many of them there are.
template <class Kind>
struct Channels {
  int first, count;
  __device__ __forceinline__ explicit Channels(const Planes& g) {
    first = static_cast<int>(blockIdx.x % static_cast<unsigned>(g.channel_blocks)) * Kind::channels;
    count = Kind::width < 8 ? min(Kind::channels, g.channels - first) : Kind::channels;
    if constexpr (Kind::pads) {
      count = g.result_width;
      first = group(g) * count;
    }
  }

  // What PaddedGroups have apart: channels of an image in the source and the result, and the block's in the source.
  __device__ __forceinline__ static int of_source(const Planes& g) {
    if constexpr (Kind::pads) return g.source_channels;
    return g.channels;
  }
  __device__ __forceinline__ static int of_result(const Planes& g) {
    if constexpr (Kind::pads) return g.result_channels;
    return g.channels;
  }
  __device__ __forceinline__ static int group(const Planes& g) {
    return static_cast<int>(blockIdx.x % static_cast<unsigned>(g.channel_blocks));
  }
  __device__ __forceinline__ int first_source(const Planes& g) const {
    if constexpr (Kind::pads) return group(g) * g.source_width;
    return first;
  }
  __device__ __forceinline__ int source_count(const Planes& g) const {
    if constexpr (Kind::pads) return g.source_width;
    return count;
  }
  __device__ __forceinline__ static int steps(const Planes& g) {
    return Kind::pads ? stage_channels<Kind>(g) / 16 : Kind::steps;
  }
};

// What is made at a time: result rows from `row` on of some images.
struct Unit {
  int image, images, row, rows, first_source_row;

  template <class Kind>
  __device__ __forceinline__ static Unit at(const Planes& g, int64_t number) {
    const Split run = split(number, g.runs);
    Unit unit;
    unit.image = static_cast<int>(run.quotient) * g.unit_images;
    unit.images = min(g.unit_images, g.images - unit.image);
    unit.row = static_cast<int>(run.remainder) * g.unit_rows;
    unit.rows = min(g.unit_rows, g.result_rows - unit.row);
    unit.first_source_row = Kind::spread == 2 ? unit.row / 2 : max(Kind::stride * unit.row - 1, 0);
    return unit;
  }
};

__device__ __forceinline__ Own own_units(const Planes& g) {
  const int64_t first = static_cast<int64_t>(blockIdx.x / static_cast<unsigned>(g.channel_blocks)) * g.walk;
  return {first, static_cast<int>(min(static_cast<int64_t>(g.walk), g.units - first))};
}

// Starts the copies of a unit's source, each of `vector` pixels. cp.async copies 4 bytes at the least: 16-bit maps of
// an odd number of columns go through registers.
template <class Kind, class T, int vector>
__device__ __forceinline__ void copy_rows(const Planes& g, const Channels<Kind>& channels, const Unit& unit, T* stage) {
  const int group = static_cast<int>(threadIdx.x) / g.copy_threads;
  if (group >= g.copy_groups) return;
#pragma unroll 1
  for (int at = threadIdx.x % g.copy_threads; at < g.positions; at += g.copy_threads) {
    const SmallSplit line = split(at, g.by_row_copies), image = split(line.quotient, g.by_source_rows);
    const int row = unit.first_source_row + image.remainder;
    if (image.quotient >= unit.images || row >= g.rows) continue;
    const T* from =
        static_cast<const T*>(g.source) +
        (static_cast<int64_t>(unit.image + image.quotient) * channels.of_source(g) + channels.first_source(g) + group) *
            g.source_plane +
        static_cast<int64_t>(row) * g.columns + line.remainder * vector;
    T* to = stage + (group * g.channel_pitch + line.quotient * g.row_pitch) * Kind::cell + line.remainder * vector;
    const int64_t step = g.copy_groups * g.source_plane;
#pragma unroll Kind::floats ? 1 : 4
    for (int channel = group; channel < channels.source_count(g); channel += g.copy_groups) {
      if constexpr (vector * sizeof(T) < 4)
        *to = *from;
      else
        ptx::cp_async<vector * sizeof(T)>(to, from);
      from += step;
      to += g.copy_groups * g.channel_pitch * Kind::cell;
    }
  }
}

// Starts the copies of a unit's source, if there is one, and makes a group of them.
template <class Kind, class T>
__device__ __forceinline__ void copy_unit(const Planes& g, const Channels<Kind>& channels, const Own& units, int own,
                                          uint4* stage) {
  if (own < units.count) {
    const Unit unit = Unit::at<Kind>(g, units.first + own);
    T* to = reinterpret_cast<T*>(stage);
    if (!Kind::floats && g.copy_vector == 8)
      copy_rows<Kind, T, Kind::floats ? 4 : 8>(g, channels, unit, to);
    else if (g.copy_vector == 4)
      copy_rows<Kind, T, 4>(g, channels, unit, to);
    else if (g.copy_vector == 2)
      copy_rows<Kind, T, 2>(g, channels, unit, to);
    else
      copy_rows<Kind, T, 1>(g, channels, unit, to);
  }
  ptx::cp_async_commit();
}

// Sets the source channels that a group lacks to zero, once, in both stages.
template <class Kind>
__device__ __forceinline__ void clear_padding(const Planes& g, uint4* stages) {
  const int first = g.source_width * g.channel_pitch, count = stage_channels<Kind>(g) * g.channel_pitch - first;
#pragma unroll 1
  for (int i = threadIdx.x; i < 2 * count; i += threads)
    stages[first + i % count + i / count * g.stage_vectors] = make_uint4(0, 0, 0, 0);
}

// The A operands of a warp, as rows x columns of weights. Width 4: rows are result channels of the taps of a row, in
// columns source channels of the tap rows,
//
//   first group   tap column 0 | 1 | 2 | -        second group   1 | 0 | - | 2        columns   tap row 0 | 1 | 2 | -
//
// Width 8: a square of 8 x 8 for each tap. Else a square of 16 x 16 for each tap and step. In floats they are the B
// operands, 8 x 8 for each tap and step, and what is left of them.
template <class Kind>
using Weights = uint32_t[Kind::steps][Kind::registers];

// The column of a B operand, so of the sums, that has one of 8 result channels in floats. Lane t has channels t and
// t + 4, so the lanes stage neighbouring channels at a time.
__device__ __forceinline__ int column_of_result(int result) { return result % 4 * 2 + result / 4; }

// Where a weight of a part is: element `half` of a lane's register.
struct WeightPlace {
  int fragment, lane, half;
};

template <class Kind>
__device__ __forceinline__ WeightPlace weight_place(int result, int source, int tap) {
  int row = result, column = source, fragment = tap;
  if constexpr (Kind::floats)
    return {2 * tap + source / 4, column_of_result(result) * 4 + source % 4, 0};
  else if constexpr (Kind::width == 4) {
    const int r = tap / taps, s = tap % taps, second = result / 4;
    row = (s == 2 ? 8 : 0) + (s == 1 ? 1 - second : second) * 4 + result % 4;
    column = 4 * r + source;
    fragment = second;
  }
  if constexpr (Kind::width != 8) fragment = 4 * fragment + row / 8 + column / 8 * 2;
  return {fragment, row % 8 * 4 + column % 8 / 2, column % 2};
}

// Brings the weights of one step to shared memory, [part][fragment][lane]. A thread takes all taps of a pair of
// channels; of the two, those that are the closer ones in memory follow its neighbours'.
template <class Kind, class T>
__device__ __forceinline__ void stage_weights(const Planes& g, const Channels<Kind>& channels, int step, T* stage) {
  constexpr int sources = Kind::step_sources, of_word = 4 / sizeof(T);
  const bool sources_closer = g.weight_source < g.weight_result;
#pragma unroll 1
  for (int pair = threadIdx.x; pair < Kind::channels * sources; pair += threads) {
    const int source = sources_closer ? pair % sources : pair / Kind::channels;
    const int result = sources_closer ? pair / sources : pair % Kind::channels;
    if (!Kind::pads && result >= channels.count) continue;
    const bool exists = !Kind::pads || (result < channels.count && sources * step + source < g.source_width);
    const int channel = Kind::pads ? channels.group(g) * Kind::width + result : channels.first + result;
    const T* from = static_cast<const T*>(g.weight) + channel / Kind::width * g.weight_group +
                    channel % Kind::width * g.weight_result + (sources * step + source) * g.weight_source;
    T values[taps * taps];
#pragma unroll
    for (int tap = 0; tap < taps * taps; ++tap)
      values[tap] = exists ? from[tap / taps * g.weight_r + tap % taps * g.weight_s] : from_acc<T>(0);
    T* part = stage + result / Kind::warp_channels * Kind::fragments * 32 * of_word;
#pragma unroll
    for (int tap = 0; tap < taps * taps; ++tap) {
      const WeightPlace at = weight_place<Kind>(result % Kind::warp_channels, source, tap);
      part[(at.fragment * 32 + at.lane) * of_word + at.half] = values[tap];
    }
  }
}

template <class Kind>
__device__ __forceinline__ void set_weight(uint32_t (&weights)[Kind::registers], int fragment, uint32_t word) {
  if constexpr (!Kind::floats) {
    weights[fragment] = word;
  } else if constexpr (splits<Kind>) {
    uint32_t& big = weights[fragment / 2 * 4 + fragment % 2];
    big = word;
    split_tf32(big, weights[fragment / 2 * 4 + 2 + fragment % 2]);
  } else {
    weights[fragment] = ptx::round_to_tf32(__uint_as_float(word));
  }
}

// The warp's weights, by way of `stage`.
template <class Kind, class T, class Sync>
__device__ __forceinline__ void load_weights(const Planes& g, const Channels<Kind>& channels, uint4* stage,
                                             Weights<Kind>& weights) {
  const int part = threadIdx.x / 32 % Kind::parts;
  auto* words = reinterpret_cast<uint32_t*>(stage);
#pragma unroll
  for (int step = 0; step < Kind::steps; ++step) {
    if (Kind::pads && step >= channels.steps(g)) break;
    if (step > 0) Sync::weights();     // all have read those of the step before
    if constexpr (Kind::width == 4) {  // where there are no weights
      for (int i = threadIdx.x; i < Kind::fragments * 32; i += threads) words[i] = 0;
      Sync::weights();
    }
    stage_weights<Kind>(g, channels, step, reinterpret_cast<T*>(stage));
    Sync::weights();
#pragma unroll
    for (int i = 0; i < Kind::fragments; ++i)
      set_weight<Kind>(weights[step], i, words[(part * Kind::fragments + i) * 32 + threadIdx.x % 32]);
  }
}

}  // namespace resnext::cuda::mma_nchw
