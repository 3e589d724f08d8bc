#pragma once
// The loads of weights and source rows to shared memory. rows_nchw.h says how it all fits together.
#include "rows_nchw_plan.h"

namespace resnext::cuda::rows_nchw {

// Weights are [tap][source channel][result channel]; the gap of a vector after each tap sets taps in other banks.
template <class K>
constexpr int weight_pitch = K::width * K::width + 4;

template <class K>
struct Operands {
  alignas(16) float weight[taps * taps][weight_pitch<K>];
  alignas(16) float ring[K::stages][K::stage_floats];
};

constexpr int staged_floats = 1024;  // of a warp's results

template <class K>
struct Smem {
  union {
    Operands<K> operands;
    alignas(16) float results[K::warps][staged_floats];
  };
  int special[K::warps];  // whether the warp has loaded a weight that is not finite
};

// What keeps the threads in order; a parameter of the kernel so that tests can leave one out.
struct Sync {
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest>();
  }
  __device__ static void stage() { __syncthreads(); }
  __device__ static void operands_done() { __syncthreads(); }
  __device__ static void warp() { __syncwarp(); }
};

// What a block owns: a group of some images, and of these the tiles from a row and a column on.
struct Place {
  const float* source;  // the first image's first channel of the group
  float* result;
  int64_t group;
  int images, row, column;
};

template <class K>
__device__ __forceinline__ Place place_of(const Plan& g, int64_t block) {
  const Split run = split(block, g.runs), strip = split(run.quotient, g.strips);
  const Split group = split(strip.quotient, g.groups);
  const int64_t image = group.quotient * g.block_images, channel = image * g.channels + group.remainder * K::width;
  return {g.source + channel * g.source_plane,
          g.result + channel * g.result_plane,
          group.remainder,
          static_cast<int>(min(g.images - image, int64_t{g.block_images})),
          static_cast<int>(run.remainder) * g.tile_rows,
          static_cast<int>(strip.remainder) * g.row_tiles.value * tile_columns};
}

// One weight of the group.
struct WeightAt {
  int result, source, tap;
};

// The weight that a lane loads in a warp's `step`th load: where source channels are the closer ones in memory, 8 lanes
// follow source channels and taps for each of 4 result channels; else 32 lanes follow result channels and taps. So
// loads are coalesced, and stores meet in a bank at most twice.
template <class K>
__device__ __forceinline__ WeightAt weight_at(bool sources_closer, int step, int lane) {
  constexpr int area = taps * taps, quads = K::width / 4;
  if (sources_closer) {
    const int row = step / quads * 8 + lane % 8;
    return {step % quads * 4 + lane / 8, row / area, row % area};
  }
  const int element = step * warp_lanes + lane;
  return {element / area % K::width, element / area / K::width, element % area};
}

template <class K>
__device__ __forceinline__ void load_weights(const Plan& g, int64_t group, Smem<K>& smem) {
  constexpr int area = taps * taps, steps = (K::width * area + 7) / 8 * (K::width / 4);
  const int warp = threadIdx.x / warp_lanes, lane = threadIdx.x % warp_lanes;
  const bool sources_closer = g.weight_source < g.weight_result;
  const float* weight = g.weight + group * g.weight_group;
  bool finite = true;
#pragma unroll 4
  for (int step = warp; step < steps; step += K::warps) {
    const WeightAt at = weight_at<K>(sources_closer, step, lane);
    if (at.source >= K::width) continue;
    const float value = weight[at.result * g.weight_result + at.source * g.weight_source + at.tap / taps * g.weight_r +
                               at.tap % taps * g.weight_s];
    finite = finite && value - value == 0;
    smem.operands.weight[g.turned ? area - 1 - at.tap : at.tap][at.source * K::width + at.result] = value;
  }
  const bool special = __any_sync(0xffffffffu, !finite);
  if (lane == 0) smem.special[warp] = special;
}

// A thread's part in copying the source to the ring: the same places of every stage, of other channels.
template <class K>
struct Loader {
  static constexpr int zero = -1, none = -2;
  const float* chunk;   // the start of the next one in the first image
  int from[K::copies];  // offsets from there, or `zero` where there is nothing, or `none` for no copy
  int to[K::copies];    // offsets in a stage

  __device__ __forceinline__ Loader(const Plan& g, const Place& place) {
    chunk = place.source;
#pragma unroll
    for (int i = 0; i < K::copies; ++i) locate(g, place, threadIdx.x + i * K::threads, from[i], to[i]);
  }

  // A stage's vectors are numbered in the order of memory, so that a warp's copies are of whole sectors. The ring has
  // the same order but at stride 2.
  __device__ __forceinline__ static void locate(const Plan& g, const Place& place, int number, int& from, int& to) {
    const SmallSplit image = split(number, g.image_vectors);
    const int image_start = image.quotient * static_cast<int>(g.channels * g.source_plane);
    const int plane_floats = static_cast<int>(g.source_plane);
    bool exists = image.quotient < place.images;
    to = K::stride == 2 ? image.quotient * g.image_pitch : number * g.vector;
    if (g.planes) {
      const int at = image.remainder * g.vector;
      from = image_start + at;
      exists = exists && at < g.chunk * plane_floats;
      if (K::stride == 2) to += at;
    } else {
      const SmallSplit line = split(image.remainder, g.line_vectors), plane = split(line.quotient, g.lines);
      const int row = K::stride * place.row - K::before + plane.remainder, at = line.remainder * g.vector;
      const int column = K::stride * place.column - g.lead + at;
      from = image_start + plane.quotient * plane_floats + row * g.columns + column;
      exists = exists && row >= 0 && row < g.rows && column >= 0 && column < g.columns;
      if (K::stride == 2)
        to += plane.quotient * g.channel_pitch + plane.remainder % 2 * g.odd + plane.remainder / 2 * g.pitch + at;
    }
    if (!exists) from = image.quotient < g.block_images ? zero : none;
  }

  template <int vector>
  __device__ __forceinline__ void copy(const Plan& g, float* stage) {
#pragma unroll
    for (int i = 0; i < K::copies; ++i) {
      const bool exists = from[i] >= 0;
      if (from[i] != none)
        ptx::cp_async<4 * vector>(stage + to[i], chunk + (exists ? from[i] : 0), exists ? 4 * vector : 0);
    }
  }

  // Starts the copy of the next chunk, if there is one, and makes a group of it.
  __device__ __forceinline__ void copy_next(const Plan& g, bool exists, float* stage) {
    if (exists) {
      if (g.vector == 4) {
        copy<4>(g, stage);
      } else if (g.vector == 1) {
        copy<1>(g, stage);
      } else if constexpr (K::stride == 2) {
        copy<2>(g, stage);
      }
      chunk += g.chunk * g.source_plane;
    }
    ptx::cp_async_commit();
  }
};

}  // namespace resnext::cuda::rows_nchw
