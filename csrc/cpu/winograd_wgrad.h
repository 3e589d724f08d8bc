#pragma once
#include <algorithm>

#include "winograd.h"

// wgrad of stride 1 by Winograd's minimal filtering, the transpose of fprop's: patches of the input and squares of
// grad_output are transformed to 16 positions, in each of which their products are summed over all of them; nine taps
// are made of the sums at last.
namespace resnext::cpu {
namespace {

// Transforms squares of 2x2 pixels, one vector of each, to every `vectors`-th vector of [position][slot].
[[gnu::noinline]] inline void transform_squares(const PatchSource& source, int64_t first_row, const Squares& squares,
                                                int64_t vectors, float* to) {
  const int64_t position_size = squares.count * vectors * lanes;
  for (int64_t i = 0; i < squares.count; ++i) {
    const int64_t row = first_row + 2 * squares.row(i), column = 2 * squares.column(i);
    const float* pixel = source.pixels + ((row - source.first_row) * source.columns + column) * source.stride;
    const float* below = pixel + source.columns * source.stride;
    const bool has_right = column + 1 < source.columns, has_below = row + 1 < source.rows;
    const Vec zero{};
    const Axis<4> left = transform_targets({load(pixel), has_below ? load(below) : zero});
    const Axis<4> right = transform_targets(
        {has_right ? load(pixel + source.stride) : zero, has_right && has_below ? load(below + source.stride) : zero});
    float* of_square = to + squares.slot(i) * vectors * lanes;
    unroll<4>([&](auto r) RESNEXT_INLINE {
      const Axis<4> transformed = transform_targets({left.at[r], right.at[r]});
      unroll<4>([&](auto s) RESNEXT_INLINE { store(of_square + (r * 4 + s) * position_size, transformed.at[s]); });
    });
  }
}

// What the patches of a group meet: squares of so many vectors, and where the sums of each vector are.
struct GroupSums {
  int64_t channels, vectors;
  float* packed;  // [vector][position][channel][lane]
  int64_t vector_size;
  float* bias;  // [vector][lane], sums of grad_output; or null
};

// Adds the products of `count` patches and squares in one position, for one vector or two.
template <int now>
[[gnu::noinline]] void add_products(const GroupSums& group, const float* patches, const float* squares, int64_t count,
                                    bool first, float* packed) {
  constexpr int at_once = lanes / now;
  for (int64_t channel = 0; channel < group.channels; channel += at_once) {
    Vec sums[now][at_once];
    const auto each = [&](const auto& visit) RESNEXT_INLINE {
      unroll<now>([&](auto v) RESNEXT_INLINE {
        unroll<at_once>(
            [&](auto i) RESNEXT_INLINE { visit(sums[v][i], packed + v * group.vector_size + (channel + i) * lanes); });
      });
    };
    each([&](Vec& sum, const float* from) RESNEXT_INLINE { sum = first ? Vec{} : load(from); });
    const float *x = patches + channel, *square = squares;
    for (int64_t i = 0; i < count; ++i, x += group.channels, square += group.vectors * lanes) {
      Vec grad[now];
      unroll<now>([&](auto v) RESNEXT_INLINE { grad[v] = in_register(load(square + v * lanes)); });
      unroll<at_once>([&](auto j) RESNEXT_INLINE {
        const Vec pixel = splat(x + j);
        unroll<now>([&](auto v) RESNEXT_INLINE { sums[v][j] += pixel * grad[v]; });
      });
    }
    each([](Vec& sum, float* to) RESNEXT_INLINE { store(to, sum); });
  }
}

// Adds the sums of the squares' pixels: what is at position 1 along both axes.
inline void add_bias(const GroupSums& group, int64_t count, const float* squares, bool first) {
  squares += (1 * 4 + 1) * count * group.vectors * lanes;
  for (int64_t v = 0; v < group.vectors; ++v, squares += lanes) {
    Vec sum{};
    for (int64_t i = 0; i < count; ++i) sum += load(squares + i * group.vectors * lanes);
    store(group.bias + v * lanes, first ? sum : load(group.bias + v * lanes) + sum);
  }
}

// Scratch for the patches and squares of a group.
constexpr int64_t winograd_wgrad_scratch(int64_t channels, int64_t vectors) {
  return patches_size(channels + vectors * lanes, most_patches);
}

// Adds one group's products of the rows [first_row, end_row) of grad_output, whose vectors lie `vector_distance` apart.
inline void add_squares(const PatchSource& input, PatchSource grad_output, int64_t vector_distance, int64_t first_row,
                        int64_t end_row, bool first, MemoryAhead& ahead, float* patches, const GroupSums& group) {
  const SquarePlan plan(end_row - first_row, grad_output.columns, most_patches);
  float* squares = patches + patches_size(group.channels, most_patches);
  for (int64_t part = 0; part < plan.parts; ++part) {
    const Squares here(plan, part);
    const bool begins = first && part == 0;
    transform_patches(input, group.channels, first_row, here, patches);
    for (int64_t v = 0; v < group.vectors; ++v) {
      PatchSource of_vector = grad_output;
      of_vector.pixels += v * vector_distance;
      transform_squares(of_vector, first_row, here, group.vectors, squares + v * lanes);
    }
    if (group.bias) add_bias(group, here.count, squares, begins);
    for (int position = 0; position < positions; ++position)
      for (int64_t v = 0; v < group.vectors; v += vectors_at_once) {
        ahead.ask();
        const auto [begin, end] = here.needing(position);
        const int64_t slot = position * here.count + begin;
        const bool all = v + vectors_at_once <= group.vectors;
        (all ? add_products<vectors_at_once>
             : add_products<1>)(group, patches + slot * group.channels, squares + (slot * group.vectors + v) * lanes,
                                end - begin, begins,
                                group.packed + v * group.vector_size + position * group.channels * lanes);
      }
  }
}

// From the sums of some parts, `part_size` apart, to packed taps of one vector. Returns whether all are finite.
inline bool make_weights(const float* sums, int64_t parts, int64_t part_size, int64_t channels, float* packed) {
  AllFinite finite;
  for (int64_t channel = 0; channel < channels; ++channel, sums += lanes, packed += 9 * lanes) {
    Axis<4> rows[3];
    unroll<4>([&](auto s) RESNEXT_INLINE {
      Axis<4> along;
      unroll<4>([&](auto r) RESNEXT_INLINE {
        const float* from = sums + (r * 4 + s) * channels * lanes;
        along.at[r] = load(from);
        for (int64_t part = 1; part < parts; ++part) along.at[r] += load(from + part * part_size);
      });
      const Axis<3> made = make_taps(along);
      unroll<3>([&](auto r) RESNEXT_INLINE { rows[r].at[s] = made.at[r]; });
    });
    unroll<3>([&](auto r) RESNEXT_INLINE {
      const Axis<3> taps = make_taps(rows[r]);
      unroll<3>([&](auto s) RESNEXT_INLINE {
        finite.add(taps.at[s]);
        store(packed + (r * 3 + s) * lanes, taps.at[s]);
      });
    });
  }
  return static_cast<bool>(finite);
}

}  // namespace
}  // namespace resnext::cpu
