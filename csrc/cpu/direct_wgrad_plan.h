#pragma once
#include <algorithm>

#include "direct_pack.h"
#include "direct_passes.h"
#include "direct_wgrad_pairs.h"
#include "direct_wgrad_sums.h"
#include "winograd_wgrad.h"

// How the wgrad of direct_wgrad.h and of winograd_wgrad.h is cut into tiles, parts and units, and how they are copied.
namespace resnext::cpu {
namespace {

// In groups of 8, stride 2 would spread an input pixel by permutes for one product or two: it spreads those of
// grad_output, for three, and lanes are input channels.
template <class T>
constexpr bool lanes_are_inputs(int64_t slot, int64_t stride) {
  return stride == 2 && slot == 8 && lanes == 16 && per_lane<T> == 1;
}

// A problem, and how it is cut, from its shape alone.
template <class T>
struct WgradPlan {
  Tensor<const T> input, grad_output;
  PackPlan pack;
  bool prefetch, with_bias;
  bool in_place;  // tiles are read where they lie
  int64_t stride;
  int64_t tile_rows, tiles_per_image, tiles, units, units_at_once, parts;
  int64_t rows_at_once;  // of a tile whose groups lie across vectors: as many as the first-level cache keeps
  int64_t input_columns, output_columns;                                    // vectors of a row of a tile
  int64_t input_scratch, output_scratch, linear_scratch, winograd_scratch;  // floats

  bool is_winograd() const { return pack.transformed; }
  int64_t tile_scratch() const {
    if (in_place) return 0;
    return units_at_once * (input_scratch + grad_output.map.vectors_per_unit() * output_scratch) + linear_scratch;
  }
  int64_t scratch() const { return tile_scratch() + winograd_scratch; }
  int64_t vectors_at_once() const { return units_at_once * pack.map.vectors_per_unit(); }
  int64_t packed_size(int64_t vectors) const { return vectors * (pack.vector_size() + lanes); }
  int64_t part_size() const { return packed_size(pack.map.vectors()); }

  bool is_one_part() const { return parts == 1 && tiles > 0; }
  bool is_one_tile() const { return tiles == 1; }  // whose sums need no memory beyond a thread's own
  int64_t own_size() const { return scratch() + (is_one_tile() ? packed_size(vectors_at_once()) : 0); }
  int64_t shared_size() const { return is_one_tile() ? 0 : parts * part_size(); }
};

template <class T>
WgradPlan<T> wgrad_plan(const WgradArgs& args, int64_t slot, bool transformed) {
  constexpr int64_t pixels_in_place = 1024, page = 4096, tile_floats = 24 * 1024, tile_floats_across = 112 * 1024,
                    input_floats_at_once = 5 * 1024;
  constexpr int64_t wanted_tasks = 32, second_level_bytes = 1 << 20, many_products = 24;
  const ConvShape& shape = args.problem.shape;
  WgradPlan<T> plan{};
  plan.input = input_tensor(args.problem, slot, static_cast<const T*>(args.input));
  plan.grad_output = output_tensor(args.problem, slot, static_cast<const T*>(args.grad_output));
  const Lanes &inputs = plan.input.map, &outputs = plan.grad_output.map;
  const bool of_inputs = lanes_are_inputs<T>(slot, shape.stride_h);
  const int64_t width = of_inputs ? outputs.width : inputs.width;  // of the groups that are spread
  const int64_t step = slot == 1 ? 1 : wgrad_channels, channels = (width + step - 1) / step * step;
  plan.pack = {of_inputs ? inputs : outputs, width, channels, 1, of_inputs, false, transformed};
  plan.with_bias = args.grad_bias;
  plan.stride = shape.stride_h;
  constexpr bool pairs = per_lane<T> == 2;
  plan.input_columns = pairs ? pair_columns<Operand::input>(shape.w, plan.stride) : shape.w;
  plan.output_columns = pairs ? pair_columns<Operand::grad_output>(shape.q(), plan.stride) : shape.q();
  const int64_t input_row = plan.input_columns * inputs.vectors_per_unit() * lanes;
  const int64_t output_row = plan.output_columns * lanes;
  // In NHWC several units at a time, if they are a vector each; but few pixels, which are so far apart that they crowd
  // the second-level cache, too.
  const bool neighbours = args.problem.layout == Layout::nhwc && inputs.vectors_per_unit() == 1;
  plan.units_at_once = neighbours ? 64 / lanes : 1;
  const int64_t floats = slot == 1 ? tile_floats_across : neighbours ? tile_floats / 2 : tile_floats;
  const int64_t output_rows = slot == 1 ? outputs.vectors_per_unit() * output_row : output_row;
  // AVX2 has registers for half as many sums, so it reads pixels too often to find them elsewhere than in the
  // first-level cache, to which a tile keeps; and of groups of 4 it reads two channels more, behind the last pixel too.
  constexpr bool reads_seldom = lanes == 16;
  const auto is_near = [&](const Lanes& map) {
    return map.is_full() && map.channels() * int64_t(sizeof(float)) < page;
  };
  plan.in_place = std::is_same_v<T, float> && args.problem.layout == Layout::nhwc &&
                  (plan.is_winograd() || (slot > 1 && reads_seldom && is_near(inputs) && is_near(outputs)));
  // Sums that are long beside copies hide the way from the last-level cache, too.
  const int64_t output_numbers = outputs.channels() * plan.grad_output.pixels();
  const int64_t numbers = inputs.channels() * plan.input.pixels() + output_numbers;
  const bool long_sums = 9 * inputs.width * output_numbers >= many_products * numbers;
  plan.prefetch =
      shape.n * numbers * int64_t(sizeof(T)) > (long_sums && !plan.in_place ? second_level_bytes : cached_bytes);
  const int64_t rows = plan.in_place && !plan.is_winograd() ? pixels_in_place / (plan.stride * shape.w + shape.q())
                                                            : floats / (plan.stride * input_row + output_rows);
  const int64_t rows_that_fit = std::clamp<int64_t>(rows, 1, shape.p());
  int64_t tiles = (shape.p() + rows_that_fit - 1) / rows_that_fit;
  if (tiles > 1) tiles += tiles % 2;  // an even number of equal tiles shares out well
  plan.tile_rows = (shape.p() + tiles - 1) / tiles;
  if (plan.is_winograd()) {
    plan.tile_rows += plan.tile_rows % 2;
    plan.winograd_scratch = winograd_wgrad_scratch(channels, outputs.vectors_per_unit());
  }
  plan.rows_at_once = std::max<int64_t>(input_floats_at_once / (plan.stride * input_row), 1);
  plan.tiles_per_image = (shape.p() + plan.tile_rows - 1) / plan.tile_rows;
  plan.tiles = shape.n * plan.tiles_per_image;
  plan.units = outputs.units();
  plan.parts = std::max<int64_t>(1, std::min(plan.tiles, wanted_tasks / plan.units));
  const int64_t input_rows = std::min((plan.tile_rows - 1) * plan.stride + 3, shape.h);
  plan.input_scratch = input_rows * input_row;
  plan.output_scratch = plan.tile_rows * output_row;
  if (pairs && args.problem.layout == Layout::nchw)
    plan.linear_scratch = (std::max(input_rows * shape.w, plan.tile_rows * shape.q()) + 1) / 2 * lanes;
  return plan;
}

// Copies a part of one of the two tensors to scratch: every `vectors` vectors become a tile of `size` floats.
template <Operand operand, bool across, class T>
void load_operand(const WgradPlan<T>& plan, const Part& part, int64_t vectors, int64_t size, float* linear, float* to) {
  const Tensor<const T>& tensor = operand == Operand::input ? plan.input : plan.grad_output;
  if constexpr (per_lane<T> == 2) {
    for (int64_t i = 0; i < part.vectors; i += vectors, to += size) {
      const Part one{part.image, part.first_vector + i, std::min(vectors, part.vectors - i), part.first_row, part.rows};
      load_pairs<operand>(tensor, one, plan.stride, linear, to);
    }
  } else {
    load_pixels<across>(tensor, part, {vectors * lanes, vectors == 1 ? size : lanes}, to);
  }
}

// Packed sums of some vectors: of their weights, and of grad_output.
struct PackedSums {
  float *weights, *bias;
};

// Those from a vector on, of a part's packed sums of all vectors.
template <class T>
PackedSums packed_sums(const WgradPlan<T>& plan, float* part, int64_t vector) {
  return {part + vector * plan.pack.vector_size(), part + plan.pack.size() + vector * lanes};
}

// The parts of the two tensors that the tiles of some units are copied from.
struct WgradParts {
  Part input, grad_output;
};

template <class T>
WgradParts wgrad_parts(const ConvShape& shape, const WgradPlan<T>& plan, int64_t tile_index, int64_t unit,
                       int64_t end_unit) {
  const auto part = [&](const Lanes& map, int64_t first_row, int64_t last_row) {
    const int64_t begin = unit * map.vectors_per_unit(),
                  end = std::min(end_unit * map.vectors_per_unit(), map.vectors());
    return Part{tile_index / plan.tiles_per_image, begin, end - begin, first_row, last_row - first_row};
  };
  const int64_t first = tile_index % plan.tiles_per_image * plan.tile_rows;
  const int64_t last = std::min(first + plan.tile_rows, shape.p());
  return {part(plan.input.map, std::max<int64_t>(first * plan.stride - 1, 0),
               std::min((last - 1) * plan.stride + 2, shape.h)),
          part(plan.grad_output.map, first, last)};
}

}  // namespace
}  // namespace resnext::cpu
