#pragma once
// What becomes of the sums of the row-streaming wgrad: tiles are added up, then slices, and written in the order of the
// weight's memory. rows_wgrad_kernel.h says how it all fits together.
#include "rows_wgrad_load.h"

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

// The output vector and the pair of input channels of a thread of a tile. Their low bits alternate, so that of four
// lanes two each read the same vector, and so two each the same pair.
struct Pair {
  int k_vector, c2;
};

template <class Gw>
__device__ __forceinline__ Pair pair_of(int thread) {
  const int low = thread % (2 * Gw::k_vectors);
  return {low / 4 * 2 + low % 2, thread / (2 * Gw::k_vectors) * 2 + low / 2 % 2};
}

// A thread's sums over its tile: [r][s][input channel of the pair][output channel of the vector].
using Sums = float[taps][taps][2][4];

// Where the tiles' sums are added up, in the place of the ring.
template <class Gw>
struct Totals {
  static constexpr int pitch = Gw::elements + 8;
  float4 part[Gw::tiles][taps * 2][Gw::tile_threads];  // sums of one tap row
  float4 result[Gw::k_vectors * pitch];
  float4 bias[Gw::threads / 32][Gw::k_vectors];

  // Where the four results of an output vector and an element (c * 9 + tap) lie: neighbours are close to one another,
  // and what eight threads write at a time, four vectors of two pairs of c, is in different banks.
  __device__ static int place(int k_vector, int element) {
    return k_vector * pitch + k_vector % 2 + k_vector / 2 % 2 * 4 + element;
  }
};

// Adds up the tiles' sums in order, one tap row after the other, and what the threads have of the bias.
template <class Gw, class Sync>
__device__ __forceinline__ void add_tiles(const Sums& sums, float4 bias, Totals<Gw>& totals) {
  const int tile = threadIdx.x / Gw::tile_threads, thread = threadIdx.x % Gw::tile_threads;
#pragma unroll
  for (int flip = Gw::k_vectors; flip < 32; flip *= 2)
    add(bias, make_float4(__shfl_xor_sync(0xffffffffu, bias.x, flip), __shfl_xor_sync(0xffffffffu, bias.y, flip),
                          __shfl_xor_sync(0xffffffffu, bias.z, flip), __shfl_xor_sync(0xffffffffu, bias.w, flip)));
  Sync::before_sums();
  if (threadIdx.x % 32 < Gw::k_vectors) totals.bias[threadIdx.x / 32][threadIdx.x % 32] = bias;
#pragma unroll
  for (int r = 0; r < taps; ++r) {
    if (r > 0) Sync::before_sums();
#pragma unroll
    for (int j = 0; j < taps * 2; ++j) {
      const float (&sum)[4] = sums[r][j / 2][j % 2];
      totals.part[tile][j][thread] = make_float4(sum[0], sum[1], sum[2], sum[3]);
    }
    Sync::after_sums();
    for (int at = threadIdx.x; at < taps * 2 * Gw::tile_threads; at += Gw::threads) {
      const int j = at / Gw::tile_threads;
      const Pair pair = pair_of<Gw>(at % Gw::tile_threads);
      float4 total = totals.part[0][j][at % Gw::tile_threads];
#pragma unroll
      for (int other = 1; other < Gw::tiles; ++other) add(total, totals.part[other][j][at % Gw::tile_threads]);
      const int element = (2 * pair.c2 + j % 2) * taps * taps + r * taps + j / 2;
      totals.result[Totals<Gw>::place(pair.k_vector, element)] = total;
    }
  }
  Sync::results();
}

// An element of the weight, its input channel counted within the block's part of the group.
struct Element {
  int c, tap;
};

// The `index`th element in the order in which they are stored: as the weight's memory has them, so that consecutive
// threads write consecutive addresses.
template <class Gw>
__device__ __forceinline__ Element element_of(const Wgrad& g, int index) {
  if (g.channels_closer) return {index % Gw::group_c, index / Gw::group_c};
  return {index / (taps * taps), index % (taps * taps)};
}

// Where the weights of four output channels and one element begin.
template <class Gw>
__device__ __forceinline__ float* weight_at(const Wgrad& g, int k, int part, Element at) {
  return g.grad_weight + k * g.weight_k + (part * Gw::group_c + at.c) * g.weight_c + at.tap / taps * g.weight_r +
         at.tap % taps * g.weight_s;
}

template <class Gw>
__host__ __device__ int64_t weight_vectors(const Wgrad& g) {
  return int64_t(g.channel_blocks) * Gw::parts * Gw::k_vectors * Gw::elements;
}

// Vectors of a slice in the workspace.
template <class Gw>
__host__ __device__ int64_t slice_vectors(const Wgrad& g) {
  return weight_vectors<Gw>(g) + g.channel_blocks * Gw::k_vectors;
}

// Writes the results, or to the workspace if there are more slices to be added.
template <class Gw>
__device__ __forceinline__ void store_totals(const Wgrad& g, int slice, int block, const Channels& first,
                                             const Totals<Gw>& totals) {
  float4* sums = reinterpret_cast<float4*>(g.workspace) + slice * slice_vectors<Gw>(g);
  for (int at = threadIdx.x; at < Gw::k_vectors * Gw::elements; at += Gw::threads) {
    const int k_vector = at / Gw::elements;
    const Element element = element_of<Gw>(g, at % Gw::elements);
    const float4 total = totals.result[Totals<Gw>::place(k_vector, element.c * taps * taps + element.tap)];
    const int k = first.k + 4 * k_vector;
    if (g.slices > 1) {
      sums[int64_t(block) * Gw::k_vectors * Gw::elements + at] = total;
    } else if (k < g.channels) {
      float* to = weight_at<Gw>(g, k, first.part, element);
      to[0] = total.x;
      to[g.weight_k] = total.y;
      to[2 * g.weight_k] = total.z;
      to[3 * g.weight_k] = total.w;
    }
  }
  const int k = first.k + 4 * static_cast<int>(threadIdx.x);
  if (!g.grad_bias || first.part > 0 || threadIdx.x >= Gw::k_vectors) return;
  float4 total = totals.bias[0][threadIdx.x];
#pragma unroll
  for (int warp = 1; warp < Gw::threads / 32; ++warp) add(total, totals.bias[warp][threadIdx.x]);
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
  const int part = threadIdx.x % 32 / 8;
  float4 sum = make_float4(0, 0, 0, 0);
  if (vector < vectors)
    for (int slice = part; slice < g.slices; slice += finish_parts)
      add(sum, reinterpret_cast<const float4*>(g.workspace)[slice * vectors + vector]);
#pragma unroll
  for (int flip = 8; flip < 32; flip *= 2)
    add(sum, make_float4(__shfl_xor_sync(0xffffffffu, sum.x, flip), __shfl_xor_sync(0xffffffffu, sum.y, flip),
                         __shfl_xor_sync(0xffffffffu, sum.z, flip), __shfl_xor_sync(0xffffffffu, sum.w, flip)));
  const float value = part < 2 ? (part == 0 ? sum.x : sum.y) : (part == 2 ? sum.z : sum.w);
  if (vector < weight_vectors<Gw>(g)) {
    const int k_vector = static_cast<int>(vector / Gw::elements);
    const Channels first = channels_of<Gw>(k_vector / Gw::k_vectors);
    const int k = first.k + 4 * (k_vector % Gw::k_vectors) + part;
    const Element element = element_of<Gw>(g, static_cast<int>(vector % Gw::elements));
    if (k < g.channels) *weight_at<Gw>(g, k, first.part, element) = value;
  } else if (g.grad_bias) {
    const int k = 4 * static_cast<int>(vector - weight_vectors<Gw>(g)) + part;
    if (k < g.channels) g.grad_bias[k] = value;
  }
}

}  // namespace resnext::cuda::rows_wgrad
