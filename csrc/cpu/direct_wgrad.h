#pragma once
#include <omp.h>

#include <algorithm>

#include "direct_pack.h"
#include "direct_passes.h"
#include "direct_wgrad_pairs.h"
#include "direct_wgrad_sums.h"

// The direct kernel for wgrad: 3x3, padding 1, stride 1 or 2, any width of groups.
//
//   grad_weight[k,c,r,s] = sum over n,p,q of grad_output[n,p,q,k] * input[n, p * stride - 1 + r, q * stride - 1 + s, c]
//
// Lanes are output channels, as in fprop. For one row r of taps and four channels of the group, twelve sums stay in
// registers over all pixels of a tile of rows:
//
//                     s = 0   s = 1   s = 2
//      spread<0>(x)   sum0    sum1    sum2      x: one input pixel, each channel spread over its group's lanes
//      spread<1>(x)   sum3    sum4    sum5      every spread vector is multiplied by three neighbouring pixels of
//      spread<2>(x)   sum6    sum7    sum8      grad_output, which roll along the row in three registers
//      spread<3>(x)   sum9    sum10   sum11
//
// A tile of both tensors is copied to scratch first, from either layout and any type: it is read 3 * group width / 4
// times, and in NHWC its pixels are so far apart that few of them fit into the same cache at a time. The memory of the
// next tile is asked for meanwhile.
// While a tile of grad_output lies there, its pixels are added up for the bias's gradient too.
// The tiles are dealt out to a number of parts that depends on the shape alone. A part sums its tiles in order, and
// the parts are added in order, so the number of threads does not change the result. If there is one part, its sums are
// moved to the weight tensor as soon as they are complete, while they lie in the thread's cache.
namespace resnext::cpu {
namespace {

// A tile in scratch: output rows [first, last) of grad_output, and the input rows that they need.
struct Tile {
  const float* input;        // row `input_first`
  const float* grad_output;  // row `first`, pixels of one vector
  int64_t first, last, input_first;
  int64_t input_row, output_row;  // from row to row
  int64_t input_stride;           // from pixel to pixel, or from pair to pair
  int64_t group_distance;         // between the starts of groups
  int64_t outputs;                // columns of grad_output
};

// What the next tile needs.
struct TilesAhead {
  LinesAhead input, grad_output;

  void ask() {
    input.ask();
    grad_output.ask();
  }
};

// Adds the products of a tile by row r of taps to the packed weights of one vector of output channels, from `channel`
// of a group's input channels on.
template <class Sums>
[[gnu::always_inline]] inline void add_channels_of_tile(const ConvShape& shape, const Tile& tile, int64_t r, bool first,
                                                        const float* input, TilesAhead* ahead, float* place) {
  const int64_t inputs = shape.w, stride = shape.stride_h;
  Sums sums(tile.input_stride, tile.group_distance);
  sums.begin(place, first);
  for (int64_t p = tile.first; p < tile.last; ++p) {
    const int64_t h = p * stride - 1 + r;
    if (h < 0 || h >= shape.h) continue;
    if (ahead) ahead->ask();
    sums.add_row(input + (h - tile.input_first) * tile.input_row, tile.grad_output + (p - tile.first) * tile.output_row,
                 inputs, tile.outputs);
  }
  sums.end(place);
}

template <int slot, int stride, int per_lane>
[[gnu::noinline]] void add_tile(const ConvShape& shape, const Tile& tile, int64_t r, bool first, int64_t channels,
                                TilesAhead* ahead, float* packed) {
  using Most = std::conditional_t<per_lane == 2, PairSums<slot, stride>, RowSums<slot, stride>>;
  int64_t channel = 0;
  const auto add = [&]<class Sums>(std::type_identity<Sums>) {
    add_channels_of_tile<Sums>(shape, tile, r, first, tile.input + channel * channel_step<slot>, ahead,
                               packed + packed_place(channel, 3 * r));
  };
  for (; channel + wgrad_channels <= channels; channel += wgrad_channels) add(std::type_identity<Most>());
  if constexpr (slot == 1) {
    if (channels - channel == 3) add(std::type_identity<RowSums<slot, stride, 3>>());
    if (channels - channel == 2) add(std::type_identity<RowSums<slot, stride, 2>>());
    if (channels - channel == 1) add(std::type_identity<RowSums<slot, stride, 1>>());
  }
}

// Adds `pixels` vectors to `sums`: four sums in turn, since each addition waits for the one before. Each pixel is the
// second of one pair.
template <int per_lane>
[[gnu::noinline]] void add_pixels(const float* vectors, int64_t pixels, bool first, float* sums) {
  Vec in_turn[4] = {};
  for (int64_t pixel = 0; pixel < pixels; pixel += 4)
    unroll<4>([&](auto i) RESNEXT_INLINE {
      if (pixel + i >= pixels) return;
      const Vec here = load(vectors + (pixel + i) * lanes);
      in_turn[i] += per_lane == 2 ? widen_half<1>(here, bf16()) : here;
    });
  const Vec sum = (in_turn[0] + in_turn[1]) + (in_turn[2] + in_turn[3]);
  store(sums, first ? sum : load(sums) + sum);
}

// A problem, and how it is cut, from its shape alone.
template <class T, int slot>
struct WgradPlan {
  Tensor<const T, slot> input, grad_output;
  PackPlan<slot> pack;
  bool prefetch, with_bias;
  int64_t stride;
  int64_t tile_rows, tiles_per_image, tiles, units, units_at_once, parts;
  int64_t rows_at_once;  // of a tile whose groups lie across vectors: as many as the first-level cache keeps
  int64_t input_columns, output_columns;                  // vectors of a row of a tile
  int64_t input_scratch, output_scratch, linear_scratch;  // floats

  int64_t scratch() const {
    return units_at_once * (input_scratch + grad_output.map.vectors_per_unit() * output_scratch) + linear_scratch;
  }
  int64_t vectors_at_once() const { return units_at_once * pack.map.vectors_per_unit(); }
  int64_t packed_size(int64_t vectors) const { return vectors * (pack.vector_size() + lanes); }
  int64_t part_size() const { return packed_size(pack.map.vectors()); }

  bool is_one_part() const { return parts == 1 && tiles > 0; }
  bool is_one_tile() const { return tiles == 1; }  // whose sums need no memory beyond a thread's own
  int64_t own_size() const { return scratch() + (is_one_tile() ? packed_size(vectors_at_once()) : 0); }
  int64_t shared_size() const { return is_one_tile() ? 0 : parts * part_size(); }
};

template <class T, int slot>
WgradPlan<T, slot> wgrad_plan(const WgradArgs& args) {
  constexpr int64_t tile_floats = 24 * 1024, tile_floats_across = 112 * 1024, input_floats_at_once = 5 * 1024;
  constexpr int64_t wanted_tasks = 32, second_level_bytes = 1 << 20, many_products = 24;
  const ConvShape& shape = args.problem.shape;
  WgradPlan<T, slot> plan{};
  plan.input = input_tensor<slot>(args.problem, static_cast<const T*>(args.input));
  plan.grad_output = output_tensor<slot>(args.problem, static_cast<const T*>(args.grad_output));
  const Lanes<slot>&inputs = plan.input.map, &outputs = plan.grad_output.map;
  const int64_t step = slot == 1 ? 1 : wgrad_channels, channels = (inputs.width + step - 1) / step * step;
  plan.pack = {outputs, inputs.width, channels, 1, false, false};
  // Sums that are long beside the copies hide the way from the last-level cache, too.
  const int64_t output_numbers = outputs.channels() * plan.grad_output.pixels();
  const int64_t numbers = inputs.channels() * plan.input.pixels() + output_numbers;
  const bool long_sums = 9 * inputs.width * output_numbers >= many_products * numbers;
  plan.prefetch = shape.n * numbers * int64_t(sizeof(T)) > (long_sums ? second_level_bytes : cached_bytes);
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
  const int64_t rows_that_fit = std::clamp<int64_t>(floats / (plan.stride * input_row + output_rows), 1, shape.p());
  int64_t tiles = (shape.p() + rows_that_fit - 1) / rows_that_fit;
  if (tiles > 1) tiles += tiles % 2;  // an even number of equal tiles shares out well
  plan.tile_rows = (shape.p() + tiles - 1) / tiles;
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
template <Operand operand, class T, int slot>
void load_operand(const WgradPlan<T, slot>& plan, const Part& part, int64_t vectors, int64_t size, float* linear,
                  float* to) {
  const Tensor<const T, slot>& tensor = operand == Operand::input ? plan.input : plan.grad_output;
  if constexpr (per_lane<T> == 2) {
    for (int64_t i = 0; i < part.vectors; i += vectors, to += size) {
      const Part one{part.image, part.first_vector + i, std::min(vectors, part.vectors - i), part.first_row, part.rows};
      load_pairs<operand>(tensor, one, plan.stride, linear, to);
    }
  } else {
    load_pixels(tensor, part, {vectors * lanes, vectors == 1 ? size : lanes}, to);
  }
}

// Packed sums of some vectors: of their weights, and of grad_output.
struct PackedSums {
  float *weights, *bias;
};

// Those from a vector on, of a part's packed sums of all vectors.
template <class T, int slot>
PackedSums packed_sums(const WgradPlan<T, slot>& plan, float* part, int64_t vector) {
  return {part + vector * plan.pack.vector_size(), part + plan.pack.size() + vector * lanes};
}

// The parts of the two tensors that the tiles of some units are copied from.
struct WgradParts {
  Part input, grad_output;
};

template <class T, int slot>
WgradParts wgrad_parts(const ConvShape& shape, const WgradPlan<T, slot>& plan, int64_t tile_index, int64_t unit,
                       int64_t end_unit) {
  const auto part = [&](const Lanes<slot>& map, int64_t first_row, int64_t last_row) {
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

// Adds the tiles of some units to their packed sums.
template <class T, int slot>
void add_tiles(const ConvShape& shape, const WgradPlan<T, slot>& plan, const WgradParts& parts, const WgradParts& next,
               bool first, float* scratch, const PackedSums& packed) {
  const Lanes<slot>&inputs = plan.input.map, &outputs = plan.grad_output.map;
  const int64_t first_vector = parts.grad_output.first_vector, vectors = parts.grad_output.vectors;
  Tile tile{};
  tile.first = parts.grad_output.first_row;
  tile.last = tile.first + parts.grad_output.rows;
  tile.input_first = parts.input.first_row;
  const int64_t input_vectors = std::min(parts.input.vectors, inputs.vectors_per_unit());
  tile.input_stride = input_vectors * lanes;
  tile.group_distance = slot < lanes ? slot : inputs.width;
  tile.input_row = plan.input_columns * tile.input_stride;
  tile.output_row = plan.output_columns * lanes;
  tile.outputs = shape.q();
  float* grad_outputs = scratch + plan.units_at_once * plan.input_scratch;
  float* linear = grad_outputs + plan.units_at_once * outputs.vectors_per_unit() * plan.output_scratch;
  load_operand<Operand::input>(plan, parts.input, input_vectors, plan.input_scratch, linear, scratch);
  load_operand<Operand::grad_output>(plan, parts.grad_output, 1, plan.output_scratch, linear, grad_outputs);
  TilesAhead ahead;
  if (plan.prefetch) {
    const int64_t rows = vectors * plan.pack.channels / wgrad_channels * (3 * parts.grad_output.rows - 2);
    ahead = {{plan.input, next.input, rows}, {plan.grad_output, next.grad_output, rows}};
  }
  // A row of taps of some rows of the tile, for one vector.
  const auto add = [&](int64_t i, int64_t r, int64_t begin, int64_t end) {
    const int64_t vector = first_vector + i, unit_in_parts = i / outputs.vectors_per_unit();
    const int64_t unit = first_vector / outputs.vectors_per_unit() + unit_in_parts;
    const int64_t group_in_unit = slot < lanes ? 0 : outputs.place(vector, 0).group - unit * outputs.groups_per_unit();
    Tile rows = tile;
    rows.first = begin;
    rows.last = end;
    rows.input = scratch + unit_in_parts * plan.input_scratch + group_in_unit * inputs.width;
    rows.grad_output = grad_outputs + i * plan.output_scratch + (begin - tile.first) * tile.output_row;
    constexpr int two_groups = slot == lanes && lanes == 16 ? 8 : slot;
    const bool straddles = outputs.straddles(vector);
    constexpr int count = per_lane<T>;
    const auto add_rows = plan.stride == 1 ? (straddles ? add_tile<two_groups, 1, count> : add_tile<slot, 1, count>)
                                           : (straddles ? add_tile<two_groups, 2, count> : add_tile<slot, 2, count>);
    add_rows(shape, rows, r, first && begin == tile.first, plan.pack.channels, plan.prefetch ? &ahead : nullptr,
             packed.weights + i * plan.pack.vector_size());
  };
  if constexpr (slot == 1) {  // a unit's input is many vectors: few rows of it meet all of grad_output at a time
    for (int64_t begin = tile.first; begin < tile.last; begin += plan.rows_at_once)
      for (int64_t r = 0; r < 3; ++r)
        for (int64_t i = 0; i < vectors; ++i) add(i, r, begin, std::min(begin + plan.rows_at_once, tile.last));
  } else {
    for (int64_t i = 0; i < vectors; ++i)
      for (int64_t r = 0; r < 3; ++r) add(i, r, tile.first, tile.last);
  }
  for (int64_t i = 0; plan.with_bias && i < vectors; ++i)
    add_pixels<per_lane<T>>(grad_outputs + i * plan.output_scratch, parts.grad_output.rows * plan.output_columns, first,
                            packed.bias + i * lanes);
}

// The sum of the parts' sums of grad_output, for one vector of channels.
template <class T, int slot>
void unpack_bias(const WgradPlan<T, slot>& plan, const float* sums, int64_t vector, T* grad_bias) {
  Vec sum = load(sums);
  for (int64_t part = 1; part < plan.parts; ++part) sum += load(sums + part * plan.part_size());
  const Tensor<const T, slot>& outputs = plan.grad_output;
  store_channels(outputs.map, vector, outputs.gaps.close(sum), grad_bias);
}

// Moves the complete sums of the vectors [begin, end), those of the first part and of all that follow it, to the
// tensors.
template <class T, int slot>
void unpack(const WgradPlan<T, slot>& plan, const PackedSums& packed, int64_t begin, int64_t end,
            const WgradArgs& args) {
  for (int64_t vector = begin; vector < end; ++vector) {
    const float* weights = packed.weights + (vector - begin) * plan.pack.vector_size();
    unpack_vector<T>(weights, plan.parts, plan.part_size(), plan.pack, vector, args.grad_weight);
    if (plan.with_bias)
      unpack_bias(plan, packed.bias + (vector - begin) * lanes, vector, static_cast<T*>(args.grad_bias));
  }
}

// Sums the tiles of one part for the units [begin, end): tiles outermost, so that memory is read in its order.
template <class T, int slot>
void add_part(const WgradArgs& args, const WgradPlan<T, slot>& plan, int64_t part, int64_t begin, int64_t end,
              float* own, float* shared) {
  const ConvShape& shape = args.problem.shape;
  const int64_t first = plan.tiles * part / plan.parts, last = plan.tiles * (part + 1) / plan.parts;
  float* all = shared + part * plan.part_size();
  if (first == last && begin == 0) std::fill_n(all, plan.part_size(), 0.0f);  // no images
  for (int64_t tile = first; tile < last; ++tile)
    for (int64_t unit = begin; unit < end; unit += plan.units_at_once) {
      const auto parts = [&](int64_t index, int64_t first_unit) {
        return wgrad_parts(shape, plan, index, first_unit, std::min(first_unit + plan.units_at_once, end));
      };
      const bool at_end = unit + plan.units_at_once >= end;
      const WgradParts here = parts(tile, unit);
      const WgradParts next =
          at_end ? parts(std::min(tile + 1, last - 1), begin) : parts(tile, unit + plan.units_at_once);
      const int64_t vector = here.grad_output.first_vector;
      PackedSums packed = packed_sums(plan, all, vector);
      if (plan.is_one_tile()) {
        packed.weights = own + plan.scratch();
        packed.bias = packed.weights + plan.vectors_at_once() * plan.pack.vector_size();
      }
      add_tiles(shape, plan, here, next, tile == first, own, packed);
      if (plan.is_one_part() && tile == last - 1) unpack(plan, packed, vector, vector + here.grad_output.vectors, args);
    }
}

template <class T, int slot>
int64_t wgrad_workspace_bytes(const Problem& problem, int threads) {
  WgradArgs args{};
  args.problem = problem;
  const WgradPlan<T, slot> plan = wgrad_plan<T, slot>(args);
  return (plan.shared_size() + threads * plan.own_size()) * sizeof(float);
}

template <class T, int slot>
void run_wgrad(const WgradArgs& args) {
  const WgradPlan<T, slot> plan = wgrad_plan<T, slot>(args);
  float* shared = static_cast<float*>(args.launch.workspace);
#pragma omp parallel num_threads(args.launch.threads)
  {
    float* own = shared + plan.shared_size() + omp_get_thread_num() * plan.own_size();
    const Share share = thread_share(plan.parts * plan.units);
    for (int64_t task = share.begin; task < share.end;) {
      const int64_t part = task / plan.units, begin = task % plan.units;
      const int64_t end = std::min(plan.units, begin + share.end - task);
      add_part(args, plan, part, begin, end, own, shared);
      task += end - begin;
    }
    if (!plan.is_one_part()) {
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t vector = 0; vector < plan.pack.map.vectors(); ++vector)
        unpack(plan, packed_sums(plan, shared, vector), vector, vector + 1, args);
    }
  }
}

}  // namespace
}  // namespace resnext::cpu
