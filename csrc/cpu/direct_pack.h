#pragma once
#include <algorithm>

#include "direct_lanes.h"
#include "grouped_conv.h"

// Weights in the order in which the direct kernels read and write them: for each vector of channels r, channel in
// group, s, lane. Lanes are output channels in fprop and wgrad, input channels in dgrad; `channel` is the other kind.
// Padded lanes and channels are zero. Orders in which a lane's weights follow one another in memory (dense KCRS and
// KRSC) are moved by square transposes, others one by one.
namespace resnext::cpu {
namespace {

constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Channels are summed four at a time.
constexpr int64_t summed_channels(int64_t width) { return round_up(width, 4); }

// The packed weights of one vector.
struct PackedOrder {
  int64_t channels;  // of a group, padding included

  int64_t size() const { return 9 * channels * lanes; }
  int64_t place(int64_t r, int64_t channel, int64_t s) const { return ((r * channels + channel) * 3 + s) * lanes; }
};

// Where the weights of the lanes of one vector lie in a weight tensor.
struct LaneOffsets {
  int64_t lane[lanes];  // -1 for padding
  int64_t channel, r, s;

  // `width` is the number of output channels of a group.
  template <int slot, class Pointer>
  LaneOffsets(const Lanes<slot>& map, int64_t vector, bool lanes_are_inputs, int64_t width,
              const Weight<Pointer>& weight)
      : channel(lanes_are_inputs ? weight.stride_k : weight.stride_c), r(weight.stride_r), s(weight.stride_s) {
    for (int i = 0; i < lanes; ++i) {
      const auto place = map.place(vector, i);
      const int64_t k = place.group * width + (lanes_are_inputs ? 0 : place.channel);
      lane[i] = place.channel < 0 ? -1 : k * weight.stride_k + (lanes_are_inputs ? place.channel * weight.stride_c : 0);
    }
  }
};

// Walks along the run of one output channel's weights in memory and says where each goes.
class RunOrder {
 public:
  RunOrder(const PackedOrder& order, bool kcrs, int64_t width) : order_(order), kcrs_(kcrs), width_(width) {}

  int64_t place() const { return order_.place(r_, c_, s_); }

  void next() {
    if (kcrs_)
      step(s_, 3) && step(r_, 3) && step(c_, width_);
    else
      step(c_, width_) && step(s_, 3) && step(r_, 3);
  }

 private:
  static bool step(int64_t& index, int64_t count) {
    index = index + 1 == count ? 0 : index + 1;
    return index == 0;
  }

  PackedOrder order_;
  bool kcrs_;
  int64_t width_, c_ = 0, r_ = 0, s_ = 0;
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
void pack_one_by_one(const T* data, const LaneOffsets& offsets, int64_t width, bool flip, const PackedOrder& order,
                     float* packed) {
  for (int64_t r = 0; r < 3; ++r)
    for (int64_t channel = 0; channel < width; ++channel)
      for (int64_t s = 0; s < 3; ++s) {
        const int64_t tap = channel * offsets.channel + (flip ? 2 - r : r) * offsets.r + (flip ? 2 - s : s) * offsets.s;
        float* vector = packed + order.place(r, channel, s);
        for (int lane = 0; lane < lanes; ++lane)
          vector[lane] = offsets.lane[lane] < 0 ? 0.0f : to_float(data[offsets.lane[lane] + tap]);
      }
}

// The sum's two sides: `map` deals out the channels of its target, `width` is that of a group of its source.
template <int slot>
struct PackPlan {
  Lanes<slot> map;
  int64_t width;
  bool lanes_are_inputs, flip;  // `flip` turns every 3x3 by half a turn

  PackedOrder order() const { return {summed_channels(width)}; }
  int64_t size() const { return map.vectors() * order().size(); }
};

// Packs the weights of one vector.
template <class T, int slot>
void pack_vector(const PackPlan<slot>& plan, const Weight<const void*>& weight, int64_t vector, float* packed) {
  const T* data = static_cast<const T*>(weight.data);
  const PackedOrder order = plan.order();
  const int64_t outputs = plan.lanes_are_inputs ? plan.width : plan.map.width;
  const int64_t inputs = plan.lanes_are_inputs ? plan.map.width : plan.width;
  LaneOffsets offsets(plan.map, vector, plan.lanes_are_inputs, outputs, weight);
  const bool kcrs = is_kcrs(weight), krsc = is_krsc(weight, inputs), flip = plan.flip;
  for (int64_t r = 0; r < 3; ++r)
    std::fill(packed + order.place(r, plan.width, 0), packed + order.place(r, order.channels, 0), 0.0f);
  if (plan.lanes_are_inputs && kcrs) {
    for (int64_t channel = 0; channel < plan.width; ++channel, data += offsets.channel)
      pack_runs(
          data, 9, offsets,
          [&](int64_t t) { return order.place((flip ? 8 - t : t) / 3, channel, (flip ? 8 - t : t) % 3); }, packed);
  } else if (plan.lanes_are_inputs && krsc && slot == lanes) {
    data += offsets.lane[0];
    for (int64_t t = 0; t < 9; ++t)
      for (int64_t channel = 0; channel < plan.width; ++channel)
        store(packed + order.place((flip ? 8 - t : t) / 3, channel, (flip ? 8 - t : t) % 3),
              load_part(data + channel * offsets.channel + t * offsets.s, plan.map.count(vector)));
  } else if (!plan.lanes_are_inputs && (kcrs || krsc)) {
    RunOrder run(order, kcrs, plan.width);
    const auto next_place = [&](int64_t) {
      const int64_t place = run.place();
      run.next();
      return place;
    };
    pack_runs(data, 9 * plan.width, offsets, next_place, packed);
  } else {
    pack_one_by_one(data, offsets, plan.width, flip, order, packed);
  }
}

// Packs all weights, each thread of the team its share of the vectors.
template <class T, int slot>
void pack(const PackPlan<slot>& plan, const Weight<const void*>& weight, float* packed) {
#pragma omp for schedule(static)
  for (int64_t vector = 0; vector < plan.map.vectors(); ++vector)
    pack_vector<T>(plan, weight, vector, packed + vector * plan.order().size());
}

// The other way, for wgrad: the sum of `parts` packed vectors of weights, `part_size` apart, to the weight tensor.
template <class T, int slot>
void unpack_vector(const float* packed, int64_t parts, int64_t part_size, const PackPlan<slot>& plan, int64_t vector,
                   const Weight<void*>& weight) {
  const LaneOffsets offsets(plan.map, vector, false, plan.map.width, weight);
  T* data = static_cast<T*>(weight.data);
  const auto sum_of_parts = [&](int64_t place) {
    Vec sum = load(packed + place);
    for (int64_t part = 1; part < parts; ++part) sum += load(packed + part * part_size + place);
    return sum;
  };
  const bool kcrs = is_kcrs(weight), dense = kcrs || is_krsc(weight, plan.width);
  RunOrder run(plan.order(), kcrs || !dense, plan.width);
  for (int64_t t = 0; t < 9 * plan.width; t += lanes) {
    const int now = static_cast<int>(std::min<int64_t>(9 * plan.width - t, lanes));
    Vec rows[lanes] = {};
    for (int i = 0; i < now; ++i, run.next()) rows[i] = sum_of_parts(run.place());
    transpose(rows);
    for (int lane = 0; lane < lanes; ++lane) {
      if (offsets.lane[lane] < 0) continue;
      if (dense) {
        store_part(data + offsets.lane[lane] + t, rows[lane], now);
        continue;
      }
      T run_part[lanes];
      store(run_part, rows[lane]);
      for (int i = 0; i < now; ++i)
        data[offsets.lane[lane] + (t + i) / 9 * offsets.channel + (t + i) / 3 % 3 * offsets.r +
             (t + i) % 3 * offsets.s] = run_part[i];
    }
  }
}

}  // namespace
}  // namespace resnext::cpu
