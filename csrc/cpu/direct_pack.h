#pragma once
#include <algorithm>

#include "direct_lanes.h"
#include "grouped_conv.h"

// Weights in the order in which the direct kernels read and write them: for each vector of channels: channel in
// group, r, s, lane. Lanes are output channels in fprop and wgrad, input channels in dgrad; `channel` is the other
// kind. Padded lanes and channels are zero. Orders in which a lane's weights follow one another in memory (dense KCRS
// and KRSC) are moved by square transposes, others one by one.
namespace resnext::cpu {
namespace {

// What the sums add in one go, in lanes of one or two channels; a group's channels are padded to a multiple of it where
// groups have neighbouring lanes.
template <int slot, int per_lane>
constexpr int elements_at_once = slot == 4 ? 4 / per_lane : 4;

// Whether what is left over of them is added one by one, so that a group's channels need no padding.
template <int slot>
constexpr bool adds_leftovers = slot == lanes || slot == 1;

template <int slot, int per_lane>
constexpr int64_t summed_channels(int64_t width) {
  constexpr int64_t step = !adds_leftovers<slot> ? elements_at_once<slot, per_lane> * per_lane : per_lane;
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
  template <int slot, class Pointer>
  LaneOffsets(const Lanes<slot>& map, int64_t vector, bool lanes_are_inputs, int64_t width,
              const Weight<Pointer>& weight)
      : channel(lanes_are_inputs ? weight.stride_k : weight.stride_c), r(weight.stride_r), s(weight.stride_s) {
    const int count = map.count(vector);
    auto place = map.place(vector, 0);
    for (int i = 0; i < lanes; ++i) {
      if (slot < lanes) place = map.place(vector, i);
      const int64_t k = place.group * width + (lanes_are_inputs ? 0 : place.channel);
      const bool padding = slot < lanes ? place.channel < 0 : i >= count;
      lane[i] = padding ? -1 : k * weight.stride_k + (lanes_are_inputs ? place.channel * weight.stride_c : 0);
      if (++place.channel == map.width) place = {place.group + 1, 0};
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

// Element t of the run of `count` elements of each lane goes to the vector at place(t), which is asked in order.
template <class T, class Place>
void pack_runs(const T* data, int64_t count, const LaneOffsets& offsets, Place&& place, float* packed) {
  for (int64_t t = 0; t < count; t += lanes) {
    const int now = static_cast<int>(std::min<int64_t>(count - t, lanes));
    Vec rows[lanes];
    unroll<lanes>([&](auto i) RESNEXT_INLINE {
      rows[i] = offsets.lane[i] < 0 ? Vec{} : load_part(data + offsets.lane[i] + t, now);
    });
    transpose(rows);
    unroll<lanes>([&](auto i) RESNEXT_INLINE {
      if (i < now) store(packed + place(t + i), rows[i]);
    });
  }
}

template <class T>
void pack_one_by_one(const T* data, const LaneOffsets& offsets, int64_t width, bool flip, float* packed) {
  for (int64_t channel = 0; channel < width; ++channel)
    for (int64_t tap = 0; tap < 9; ++tap, packed += lanes) {
      const int64_t t = flip ? 8 - tap : tap;
      const T* from = data + channel * offsets.channel + t / 3 * offsets.r + t % 3 * offsets.s;
      for (int lane = 0; lane < lanes; ++lane)
        packed[lane] = offsets.lane[lane] < 0 ? 0.0f : to_float(from[offsets.lane[lane]]);
    }
}

// The sum's two sides: `map` deals out the channels of its target, `width` is that of a group of its source.
template <int slot>
struct PackPlan {
  Lanes<slot> map;
  int64_t width, channels;      // without and with padding
  int per_lane;                 // 2: neighbouring channels become pairs of bfloat16
  bool lanes_are_inputs, flip;  // `flip` turns every 3x3 by half a turn

  int64_t vector_size() const { return packed_size(channels / per_lane); }
  int64_t size() const { return map.vectors() * vector_size(); }
};

// Packs the weights of one vector, one channel in a lane.
template <class T, int slot>
void pack_vector(const PackPlan<slot>& plan, const Weight<const void*>& weight, int64_t vector, float* packed) {
  const T* data = static_cast<const T*>(weight.data);
  const int64_t width = plan.width, outputs = plan.lanes_are_inputs ? width : plan.map.width;
  const int64_t inputs = plan.lanes_are_inputs ? plan.map.width : width;
  const LaneOffsets offsets(plan.map, vector, plan.lanes_are_inputs, outputs, weight);
  const bool kcrs = is_kcrs(weight), krsc = is_krsc(weight, inputs), flip = plan.flip;
  std::fill(packed + packed_size(width), packed + packed_size(plan.channels), 0.0f);
  if (plan.lanes_are_inputs && kcrs) {
    for (int64_t channel = 0; channel < width; ++channel)
      pack_runs(
          data + channel * offsets.channel, 9, offsets,
          [&](int64_t t) { return packed_place(channel, flip ? 8 - t : t); }, packed);
  } else if (plan.lanes_are_inputs && krsc && slot == lanes && !plan.map.straddles(vector)) {
    data += offsets.lane[0];
    for (int64_t t = 0; t < 9; ++t)
      for (int64_t channel = 0; channel < width; ++channel)
        store(packed + packed_place(channel, flip ? 8 - t : t),
              load_part(data + channel * offsets.channel + t * offsets.s, plan.map.count(vector)));
  } else if (!plan.lanes_are_inputs && kcrs) {
    pack_runs(data, 9 * width, offsets, [](int64_t t) { return t * lanes; }, packed);
  } else if (!plan.lanes_are_inputs && krsc) {
    for (int64_t t = 0; t < 9; ++t)
      pack_runs(data + t * width, width, offsets, [&](int64_t channel) { return packed_place(channel, t); }, packed);
  } else {
    pack_one_by_one(data, offsets, width, flip, packed);
  }
}

// Packs the weights of one vector. `scratch` holds them as floats where they become pairs.
template <class T, int slot>
void pack(const PackPlan<slot>& plan, const Weight<const void*>& weight, int64_t vector, float* scratch, float* to) {
  pack_vector<T>(plan, weight, vector, plan.per_lane == 2 ? scratch : to);
  if (plan.per_lane == 1) return;
  for (int64_t channel = 0; channel < plan.channels; channel += 2)
    for (int64_t tap = 0; tap < 9; ++tap, to += lanes)
      store(to, make_pairs(load(scratch + packed_place(channel, tap)), load(scratch + packed_place(channel + 1, tap))));
}

// The other way, for wgrad: the sum of `parts` packed vectors of weights, `part_size` apart, to the weight tensor.
template <class T, int slot>
void unpack_vector(const float* packed, int64_t parts, int64_t part_size, const PackPlan<slot>& plan, int64_t vector,
                   const Weight<void*>& weight) {
  const LaneOffsets offsets(plan.map, vector, false, plan.map.width, weight);
  T* data = static_cast<T*>(weight.data);
  const bool krsc = is_krsc(weight, plan.width), padded = plan.map.count(vector) < lanes;
  // Elements [t, t + now) of each lane's run; whole squares without a test for each vector.
  const auto unpack_square = [&](auto is_whole, int64_t t, int now, T* run, const auto& place) {
    Vec rows[lanes] = {};
    const auto each = [&](auto&& row) {
      unroll<lanes>([&](auto i) RESNEXT_INLINE {
        if (is_whole || i < now) row(i, packed + place(t + i));
      });
    };
    each([&](int i, const float* from) RESNEXT_INLINE { rows[i] = load(from); });
    for (int64_t part = 1; part < parts; ++part)
      each([&](int i, const float* from) RESNEXT_INLINE { rows[i] += load(from + part * part_size); });
    transpose(rows);
    unroll<lanes>([&](auto lane) RESNEXT_INLINE {
      if (is_whole)
        store(run + offsets.lane[lane] + t, rows[lane]);
      else if (offsets.lane[lane] >= 0)
        store_part(run + offsets.lane[lane] + t, rows[lane], now);
    });
  };
  const auto unpack_run = [&](int64_t count, T* run, const auto& place) {
    int64_t t = 0;
    if (!padded)
      for (; t + lanes <= count; t += lanes) unpack_square(std::true_type(), t, lanes, run, place);
    for (; t < count; t += lanes) {
      const int now = static_cast<int>(std::min<int64_t>(count - t, lanes));
      unpack_square(std::false_type(), t, now, run, place);
    }
  };
  if (krsc) {
    for (int64_t t = 0; t < 9; ++t)
      unpack_run(plan.width, data + t * plan.width, [&](int64_t channel) { return packed_place(channel, t); });
  } else if (is_kcrs(weight)) {
    unpack_run(9 * plan.width, data, [](int64_t t) { return t * lanes; });
  } else {
    for (int64_t channel = 0; channel < plan.width; ++channel)
      for (int64_t tap = 0; tap < 9; ++tap) {
        Vec sum{};
        for (int64_t part = 0; part < parts; ++part)
          sum += load(packed + part * part_size + packed_place(channel, tap));
        T values[lanes];
        store(values, sum);
        for (int lane = 0; lane < lanes; ++lane)
          if (offsets.lane[lane] >= 0)
            data[offsets.lane[lane] + channel * offsets.channel + tap / 3 * offsets.r + tap % 3 * offsets.s] =
                values[lane];
      }
  }
}

}  // namespace
}  // namespace resnext::cpu
