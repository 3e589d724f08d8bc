#pragma once
// Tensor-core fprop and dgrad at stride 1 for groups of 4 channels, which alone fill half of an mma's columns and a
// quarter of its depth. So a pair of neighbouring pixels shares one, and the columns that the two read:
//
//   sums          16 pairs x (2 pixels x 4 result channels)
//   A, of pixels  16 pairs x (4 columns x 4 source channels)
//   B, weights    the tap columns w0, w1, w2 of a tap row, 4 x 4 channels each, so that 3/4 of the products count:
//
//       source column   2m - 1   2m     2m + 1   2m + 2
//       result 2m         w0     w1       w2        0
//       result 2m + 1      0     w0       w1       w2
//
// The rest is as in mma_nhwc.h at stride 1, with these differences:
//
//   warp   16 channels of 32 pixels of a row (or of 2 x 16, 4 x 8, 8 x 4, of images side by side), for itself
//   ring   [stage][group][pixel]: the 4 channels of a pixel are 8 bytes, and the four columns of a pair 32 bytes in a
//          row, which begin at a multiple of 16 since the ring begins one column left of the tile
//   lane   (g = lane / 4, t = lane % 4) has the pixels 2g + t / 2 and 16 more x channels 2 (t % 2) + {0, 1} of the four
//          groups; lanes t and t ^ 1 exchange halves, and each stores 8 channels of both pixels
//
// Banks. Copies write 4 groups x 4 neighbouring pixels at a time, 18 vectors from group to group: banks 8 apart.
// ldmatrix reads 8 vectors in a row.
//
// Infinities. A zero of B meets a pixel that the result has nothing to do with, of the same group, and an infinite
// weight meets the column beside the image; so a result may be NaN that should not be. The lanes keep 0 times each sum;
// a warp in which that is not 0 sums all its results that are not finite once more, one by one.
#include "mma_nhwc_edges.h"

namespace resnext::cuda::mma_nhwc {

struct Pairs {
  static constexpr int width = 4, channels = 16, groups = channels / width, warps = 1, teams = 4, threads = 128;
  static constexpr int stride = 1, before = 1, halo = 2, spread = 1, stages = 3, tile = 32;
  static constexpr bool walks = false;
  static constexpr int pitch = 18, stage_pixels = groups * pitch * 2;  // in vectors of two pixels, and in pixels
};

using PairSums = float[Pairs::groups][4];
using PairWeights = uint32_t[Pairs::groups][taps][2];

template <class T>
struct PairSmem {
  alignas(16) uint2 ring[Pairs::teams][Pairs::stages * Pairs::stage_pixels];
  T weights[taps * taps][Pairs::channels + 4][Pairs::width];  // of a result channel; taps lie 8 banks apart
  // Of the channels that lanes with even t have, then of the others; or shift and scale.
  alignas(16) float2 bias[2][Pairs::groups], scale[2][Pairs::groups];
};

// Brings weights and bias of the block's channels to shared memory, zeros for channels that do not exist. Threads next
// to one another take weights that are close to one another in memory.
template <class T>
__device__ __forceinline__ void stage_pair_weights(const Lines& g, PairSmem<T>& smem) {
  constexpr int pairs = Pairs::channels * Pairs::width;
  const bool taps_closer = g.weight_s * g.weight_s < g.weight_source * g.weight_source;
  const bool sources_closer = g.weight_source < g.weight_result;
#pragma unroll 1
  for (int i = threadIdx.x; i < taps * taps * pairs; i += Pairs::threads) {
    const int tap = taps_closer ? i % (taps * taps) : i / pairs, pair = taps_closer ? i / (taps * taps) : i % pairs;
    const int source = sources_closer ? pair % Pairs::width : pair / Pairs::channels;
    const int result = sources_closer ? pair / Pairs::width : pair % Pairs::channels;
    const int channel = first_channel<Pairs>(g) + result;
    const T* from = static_cast<const T*>(g.weight) + channel / Pairs::width * g.weight_group +
                    channel % Pairs::width * g.weight_result + source * g.weight_source + tap / taps * g.weight_r +
                    tap % taps * g.weight_s;
    smem.weights[tap][result][source] = channel < g.channels ? *from : from_acc<T>(0);
  }
  if (const int i = threadIdx.x, channel = first_channel<Pairs>(g) + i; i < Pairs::channels) {
    const bool exists = channel < g.channels;
    float bias = exists && g.bias ? to_acc(static_cast<const T*>(g.bias)[channel]) : 0;
    if (exists && g.scale) {
      bias = g.shift[channel];
      reinterpret_cast<float*>(&smem.scale[i / 2 % 2][i / 4])[i % 2] = g.scale[channel];
    }
    reinterpret_cast<float*>(&smem.bias[i / 2 % 2][i / 4])[i % 2] = bias;
  }
}

// The lane's part of B: of column g, which is channel g % 4 of the pair's pixel g / 4, rows 2t, 2t + 1 and 8 more.
template <class T>
__device__ __forceinline__ void load_pair_weights(const PairSmem<T>& smem, PairWeights& weights) {
  const int lane = threadIdx.x % 32, pixel = lane / 16, channel = lane / 4 % 4, source = lane % 2 * 2;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int s = 2 * half + lane % 4 / 2 - pixel;
#pragma unroll
    for (int group = 0; group < Pairs::groups; ++group)
#pragma unroll
      for (int r = 0; r < taps; ++r) {
        weights[group][r][half] = 0;
        if (s >= 0 && s < taps)
          weights[group][r][half] =
              *reinterpret_cast<const uint32_t*>(&smem.weights[r * taps + s][Pairs::width * group + channel][source]);
      }
  }
}

// A lane's share in copying source rows to the ring: a group's channels of every eighth pixel of the tile and, in the
// first lanes, of those beside it.
template <class T>
struct PairLoader {
  const T* from;   // the lane's first pixel in the next row
  unsigned valid;  // bit i: the lane's ith pixel exists; bit 4: the one beside the tile
  int beside;      // where that is, from the first one on
  uint2* target;   // of the first pixel's copy, in stage 0
  int rows;        // still to be copied

  __device__ __forceinline__ PairLoader(const Lines& g, const Walk& walk, uint2* ring) {
    const int lane = threadIdx.x % 32, group = lane % 4, m = lane / 4, channel = first_channel<Pairs>(g) + 4 * group;
    const int image = walk.image + m / g.tile_columns, column = walk.column + m % g.tile_columns;
    const int y = first_source_row<Pairs>(walk);
    rows = end_source_row<Pairs>(g, walk) - y;
    from = advance(static_cast<const T*>(g.source), (static_cast<int64_t>(image) * g.rows + y) * g.source_row) +
           static_cast<int64_t>(column) * g.channels + channel;
    target = ring + group * 2 * Pairs::pitch + 1 + m;
    valid = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int x = column + 8 * i % g.tile_columns;
      if (x < g.columns && image + 8 * i / g.tile_columns < g.images && channel < g.channels) valid |= 1u << i;
    }
    const int x = column + (m == 0 ? -1 : Pairs::tile - 1);
    if (g.tile_images == 1 && x >= 0 && x < g.columns && channel < g.channels) valid |= 16u;
    beside = (m == 0 ? -1 : Pairs::tile - 1) * g.channels;
  }

  // Starts the copy of the next row to a stage, and makes a group of it, an empty one if there is no such row.
  __device__ __forceinline__ void copy_next(const Lines& g, int stage) {
    if (rows-- > 0) {
      uint2* to = target + stage * Pairs::stage_pixels;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T* pixel = advance(from, (i % 2 ? g.next_8 : 0) + (i / 2 ? g.next_16 : 0));
        ptx::cp_async<8>(to + 8 * i, pixel, valid >> i & 1 ? 8 : 0);
      }
      if (const int m = threadIdx.x % 32 / 4; m < 2)
        ptx::cp_async<8>(to + (m == 0 ? -1 : Pairs::tile - 1), from + beside, valid >> 4 & 1 ? 8 : 0);
      from = advance(from, g.source_row);
    }
    ptx::cp_async_commit();
  }
};

// What a lane stores: 8 channels of pixel 2g + t / 2 of the tile, [0], and of the one 16 further, [1].
template <class T>
struct PairTile {
  T* result;       // of the first row
  bool exists[2];  // the pixel
  bool has_channels;

  __device__ __forceinline__ PairTile(const Lines& g, const Walk& walk) {
    const int channel = first_channel<Pairs>(g) + threadIdx.x % 2 * 8;
    has_channels = channel < g.channels;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int m = threadIdx.x % 32 / 2 + 16 * half, image = walk.image + m / g.tile_columns;
      const int q = walk.column + m % g.tile_columns;
      exists[half] = q < g.result_columns && image < g.images;
      if (half == 0)
        result = advance(static_cast<T*>(g.result),
                         (static_cast<int64_t>(image) * g.result_rows + walk.row) * g.result_row) +
                 static_cast<int64_t>(q) * g.channels + channel;
    }
  }
};

// Adds the products of a source row with tap row 2 to the first sums, with tap row 1 to the second, with 0 to the last.
template <class T>
__device__ __forceinline__ void add_pairs(PairSums& first, PairSums& second, PairSums& last, const uint4* row,
                                          const PairWeights& weights) {
#pragma unroll
  for (int group = 0; group < Pairs::groups; ++group) {
    uint32_t pixels[4];
    ptx::ldmatrix(pixels, row + group * Pairs::pitch);
    ptx::mma_m16n8k16<T>(first[group], pixels, weights[group][2]);
    ptx::mma_m16n8k16<T>(second[group], pixels, weights[group][1]);
    ptx::mma_m16n8k16<T>(last[group], pixels, weights[group][0]);
  }
}

// What a fused fprop makes of a lane's sums of a group, channels `channel` and the next. `exists`: its pixel.
template <class T>
__device__ __forceinline__ float2 fused(const Lines& g, float2 sum, float2 scale, float2 shift, int channel,
                                        const T* result, bool exists) {
  float2 value = make_float2(sum.x * scale.x + shift.x, sum.y * scale.y + shift.y);
  if (g.residual && exists) {
    const T* residual = static_cast<const T*>(g.residual) + (result - static_cast<T*>(g.result)) + channel;
    value.x += to_acc(residual[0]);
    value.y += to_acc(residual[1]);
  }
  if (g.relu && value.x < 0) value.x = 0;  // NaN stays
  if (g.relu && value.y < 0) value.y = 0;
  return value;
}

// Adds the bias to a row of results, or what else there is to be done, rounds and stores them.
template <bool fuses, class T>
__device__ __forceinline__ void store_pairs(const Lines& g, const PairSums& sums, const PairSmem<T>& smem, T* result,
                                            const bool (&exists)[2], bool has_channels, float& special) {
  const bool odd = threadIdx.x % 2;
  const float4 low = *reinterpret_cast<const float4*>(&smem.bias[odd][0]);
  const float4 high = *reinterpret_cast<const float4*>(&smem.bias[odd][2]);
  const float2 bias[Pairs::groups] = {{low.x, low.y}, {low.z, low.w}, {high.x, high.y}, {high.z, high.w}};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    T* pixel = advance(result, half * g.lower_half);
    uint32_t packs[Pairs::groups];
#pragma unroll
    for (int group = 0; group < Pairs::groups; ++group) {
      float2 value = make_float2(sums[group][2 * half], sums[group][2 * half + 1]);
      special += 0 * value.x;
      special += 0 * value.y;
      if constexpr (fuses) {
        const int channel = group * Pairs::width + threadIdx.x % 2 * 2;
        value = fused<T>(g, value, smem.scale[threadIdx.x % 2][group], bias[group], channel - threadIdx.x % 2 * 8,
                         pixel, exists[half] && first_channel<Pairs>(g) + channel < g.channels);
      } else {
        value.x += bias[group].x;
        value.y += bias[group].y;
      }
      packs[group] = packed<T>(value.x, value.y);
    }
    const uint32_t other[2] = {__shfl_xor_sync(0xffffffffu, odd ? packs[0] : packs[2], 1),
                               __shfl_xor_sync(0xffffffffu, odd ? packs[1] : packs[3], 1)};
    if (exists[half] && has_channels)
      *reinterpret_cast<uint4*>(pixel) =
          odd ? make_uint4(other[0], packs[2], other[1], packs[3]) : make_uint4(packs[0], other[0], packs[1], other[1]);
  }
}

// As stream_stride1, for a warp. Returns 0, or NaN if a sum is not finite.
template <class T, bool fuses, class Sync>
__device__ __forceinline__ float stream_run(const Lines& g, const Walk& walk, const PairWeights& weights,
                                            PairSmem<T>& smem) {
  const int first = first_source_row<Pairs>(walk), rows = end_source_row<Pairs>(g, walk) - first;
  const int made = first + rows - 1 - walk.row, lane = threadIdx.x % 32;
  const bool at_bottom = walk.row + g.run_rows >= g.rows;
  uint2* ring = smem.ring[threadIdx.x / 32];
  PairLoader<T> loader(g, walk, ring);
#pragma unroll 1
  for (int i = 0; i < Pairs::stages - 1; ++i) loader.copy_next(g, i);
  const PairTile<T> tile(g, walk);
  const uint4* source = reinterpret_cast<const uint4*>(ring) + lane % 16 + lane / 16;
  T* result = advance(tile.result, (made - rows) * g.result_row);
  PairSums sums[taps];
#pragma unroll
  for (auto& row : sums) clear(row);
  float special = 0;
  for (int left = rows; left > 0;) {
#pragma unroll
    for (int turn = 0; turn < taps && left > 0; ++turn, --left) {
      Sync::template copies<Pairs::stages - 2>();
      Sync::template row<1>(0);
      loader.copy_next(g, (turn + 2) % taps);
      clear(sums[(turn + 2) % taps]);
      add_pairs<T>(sums[turn], sums[(turn + 1) % taps], sums[(turn + 2) % taps],
                   source + turn * (Pairs::stage_pixels / 2), weights);
      const bool whole = left <= made;
      store_pairs<fuses>(g, sums[turn], smem, result, {whole && tile.exists[0], whole && tile.exists[1]},
                         tile.has_channels, special);
      result = advance(result, g.result_row);
      if (left == 1)
        store_pairs<fuses>(g, sums[(turn + 1) % taps], smem, result,
                           {at_bottom && tile.exists[0], at_bottom && tile.exists[1]}, tile.has_channels, special);
    }
  }
  return special;
}

template <class T, bool fuses, class Sync>
__global__ void __launch_bounds__(Pairs::threads, fuses ? 3 : 4) stream_pairs(Lines g) {
  if constexpr (architecture >= 80) {
    auto& smem = dynamic_smem<PairSmem<T>>();
    stage_pair_weights(g, smem);
    Sync::weights();
    PairWeights weights;
    load_pair_weights(smem, weights);
    const Walk walk = walk_of<Pairs>(g);
    if (walk.segments == 0) return;
    const float special = stream_run<T, fuses, Sync>(g, walk, weights, smem);
    if (!__any_sync(0xffffffffu, special != 0)) return;
    Sync::template row<1>(0);
    const int end = min(walk.column + Pairs::tile, g.result_columns);
#pragma unroll 1
    for (int q = walk.column; q < end; ++q) mend_column<Pairs, T>(g, walk, q);
  }
}

}  // namespace resnext::cuda::mma_nhwc
