#pragma once
#include <algorithm>

#include "direct_across.h"
#include "grouped_conv.h"
#include "lines_ahead.h"
#include "simd.h"
#include "transpose.h"

// How the channels of a tensor lie in vectors, and copies between tensors and scratch tiles of floats in that order.
// A group takes `slot` lanes of a vector (4 or 8: groups share vectors), or whole vectors where it is wider; or it lies
// across vectors, one lane in a vector for each of its channels (slot 1). What a group's width leaves over of its lanes
// is padding:
//
//   slot 1, width 3, 16 lanes     a0 b0 c0 ... p0 | a1 b1 c1 ... p1 | a2 b2 c2 ... p2
//   slot 4, width 3, 16 lanes     a0 a1 a2 -  b0 b1 b2 -  c0 c1 c2 -  d0 d1 d2 -
//   slot 16, width 20, 16 lanes   a0 a1 ... a15 | a16 ... a19 - - - - - - - - - - - -
//   slot 16, width 24, paired     a0 a1 ... a15 | a16 ... a23 b0 ... b7 | b8 b9 ... b23
//
// Padded lanes of a tile are zero, and so are the weights that meet them; padded lanes of a result are never stored.
namespace resnext::cpu {
namespace {

struct Lanes {
  int64_t slot, width, groups;
  bool paired;  // two wide groups lie close together: the vector in their middle holds half a vector of each

  int64_t channels() const { return width * groups; }

  // A unit is a group, or groups that share vectors.
  int64_t groups_per_unit() const { return slot < lanes ? lanes / slot : paired ? 2 : 1; }
  int64_t vectors_per_unit() const {
    return slot == 1 ? width : slot < lanes ? 1 : (groups_per_unit() * width + lanes - 1) / lanes;
  }
  int64_t units() const { return (groups + groups_per_unit() - 1) / groups_per_unit(); }
  int64_t vectors() const { return paired ? (channels() + lanes - 1) / lanes : units() * vectors_per_unit(); }

  // The channels of a vector: so many from the first one on, so far apart in the tensor.
  int64_t first_channel(int64_t vector) const {
    return vector / vectors_per_unit() * groups_per_unit() * width +
           vector % vectors_per_unit() * (slot == 1 ? 1 : lanes);
  }

  int count(int64_t vector) const {
    const int64_t first_group = vector / vectors_per_unit() * groups_per_unit();
    const int64_t unit_groups = std::min(groups_per_unit(), groups - first_group);
    if (slot == 1) return static_cast<int>(unit_groups);
    return static_cast<int>(std::min<int64_t>(unit_groups * width - vector % vectors_per_unit() * lanes, lanes));
  }

  // The channels of several vectors, which are neighbours in the tensor: in slot 1 those of whole units.
  int64_t count_of(int64_t first_vector, int64_t vectors) const {
    const int64_t last = first_vector + vectors - 1;
    return first_channel(last) + (count(last) - 1) * channel_distance() + 1 - first_channel(first_vector);
  }

  int64_t channel_distance() const { return slot == 1 ? width : 1; }
  // Between the first lanes of groups that lie side by side.
  int64_t group_distance() const { return slot < lanes ? slot : width; }

  bool has_gaps() const { return slot < lanes && width < slot; }
  // Every lane of every vector is a channel.
  bool is_full() const {
    return slot < lanes ? width == slot && groups % groups_per_unit() == 0 : (paired ? channels() : width) % lanes == 0;
  }

  // The group of a vector's first lane.
  int64_t first_group(int64_t vector) const {
    return slot < lanes ? vector / vectors_per_unit() * groups_per_unit() : first_channel(vector) / width;
  }

  // Visits the lanes of a vector: the group of each, and its channel's number in the group, -1 for padding.
  template <class Visit>
  void each_lane(int64_t vector, const Visit& visit) const {
    int64_t group = first_group(vector);
    if (slot == 1) {
      for (int lane = 0; lane < lanes; ++lane, ++group)
        visit(lane, group, group < groups ? vector % vectors_per_unit() : -1);
      return;
    }
    int64_t channel = first_channel(vector) - group * width;
    const int first_padding = slot < lanes ? lanes : count(vector);  // behind all channels
    for (int lane = 0; lane < lanes; ++lane) {
      visit(lane, group, group < groups && channel < width && lane < first_padding ? channel : -1);
      if (++channel == group_distance()) {
        channel = 0;
        ++group;
      }
    }
  }

  // The vector holds channels of two wide groups.
  bool straddles(int64_t vector) const {
    return paired && first_channel(vector) / width != (first_channel(vector) + count(vector) - 1) / width;
  }
};

// A vector's channels of a row of numbers, one for each channel of the tensor; and the other way, rounded.
template <class T>
Vec load_channels(const Lanes& map, int64_t vector, const T* numbers) {
  if (map.slot > 1) return load_part(numbers + map.first_channel(vector), map.count(vector));
  Vec loaded{};
  for (int lane = 0; lane < map.count(vector); ++lane)
    loaded[lane] = to_float(numbers[map.first_channel(vector) + lane * map.width]);
  return loaded;
}

template <class T>
void store_channels(const Lanes& map, int64_t vector, Vec value, T* numbers) {
  if (map.slot > 1) return store_part(numbers + map.first_channel(vector), value, map.count(vector));
  T rounded[lanes];
  store(rounded, value);
  for (int lane = 0; lane < map.count(vector); ++lane)
    numbers[map.first_channel(vector) + lane * map.width] = rounded[lane];
}

// Opens and closes the gaps between groups that share a vector.
class Gaps {
 public:
  Gaps() = default;

  explicit Gaps(const Lanes& map) : any_(map.has_gaps()) {
    if (!any_) return;
    const int width = static_cast<int>(map.width), slot = static_cast<int>(map.slot);
    for (int lane = 0; lane < lanes; ++lane) {
      // The last element is no channel where there are gaps, so it is zero.
      opened_[lane] = lane % slot < width ? lane / slot * width + lane % slot : lanes - 1;
      closed_[lane] = std::min(lane / width * slot + lane % width, lanes - 1);
    }
  }

  [[gnu::always_inline]] Vec open(Vec channels) const { return any_ ? __builtin_shuffle(channels, opened_) : channels; }
  [[gnu::always_inline]] Vec close(Vec padded) const { return any_ ? __builtin_shuffle(padded, closed_) : padded; }

 private:
  bool any_ = false;
  Index opened_{}, closed_{};
};

// An activation tensor.
template <class T>
struct Tensor {
  T* data;
  Layout layout;
  int64_t rows, columns;
  Lanes map;
  Gaps gaps;

  int64_t pixels() const { return rows * columns; }

  // Channel `channel` of the first pixel of a row; from there, the strides lead to the next channel and pixel.
  T* at(int64_t image, int64_t channel, int64_t row) const {
    return data + image * map.channels() * pixels() + channel * channel_stride() + row * columns * pixel_stride();
  }
  int64_t channel_stride() const { return layout == Layout::nchw ? pixels() : 1; }
  int64_t pixel_stride() const { return layout == Layout::nchw ? 1 : map.channels(); }
};

// Part of an image: some vectors of its channels, some of its rows.
struct Part {
  int64_t image, first_vector, vectors, first_row, rows;
};

// Maps of more bytes than this come from memory, not from cache.
constexpr int64_t cached_bytes = 8 << 20;

template <class T>
Runs runs_of(const Tensor<T>& tensor, const Part& part) {
  const int64_t first_channel = tensor.map.first_channel(part.first_vector);
  const int64_t channels = tensor.map.count_of(part.first_vector, part.vectors);
  const int64_t pixels = part.rows * tensor.columns, size = sizeof(T);
  const T* first = tensor.at(part.image, first_channel, part.first_row);
  if (tensor.layout == Layout::nchw) return {first, channels, pixels * size, tensor.channel_stride() * size};
  return {first, pixels, channels * size, tensor.pixel_stride() * size};
}

// What the next tile needs.
struct MemoryAhead {
  LinesAhead source, target;

  // From now on, `calls` calls ask for what one would have asked for.
  void split(int64_t calls) {
    source.split(calls);
    target.split(calls);
  }
  void ask() {
    source.ask();
    target.ask();
  }
};

// The pixels of a square, which is a vector of each of `lanes` planes.
template <class T>
constexpr int square_pixels = lanes * in_lane<T>;

// Row `pixel` of a transposed square, as floats.
template <int pixel, class T>
[[gnu::always_inline]] inline Vec pixel_of_square(const Vec (&rows)[lanes]) {
  if constexpr (std::is_same_v<T, float>)
    return rows[pixel];
  else
    return widen_half<pixel % 2>(rows[pixel / 2], T());
}

// Up to a square's pixels of `count` channels, from planes to vectors. Whole squares, which are the most, go without
// masks and, as they have none, without gaps to open.
template <class T, class S>
[[gnu::always_inline]] inline void load_square(const T* planes, int64_t plane_stride, int count, int pixels,
                                               const Gaps& gaps, S* to, int64_t stride) {
  Vec rows[lanes];
  const auto copy = [&](const auto& load_row, const auto& store_pixel) RESNEXT_INLINE {
    unroll<lanes>([&](auto i) RESNEXT_INLINE {
      rows[i] = load_row(i);
      planes = opaque(planes + plane_stride);
    });
    transpose(rows);
    unroll<square_pixels<T>>([&](auto i) RESNEXT_INLINE {
      store_pixel(i, pixel_of_square<i, T>(rows));
      to = opaque(to + stride);
    });
  };
  if (count == lanes && pixels == square_pixels<T>)
    copy([&](int) RESNEXT_INLINE { return load_bits(planes); },
         [&](int, Vec pixel) RESNEXT_INLINE { store(to, pixel); });
  else
    copy([&](int i) RESNEXT_INLINE { return i < count ? load_bits_part(planes, pixels) : Vec{}; },
         [&](int i, Vec pixel) RESNEXT_INLINE {
           if (i < pixels) store(to, gaps.open(pixel));
         });
}

// A vector of a tile that holds floats, or what is stored: as it lies there if that is what will be stored elsewhere.
template <class T, class S>
[[gnu::always_inline]] inline auto load_stored(const S* from) {
  if constexpr (std::is_same_v<T, S> && !std::is_same_v<T, float>)
    return Halves(*reinterpret_cast<const UnalignedHalves*>(from));
  else
    return load(from);
}

template <class T>
[[gnu::always_inline]] inline Halves as_stored(Vec value, T) {
  return round_to(value, T());
}

template <class T>
[[gnu::always_inline]] inline Halves as_stored(Halves stored, T) {
  return stored;
}

// The other way, rounded.
template <class T, class S>
[[gnu::always_inline]] inline void store_square(const S* from, int64_t stride, const Gaps& gaps, int count, int pixels,
                                                T* planes, int64_t plane_stride) {
  Vec rows[lanes];
  const auto copy = [&](const auto& load_pixel, const auto& store_row) RESNEXT_INLINE {
    unroll<lanes>([&](auto i) RESNEXT_INLINE {
      if constexpr (std::is_same_v<T, float>) {
        rows[i] = load_pixel(i);
      } else {
        const Halves even = as_stored(load_pixel(2 * i), T());
        from = opaque(from + stride);
        rows[i] = join_halves(even, as_stored(load_pixel(2 * i + 1), T()));
      }
      from = opaque(from + stride);
    });
    transpose(rows);
    unroll<lanes>([&](auto i) RESNEXT_INLINE {
      store_row(i, rows[i]);
      planes = opaque(planes + plane_stride);
    });
  };
  if (count == lanes && pixels == square_pixels<T>)
    copy([&](int) RESNEXT_INLINE { return load_stored<T>(from); },
         [&](int, Vec row) RESNEXT_INLINE { store_bits(planes, row); });
  else
    copy([&](int i) RESNEXT_INLINE { return i < pixels ? gaps.close(load(from)) : Vec{}; },
         [&](int i, Vec row) RESNEXT_INLINE {
           if (i < count) store_bits_part(planes, row, pixels);
         });
}

// The distances in a tile from pixel to pixel and from vector to vector.
struct Strides {
  int64_t pixel, vector;
};

// Copies a part to scratch: vectors of floats or, for pairs, of bfloat16 as they are. In NHWC some vectors of a pixel
// before the next pixel: lines of memory that lie side by side come to cache together. `across`: slot 1.
template <bool across, class T, class S>
[[gnu::noinline]] void load_pixels(const Tensor<const T>& tensor, const Part& part, const Strides& strides, S* to) {
  constexpr int64_t side_by_side = 64 / lanes;
  const bool planes = tensor.layout == Layout::nchw;
  const int64_t pixels = part.rows * tensor.columns, most = planes ? 1 : side_by_side;
  if constexpr (across)
    if (!planes)
      return load_across(tensor.at(part.image, tensor.map.first_channel(part.first_vector), part.first_row),
                         tensor.map.channels(), tensor.map.count_of(part.first_vector, part.vectors), tensor.map.width,
                         pixels, to, strides.pixel, strides.vector);
  for (int64_t i = 0; i < part.vectors; i += most, to += most * strides.vector) {
    const int vectors = static_cast<int>(std::min(part.vectors - i, most));
    int64_t channel[side_by_side];
    int count[side_by_side];
    for (int j = 0; j < vectors; ++j) {
      channel[j] = tensor.map.first_channel(part.first_vector + i + j);
      count[j] = tensor.map.count(part.first_vector + i + j);
    }
    const T* from = tensor.at(part.image, 0, part.first_row);
    if (planes) {
      from += channel[0] * tensor.channel_stride();
      for (int64_t pixel = 0; pixel < pixels; pixel += square_pixels<T>)
        load_square(from + pixel, tensor.channel_stride() * tensor.map.channel_distance(), count[0],
                    std::min<int64_t>(pixels - pixel, square_pixels<T>), tensor.gaps, to + pixel * strides.pixel,
                    strides.pixel);
      continue;
    }
    if (vectors == side_by_side && tensor.map.is_full()) {  // these are the most, and go without masks
      from += channel[0];
      for (int64_t pixel = 0; pixel < pixels; ++pixel, from += tensor.map.channels())
        unroll<side_by_side>([&](auto j) RESNEXT_INLINE {
          store(to + pixel * strides.pixel + j * strides.vector, load(from + j * lanes));
        });
      continue;
    }
    for (int64_t pixel = 0; pixel < pixels; ++pixel, from += tensor.map.channels())
      for (int j = 0; j < vectors; ++j)
        store(to + pixel * strides.pixel + j * strides.vector,
              tensor.gaps.open(load_part(from + channel[j], count[j])));
  }
}

// Copies scratch to a part, rounded.
template <bool across, class T, class S>
[[gnu::noinline]] void store_pixels(const S* from, const Part& part, const Tensor<T>& tensor) {
  const int64_t stride = part.vectors * lanes, pixels = part.rows * tensor.columns, width = tensor.map.width;
  if constexpr (across)
    if (tensor.layout == Layout::nhwc)
      return store_across(from, stride, tensor.map.count_of(part.first_vector, part.vectors), width, pixels,
                          tensor.at(part.image, tensor.map.first_channel(part.first_vector), part.first_row),
                          tensor.map.channels());
  for (int64_t i = 0; i < part.vectors; ++i) {
    const int64_t channel = tensor.map.first_channel(part.first_vector + i);
    const int count = tensor.map.count(part.first_vector + i);
    T* to = tensor.at(part.image, channel, part.first_row);
    const S* vector = from + i * lanes;
    if (tensor.layout == Layout::nchw) {
      for (int64_t pixel = 0; pixel < pixels; pixel += square_pixels<T>)
        store_square(vector + pixel * stride, stride, tensor.gaps, count,
                     std::min<int64_t>(pixels - pixel, square_pixels<T>), to + pixel,
                     tensor.channel_stride() * tensor.map.channel_distance());
      continue;
    }
    for (int64_t pixel = 0; pixel < pixels; ++pixel, vector += stride, to += tensor.map.channels())
      store_part(to, tensor.gaps.close(load(vector)), count);
  }
}

}  // namespace
}  // namespace resnext::cpu
