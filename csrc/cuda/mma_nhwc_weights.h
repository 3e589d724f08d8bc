#pragma once
// How weights come to the registers of the tensor-core kernels; mma_nhwc.h says how it all fits together.
#include <algorithm>

#include "mma_nhwc_pairs.h"
#include "mma_nhwc_tf32.h"
#include "numeric.h"

namespace resnext::cuda::mma_nhwc {

// A B operand and, where products take three mmas, what is left of it.
template <class Kind>
using Operand = uint32_t[splits<Kind> ? 2 * Kind::halves : Kind::halves];

// The B operands of a warp's result channels: tiles of 8 columns. At width 4 the tiles are the groups, and at odd
// multiples of 8 they are 8 channels of one; else tile j has the channels 4i + 2j and 4i + 2j + 1 of the 16, so that
// what a lane gets of both are four neighbours.
template <class Kind>
using Weights = Operand<Kind>[Kind::steps][taps * Kind::operands][Kind::tiles];

template <class Kind>
constexpr int tile_of_channel(int n) {
  return Kind::tiles == 1 ? 0 : Kind::pairs ? n / 4 : Kind::exchanges ? n / 8 : n / 2 % 2;
}
template <class Kind>
constexpr int column_of_channel(int n) {
  return Kind::tiles == 1 ? n : Kind::pairs ? n % 4 : Kind::exchanges ? n % 8 : n / 4 * 2 + n % 2;
}

// The weights of one step of the block's team, in the order of the registers: [warp][tap][tile][half][lane], where
// lanes are exchanged so that those that store at the same time meet in no bank.
template <class Kind>
struct WeightStage {
  struct alignas(16) PerChannel {
    float2 of_tile[Kind::tiles];  // of a lane's two channels
  };
  uint32_t word[Kind::warps][taps * Kind::operands][Kind::tiles][Kind::halves][32];
  PerChannel bias[Kind::warps][4];         // by lane % 4; or shift
  PerChannel scale[Kind::warps][4];        // likewise, in a fused fprop
  int special[Kind::warps * Kind::teams];  // whether one of the warps has loaded a weight that is not finite
};

template <class Kind>
__device__ __forceinline__ int staged_lane(int lane, int warp, int tile, int half) {
  return lane ^ tile ^ (Kind::tiles == 1 ? warp % 4 : warp % 2 * 2) ^ half * (Kind::pairs ? 2 : 16);
}

// Vectors of a step's weights.
template <class Kind>
constexpr int packed_vectors = Kind::channels * Kind::sources * taps * taps / Kind::vector_channels;

// How weights are copied to shared memory: 16 bytes at a time if they are dense, aligned and in KCRS or KRSC order,
// else one by one. A block has the weights of its groups, one after the other, all of a group if there is only one
// step. Else a step has those of 16 or 8 source channels: whole rows of a group in dgrad, a piece of each row in fprop
// or, in KRSC order, of each tap.
template <class Kind>
void pack_weights(Lines& g) {
  constexpr int filter = taps * taps, sources = Kind::sources, bytes = 16 / Kind::vector_channels;
  const bool turned = g.weight_s < 0, rows_are_results = g.weight_source < g.weight_result;
  const int results = result_width<Kind>(g), own = source_width<Kind>(g);
  const int width = rows_are_results ? own : results, rows = rows_are_results ? results : own;  // of a row; of a group
  const int64_t row = std::max(g.weight_result, g.weight_source), channel = std::min(g.weight_result, g.weight_source);
  const int64_t r = turned ? -g.weight_r : g.weight_r, s = turned ? -g.weight_s : g.weight_s;
  const bool kcrs = channel == filter && r == taps && s == 1, krsc = channel == 1 && r == taps * width && s == width;
  const char* first = static_cast<const char*>(g.weight) - (turned ? bytes * 2 * (r + s) : 0);
  const bool aligned = reinterpret_cast<uintptr_t>(first) % 16 == 0;
  const bool dense = row == filter * width && g.weight_group == rows * row;
  const bool by_row = rows_are_results && (Kind::steps > 1 || Kind::pads);
  const bool pieces = !by_row || width % Kind::vector_channels == 0;  // are whole vectors
  g.packed = aligned && dense && pieces && (kcrs || krsc) ? first : nullptr;
  const int of_row = by_row ? sources : width;  // channels of a row in the copy
  const int copy_row = filter * of_row, copy_channel = krsc ? 1 : filter, sign = turned ? -1 : 1;
  g.copy_r = sign * taps * (krsc ? of_row : 1);
  g.copy_s = sign * (krsc ? of_row : 1);
  g.copy_first = turned ? -2 * (g.copy_r + g.copy_s) : 0;
  g.copy_result = rows_are_results ? copy_row : copy_channel;
  g.copy_source = rows_are_results ? copy_channel : copy_row;
  const int piece = !by_row ? sources * copy_row : krsc ? of_row : copy_row;  // elements
  g.piece_vectors = piece / Kind::vector_channels;
  g.piece_bytes = bytes * (!by_row ? filter * rows * width : krsc ? width : filter * width);
  g.step_bytes = bytes * sources * (rows_are_results ? copy_channel : filter * width);
}

// Where the copy has the first tap of a pair of channels: of the block, and of the step.
template <class Kind>
__device__ __forceinline__ int copied_weight(const Lines& g, int result, int source) {
  constexpr int group = Kind::width * Kind::sources * taps * taps;
  return g.copy_first + result / Kind::width * group + result % Kind::width * g.copy_result + source * g.copy_source;
}

// Copies one step's weights of the block's channels to shared memory.
template <class Kind, class T>
__device__ __forceinline__ void copy_weights(const Lines& g, int step, T* copy) {
  constexpr int of_channel = Kind::sources * taps * taps;
  const int channel = first_channel<Kind>(g), left = source_width<Kind>(g) - Kind::sources * step;  // of sources
  const int count = (Kind::pads ? g.result_width : min(Kind::channels, g.channels - channel)) * of_channel;
  const int64_t group = channel / Kind::width * g.weight_group;
  if (g.packed) {
    const T* from = advance(static_cast<const T*>(g.packed) + group, step * g.step_bytes);
#pragma unroll 1
    for (int i = threadIdx.x; i < count / Kind::vector_channels; i += Kind::threads) {
      if (Kind::pads && i % g.piece_vectors * Kind::sources >= g.piece_vectors * left) continue;
      ptx::cp_async<16>(copy + Kind::vector_channels * i,
                        advance(from, i / g.piece_vectors * g.piece_bytes + i % g.piece_vectors * 16));
    }
    ptx::cp_async_wait_all();
  } else {
    const T* from = static_cast<const T*>(g.weight) + group + Kind::sources * step * g.weight_source;
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += Kind::threads) {
      const int result = i / of_channel, source = i % of_channel / (taps * taps), r = i % (taps * taps) / taps,
                s = i % taps;
      if (Kind::pads && source >= left) continue;
      copy[copied_weight<Kind>(g, result, source) + r * g.copy_r + s * g.copy_s] =
          from[result / Kind::width * g.weight_group + result % Kind::width * g.weight_result +
               source * g.weight_source + r * g.weight_r + s * g.weight_s];
    }
  }
}

// Puts one step's weights of the block's channels, from their copy, to their places in the stage, zeros for channels
// that do not exist. A thread takes all taps of a pair of channels; of the two, those that are the closer ones in the
// copy follow its neighbours'. Returns whether all that this thread has put are finite.
template <class Kind, class T>
__device__ __forceinline__ bool stage_weights(const Lines& g, int step, const T* copy, WeightStage<Kind>& stage) {
  constexpr int results = Kind::warp_channels * Kind::warps, sources = Kind::sources;
  constexpr int of_word = 4 / sizeof(T), of_half = 4 * of_word;  // source channels
  const bool sources_closer = g.copy_source < g.copy_result;
  bool finite = true;
#pragma unroll 1
  for (int pair = threadIdx.x; pair < results * sources; pair += Kind::threads) {
    const int source = sources_closer ? pair % sources : pair / results;
    const int result = sources_closer ? pair / sources : pair % results;
    const bool exists = result < Kind::channels && sources * step + source < source_width<Kind>(g) &&
                        (Kind::pads ? result < g.result_width : first_channel<Kind>(g) + result < g.channels);
    const T* of_pair = copy + copied_weight<Kind>(g, result, source);
    T values[taps * taps];
#pragma unroll
    for (int tap = 0; tap < taps * taps; ++tap)
      values[tap] =
          as_multiplied<Kind>(exists ? of_pair[tap / taps * g.copy_r + tap % taps * g.copy_s] : from_acc<T>(0));
    for (const T value : values) finite &= is_finite(value);
    const int warp = result / Kind::warp_channels, n = result % Kind::warp_channels;
    const int tile = tile_of_channel<Kind>(n), half = source / of_half;
    if constexpr (Kind::pairs) {
      stage_pair<Kind>(values, n, source, stage);
      continue;
    }
    const int lane = staged_lane<Kind>(column_of_channel<Kind>(n) * 4 + source % of_half / of_word, warp, tile, half);
#pragma unroll
    for (int tap = 0; tap < taps * taps; ++tap)
      reinterpret_cast<T*>(&stage.word[warp][tap][tile][half][lane])[source % of_word] = values[tap];
  }
  return finite;
}

// Brings the bias of the block's channels to shared memory, or scale and shift; zeros for channels that do not exist.
template <class Kind, class T>
__device__ __forceinline__ void stage_bias(const Lines& g, WeightStage<Kind>& stage) {
  for (int i = threadIdx.x; i < Kind::warp_channels * Kind::warps; i += Kind::threads) {
    const int channel = first_result<Kind>(g) + i, n = i % Kind::warp_channels, column = column_of_channel<Kind>(n);
    const bool exists = has_result<Kind>(g, i, channel);
    float bias = exists && g.bias ? to_acc(static_cast<const T*>(g.bias)[channel]) : 0, scale = Kind::pads ? 1 : 0;
    if (exists && g.scale) bias = g.shift[channel], scale = g.scale[channel];
    for (int lane = column / 2; lane < 4; lane += Kind::pairs ? 2 : 4) {  // both of a pair have the same channels
      const auto set = [&](auto& of_warp, float value) {
        reinterpret_cast<float*>(&of_warp[lane].of_tile[tile_of_channel<Kind>(n)])[column % 2] = value;
      };
      set(stage.bias[i / Kind::warp_channels], bias);
      if (Kind::pads || g.scale) set(stage.scale[i / Kind::warp_channels], scale);
    }
  }
}

// The warp's weights. `copy`: room for those of a step.
template <class Kind, class T, class Sync>
__device__ __forceinline__ void load_weights(const Lines& g, uint4* copy, WeightStage<Kind>& stage,
                                             Weights<Kind>& weights) {
  const int lane = threadIdx.x % 32, of_block = threadIdx.x / 32, warp = of_block % Kind::warps;
  const int steps = used_steps<Kind>(g);
  bool finite = true;
  stage_bias<Kind, T>(g, stage);
#pragma unroll
  for (int step = 0; step < Kind::steps; ++step) {
    if (Kind::pads && step >= steps) break;
    T* of_step = reinterpret_cast<T*>(copy);
    copy_weights<Kind>(g, step, of_step);
    Sync::weights();  // and all have read those of the step before
    finite &= stage_weights<Kind>(g, step, of_step, stage);
    if (step == steps - 1) {
      const bool special = __any_sync(0xffffffffu, !finite);
      if (lane == 0) stage.special[of_block] = special;
    }
    Sync::weights();
#pragma unroll
    for (int tap = 0; tap < taps * Kind::operands; ++tap)
#pragma unroll
      for (int tile = 0; tile < Kind::tiles; ++tile)
#pragma unroll
        for (int half = 0; half < Kind::halves; ++half) {
          Operand<Kind>& operand = weights[step][tap][tile];
          operand[half] = stage.word[warp][tap][tile][half][staged_lane<Kind>(lane, warp, tile, half)];
          if constexpr (splits<Kind>) split_tf32(operand[half], operand[Kind::halves + half]);
        }
  }
}

// Whether results may be NaN that should not be: the block has weights that are not finite or, if it watches, the warp
// has had such sums.
template <class Kind>
__device__ __forceinline__ bool may_need_mending(const WeightStage<Kind>& stage, const Watch<Kind>& watch) {
  if constexpr (Kind::watches) return __any_sync(0xffffffffu, !(watch.products - watch.products == 0));
  bool special = false;
#pragma unroll
  for (const int of_warp : stage.special) special |= of_warp != 0;
  return special;
}

}  // namespace resnext::cuda::mma_nhwc
