#pragma once
#include <algorithm>

#include "grouped_conv.h"
#include "simd.h"

// Weights in the order in which the direct kernels read and write them: for each vector of channels r, channel in
// group, s, lane. Lanes are output channels in fprop and wgrad, input channels in dgrad. Orders in which a lane's
// weights follow one another in memory (dense KCRS and KRSC) are moved by square transposes, others one by one.
namespace resnext::cpu {
namespace {

template <int group_width>
constexpr int64_t packed_vector_size = 9 * group_width * lanes;

// Where the vector of weights (r, channel, s) begins.
template <int group_width>
int64_t packed_place(int64_t r, int64_t channel, int64_t s) {
  return ((r * group_width + channel) * 3 + s) * lanes;
}

// The same for weight t of one output channel in memory order.
template <int group_width>
int64_t packed_place_kcrs(int64_t t) {
  return packed_place<group_width>(t / 3 % 3, t / 9, t % 3);
}

template <int group_width>
int64_t packed_place_krsc(int64_t t) {
  return packed_place<group_width>(t / group_width / 3, t % group_width, t / group_width % 3);
}

template <class Pointer>
bool is_kcrs(const Weight<Pointer>& weight) {
  return weight.stride_s == 1 && weight.stride_r == 3 && weight.stride_c == 9;
}

template <class Pointer>
bool is_krsc(const Weight<Pointer>& weight, int64_t group_width) {
  return weight.stride_c == 1 && weight.stride_s == group_width && weight.stride_r == 3 * group_width;
}

// Element offsets in a weight tensor, for the vector of lanes that starts at channel first_lane.
template <int group_width, bool lanes_are_inputs>
struct LaneIndex {
  int64_t first_lane;
  int64_t stride_k, stride_c, stride_r, stride_s;

  template <class Pointer>
  LaneIndex(const Weight<Pointer>& weight, int64_t vector)
      : first_lane(vector * lanes),
        stride_k(weight.stride_k),
        stride_c(weight.stride_c),
        stride_r(weight.stride_r),
        stride_s(weight.stride_s) {}

  // `channel` is the other channel: input in fprop and wgrad, output in dgrad; its number within the group.
  int64_t operator()(int64_t lane, int64_t channel, int64_t r, int64_t s) const {
    const int64_t place = first_lane + lane, in_group = place % group_width;
    const int64_t k = lanes_are_inputs ? place - in_group + channel : place;
    const int64_t c = lanes_are_inputs ? in_group : channel;
    return k * stride_k + c * stride_c + r * stride_r + s * stride_s;
  }
};

// Element t of the run of each lane goes to the vector at place(t).
template <class Offset, class Place>
void pack_runs(const float* data, int64_t count, const Offset& offset, const Place& place, float* packed) {
  for (int64_t t = 0; t < count; t += lanes) {
    const int left = static_cast<int>(std::min<int64_t>(count - t, lanes));
    Vec rows[lanes];
    if (left == lanes) {
      unroll<lanes>([&](auto i) RESNEXT_INLINE { rows[i] = load(data + offset(i) + t); });
    } else {
      unroll<lanes>([&](auto i) RESNEXT_INLINE { rows[i] = load_part(data + offset(i) + t, left); });
    }
    transpose(rows);
    unroll<lanes>([&](auto i) RESNEXT_INLINE {
      if (i < left) store(packed + place(t + i), rows[i]);
    });
  }
}

template <int group_width, bool lanes_are_inputs>
void pack_one_by_one(const float* data, const LaneIndex<group_width, lanes_are_inputs>& index, bool flip,
                     float* packed) {
  for (int64_t r = 0; r < 3; ++r)
    for (int64_t channel = 0; channel < group_width; ++channel)
      for (int64_t s = 0; s < 3; ++s)
        for (int64_t lane = 0; lane < lanes; ++lane)
          *packed++ = data[index(lane, channel, flip ? 2 - r : r, flip ? 2 - s : s)];
}

// Packs the weights of one vector; `flip` turns every 3x3 by half a turn.
template <int group_width, bool lanes_are_inputs>
void pack_vector(const Weight<const void*>& weight, int64_t vector, bool flip, float* packed) {
  const LaneIndex<group_width, lanes_are_inputs> index(weight, vector);
  const float* data = static_cast<const float*>(weight.data);
  const bool kcrs = is_kcrs(weight), krsc = is_krsc(weight, group_width);
  if constexpr (lanes_are_inputs) {
    if (kcrs) {
      for (int64_t channel = 0; channel < group_width; ++channel)
        pack_runs(
            data, 9, [&](int64_t lane) { return index(lane, channel, 0, 0); },
            [&](int64_t t) {
              return packed_place<group_width>((flip ? 8 - t : t) / 3, channel, (flip ? 8 - t : t) % 3);
            },
            packed);
      return;
    }
    if (krsc && group_width >= lanes) {
      for (int64_t t = 0; t < 9; ++t)
        for (int64_t channel = 0; channel < group_width; ++channel)
          store(packed + packed_place<group_width>(t / 3, channel, t % 3),
                load(data + index(0, channel, flip ? 2 - t / 3 : t / 3, flip ? 2 - t % 3 : t % 3)));
      return;
    }
  } else if (kcrs || krsc) {
    const auto lane_run = [&](int64_t lane) { return index(lane, 0, 0, 0); };
    const auto place_kcrs = [](int64_t t) { return packed_place_kcrs<group_width>(t); };
    const auto place_krsc = [](int64_t t) { return packed_place_krsc<group_width>(t); };
    if (kcrs)
      pack_runs(data, 9 * group_width, lane_run, place_kcrs, packed);
    else
      pack_runs(data, 9 * group_width, lane_run, place_krsc, packed);
    return;
  }
  pack_one_by_one(data, index, flip, packed);
}

// Packs all weights, each thread of the team its share of the vectors.
template <int group_width, bool lanes_are_inputs>
void pack(const Weight<const void*>& weight, int64_t channels, bool flip, float* packed) {
#pragma omp for schedule(static)
  for (int64_t vector = 0; vector < channels / lanes; ++vector)
    pack_vector<group_width, lanes_are_inputs>(weight, vector, flip, packed + vector * packed_vector_size<group_width>);
}

// The other way, for wgrad: the sum of `parts` packed vectors of weights, `part_size` apart, to the weight tensor.
template <int group_width>
void unpack_vector(const float* packed, int64_t parts, int64_t part_size, int64_t vector, const Weight<void*>& weight) {
  const LaneIndex<group_width, false> index(weight, vector);
  float* data = static_cast<float*>(weight.data);
  const auto sum_of_parts = [&](int64_t place) {
    Vec sum = load(packed + place);
    for (int64_t part = 1; part < parts; ++part) sum += load(packed + part * part_size + place);
    return sum;
  };
  if (const bool kcrs = is_kcrs(weight); kcrs || is_krsc(weight, group_width)) {
    for (int64_t t = 0; t < 9 * group_width; t += lanes) {
      const int left = static_cast<int>(std::min<int64_t>(9 * group_width - t, lanes));
      Vec rows[lanes] = {};
      for (int i = 0; i < left; ++i)
        rows[i] = sum_of_parts(kcrs ? packed_place_kcrs<group_width>(t + i) : packed_place_krsc<group_width>(t + i));
      transpose(rows);
      for (int lane = 0; lane < lanes; ++lane) store_part(data + index(lane, 0, 0, 0) + t, rows[lane], left);
    }
    return;
  }
  for (int64_t t = 0; t < 9 * group_width; ++t) {
    const Vec sum = sum_of_parts(packed_place_kcrs<group_width>(t));
    for (int lane = 0; lane < lanes; ++lane) data[index(lane, t / 9, t / 3 % 3, t % 3)] = sum[lane];
  }
}

}  // namespace
}  // namespace resnext::cpu
