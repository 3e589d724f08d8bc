#pragma once
#include <algorithm>

#include "direct_lanes.h"
#include "grouped_conv.h"
#include "transpose.h"
#include "winograd_transforms.h"

// Weights in the order in which the direct kernels read and write them: for each vector of channels: channel in
// group, r, s, lane. Lanes are output channels in fprop and wgrad, input channels in dgrad; `channel` is the other
// kind. Padded lanes and channels are zero. Orders in which a lane's weights follow one another in memory (dense KCRS
// and KRSC) are moved by square transposes, others one by one.
namespace resnext::cpu {
namespace {

// What the sums add in one go, in lanes of one or two channels; a group's channels are padded to a multiple of it where
// groups have neighbouring lanes.
constexpr int64_t elements_at_once(int64_t slot, int64_t per_lane) {
  return slot == 4 ? 4 / per_lane : slot == 8 && lanes == 16 ? 8 / per_lane : 4;
}

// Whether what is left over of them is added one by one, so that a group's channels need no padding.
constexpr bool adds_leftovers(int64_t slot) { return slot == lanes || slot == 1; }

constexpr int64_t summed_channels(int64_t slot, int64_t per_lane, int64_t width) {
  const int64_t step = !adds_leftovers(slot) ? elements_at_once(slot, per_lane) * per_lane : per_lane;
  return (width + step - 1) / step * step;
}

// The packed weights of one vector, and where in them the vector of a channel and tap begins.
constexpr int64_t packed_size(int64_t channels) { return 9 * channels * lanes; }

constexpr int64_t packed_place(int64_t channel, int64_t tap) { return (9 * channel + tap) * lanes; }

// Where the weights of the lanes of one vector lie in a weight tensor.
struct LaneOffsets {
  int64_t lane[lanes];  // -1 for padding
  int64_t channel, r, s;

  // `width` is the number of output channels of a group.
  template <class Pointer>
  LaneOffsets(const Lanes& map, int64_t vector, bool lanes_are_inputs, int64_t width, const Weight<Pointer>& weight)
      : channel(lanes_are_inputs ? weight.stride_k : weight.stride_c), r(weight.stride_r), s(weight.stride_s) {
    map.each_lane(vector, [&](int i, int64_t group, int64_t of_group) {
      const int64_t k = group * width + (lanes_are_inputs ? 0 : of_group);
      lane[i] = of_group < 0 ? -1 : k * weight.stride_k + (lanes_are_inputs ? of_group * weight.stride_c : 0);
    });
  }

  // Visits lanes that lie side by side in memory, or are all padding, together: the first of them and how many.
  template <class Visit>
  void each_run(const Visit& visit) const {
    for (int first = 0, i = 1; i <= lanes; ++i)
      if (i == lanes || lane[i] != lane[i - 1] + (lane[i - 1] < 0 ? 0 : 1)) {
        visit(first, i - first);
        first = i;
      }
  }
};

template <class Pointer>
bool is_kcrs(const Weight<Pointer>& weight) {
  return weight.stride_s == 1 && weight.stride_r == 3 && weight.stride_c == 9;
}

template <class Pointer>
bool is_krsc(const Weight<Pointer>& weight, int64_t width) {
  return weight.stride_c == 1 && weight.stride_s == width && weight.stride_r == 3 * width;
}

// A lane's weights in memory; two in a lane are pairs, of which the second belongs to the next channel.
template <class T>
struct WeightRun {
  int64_t next_channel;

  [[gnu::always_inline]] Vec part(const T* run, int count) const {
    const Vec first = load_part(run, count);
    return per_lane<T> == 1 ? first : make_pairs(first, load_part(run + next_channel, count));
  }
  [[gnu::always_inline]] Vec eight(const T* run) const {
    const Vec first = load_eight(run);
    return per_lane<T> == 1 ? first : make_pairs(first, load_eight(run + next_channel));
  }
  [[gnu::always_inline]] float one(const T* run) const {
    const float first = to_float(*run);
    return per_lane<T> == 1 ? first : make_pair(first, to_float(run[next_channel]));
  }
};

// Element t of the run of `count` elements of each lane, one or two neighbours, goes to the vector `step` floats behind
// that of the element before.
template <int64_t step, class T>
void pack_runs(const T* data, int64_t count, const LaneOffsets& offsets, float* packed) {
  constexpr int in_lane = per_lane<T>;
  const auto load_run = [](const T* run, int now) RESNEXT_INLINE {
    if constexpr (in_lane == 2) return load_bits_part(run, 2 * now);
    return load_part(run, now);
  };
  for (int64_t t = 0; t < count; t += lanes) {
    const int now = static_cast<int>(std::min<int64_t>(count - t, lanes));
    Vec rows[lanes];
    unroll<lanes>([&](auto i) RESNEXT_INLINE {
      rows[i] = offsets.lane[i] < 0 ? Vec{} : load_run(data + offsets.lane[i] + t * in_lane, now);
    });
    transpose(rows);
    unroll<lanes>([&](auto i) RESNEXT_INLINE {
      if (i < now) store(packed + (t + i) * step, rows[i]);
    });
  }
}

// The nine taps of a channel, which follow one another in memory, to vectors `step` floats apart: eight of them by
// transposing squares, the last one by one.
template <class T>
void pack_taps(const T* data, const LaneOffsets& offsets, int64_t step, float* to) {
  const WeightRun<T> run{offsets.channel};
  const auto load_eight_of = [&](int lane) RESNEXT_INLINE {
    return offsets.lane[lane] < 0 ? Vec{} : run.eight(data + offsets.lane[lane]);
  };
  Vec rows[8];
  unroll<8>([&](auto i) RESNEXT_INLINE {
    rows[i] = load_eight_of(i);
    if constexpr (lanes == 16) rows[i] = lower_eights(rows[i], load_eight_of(i + 8));
  });
  transpose(rows);
  unroll<8>([&](auto i) RESNEXT_INLINE {
    store(to, rows[i]);
    to += step;
  });
  unroll<lanes>([&](auto i)
                    RESNEXT_INLINE { to[i] = offsets.lane[i] < 0 ? 0.0f : run.one(data + offsets.lane[i] + 8); });
}

// Moves lanes that lie side by side in memory together: `row(element, tap)` is where those of lane 0 would be.
template <class T, class Row>
void pack_rows(int64_t elements, const LaneOffsets& offsets, const Row& row, bool flip, float* packed) {
  const WeightRun<T> run{offsets.channel};
  offsets.each_run([&](int first, int count) {
    const int64_t offset = offsets.lane[first];
    for (int64_t element = 0; element < elements; ++element)
      for (int64_t tap = 0; tap < 9; ++tap) {
        float* to = packed + packed_place(element, flip ? 8 - tap : tap) + first;
        store_part(to, offset < 0 ? Vec{} : run.part(row(element, tap) + offset, count), count);
      }
  });
}

// Whatever the order in memory is. `width` channels are packed, one or two in a lane.
template <class T>
void pack_one_by_one(const T* data, const LaneOffsets& offsets, int64_t width, bool flip, float* packed) {
  for (int64_t channel = 0; channel < width; channel += per_lane<T>)
    for (int64_t tap = 0; tap < 9; ++tap, packed += lanes) {
      const int64_t t = flip ? 8 - tap : tap;
      const auto load_lanes_of = [&](int64_t c) {
        Vec loaded{};
        const T* from = data + c * offsets.channel + t / 3 * offsets.r + t % 3 * offsets.s;
        for (int lane = 0; c < width && lane < lanes; ++lane)
          loaded[lane] = offsets.lane[lane] < 0 ? 0.0f : to_float(from[offsets.lane[lane]]);
        return loaded;
      };
      const Vec first = load_lanes_of(channel);
      store(packed, per_lane<T> == 2 ? make_pairs(first, load_lanes_of(channel + 1)) : first);
    }
}

// From pairs of neighbours in memory, where a channel's nine taps lie together, to pairs of neighbouring channels.
inline void pair_channels(int64_t pairs, float* packed) {
  for (int64_t i = 0; i < pairs; ++i, packed += packed_size(1)) {
    Bits taps[9];
    unroll<9>([&](auto tap) RESNEXT_INLINE { taps[tap] = reinterpret_cast<Bits>(load(packed + tap * lanes)); });
    unroll<9>([&](auto tap) RESNEXT_INLINE {
      const Bits first = taps[tap / 2], second = taps[(tap + 9) / 2];
      const Bits pair = tap % 2 ? first >> 16 | second << 16 : (first & 0xffffu) | (second & 0xffff0000u);
      store(packed + tap * lanes, reinterpret_cast<Vec>(pair));
    });
  }
}

// The sum's two sides: `map` deals out the channels of its target, `width` is that of a group of its source.
struct PackPlan {
  Lanes map;
  int64_t width, channels;      // without and with padding
  int per_lane;                 // 2: neighbouring channels become pairs of bfloat16
  bool lanes_are_inputs, flip;  // `flip` turns every 3x3 by half a turn
  bool transformed = false;     // to the positions of winograd_transforms.h

  int64_t vector_size() const { return (transformed ? positions : 9) * (channels / per_lane) * lanes; }
  int64_t size() const { return map.vectors() * vector_size(); }
};

// Packs the nine taps of `width` channels, from channel `first` of the group on, for one vector.
template <class T>
void pack_channels(const PackPlan& plan, const Weight<const void*>& weight, int64_t vector, int64_t first,
                   int64_t width, float* packed) {
  constexpr int count = per_lane<T>;
  const int64_t elements = width / count;
  const int64_t outputs = plan.lanes_are_inputs ? plan.width : plan.map.width;
  const int64_t inputs = plan.lanes_are_inputs ? plan.map.width : plan.width;
  const LaneOffsets offsets(plan.map, vector, plan.lanes_are_inputs, outputs, weight);
  const T* data = static_cast<const T*>(weight.data) + first * offsets.channel;
  const bool kcrs = is_kcrs(weight), krsc = is_krsc(weight, inputs), flip = plan.flip;
  if (width % count || !(kcrs || krsc)) return pack_one_by_one(data, offsets, width, flip, packed);
  if (plan.lanes_are_inputs && kcrs) {
    for (int64_t i = 0; i < elements; ++i)
      pack_taps<T>(data + i * count * offsets.channel, offsets, flip ? -lanes : lanes,
                   packed + packed_place(i, flip ? 8 : 0));
  } else if (plan.lanes_are_inputs) {
    const auto row = [&](int64_t i, int64_t tap) { return data + i * count * offsets.channel + tap * offsets.s; };
    pack_rows<T>(elements, offsets, row, flip, packed);
  } else if (kcrs) {
    pack_runs<lanes>(data, 9 * elements, offsets, packed);
    if (count == 2) pair_channels(elements, packed);
  } else {
    for (int64_t t = 0; t < 9; ++t)
      pack_runs<packed_size(1)>(data + t * plan.width, elements, offsets, packed + packed_place(0, t));
  }
}

// Packs the weights of one vector.
template <class T>
void pack(const PackPlan& plan, const Weight<const void*>& weight, int64_t vector, float* packed) {
  alignas(64) float taps[packed_size(lanes)];  // of some channels, to be transformed
  const int64_t packed_elements = (plan.width + per_lane<T> - 1) / per_lane<T>;
  if (!plan.transformed) std::fill(packed + packed_size(packed_elements), packed + plan.vector_size(), 0.0f);
  const int64_t at_once = plan.transformed ? lanes : plan.width;
  for (int64_t first = 0; first < plan.width; first += at_once) {
    pack_channels<T>(plan, weight, vector, first, at_once, plan.transformed ? taps : packed);
    for (int64_t i = 0; plan.transformed && i < lanes; ++i)
      transform_weights(taps + packed_place(i, 0), plan.channels * lanes, packed + (first + i) * lanes);
  }
}

// Packed sums of weights: `parts` of them to add up, `distance` floats apart.
struct PackedParts {
  const float* first;
  int64_t parts, distance;

  [[gnu::always_inline]] Vec sum(int64_t place) const {
    Vec sum = load(first + place);
    for (int64_t part = 1; part < parts; ++part) sum += load(first + part * distance + place);
    return sum;
  }
};

// The other way, for wgrad: `now` elements of each lane's run from the vectors from `place` on, `step` floats apart. A
// whole square needs no test for each vector. Row by row with `sum` it is slower in bfloat16 (docs/performance.md).
template <int64_t step, bool is_whole, class T>
void unpack_square(const PackedParts& packed, int64_t place, int now, const LaneOffsets& offsets, T* run) {
  Vec rows[lanes] = {};
  const auto each = [&](const float* from, const auto& row) RESNEXT_INLINE {
    unroll<lanes>([&](auto i) RESNEXT_INLINE {
      if (is_whole || i < now) row(i, from + i * step);
    });
  };
  each(packed.first + place, [&](int i, const float* from) RESNEXT_INLINE { rows[i] = load(from); });
  for (int64_t part = 1; part < packed.parts; ++part)
    each(packed.first + part * packed.distance + place,
         [&](int i, const float* from) RESNEXT_INLINE { rows[i] += load(from); });
  transpose(rows);
  unroll<lanes>([&](auto lane) RESNEXT_INLINE {
    if (is_whole)
      store(run + offsets.lane[lane], rows[lane]);
    else if (offsets.lane[lane] >= 0)
      store_part(run + offsets.lane[lane], rows[lane], now);
  });
}

// `count` elements of each lane's run.
template <int64_t step, class T>
void unpack_runs(const PackedParts& packed, int64_t place, int64_t count, const LaneOffsets& offsets, bool padded,
                 T* run) {
  int64_t t = 0;
  for (; !padded && t + lanes <= count; t += lanes)
    unpack_square<step, true>(packed, place + t * step, lanes, offsets, run + t);
  for (; t < count; t += lanes) {
    const int now = static_cast<int>(std::min<int64_t>(count - t, lanes));
    unpack_square<step, false>(packed, place + t * step, now, offsets, run + t);
  }
}

// Lanes that lie side by side; one, or those of a group of 8, without a call.
template <class T>
[[gnu::always_inline]] inline void copy_lanes(const T* from, int count, T* to) {
  if (count == 1)
    *to = *from;
  else if (count == 8)
    std::copy_n(from, 8, to);
  else
    std::copy_n(from, count, to);
}

// The nine taps of `width` channels, lanes that lie side by side together.
template <class T>
void unpack_rows(const PackedParts& packed, int64_t width, const LaneOffsets& offsets, T* data) {
  struct Run {
    int first, count;
  } runs[lanes];
  int count = 0;
  offsets.each_run([&](int first, int lanes_of_run) {
    if (offsets.lane[first] >= 0) runs[count++] = {first, lanes_of_run};
  });
  for (int64_t channel = 0; channel < width; ++channel)
    for (int64_t tap = 0; tap < 9; ++tap) {
      T values[lanes];
      store(values, packed.sum(packed_place(channel, tap)));
      T* to = data + channel * offsets.channel + tap / 3 * offsets.r + tap % 3 * offsets.s;
      for (int i = 0; i < count; ++i)
        copy_lanes(values + runs[i].first, runs[i].count, to + offsets.lane[runs[i].first]);
    }
}

// To the weight tensor.
template <class T>
void unpack_vector(const PackedParts& packed, const PackPlan& plan, int64_t vector, const Weight<void*>& weight) {
  const int64_t outputs = plan.lanes_are_inputs ? plan.width : plan.map.width;
  const LaneOffsets offsets(plan.map, vector, plan.lanes_are_inputs, outputs, weight);
  T* data = static_cast<T*>(weight.data);
  const bool padded = plan.map.count(vector) < lanes;
  if (is_krsc(weight, plan.width) && !plan.lanes_are_inputs) {
    for (int64_t t = 0; t < 9; ++t)
      unpack_runs<packed_size(1)>(packed, packed_place(0, t), plan.width, offsets, padded, data + t * plan.width);
  } else if (is_kcrs(weight) && !plan.lanes_are_inputs) {
    unpack_runs<lanes>(packed, 0, 9 * plan.width, offsets, padded, data);
  } else {
    unpack_rows(packed, plan.width, offsets, data);
  }
}

}  // namespace
}  // namespace resnext::cpu
