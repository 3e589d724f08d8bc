#pragma once
// What becomes of the sums of the tensor cores' wgrad: teams are added up, then slices, and written in the order of the
// weight's memory. mma_wgrad_kernel.h says how it all fits together.
#include "mma_wgrad_products.h"
#include "numeric.h"

namespace resnext::cuda::mma_wgrad {

// What keeps the threads in order; a parameter of the kernel so that tests can leave one out.
struct Sync {
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest>();
  }
  template <class Gw>
  __device__ static void row() {
    if constexpr (Gw::team_threads == 32)
      __syncwarp();
    else
      ptx::barrier_sync(1 + threadIdx.x / Gw::team_threads, Gw::team_threads);
  }
  __device__ static void chunk() { __syncthreads(); }
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

// Where teams are added up, in the place of the rings: for 16 output channels at a time, half of the accumulators at a
// time.
template <class Gw>
struct Totals {
  static constexpr int elements = Gw::width * taps * taps;  // of an output channel
  static constexpr int pitch = congruent(elements, 4);      // so that lanes write to different banks
  float4 part[Gw::teams][Gw::c_tiles][Gw::accumulators / 2][32];
  float result[16][pitch];  // [output channel][input channel in its group * 9 + tap]
  float bias[16];
};

// Where element i of a lane's accumulator belongs, counted within the warp's tile. No weight or bias: k = -1.
struct Place {
  int k, c, tap;  // tap = 9: the bias
};

template <class Gw>
__device__ __forceinline__ Place place_of(int accumulator, int lane, int i) {
  const int row = lane / 4, column = lane % 4 * 2 + i % 2, lower = i / 2;
  if (Gw::width >= 16) {
    const int k = accumulator % 2 * 8 + column, tap = accumulator / 2;
    if (tap < taps * taps) return {k, row + 8 * lower, tap};
    return {row + lower == 0 ? k : -1, 0, taps * taps};
  }
  const int s = accumulator / 2 % taps, k = accumulator < 2 * taps ? row : column;
  const int c = accumulator < 2 * taps ? column : row, r = accumulator < 2 * taps ? 2 * lower : 1;
  Place place{accumulator % 2 * 8 + k, c % Gw::width, r * taps + s};
  if (accumulator >= 2 * taps && lower == 1)
    place = {row == 0 && s == 1 ? place.k : -1, 0, taps * taps};
  else if (c / Gw::width != k / Gw::width)
    place.k = -1;
  return place;
}

// Adds the teams' sums for output channels 16 * k_tile and on, in the order of the teams.
template <class Gw, class Sync>
__device__ __forceinline__ void add_teams(const Sums<Gw>& sums, int k_tile, Totals<Gw>& totals) {
  constexpr int half = Gw::accumulators / 2;
  const int lane = threadIdx.x % 32, tile = threadIdx.x % Gw::team_threads / 32;
#pragma unroll
  for (int first = 0; first < Gw::accumulators; first += half) {
    Sync::before_sums();
    if (tile / Gw::c_tiles == k_tile) {
#pragma unroll
      for (int a = 0; a < half; ++a) {
        const float (&sum)[4] = sums.sums[first + a];
        totals.part[threadIdx.x / Gw::team_threads][tile % Gw::c_tiles][a][lane] =
            make_float4(sum[0], sum[1], sum[2], sum[3]);
      }
    }
    Sync::after_sums();
    for (int at = threadIdx.x; at < Gw::c_tiles * half * 32; at += Gw::threads) {
      const int c_tile = at / (half * 32), a = at / 32 % half;
      float4 total = totals.part[0][c_tile][a][lane];
#pragma unroll
      for (int team = 1; team < Gw::teams; ++team) add(total, totals.part[team][c_tile][a][lane]);
      const float values[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Place place = place_of<Gw>(first + a, lane, i);
        if (place.k < 0) continue;
        if (place.tap < taps * taps)
          totals.result[place.k][(16 * c_tile + place.c) * taps * taps + place.tap] = values[i];
        else if (c_tile == 0)
          totals.bias[place.k] = values[i];
      }
    }
  }
  Sync::results();
}

// An output channel's weight, its input channel counted within the group.
struct Element {
  int c, tap;
};

// The `index`th of them in the order of the weight's memory, in which they are stored, so that consecutive threads
// write consecutive addresses.
template <int width>
__device__ __forceinline__ Element element_of(const MmaWgrad& g, int index) {
  if (g.channels_closer) return {index % width, index / width};
  return {index / (taps * taps), index % (taps * taps)};
}

template <class T, int width>
__device__ __forceinline__ T* weight_at(const MmaWgrad& g, int k, int index) {
  const Element e = element_of<width>(g, index);
  return static_cast<T*>(g.grad_weight) + k * g.weight_k + e.c * g.weight_c + e.tap / taps * g.weight_r +
         e.tap % taps * g.weight_s;
}

// Floats of a slice in the workspace.
template <int width>
__host__ __device__ __forceinline__ int64_t slice_size(const MmaWgrad& g) {
  return int64_t(g.channels) * (width * taps * taps + 1);
}

// Writes the totals of 16 output channels from `k` on, as results if there is one slice.
template <class Gw>
__device__ __forceinline__ void store_totals(const MmaWgrad& g, int slice, int k, const Totals<Gw>& totals) {
  constexpr int elements = Totals<Gw>::elements;
  const int count = min(16, g.channels - k);
  float* sums = g.workspace + slice * slice_size<Gw::width>(g);
  for (int at = threadIdx.x; at < count * elements; at += Gw::threads) {
    const int row = at / elements, index = at % elements;
    const Element element = element_of<Gw::width>(g, index);
    const float total = totals.result[row][element.c * taps * taps + element.tap];
    if (g.slices > 1)
      sums[int64_t(k) * elements + at] = total;
    else
      *weight_at<typename Gw::T, Gw::width>(g, k + row, index) = from_acc<typename Gw::T>(total);
  }
  const int row = threadIdx.x;
  if (!g.grad_bias || row >= count) return;
  if (g.slices > 1)
    sums[int64_t(g.channels) * elements + k + row] = totals.bias[row];
  else
    static_cast<typename Gw::T*>(g.grad_bias)[k + row] = from_acc<typename Gw::T>(totals.bias[row]);
}

// What a block does with its sums, of output channels from `k` on.
template <class Gw, class Sync>
__device__ __forceinline__ void finish_block(const MmaWgrad& g, int slice, int k, const Sums<Gw>& sums,
                                             Totals<Gw>& totals) {
#pragma unroll
  for (int k_tile = 0; k_tile < Gw::k_tiles; ++k_tile) {
    add_teams<Gw, Sync>(sums, k_tile, totals);
    store_totals(g, slice, k + 16 * k_tile, totals);
  }
}

constexpr int finish_threads = 128, finish_parts = 4;

// Adds up the slices: four lanes share four consecutive sums of the workspace, take every fourth slice of them and add
// what they have pairwise; then each writes one of the four.
template <class T, int width>
__global__ void __launch_bounds__(finish_threads) wgrad_mma_finish(MmaWgrad g) {
  constexpr int elements = width * taps * taps;
  const int64_t thread = int64_t(blockIdx.x) * finish_threads + threadIdx.x;
  const int64_t vector = thread / 32 * 8 + thread % 8, vectors = slice_size<width>(g) / 4;
  const int64_t weights = int64_t(g.channels) * elements, wanted = g.grad_bias ? vectors : weights / 4;
  const int part = threadIdx.x % 32 / 8;
  float4 sum = make_float4(0, 0, 0, 0);
  if (vector < wanted)
    for (int slice = part; slice < g.slices; slice += finish_parts)
      add(sum, reinterpret_cast<const float4*>(g.workspace)[slice * vectors + vector]);
#pragma unroll
  for (int flip = 8; flip < 32; flip *= 2)
    add(sum, make_float4(__shfl_xor_sync(0xffffffffu, sum.x, flip), __shfl_xor_sync(0xffffffffu, sum.y, flip),
                         __shfl_xor_sync(0xffffffffu, sum.z, flip), __shfl_xor_sync(0xffffffffu, sum.w, flip)));
  const T value = from_acc<T>(part < 2 ? (part == 0 ? sum.x : sum.y) : (part == 2 ? sum.z : sum.w));
  const int64_t at = 4 * vector + part, bias = at - weights;
  if (bias < 0)
    *weight_at<T, width>(g, static_cast<int>(at / elements), static_cast<int>(at % elements)) = value;
  else if (g.grad_bias && bias < g.channels)
    static_cast<T*>(g.grad_bias)[bias] = value;
}

}  // namespace resnext::cuda::mma_wgrad
