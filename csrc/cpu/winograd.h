#pragma once
#include <algorithm>
#include <array>
#include <utility>

#include "direct.h"
#include "winograd_transforms.h"

// fprop and dgrad of stride 1 by Winograd's minimal filtering (winograd_transforms.h):
//
//   patches    4x4 source pixels, neighbours two apart, transformed        [position][patch][channel]
//   products   patches times transformed weights, a matrix product for     [position][patch][target channel]
//              each position of a group
//   squares    2x2 targets, made of the products of a patch
//
// A few patches at a time, so that all this stays in the first-level cache.
namespace resnext::cpu {
namespace {

// The walk of such a sum: which rows it needs is as in a direct sum of stride 1.
struct Winograd : Even {};

constexpr int vectors_at_once = lanes == 16 ? 2 : 1;   // of target channels
constexpr int patches_at_once = lanes == 16 ? 8 : 12;  // and patches, so that registers hold all their sums
constexpr int most_patches = 49;                       // of a map of 14x14, in wgrad

constexpr int64_t patches_size(int64_t channels, int64_t patches) { return positions * patches * channels; }

// Pixels that patches are made of. What lies outside the map is zero.
struct PatchSource {
  const float* pixels;  // of row `first_row`
  int64_t first_row, rows, columns;
  int64_t stride;  // from pixel to pixel; rows follow one another
};

// How a tile of targets is cut into squares, and these into parts of equal length.
struct SquarePlan {
  int64_t rows, columns, parts;
  bool half_rows, half_columns;  // a square at the end of the tile or of a row has one row or column of targets

  SquarePlan(int64_t target_rows, int64_t target_columns, int64_t at_once)
      : rows((target_rows + 1) / 2),
        columns((target_columns + 1) / 2),
        parts((rows * columns + at_once - 1) / at_once),
        half_rows(target_rows % 2),
        half_columns(target_columns % 2) {}
};

// One part. The last position along an axis is not computed for halves, which do not need it: patches lie in such an
// order that those which need a position are neighbours.
//
//   slots    half rows | whole squares | half columns | both
class Squares {
 public:
  struct Range {
    int64_t begin, end;
  };

  int64_t count;

  Squares(const SquarePlan& plan, int64_t part) {
    const int64_t squares = plan.rows * plan.columns, first = squares * part / plan.parts;
    count = squares * (part + 1) / plan.parts - first;
    int64_t sizes[4] = {}, row = first / plan.columns, column = first % plan.columns;
    for (int64_t i = 0; i < count; ++i) {
      const bool half_row = plan.half_rows && row == plan.rows - 1;
      const bool half_column = plan.half_columns && column == plan.columns - 1;
      const int kind = half_row ? (half_column ? 3 : 0) : (half_column ? 2 : 1);
      places_[i] = {row, column, kind};
      ++sizes[kind];
      if (++column == plan.columns) ++row, column = 0;
    }
    int64_t next[4] = {0, sizes[0], sizes[0] + sizes[1], sizes[0] + sizes[1] + sizes[2]};
    const Range ranges[2][2] = {{{0, count}, {0, next[2]}}, {{next[1], next[3]}, {next[1], next[2]}}};
    for (int64_t i = 0; i < count; ++i) places_[i].slot = next[places_[i].slot]++;
    for (int position = 0; position < positions; ++position)
      ranges_[position] = ranges[position / 4 == 3][position % 4 == 3];
  }

  int64_t row(int64_t i) const { return places_[i].row; }
  int64_t column(int64_t i) const { return places_[i].column; }
  int64_t slot(int64_t i) const { return places_[i].slot; }
  // The slots that need a position.
  Range needing(int position) const { return ranges_[position]; }

 private:
  struct Place {
    int64_t row, column, slot;
  };

  Place places_[most_patches];
  Range ranges_[positions];
};

// Transforms the patches of some squares of a tile that begins with row `first_row` of targets, for a number of
// channels that fill vectors. Each pixel of a row of patches is loaded once: neighbours share two columns.
[[gnu::noinline]] inline void transform_patches(const PatchSource& source, int64_t channels, int64_t first_row,
                                                const Squares& squares, float* patches) {
  alignas(64) static constexpr float outside[lanes] = {};
  const int64_t position_size = squares.count * channels;
  for (int64_t channel = 0; channel < channels; channel += lanes) {
    for (int64_t i = 0; i < squares.count;) {
      const int64_t row_of_squares = squares.row(i), row = first_row + 2 * row_of_squares - 1;
      const float* pixels[4];
      int64_t stride[4];
      for (int r = 0; r < 4; ++r) {
        const bool inside = row + r >= 0 && row + r < source.rows;
        const int64_t pixel = (row + r - source.first_row) * source.columns;
        pixels[r] = inside ? source.pixels + pixel * source.stride + channel : outside;
        stride[r] = inside ? source.stride : 0;
      }
      const auto column = [&](int64_t w) RESNEXT_INLINE {
        if (w < 0 || w >= source.columns) return Axis<4>{};
        Axis<4> along;
        unroll<4>([&](auto r) RESNEXT_INLINE { along.at[r] = load(pixels[r] + w * stride[r]); });
        return transform_pixels(along);
      };
      int64_t w = 2 * squares.column(i) - 1;
      Axis<4> columns[4] = {column(w), column(w + 1)};
      for (; i < squares.count && squares.row(i) == row_of_squares; ++i, w += 2) {
        columns[2] = column(w + 2);
        columns[3] = column(w + 3);
        float* to = patches + squares.slot(i) * channels + channel;
        unroll<4>([&](auto r) RESNEXT_INLINE {
          const Axis<4> transformed =
              transform_pixels({columns[0].at[r], columns[1].at[r], columns[2].at[r], columns[3].at[r]});
          unroll<4>([&](auto s) RESNEXT_INLINE { store(to + (r * 4 + s) * position_size, transformed.at[s]); });
        });
        columns[0] = columns[2];
        columns[1] = columns[3];
      }
    }
  }
}

// The products of `count` patches and the weights of one vector of target channels or of two, whose weights lie
// `second` floats apart and their products `distance`.
template <int vectors, int count>
[[gnu::noinline]] void multiply_patches(const float* patches, int64_t channels, const float* weights, int64_t second,
                                        float* products, int64_t distance) {
  Vec sums[vectors][count] = {};
  for (int64_t channel = 0; channel < channels; ++channel, weights += lanes) {
    Vec weight[vectors];
    unroll<vectors>([&](auto v) RESNEXT_INLINE { weight[v] = in_register(load(weights + v * second)); });
    unroll<count>([&](auto i) RESNEXT_INLINE {
      const float* x = patches + i * channels + channel;
      unroll<vectors>([&](auto v) RESNEXT_INLINE { sums[v][i] = multiply_add_splat<1>(sums[v][i], x, weight[v]); });
    });
  }
  unroll<vectors>([&](auto v) RESNEXT_INLINE {
    unroll<count>([&](auto i) RESNEXT_INLINE { store(products + v * distance + i * lanes, sums[v][i]); });
  });
}

using MultiplyPatches = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t);

// By the number of patches, less one.
template <int vectors>
constexpr auto multiply_patches_of = []<int... less>(std::integer_sequence<int, less...>) {
  return std::array<MultiplyPatches, sizeof...(less)>{multiply_patches<vectors, less + 1>...};
}(std::make_integer_sequence<int, patches_at_once>());

// Makes targets of the products of one vector, and stores them.
[[gnu::noinline]] inline void store_squares(const Maps<1>& maps, const VectorPlace& vector, int64_t first_row,
                                            int64_t end_row, const Squares& squares, const float* products,
                                            AllFinite& finite) {
  const int64_t position_size = squares.count * lanes;
  for (int64_t i = 0; i < squares.count; ++i) {
    const float* of_square = products + squares.slot(i) * lanes;
    const int64_t row = first_row + 2 * squares.row(i), column = 2 * squares.column(i);
    Axis<4> rows[2];
    unroll<4>([&](auto s) RESNEXT_INLINE {
      const auto product = [&](int r) RESNEXT_INLINE { return load(of_square + (r * 4 + s) * position_size); };
      const Axis<2> made = make_targets({product(0), product(1), product(2), product(3)});
      rows[0].at[s] = made.at[0];
      rows[1].at[s] = made.at[1];
    });
    const int64_t pixel = (row - maps.target_first) * maps.target_columns + column;
    float* target = maps.target + pixel * maps.target_stride + vector.target_channel - maps.target_channel;
    const int64_t inside = maps.target_columns - column;
    unroll<2>([&](auto r) RESNEXT_INLINE {
      if (row + r >= end_row) return;
      Axis<2> sums = make_targets(rows[r]);
      unroll<2>([&](auto s) RESNEXT_INLINE {
        if (s < inside) finite.add(sums.at[s]);
        sums.at[s] += vector.start;
      });
      if (maps.fused) apply_epilogue(maps, vector, target, inside, sums.at);
      unroll<2>([&](auto s) RESNEXT_INLINE {
        if (s >= inside) return;
        if (maps.stream)
          store_past_cache(target + s * maps.target_stride, sums.at[s]);
        else
          store(target + s * maps.target_stride, sums.at[s]);
      });
      target += maps.target_columns * maps.target_stride;
    });
  }
}

// Rows of targets of a tile in place: whole squares, two parts of them, and so that the last of the tiles has not much
// less.
inline int64_t rows_of_squares(int64_t target_rows, int64_t target_columns) {
  const SquarePlan plan(target_rows, target_columns, patches_at_once);
  const int64_t most = std::max<int64_t>(2 * patches_at_once / plan.columns, 1);
  const int64_t tiles = (plan.rows + most - 1) / most;
  return 2 * ((plan.rows + tiles - 1) / tiles);
}

// Scratch for the patches of a group of `channels`, and for products.
constexpr int64_t winograd_scratch(int64_t channels) {
  return patches_size(channels + vectors_at_once * lanes, patches_at_once);
}

// How often a tile asks for memory ahead: with `vectors` of target channels, of which a group has so many.
inline int64_t winograd_asks(const SquarePlan& plan, int64_t vectors, int64_t vectors_of_group) {
  const int64_t at_a_time = (vectors_of_group + vectors_at_once - 1) / vectors_at_once;
  return plan.parts * positions * (vectors / vectors_of_group) * at_a_time;
}

// The rows [first_row, end_row) of targets for `count` vectors of channels.
inline void sum_squares(const Maps<1>& maps, int64_t first_row, int64_t end_row, const VectorPlace* vectors,
                        int64_t count, MemoryAhead& ahead, float* patches, AllFinite& finite) {
  const SquarePlan plan(end_row - first_row, maps.target_columns, patches_at_once);
  const int64_t channels = maps.channels;
  float* products = patches + patches_size(channels, patches_at_once);
  for (int64_t part = 0; part < plan.parts; ++part) {
    const Squares squares(plan, part);
    const int64_t distance = patches_size(lanes, squares.count);
    for (int64_t i = 0, transformed = -1; i < count;) {
      const VectorPlace& vector = vectors[i];
      if (vector.source_channel != transformed) {
        transformed = vector.source_channel;
        const float* pixels = maps.source + (transformed - maps.source_channel);
        transform_patches({pixels, maps.source_first, maps.source_rows, maps.source_columns, maps.source_stride},
                          channels, first_row, squares, patches);
      }
      const bool two = vectors_at_once == 2 && i + 1 < count && are_of_one_group(vector, vectors[i + 1]);
      const auto& multiply = two ? multiply_patches_of<vectors_at_once> : multiply_patches_of<1>;
      const int64_t second = two ? vectors[i + 1].weights - vector.weights : 0;
      for (int position = 0; position < positions; ++position) {
        ahead.ask();
        const auto [begin, end] = squares.needing(position);
        if (begin == end) continue;
        const int64_t slot = position * squares.count + begin;
        multiply[end - begin - 1](patches + slot * channels, channels,
                                  maps.weights + vector.weights + position * channels * lanes, second,
                                  products + slot * lanes, distance);
      }
      for (int v = 0; v <= two; ++v, ++i)
        store_squares(maps, vectors[i], first_row, end_row, squares, products + v * distance, finite);
    }
  }
}

}  // namespace
}  // namespace resnext::cpu
