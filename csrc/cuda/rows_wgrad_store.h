#pragma once
// What becomes of the sums of the row-streaming wgrad: tiles are added up, then slices, and written in the order of the
// weight's memory. rows_wgrad_kernel.h says how it all fits together.
#include "rows_wgrad_load.h"
#include "rows_wgrad_mend.h"
#include "tf32.h"

namespace resnext::cuda::rows_wgrad {

// What keeps the threads in order; a parameter of the kernel so that tests can leave one out.
struct Sync {
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest>();
  }
  __device__ static void row() { __syncthreads(); }
  __device__ static void before_sums() { __syncthreads(); }
  __device__ static void after_sums() { __syncthreads(); }
  __device__ static void results() { __syncthreads(); }
};

__device__ __forceinline__ void add(float4& sum, const float4& value) {
  sum.x += value.x;
  sum.y += value.y;
  sum.z += value.z;
  sum.w += value.w;
}

// A thread's sums over its tile: [r][s][input channel of the pair][output channel of the vector]. Of tensor cores:
// [r][s][half of the vector's channels, odd or even][the other half of mma's accumulator, by input channel], and the
// same of the warp's second half of output channels.
template <class Gw>
using Sums = float[taps][taps][2 * Gw::halves][4];

// Where the tiles' sums are added up, in the place of the ring.
template <class Gw>
struct Totals {
  static constexpr bool nhwc = Gw::Form::layout == Layout::nhwc;
  static constexpr int pitch = Gw::elements + 8;
  static constexpr int at_once = Gw::width == 32 ? 2 : 2 * taps;  // sums of a thread, to fit into 64 KB
  float4 part[Gw::tiles][at_once][Gw::tile_sums];
  float4 result[Gw::vectors * pitch];
  static constexpr int bias_rows = nhwc && !Gw::Form::mma ? Gw::threads / 32 : Gw::tiles;  // warps, or tiles
  float4 bias[bias_rows][Gw::vectors];

  // Where the four results of an output vector and an element (c * 9 + tap) lie: neighbours are close to one another,
  // and what eight threads write at a time, four vectors of two pairs of c or two vectors of four pairs (NCHW: eight
  // pairs of one vector or more), is in different banks.
  __device__ static int place(int k_vector, int element) {
    const int skew = nhwc || Gw::Form::mma
                         ? k_vector % 2 + k_vector / 2 % 2 * 4
                         : k_vector / Gw::group_vectors * Gw::width / 8 % 2 + element / (8 * taps * taps);
    return k_vector * pitch + skew + element;
  }
};

// Puts what the threads have of the bias where it is added up. NHWC: a thread has part of an output vector.
template <class Gw>
__device__ __forceinline__ void put_bias(float4 bias, int thread, Totals<Gw>& totals) {
#pragma unroll
  for (int flip = Gw::vectors; flip < 32; flip *= 2)
    add(bias, make_float4(__shfl_xor_sync(0xffffffffu, bias.x, flip), __shfl_xor_sync(0xffffffffu, bias.y, flip),
                          __shfl_xor_sync(0xffffffffu, bias.z, flip), __shfl_xor_sync(0xffffffffu, bias.w, flip)));
  if (thread % 32 < Gw::vectors) totals.bias[thread / 32][thread % 32] = bias;
}

// NCHW: the channels that the threads of a tile share out, whole. Tensor cores: the columns of two channels that a lane
// has.
template <class Gw>
constexpr int own_biases = Gw::Form::mma    ? 2 * Gw::halves
                           : Gw::width == 4 ? 2
                                            : 1;

template <class Gw>
__device__ __forceinline__ void put_bias(const float (&bias)[own_biases<Gw>], int thread, Totals<Gw>& totals) {
  if constexpr (Gw::Form::mma) {
    float* row = reinterpret_cast<float*>(totals.bias[Gw::Form::template tile<Gw>(thread)]);
    const int own = Gw::Form::template thread_of_tile<Gw>(thread);
#pragma unroll
    for (int i = 0; i < own_biases<Gw>; ++i) {
      float sum = bias[i];
#pragma unroll
      for (int flip = 1; flip < 4; flip *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, flip);
      if (thread % 4 == 0 && Gw::Form::template c_tile<Gw>(own) == 0)
        row[Gw::Form::template k_tile<Gw>(own) + i / 2 * 16 + thread % 32 / 4 * 2 + i % 2] = sum;
    }
    return;
  }
  const Pair pair = Nchw::pair<Gw>(Nchw::thread_of_tile<Gw>(thread));
  float* row = reinterpret_cast<float*>(&totals.bias[Nchw::tile<Gw>(thread)][pair.k_vector]);
#pragma unroll
  for (int i = 0; i < own_biases<Gw>; ++i)
    if (pair.c2 < 4) row[pair.c2 + 2 * i] = bias[i];
}

// A thread's sums of four output channels, in a half, for a tap and the cth input channel of its pair.
template <class Gw>
__device__ __forceinline__ float4 sum_of(const Sums<Gw>& sums, int half, int tap, int c) {
  const auto* sum = sums[tap / taps][tap % taps] + 2 * half;
  if constexpr (Gw::Form::mma) return make_float4(sum[0][2 * c], sum[1][2 * c], sum[0][2 * c + 1], sum[1][2 * c + 1]);
  return make_float4(sum[c][0], sum[c][1], sum[c][2], sum[c][3]);
}

// Adds up the tiles' sums in order, some at a time, and what the threads have of the bias.
template <class Gw, class Sync, class Bias>
__device__ __forceinline__ void add_tiles(const Sums<Gw>& sums, const Bias& bias, Totals<Gw>& totals) {
  constexpr int at_once = Totals<Gw>::at_once;
  // The minimum is always threadIdx.x, but the compiler, which cannot know, keeps no register for it all the way.
  const int own = static_cast<int>(min(threadIdx.x, blockDim.x - 1));
  const int tile = Gw::Form::template tile<Gw>(own), thread = Gw::Form::template thread_of_tile<Gw>(own);
  Sync::before_sums();
  put_bias<Gw>(bias, own, totals);
#pragma unroll
  for (int first = 0; first < 2 * taps * taps; first += at_once) {
    if (first > 0) Sync::before_sums();
#pragma unroll
    for (int j = 0; j < at_once; ++j)
#pragma unroll
      for (int half = 0; half < Gw::halves; ++half)
        totals.part[tile][j][thread + half * Gw::tile_threads] = sum_of<Gw>(sums, half, (first + j) / 2, j % 2);
    Sync::after_sums();
    for (int at = own; at < at_once * Gw::tile_sums; at += Gw::threads) {
      const int j = at / Gw::tile_sums;
      if constexpr (Gw::Form::mma)
        if (!Gw::Form::template wanted<Gw>(at)) continue;
      const Pair pair = Gw::Form::template pair<Gw>(at % Gw::tile_sums);
      float4 total = totals.part[0][j][at % Gw::tile_sums];
#pragma unroll
      for (int other = 1; other < Gw::tiles; ++other) add(total, totals.part[other][j][at % Gw::tile_sums]);
      const int element = (2 * pair.c2 + j % 2) * taps * taps + (first + j) / 2;
      totals.result[Totals<Gw>::place(pair.k_vector, element)] = total;
    }
  }
  Sync::results();
}

// The `index`th element in the order in which they are stored: as the weight's memory has them, so that consecutive
// threads write consecutive addresses.
template <class Gw>
__device__ __forceinline__ Element element_of(const Wgrad& g, int index) {
  if (g.channels_closer) return {index % Gw::width, index / Gw::width};
  return {index / (taps * taps), index % (taps * taps)};
}

// Where the weights of four output channels and one element begin.
template <class Gw>
__device__ __forceinline__ float* weight_at(const Wgrad& g, int k, Element at) {
  return g.grad_weight + k * g.weight_k + at.c * g.weight_c + at.tap / taps * g.weight_r + at.tap % taps * g.weight_s;
}

template <class Gw>
__host__ __device__ int64_t weight_vectors(const Wgrad& g) {
  return int64_t(g.k_vectors) * Gw::elements;
}

// Vectors of a slice in the workspace.
template <class Gw>
__host__ __device__ int64_t slice_vectors(const Wgrad& g) {
  return weight_vectors<Gw>(g) + g.k_vectors;
}

// Writes the results, or to the workspace if there are more slices to be added.
template <class Gw>
__device__ __forceinline__ void store_totals(const Wgrad& g, int slice, int block, Totals<Gw>& totals) {
  float4* sums = reinterpret_cast<float4*>(g.workspace) + slice * slice_vectors<Gw>(g);
  for (int at = threadIdx.x; at < Gw::vectors * Gw::elements; at += Gw::threads) {
    const int k_vector = at / Gw::elements;
    const Element element = element_of<Gw>(g, at % Gw::elements);
    float4& total = totals.result[Totals<Gw>::place(k_vector, element.c * taps * taps + element.tap)];
    const int k = block * Gw::channels + 4 * k_vector;
    if constexpr (splits<typename Gw::Form>) mend<Gw>(total, g, slice, k, element);
    if (g.slices > 1) {
      sums[int64_t(block) * Gw::vectors * Gw::elements + at] = total;
    } else if (k < g.channels) {
      float* to = weight_at<Gw>(g, k, element);
      to[0] = total.x;
      to[g.weight_k] = total.y;
      to[2 * g.weight_k] = total.z;
      to[3 * g.weight_k] = total.w;
    }
  }
  const int k = block * Gw::channels + 4 * static_cast<int>(threadIdx.x);
  if (!g.grad_bias || threadIdx.x >= Gw::vectors) return;
  float4 total = totals.bias[0][threadIdx.x];
#pragma unroll
  for (int i = 1; i < Totals<Gw>::bias_rows; ++i) add(total, totals.bias[i][threadIdx.x]);
  if (g.slices > 1) {
    sums[weight_vectors<Gw>(g) + k / 4] = total;
  } else if (k < g.channels) {
    g.grad_bias[k] = total.x;
    g.grad_bias[k + 1] = total.y;
    g.grad_bias[k + 2] = total.z;
    g.grad_bias[k + 3] = total.w;
  }
}

constexpr int finish_threads = 128, finish_parts = 4;

// Adds up the slices: four lanes share a vector of the workspace, take every fourth slice of it and add their sums
// pairwise; then each writes one of the four weights.
template <int width>
__global__ void __launch_bounds__(finish_threads) wgrad_rows_finish(Wgrad g) {
  using Gw = Gw<width, 1, Nhwc>;
  const int64_t thread = int64_t(blockIdx.x) * finish_threads + threadIdx.x;
  const int64_t vector = thread / 32 * 8 + thread % 8, vectors = slice_vectors<Gw>(g);
  const int64_t wanted = g.grad_bias ? vectors : weight_vectors<Gw>(g);
  const int part = threadIdx.x % 32 / 8;
  float4 sum = make_float4(0, 0, 0, 0);
  if (vector < wanted)
    for (int slice = part; slice < g.slices; slice += finish_parts)
      add(sum, reinterpret_cast<const float4*>(g.workspace)[slice * vectors + vector]);
#pragma unroll
  for (int flip = 8; flip < 32; flip *= 2)
    add(sum, make_float4(__shfl_xor_sync(0xffffffffu, sum.x, flip), __shfl_xor_sync(0xffffffffu, sum.y, flip),
                         __shfl_xor_sync(0xffffffffu, sum.z, flip), __shfl_xor_sync(0xffffffffu, sum.w, flip)));
  const float value = part < 2 ? (part == 0 ? sum.x : sum.y) : (part == 2 ? sum.z : sum.w);
  if (vector < weight_vectors<Gw>(g)) {
    const int k_vector = static_cast<int>(vector / Gw::elements);
    const int k = 4 * k_vector + part;
    const Element element = element_of<Gw>(g, static_cast<int>(vector % Gw::elements));
    if (k < g.channels) *weight_at<Gw>(g, k, element) = value;
  } else if (g.grad_bias) {
    const int k = 4 * static_cast<int>(vector - weight_vectors<Gw>(g)) + part;
    if (k < g.channels) g.grad_bias[k] = value;
  }
}

}  // namespace resnext::cuda::rows_wgrad
