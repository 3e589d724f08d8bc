#pragma once
#include <omp.h>

#include <algorithm>

#include "direct.h"
#include "grouped_conv.h"

// fprop and dgrad of NCHW with neighbouring pixels of a row in the lanes, so that planes are read and written as they
// lie. The sum is that of direct.h:
//
//      source row, three loads     x[-1] x0 x1 ... x14 | x0 x1 ... x15 | x1 x2 ... x16     taps s = 0, 1, 2
//                                        each is multiplied by the weights of eight target channels, a number each,
//      sums, for eight channels    t0 t1 ... t15 | t16 t17 ... t31                         and added to their sums
//
// so that a load serves eight vectors of products, and a weight two. Lanes whose pixel lies outside the map are left
// out of a sum, not multiplied by zero. At stride 2 a row's even and odd pixels are taken apart (fprop) or put together
// (dgrad). What a row leaves over of its last vector is lost: 28 columns fill 7/8 of the lanes, 7 columns less than
// half.
namespace resnext::cpu {
namespace {

// Of one group, in one image: channels, rows and columns.
template <class T>
struct Planes {
  T* data;
  int64_t channels, rows, columns;

  int64_t pixels() const { return rows * columns; }
  int64_t bytes() const { return channels * pixels() * int64_t(sizeof(T)); }
  T* at(int64_t group_of_image, int64_t channel, int64_t row) const {
    return data + (group_of_image * channels + channel) * pixels() + row * columns;
  }
  Runs runs(int64_t group_of_image, int64_t begin, int64_t end) const {
    const int64_t row = columns * int64_t(sizeof(T));
    return {at(group_of_image, 0, begin), channels, (end - begin) * row, rows * row};
  }
};

// One fprop or dgrad, told as the sum in direct.h.
template <class T>
struct PlaneSum {
  int64_t images, groups;
  Planes<const T> source;
  Planes<T> target;
  const T* bias;  // of the target's channels, or null
  Weight<const T*> weight;
  bool to_input, flip;  // the target is the input; every 3x3 is turned by half a turn
  Launch launch;
  bool fused;
  Epilogue epilogue;    // if fused
  const float* packed;  // all weights, if they were packed before this call, or null

  int64_t source_bytes() const { return images * groups * source.bytes(); }
  int64_t target_bytes() const { return images * groups * target.bytes(); }

  int64_t packed_size() const { return (9 * source.channels * target.channels + lanes - 1) / lanes * lanes; }
  // A thread has room for so many groups: all, or as many units (a group of an image) as fall to it.
  int64_t packed_groups(int threads) const { return std::min(groups, images * groups / threads + 2); }
};

// Target channels are summed eight at a time, then what is left over four, two and one.
inline int channels_of_block(int64_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

// As many vectors of a row at a time as there are registers for: sums, and pixels for the three taps.
template <class Walk, int channels>
constexpr int most_vectors = (channels == 8 ? 2 : 4) / Walk::step_targets;

// The weights of a group in the order of their use: block of target channels, source channel, r, s, target channel.
template <class T>
void pack_group(const PlaneSum<T>& sum, int64_t group, float* packed) {
  const Weight<const T*>& weight = sum.weight;
  const int64_t outputs = sum.to_input ? sum.source.channels : sum.target.channels;
  const int64_t to_target = sum.to_input ? weight.stride_c : weight.stride_k;
  const int64_t to_source = sum.to_input ? weight.stride_k : weight.stride_c;
  for (int64_t first = 0, count; first < sum.target.channels; first += count) {
    count = channels_of_block(sum.target.channels - first);
    const T* block = weight.data + group * outputs * weight.stride_k + first * to_target;
    for (int64_t channel = 0; channel < sum.source.channels; ++channel, block += to_source)
      for (int64_t tap = 0; tap < 9; ++tap) {
        const int64_t from = sum.flip ? 8 - tap : tap;
        const T* element = block + from / 3 * weight.stride_r + from % 3 * weight.stride_s;
        for (int64_t i = 0; i < count; ++i) *packed++ = to_float(element[i * to_target]);
      }
  }
}

// The part of a row that is summed at once, and what of its first and last vector lies inside the map. Lanes without a
// target may hold anything, as they are not stored.
struct Stretch {
  int64_t step;       // the first one: a target pixel, or two of dgrad of stride 2
  LaneSet first;      // of the first vector, those whose pixel for the tap s = 0 is not left of the map
  LaneSet last;       // of the last vector, those whose pixel for the rightmost tap is not right of it
  LaneSet loaded[4];  // of what is loaded for the last vector
  LaneSet stored[2];  // of its targets
};

// The tap that looks to the right: dgrad of stride 2 turns the window round.
template <class Walk>
constexpr int rightmost_tap = std::is_same_v<Walk, Widening> ? 0 : 2;

template <class Walk>
Stretch stretch_at(int64_t step, int vectors, int64_t source_columns, int64_t target_columns) {
  const auto before = [](int64_t end) { return first_lanes(static_cast<int>(std::clamp<int64_t>(end, 0, lanes))); };
  const int64_t last = step + (vectors - 1) * lanes;  // the last vector's first step
  Stretch stretch{step, all_lanes, before(source_columns - 1 - last), {before(source_columns - last)}, {}};
  if (step == 0 && !std::is_same_v<Walk, Widening>) stretch.first = all_lanes - 1;
  if (std::is_same_v<Walk, Narrowing>) {
    stretch.last = before(source_columns / 2 - last);
    for (int i = 0; i < 4; ++i) stretch.loaded[i] = before(source_columns - (2 * last - 1 + i % 2 * lanes + i / 2));
  }
  for (int i = 0; i < 2; ++i) stretch.stored[i] = before(target_columns - last * Walk::step_targets - i * lanes);
  return stretch;
}

// The pixels that meet the taps of one row of the window, for vectors of steps. `row` is where the first step is.
template <class Walk, int vectors, class T>
[[gnu::always_inline]] inline void load_taps(const T* row, const Stretch& sets, Vec (&pixels)[3][vectors]) {
  unroll<vectors>([&](auto v) RESNEXT_INLINE {
    const auto load_inside = [&](const T* from, LaneSet set)
                                 RESNEXT_INLINE { return v == vectors - 1 ? load_lanes(from, set) : load(from); };
    const auto load_left = [&](const T* from) RESNEXT_INLINE {
      const LaneSet set = v == vectors - 1 ? LaneSet(sets.first & sets.loaded[0]) : sets.first;
      return v == 0 ? load_lanes(from, set) : load_inside(from, sets.loaded[0]);
    };
    if constexpr (std::is_same_v<Walk, Even>) {
      const T* from = row + v * lanes;
      pixels[0][v] = load_left(from - 1);
      pixels[1][v] = load_inside(from, sets.loaded[0]);
      pixels[2][v] = load_inside(from + 1, sets.last);
    } else if constexpr (std::is_same_v<Walk, Narrowing>) {
      const T* from = row + 2 * v * lanes;
      const Vec a = load_left(from - 1), b = load_inside(from - 1 + lanes, sets.loaded[1]);
      pixels[0][v] = every_other<0>(a, b);
      pixels[1][v] = every_other<1>(a, b);
      pixels[2][v] = every_other<1>(load_inside(from, sets.loaded[2]), load_inside(from + lanes, sets.loaded[3]));
    } else {
      const T* from = row + v * lanes;
      pixels[0][v] = load_inside(from + 1, sets.last);
      pixels[1][v] = pixels[2][v] = load_inside(from, sets.loaded[0]);
    }
  });
}

// A block of target channels for one stretch of a row.
template <class T>
struct PlaneBlock {
  const T* source;  // the group's first plane
  const float* packed;
  T* target;              // the block's first plane
  int64_t first_channel;  // of the target, in the whole tensor
};

// What follows the sums of one channel, and the stores.
template <class Walk, int vectors, class T, int count>
[[gnu::always_inline]] inline void store_row(const PlaneSum<T>& sum, const Stretch& stretch, int64_t channel, T* target,
                                             const Vec (&sums)[count]) {
  constexpr int step = Walk::step_targets;
  const T* residual = static_cast<const T*>(sum.epilogue.residual);
  unroll<vectors>([&](auto v) RESNEXT_INLINE {
    unroll<step>([&](auto half) RESNEXT_INLINE {
      Vec value = sums[v];
      if constexpr (step == 2) value = in_turn<half>(sums[2 * v], sums[2 * v + 1]);
      T* to = target + (v * step + half) * lanes;
      const LaneSet set = v == vectors - 1 ? stretch.stored[half] : all_lanes;
      if (sum.fused) {
        const Vec zero{};
        value = value * splat(static_cast<const float*>(sum.epilogue.scale) + channel) +
                splat(static_cast<const float*>(sum.epilogue.shift) + channel);
        if (residual) value += load_lanes(residual + (to - sum.target.data), set);
        if (sum.epilogue.relu) value = value < zero ? zero : value;  // NaN stays
      }
      store_lanes(to, value, set);
    });
  });
}

template <class Walk, int channels, int vectors, class T>
[[gnu::noinline]] void sum_stretch(const PlaneSum<T>& sum, const PlaneBlock<T>& block, const Stretch& stretch,
                                   int64_t target_row) {
  constexpr int step = Walk::step_targets;
  Vec sums[channels][vectors * step];
  unroll<channels>([&](auto k) RESNEXT_INLINE {
    Vec start{};
    if (sum.bias) start += to_float(sum.bias[block.first_channel + k]);
    unroll<vectors * step>([&](auto v) RESNEXT_INLINE { sums[k][v] = start; });
  });
  constexpr int64_t columns_of_step = std::is_same_v<Walk, Narrowing> ? 2 : 1;
  const T* plane = block.source + stretch.step * columns_of_step;
  const float* packed = block.packed;
  int64_t rows[3];
  for (int64_t r = 0; r < 3; ++r) {
    const int64_t row = Walk::source_row(target_row, r);
    rows[r] = row < 0 || row >= sum.source.rows ? -1 : row * sum.source.columns;
  }
  Stretch sets = stretch;
  sets.first = kept(sets.first);
  sets.last = kept(sets.last);
  for (LaneSet& set : sets.loaded) set = kept(set);
  for (int64_t c = 0; c < sum.source.channels; ++c, plane += sum.source.pixels())
    for (int r = 0; r < 3; ++r, packed += 3 * channels) {
      if (rows[r] < 0) continue;
      Vec pixels[3][vectors];
      load_taps<Walk>(plane + rows[r], sets, pixels);
      unroll<3>([&](auto s) RESNEXT_INLINE {
        unroll<channels>([&](auto k) RESNEXT_INLINE {
          const Vec weight = splat(packed + s * channels + k);
          unroll<vectors>([&](auto v) RESNEXT_INLINE {
            constexpr bool is_first = v == 0 && s == 0 && step == 1;
            constexpr bool is_last = v == vectors - 1 && s == rightmost_tap<Walk>;
            Vec& to = sums[k][v * step + (step == 2 && s != 1)];
            if constexpr (is_first || is_last)
              to = multiply_add_lanes(to, pixels[s][v], weight, is_first ? sets.first : sets.last);
            else
              to += pixels[s][v] * weight;
          });
        });
      });
    }
  unroll<channels>([&](auto k) RESNEXT_INLINE {
    T* target = block.target + k * sum.target.pixels() + target_row * sum.target.columns + stretch.step * step;
    store_row<Walk, vectors>(sum, stretch, block.first_channel + k, target, sums[k]);
  });
}

// What is asked for while the unit before it is summed.
struct PlaneLines {
  LinesAhead source, target;

  [[gnu::noinline]] void ask() {
    source.ask_fast();
    target.ask_fast();
  }
};

// Steps of a row that a block sums at once.
template <class Walk, int channels>
constexpr int64_t most_steps = most_vectors<Walk, channels> * lanes;

template <class Walk, class T>
int64_t steps_of_row(const PlaneSum<T>& sum) {
  return (sum.target.columns + Walk::step_targets - 1) / Walk::step_targets;
}

// All columns of some rows, for a block of target channels. `ahead` is null where the maps are in cache.
template <class Walk, int channels, class T>
void sum_rows(const PlaneSum<T>& sum, const PlaneBlock<T>& block, int64_t begin, int64_t end, PlaneLines* ahead) {
  constexpr int most = most_vectors<Walk, channels>;
  const int64_t steps = steps_of_row<Walk>(sum);
  for (int64_t step = 0; step < steps; step += most_steps<Walk, channels>) {
    const int vectors = static_cast<int>(std::min<int64_t>((steps - step + lanes - 1) / lanes, most));
    const Stretch stretch = stretch_at<Walk>(step, vectors, sum.source.columns, sum.target.columns);
    unroll<most>([&](auto fewer) RESNEXT_INLINE {
      if (vectors == fewer + 1)
        for (int64_t row = begin; row < end; ++row) {
          if (ahead) ahead->ask();
          sum_stretch<Walk, channels, fewer + 1>(sum, block, stretch, row);
        }
    });
  }
}

// Some rows of one group of one image.
struct PlaneRows {
  int64_t unit, group, begin, end;  // the unit is a group of an image
};

template <class Walk, class T>
void sum_group(const PlaneSum<T>& sum, const PlaneRows& rows, const float* packed, PlaneLines* ahead) {
  for (int64_t first = 0, count; first < sum.target.channels; first += count) {
    count = channels_of_block(sum.target.channels - first);
    const PlaneBlock<T> block{sum.source.at(rows.unit, 0, 0), packed, sum.target.at(rows.unit, first, 0),
                              rows.group * sum.target.channels + first};
    const auto sum_channels = [&](auto channels) { sum_rows<Walk, channels>(sum, block, rows.begin, rows.end, ahead); };
    count == 8   ? sum_channels(std::integral_constant<int, 8>())
    : count == 4 ? sum_channels(std::integral_constant<int, 4>())
    : count == 2 ? sum_channels(std::integral_constant<int, 2>())
                 : sum_channels(std::integral_constant<int, 1>());
    packed += 9 * sum.source.channels * count;
  }
}

// Asks for what `next` reads and writes while `rows` are summed.
template <class Walk, class T>
PlaneLines lines_ahead(const PlaneSum<T>& sum, const PlaneRows& rows, const PlaneRows& next) {
  int64_t stretches = 0;  // of a row
  for (int64_t first = 0, count; first < sum.target.channels; first += count) {
    count = channels_of_block(sum.target.channels - first);
    const int64_t most = count == 8 ? most_steps<Walk, 8> : most_steps<Walk, 4>;
    stretches += (steps_of_row<Walk>(sum) + most - 1) / most;
  }
  const int64_t calls = (rows.end - rows.begin) * stretches;
  const int64_t begin = std::max<int64_t>(Walk::first_source_row(next.begin), 0);
  const int64_t end = std::min(Walk::last_source_row(next.end - 1) + 1, sum.source.rows);
  return {{sum.source.runs(next.unit, begin, end), calls}, {sum.target.runs(next.unit, next.begin, next.end), calls}};
}

// Rows of a tile: as many as keep the source in the second-level cache while block after block is summed from it.
template <class T>
int64_t rows_of_tile(const PlaneSum<T>& sum) {
  constexpr int64_t most_bytes = 256 << 10;
  return std::max<int64_t>(most_bytes / (sum.source.channels * sum.source.columns * int64_t(sizeof(T))), 4);
}

// Each thread takes a run of all rows of all groups of all images, in the order of memory, and packs the weights of a
// group when it first comes to it: threads that need not wait for each other do better where cores are shared.
template <class Walk, class T>
void run_planes(const PlaneSum<T>& sum) {
  const int64_t rows = sum.target.rows, all = sum.groups * sum.images * rows, tile = rows_of_tile(sum);
  const int64_t slots = sum.packed_groups(sum.launch.threads);
  const bool from_memory = sum.source_bytes() + sum.target_bytes() > cached_bytes;
#pragma omp parallel num_threads(sum.launch.threads)
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t begin = all * thread / threads, end = all * (thread + 1) / threads, first_unit = begin / rows;
    float* own = static_cast<float*>(sum.launch.workspace) + thread * slots * sum.packed_size();
    const auto rows_from = [&](int64_t from) {
      const int64_t unit = from / rows, row = from % rows, count = std::min({rows - row, end - from, tile});
      return PlaneRows{unit, unit % sum.groups, row, row + count};
    };
    int64_t packed_units = 0;
    for (int64_t next = begin; next < end;) {
      const PlaneRows here = rows_from(next);
      const int64_t units_before = here.unit - first_unit;
      float* packed = own + units_before % slots * sum.packed_size();
      if (!sum.packed && units_before == packed_units && (units_before < sum.groups || slots < sum.groups)) {
        pack_group(sum, here.group, packed);
        ++packed_units;
      }
      next += here.end - here.begin;
      PlaneLines ahead;
      if (from_memory && next < end) ahead = lines_ahead<Walk>(sum, here, rows_from(next));
      const float* weights = sum.packed ? sum.packed + here.group * sum.packed_size() : packed;
      sum_group<Walk>(sum, here, weights, from_memory ? &ahead : nullptr);
    }
  }
}

}  // namespace
}  // namespace resnext::cpu
