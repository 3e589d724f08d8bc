#pragma once
#include <omp.h>

#include <algorithm>
#include <span>

#include "direct_pack.h"
#include "grouped_conv.h"
#include "spread.h"

// The direct kernels for fprop and dgrad: 3x3, padding 1, stride 1 or 2, any width of groups. One sum serves both:
//
//   target[n,t,u,:] = start + sum over taps (r, s) of source[n,y,x,:] * weight[r,s,:,:]
//
// with target = output and source = input in fprop, and the other way round in dgrad. A Walk says which source pixel
// and tap belong to which target pixel. The innermost function is `sum_block`: for one vector of target channels it
// keeps a row of target pixels in registers and passes each source pixel by them once per row of taps:
//
//      lanes   target channels of one pixel: four groups of width 4, two of 8, one of 16, half of one of 32 ...
//              spread<j>: lane l of the source vector gets source channel j of lane l's own group
//
//      source pixels     x0  x1  x2  x3  ...    each spread vector is multiplied by the three weights s = 0, 1, 2
//                        |\  |\  |\  |\         of its row of taps and added to three neighbouring targets, so
//      target pixels     t0  t1  t2  t3  ...    a load and a permute serve three vectors of products
//
// No product is wasted where a group fills its lanes (direct_lanes.h). Padding is skipped, not multiplied by zero.
namespace resnext::cpu {
namespace {

// The type in which sums are stored: as soon as they are complete, those of pairs are rounded as their tensor is.
template <int per_lane>
using Result = std::conditional_t<per_lane == 2, bf16, float>;

// What the sum reads and writes: a tensor, or tiles in scratch. Channels lie next to each other; what is counted in
// elements of the source is counted in pairs if a lane holds two.
template <int per_lane>
struct Maps {
  const float* source;       // row `source_first`
  const float* weights;      // packed
  Result<per_lane>* target;  // row `target_first`
  int64_t source_first, target_first;
  int64_t source_channel, target_channel;  // where they begin, as counted in VectorPlace
  int64_t source_rows, source_columns, target_columns;
  int64_t source_stride, target_stride;  // from pixel to pixel, in elements; rows follow one another
  int64_t channels;                      // of the source in a group, in elements
  int64_t group_distance;                // between the starts of neighbouring groups in the source
  bool crowded;                          // few source pixels at a time fit into the first-level cache
  bool stream;                           // the target is aligned, and too large to be worth a place in cache
  bool fused;                            // sums are multiplied by `scale`, then `shift` and the residual are added
  const Result<per_lane>* residual;      // laid out like the target, or null
  bool relu;                             // at last, what is negative becomes zero
};

// Stride 1: source pixel i of a block feeds targets i - 2, i - 1 and i by its taps s = 2, 1, 0. The gradient of stride
// 1 is a sum of this kind too, with the weights flipped.
struct Even {
  static constexpr int step_targets = 1;
  static constexpr int sources(int steps) { return steps + 2; }
  static constexpr int target(int source, int s, int steps) { return source - s < steps ? source - s : -1; }
  static int64_t first_source(int64_t step) { return step - 1; }
  static int64_t source_row(int64_t target_row, int64_t r) { return target_row - 1 + r; }
  static int64_t first_source_row(int64_t target_row) { return target_row - 1; }
  static int64_t last_source_row(int64_t target_row) { return target_row + 1; }
  static int64_t steps(const auto& maps) { return maps.target_columns; }
};

// Stride 2, fprop: every other source pixel feeds one target by its middle tap, the others two by their outer ones.
struct Narrowing {
  static constexpr int step_targets = 1;
  static constexpr int sources(int steps) { return 2 * steps + 1; }
  static constexpr int target(int source, int s, int steps) {
    return source >= s && (source - s) % 2 == 0 && (source - s) / 2 < steps ? (source - s) / 2 : -1;
  }
  static int64_t first_source(int64_t step) { return 2 * step - 1; }
  static int64_t source_row(int64_t target_row, int64_t r) { return 2 * target_row - 1 + r; }
  static int64_t first_source_row(int64_t target_row) { return 2 * target_row - 1; }
  static int64_t last_source_row(int64_t target_row) { return 2 * target_row + 1; }
  static int64_t steps(const auto& maps) { return maps.target_columns; }
};

// Stride 2, dgrad: a step is one source pixel and two targets. Source u feeds targets 2u - 1, 2u and 2u + 1, so even
// targets are fed by one tap of a row, odd ones by two. Rows likewise.
struct Widening {
  static constexpr int step_targets = 2;
  static constexpr int sources(int steps) { return steps + 1; }
  static constexpr int target(int source, int s, int steps) {
    return 2 * source + s - 1 < 2 * steps ? 2 * source + s - 1 : -1;
  }
  static int64_t first_source(int64_t step) { return step; }
  static int64_t source_row(int64_t target_row, int64_t r) {
    return (target_row + 1 - r) % 2 == 0 ? (target_row + 1 - r) / 2 : -1;
  }
  static int64_t first_source_row(int64_t target_row) { return target_row / 2; }
  static int64_t last_source_row(int64_t target_row) { return (target_row + 1) / 2; }
  static int64_t steps(const auto& maps) { return maps.source_columns; }
};

// A row of taps that lies inside the source, for one row of targets.
struct TapRow {
  const float* source;  // the source row
  int64_t r;
};

struct TapRows {
  TapRow rows[3];
  int count;
};

// The block's place in its row.
struct BlockPlace {
  int64_t first_source;    // column, perhaps -1
  bool skip_first;         // it lies outside
  int sources_inside;      // so many of the block's source pixels, with the first, are needed and not behind the row
  int64_t targets_inside;  // so many targets are the block's
};

// As many channels are spread at a time as there are registers for their weights; but one where sums would wait: in
// fprop of stride 2 a target's products of four channels follow one another, and pairs take longest.
template <class Walk, int slot, int per_lane, int vectors>
constexpr int channels_at_once =
    lanes == 16 && !(std::is_same_v<Walk, Narrowing> && slot == lanes && per_lane == 2) ? 4 / vectors : 1;

// How a pixel's channels are spread. Four floats of each of two groups side by side are picked by one permute or by two
// loads; where a pixel has few products, the permute is faster. And where only half of the pixels have more than one,
// GCC does better than to read all of them from memory again.
template <class Walk, int slot, int per_lane, int j>
using SpreadFor = std::conditional_t<std::is_same_v<Walk, Narrowing> && per_lane == 1, Spread<slot, per_lane, j, false>,
                                     Spread<slot == 8 && lanes == 16 && per_lane == 1 ? two_apart : slot, per_lane, j>>;

// Whether pixels are taken in turn from the two halves of a block, so that products next to each other are added to
// different sums and need not wait. In dgrad of stride 2 they are anyway.
template <class Walk, int vectors>
constexpr bool in_halves = lanes == 16 && vectors == 1 && !std::is_same_v<Walk, Widening>;

// Adds these elements of one row of taps to the sums of a block. The weights of a second vector lie `second` floats
// behind those of the first.
template <class Walk, int slot, int per_lane, int steps, int elements, int vectors, int targets>
[[gnu::always_inline]] inline void add_channels(const float* pixels, const Maps<per_lane>& maps, const float* weights,
                                                int64_t second, const BlockPlace& place,
                                                Vec (&sums)[vectors][targets]) {
  constexpr int at_once = std::min(elements, channels_at_once<Walk, slot, per_lane, vectors>);
  constexpr int sources = Walk::sources(steps), parts = in_halves<Walk, vectors> ? 2 : 1;
  constexpr int part_sources = (sources + parts - 1) / parts;
  unroll<elements / at_once>([&](auto some) RESNEXT_INLINE {
    constexpr int channel = some * at_once;
    Vec weight[vectors][at_once * 3];
    unroll<vectors>([&](auto v) RESNEXT_INLINE {
      unroll<at_once * 3>([&](auto i) RESNEXT_INLINE {
        weight[v][i] = load(weights + v * second + ((channel + i / 3) * 9 + i % 3) * lanes);
      });
    });
    const float* next[parts];
    unroll<parts>([&](auto i) RESNEXT_INLINE { next[i] = opaque(pixels + i * part_sources * maps.source_stride); });
    unroll<sources>([&](auto turn) RESNEXT_INLINE {
      constexpr int source = turn % parts * part_sources + turn / parts;
      const float*& pixel = next[turn % parts];
      int inside = place.sources_inside;
      if constexpr (parts == 2 && per_lane == 2) inside = opaque(inside);  // GCC's branches leave it no registers else
      if (source == 0 ? !place.skip_first : source < inside) {
        unroll<at_once>([&](auto j) RESNEXT_INLINE {
          const SpreadFor<Walk, slot, per_lane, channel + j> x(pixel, maps.group_distance);
          unroll<3>([&](auto s) RESNEXT_INLINE {
            constexpr int target = Walk::target(source, s, steps);
            if constexpr (target >= 0)
              unroll<vectors>([&](auto v) RESNEXT_INLINE {
                sums[v][target] = x.add_product(sums[v][target], weight[v][j * 3 + s]);
              });
          });
        });
      }
      pixel = opaque(pixel + maps.source_stride);
    });
  });
}

// The rows of taps that feed a row of targets.
template <class Walk, int per_lane>
TapRows tap_rows(const Maps<per_lane>& maps, int64_t target_row) {
  TapRows taps{};
  for (int64_t r = 0; r < 3; ++r) {
    const int64_t row = Walk::source_row(target_row, r);
    if (row < 0 || row >= maps.source_rows) continue;
    const int64_t row_in_maps = row - maps.source_first;
    taps.rows[taps.count++] = {maps.source + row_in_maps * maps.source_columns * maps.source_stride, r};
  }
  return taps;
}

// What a block needs to know of the vector of channels that it computes. Made once a call, as it takes divisions.
struct VectorPlace {
  Vec start, scale, shift;
  int64_t weights;  // where its packed weights are, in floats
  int64_t source_channel, target_channel;
  int count;       // of channels, to be stored
  bool straddles;  // the channels are of two wide groups, half and half
};

// What follows the sums of the targets from `target` on, if they are fused with it.
template <int per_lane, int targets>
[[gnu::always_inline]] inline void apply_epilogue(const Maps<per_lane>& maps, const VectorPlace& vector,
                                                  const Result<per_lane>* target, int64_t targets_inside,
                                                  Vec (&sums)[targets]) {
  const Vec zero{};
  const Result<per_lane>* residual = maps.residual + (target - maps.target);
  unroll<targets>([&](auto i) RESNEXT_INLINE {
    sums[i] = sums[i] * vector.scale + vector.shift;
    if (maps.residual && i < targets_inside) sums[i] += load_part(residual + i * maps.target_stride, vector.count);
    if (maps.relu) sums[i] = sums[i] < zero ? zero : sums[i];  // NaN stays
  });
}

// Computes up to `steps` steps of one row of targets, for one vector of channels or two neighbours of one group.
template <class Walk, int slot, int per_lane, int steps, int vectors>
[[gnu::noinline]] void sum_block(const Maps<per_lane>& maps, const TapRows& taps, const VectorPlace* places,
                                 BlockPlace place, Result<per_lane>* target) {
  constexpr int elements = elements_at_once(slot, per_lane);
  constexpr int targets = steps * Walk::step_targets;
  const VectorPlace &first = places[0], &last = places[vectors - 1];
  const int64_t second = last.weights - first.weights;
  Vec sums[vectors][targets];
  unroll<vectors>(
      [&](auto v) RESNEXT_INLINE { unroll<targets>([&](auto i) RESNEXT_INLINE { sums[v][i] = places[v].start; }); });
  for (int row = 0; row < taps.count; ++row) {
    const float* pixels =
        taps.rows[row].source + place.first_source * maps.source_stride + first.source_channel - maps.source_channel;
    const float* weights = maps.weights + first.weights + taps.rows[row].r * 3 * lanes;
    int64_t channel = 0;
    for (; channel + elements <= maps.channels; channel += elements)
      add_channels<Walk, slot, per_lane, steps, elements>(pixels + channel * channel_step<slot>, maps,
                                                          weights + channel * 9 * lanes, second, place, sums);
    if constexpr (adds_leftovers(slot))
      for (; channel < maps.channels; ++channel)
        add_channels<Walk, slot, per_lane, steps, 1>(pixels + channel * channel_step<slot>, maps,
                                                     weights + channel * 9 * lanes, second, place, sums);
  }
  unroll<vectors>([&](auto v) RESNEXT_INLINE {
    const VectorPlace& vector = places[v];
    Result<per_lane>* to = target + (vector.target_channel - first.target_channel);
    if (maps.fused) apply_epilogue(maps, vector, to, place.targets_inside, sums[v]);
    const auto store_sums = [&](const auto& store_one) RESNEXT_INLINE {
      unroll<targets>([&](auto i) RESNEXT_INLINE {
        if (i < place.targets_inside) store_one(to, sums[v][i]);
        to = opaque(to + maps.target_stride);
      });
    };
    if constexpr (per_lane == 1)
      if (maps.stream) return store_sums([](float* at, Vec sum) RESNEXT_INLINE { store_past_cache(at, sum); });
    if (vector.count == lanes)
      store_sums([](auto* at, Vec sum) RESNEXT_INLINE { store(at, sum); });
    else
      store_sums([&](auto* at, Vec sum) RESNEXT_INLINE { store_part(at, sum, vector.count); });
  });
}

// Steps of a block at most: as many as registers hold sums for, and a divisor of the widths of ResNeXt's maps.
template <class Walk, int slot>
constexpr int largest_block = lanes == 16               ? 14 / Walk::step_targets
                              : Walk::step_targets == 2 ? 5
                              : slot == 4               ? 8
                                                        : 7;

// Steps of a block of two vectors, or 0. A short block of one would wait for its sums; and in fprop of stride 2, where
// a pixel that is read serves one or two targets, two vectors gain where rows are long, too. AVX2 has registers for
// four steps, which read weights more often: it gains in long sums of stride 2 alone, and if no vector is left over.
template <class Walk, int slot>
constexpr int block_of_two = lanes == 16 ? ((slot == lanes || slot == 1) && Walk::step_targets == 1 ? 7 : 0)
                                         : (slot == lanes && std::is_same_v<Walk, Narrowing> ? 4 : 0);

// The two have the channels of one group, and no others.
inline bool are_of_one_group(const VectorPlace& first, const VectorPlace& second) {
  return first.source_channel == second.source_channel && !first.straddles && !second.straddles;
}

// One row of targets for `count` vectors of channels, in blocks of equal length. Each block asks for its part of what a
// row would ask for, as a sum waits if many lines are asked for at a time.
template <class Walk, int slot, int per_lane>
void sum_row(const Maps<per_lane>& maps, int64_t target_row, const VectorPlace* vectors, int64_t count,
             MemoryAhead& ahead) {
  constexpr int64_t largest = largest_block<Walk, slot>, few = 7;
  constexpr int two = block_of_two<Walk, slot>, long_sums = 32;
  const TapRows taps = tap_rows<Walk>(maps, target_row);
  const bool twos_gain = lanes == 16 || (maps.channels >= long_sums && maps.channels % (2 * lanes) == 0);
  const bool in_twos = two > 0 && twos_gain && count > 1 && are_of_one_group(vectors[0], vectors[1]);
  const bool short_blocks = maps.crowded || (in_twos && std::is_same_v<Walk, Narrowing>);
  const int64_t shorter = in_twos ? two : std::min(largest, few);
  const int64_t steps = Walk::steps(maps), most = short_blocks ? shorter : largest;
  Result<per_lane>* target = maps.target + (target_row - maps.target_first) * maps.target_columns * maps.target_stride;
  int64_t blocks = (steps + most - 1) / most;
  ahead.split(blocks * (in_twos && most <= two ? (count + 1) / 2 : count));
  for (int64_t step = 0; blocks > 0; --blocks) {
    const int64_t size = (steps - step + blocks - 1) / blocks, column = step * Walk::step_targets;
    const int64_t first_source = Walk::first_source(step);
    const int64_t sources =
        std::min<int64_t>(Walk::sources(static_cast<int>(size)), maps.source_columns - first_source);
    const int64_t targets = std::min(size * Walk::step_targets, maps.target_columns - column);
    const BlockPlace place{first_source, first_source < 0, static_cast<int>(sources), targets};
    for (int64_t i = 0; i < count;) {
      const VectorPlace& vector = vectors[i];
      Result<per_lane>* block_target =
          target + column * maps.target_stride + vector.target_channel - maps.target_channel;
      ahead.ask();
      if constexpr (two > 0) {
        if (twos_gain && size <= two && i + 1 < count && are_of_one_group(vector, vectors[i + 1])) {
          sum_block<Walk, slot, per_lane, two, 2>(maps, taps, &vector, place, block_target);
          i += 2;
          continue;
        }
      }
      constexpr int two_groups = slot == lanes && lanes == 16 ? two_apart : slot;
      (vector.straddles ? sum_block<Walk, two_groups, per_lane, largest, 1>
                        : sum_block<Walk, slot, per_lane, largest, 1>)(maps, taps, &vector, place, block_target);
      ++i;
    }
    step += size;
  }
}

}  // namespace
}  // namespace resnext::cpu
