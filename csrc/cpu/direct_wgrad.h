#pragma once
#include <omp.h>

#include <algorithm>

#include "direct_passes.h"
#include "direct_wgrad_pairs.h"
#include "direct_wgrad_plan.h"
#include "direct_wgrad_sums.h"
#include "winograd_wgrad.h"

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
// In groups of 8 at stride 2 lanes are input channels, and grad_output's pixels are spread over three of the input's.
//
// A tile of both tensors is read 3 * group width / 4 times: where it lies, in NHWC of floats, if its pixels are not too
// far apart; otherwise it is copied to scratch first, from either layout and any type. The memory of the next tile is
// asked for meanwhile.
// While a tile of grad_output lies in cache, its pixels are added up for the bias's gradient too.
// The tiles are dealt out to a number of parts that depends on the shape alone. A part sums its tiles in order, and
// the parts are added in order, so the number of threads does not change the result. If there is one part, its sums are
// moved to the weight tensor as soon as they are complete, while they lie in the thread's cache.
namespace resnext::cpu {
namespace {

// A tile of some units, in place or in scratch: rows [first, last) of grad_output, and the input rows that they need.
struct Tile {
  const float* input;        // row `input_first` of the first unit
  const float* grad_output;  // row `first` of the first vector
  int64_t first, last, input_first;
  int64_t input_unit, output_vector;  // from unit to unit, and from vector to vector
  int64_t input_row, output_row;      // from row to row
  int64_t input_pixel, output_pixel;  // from pixel to pixel, or from pair to pair
  int64_t group_distance;             // between the starts of groups
  int64_t outputs;                    // columns of grad_output
};

// Adds the products of a tile by row r of taps to the packed weights of one vector, from some channel on of the operand
// that is spread.
template <class Sums, bool lanes_are_inputs>
[[gnu::always_inline]] inline void add_channels_of_tile(const ConvShape& shape, const Tile& tile, int64_t channel,
                                                        int64_t r, bool first, MemoryAhead* ahead, float* place) {
  const int64_t inputs = shape.w, stride = shape.stride_h;
  Sums sums(tile.input_pixel, tile.output_pixel, tile.group_distance);
  sums.begin(place, first);
  for (int64_t p = tile.first; p < tile.last; ++p) {
    const int64_t h = p * stride - 1 + r;
    if (h < 0 || h >= shape.h) continue;
    if (ahead) ahead->ask();
    sums.add_row(tile.input + (lanes_are_inputs ? 0 : channel) + (h - tile.input_first) * tile.input_row,
                 tile.grad_output + (lanes_are_inputs ? channel : 0) + (p - tile.first) * tile.output_row, inputs,
                 tile.outputs);
  }
  sums.end(place);
}

template <int slot, int stride, int per_lane, bool lanes_are_inputs = false>
[[gnu::noinline]] void add_tile(const ConvShape& shape, const Tile& tile, int64_t r, bool first, int64_t channels,
                                MemoryAhead* ahead, float* packed) {
  using Most = std::conditional_t<per_lane == 2, PairSums<slot, stride>, RowSums<slot, stride, lanes_are_inputs>>;
  int64_t channel = 0;
  const auto add = [&]<class Sums>(std::type_identity<Sums>) {
    add_channels_of_tile<Sums, lanes_are_inputs>(shape, tile, channel * channel_step<slot>, r, first, ahead,
                                                 packed + packed_place(channel, 3 * r));
  };
  for (; channel + wgrad_channels <= channels; channel += wgrad_channels) add(std::type_identity<Most>());
  if constexpr (slot == 1) {
    if (channels - channel == 3) add(std::type_identity<RowSums<slot, stride, false, 3>>());
    if (channels - channel == 2) add(std::type_identity<RowSums<slot, stride, false, 2>>());
    if (channels - channel == 1) add(std::type_identity<RowSums<slot, stride, false, 1>>());
  }
}

// Adds `pixels` vectors, so many floats apart, to `sums`: four sums in turn, since each addition waits for the one
// before. Each pixel is the second of one pair.
template <int per_lane>
[[gnu::noinline]] void add_pixels(const float* vectors, int64_t stride, int64_t pixels, bool first, float* sums) {
  Vec in_turn[4] = {};
  for (int64_t pixel = 0; pixel < pixels; pixel += 4)
    unroll<4>([&](auto i) RESNEXT_INLINE {
      if (pixel + i >= pixels) return;
      const Vec here = load(vectors + (pixel + i) * stride);
      in_turn[i] += per_lane == 2 ? widen_half<1>(here, bf16()) : here;
    });
  const Vec sum = (in_turn[0] + in_turn[1]) + (in_turn[2] + in_turn[3]);
  store(sums, first ? sum : load(sums) + sum);
}

// The tile of some units, copied to scratch unless it is read in place.
template <bool across, class T>
Tile tile_of(const ConvShape& shape, const WgradPlan<T>& plan, const WgradParts& parts, float* scratch) {
  const Lanes &inputs = plan.input.map, &outputs = plan.grad_output.map;
  Tile tile{};
  tile.first = parts.grad_output.first_row;
  tile.last = tile.first + parts.grad_output.rows;
  tile.input_first = parts.input.first_row;
  tile.group_distance = inputs.group_distance();
  tile.outputs = shape.q();
  const int64_t input_vectors = std::min(parts.input.vectors, inputs.vectors_per_unit());
  float* grad_outputs = scratch + plan.units_at_once * plan.input_scratch;
  float* linear = grad_outputs + plan.units_at_once * outputs.vectors_per_unit() * plan.output_scratch;
  if (plan.in_place) {
    const auto at = [](const auto& tensor, const Part& part) {
      const T* first = tensor.at(part.image, tensor.map.first_channel(part.first_vector), part.first_row);
      return reinterpret_cast<const float*>(first);
    };
    tile.input = at(plan.input, parts.input);
    tile.grad_output = at(plan.grad_output, parts.grad_output);
    tile.input_unit = inputs.vectors_per_unit() * lanes;
    tile.output_vector = lanes;
    tile.input_pixel = plan.input.pixel_stride();
    tile.output_pixel = plan.grad_output.pixel_stride();
  } else {
    load_operand<Operand::input, across>(plan, parts.input, input_vectors, plan.input_scratch, linear, scratch);
    load_operand<Operand::grad_output, across>(plan, parts.grad_output, 1, plan.output_scratch, linear, grad_outputs);
    tile.input = scratch;
    tile.grad_output = grad_outputs;
    tile.input_unit = plan.input_scratch;
    tile.output_vector = plan.output_scratch;
    tile.input_pixel = input_vectors * lanes;
    tile.output_pixel = lanes;
  }
  tile.input_row = plan.input_columns * tile.input_pixel;
  tile.output_row = plan.output_columns * tile.output_pixel;
  return tile;
}

// Adds a tile by Winograd's minimal filtering.
inline void add_tile_by_winograd(const ConvShape& shape, const WgradPlan<float>& plan, const WgradParts& next,
                                 const Tile& tile, int64_t vectors, bool first, float* patches,
                                 const PackedSums& packed) {
  const int64_t of_group = plan.pack.map.vectors_per_unit();
  const int64_t asks = winograd_asks(SquarePlan(tile.last - tile.first, tile.outputs, most_patches), vectors, of_group);
  MemoryAhead ahead{{plan.input, next.input, asks}, {plan.grad_output, next.grad_output, asks}};
  for (int64_t i = 0; i < vectors; i += of_group) {
    const PatchSource input{tile.input + i / of_group * tile.input_unit, tile.input_first, shape.h, shape.w,
                            tile.input_pixel};
    const PatchSource grad_output{tile.grad_output + i * tile.output_vector, tile.first, shape.p(), shape.q(),
                                  tile.output_pixel};
    add_squares(input, grad_output, tile.output_vector, tile.first, tile.last, first, ahead, patches,
                {plan.pack.channels, of_group, packed.weights + i * plan.pack.vector_size(), plan.pack.vector_size(),
                 plan.with_bias ? packed.bias + i * lanes : nullptr});
  }
}

// Adds the tiles of some units to their packed sums.
template <int slot, class T>
void add_tiles(const ConvShape& shape, const WgradPlan<T>& plan, const WgradParts& parts, const WgradParts& next,
               bool first, float* scratch, const PackedSums& packed) {
  const Lanes &inputs = plan.input.map, &outputs = plan.grad_output.map;
  const int64_t first_vector = parts.grad_output.first_vector, vectors = parts.grad_output.vectors;
  const Tile tile = tile_of<slot == 1>(shape, plan, parts, scratch);
  if constexpr (std::is_same_v<T, float> && slot == lanes)
    if (plan.is_winograd())
      return add_tile_by_winograd(shape, plan, next, tile, vectors, first, scratch + plan.tile_scratch(), packed);
  MemoryAhead ahead;
  if (plan.prefetch) {
    const int64_t asks = vectors * plan.pack.channels / wgrad_channels * (3 * parts.grad_output.rows - 2);
    ahead = {{plan.input, next.input, asks}, {plan.grad_output, next.grad_output, asks}};
  }
  // A row of taps of some rows of the tile, for one vector.
  const auto add = [&](int64_t i, int64_t r, int64_t begin, int64_t end) {
    const int64_t vector = first_vector + i, unit_in_parts = i / outputs.vectors_per_unit();
    const int64_t unit = first_vector / outputs.vectors_per_unit() + unit_in_parts;
    const int64_t group_in_unit = outputs.first_group(vector) - unit * outputs.groups_per_unit();
    Tile rows = tile;
    rows.first = begin;
    rows.last = end;
    rows.input += unit_in_parts * tile.input_unit + group_in_unit * inputs.width;
    rows.grad_output += i * tile.output_vector + (begin - tile.first) * tile.output_row;
    constexpr int two_groups = slot == lanes && lanes == 16 ? two_apart : slot;
    const bool straddles = outputs.straddles(vector);
    constexpr int count = per_lane<T>;
    const auto add_rows = plan.stride == 1 ? (straddles ? add_tile<two_groups, 1, count> : add_tile<slot, 1, count>)
                          : straddles      ? add_tile<two_groups, 2, count>
                                           : add_tile<slot, 2, count, lanes_are_inputs<T>(slot, 2)>;
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
    add_pixels<per_lane<T>>(tile.grad_output + i * tile.output_vector, tile.output_pixel,
                            parts.grad_output.rows * plan.output_columns, first, packed.bias + i * lanes);
}

// The sum of the parts' sums of grad_output, for one vector of channels.
template <class T>
void unpack_bias(const WgradPlan<T>& plan, const float* sums, int64_t vector, T* grad_bias) {
  Vec sum = load(sums);
  for (int64_t part = 1; part < plan.parts; ++part) sum += load(sums + part * plan.part_size());
  const Tensor<const T>& outputs = plan.grad_output;
  store_channels(outputs.map, vector, outputs.gaps.close(sum), grad_bias);
}

// Moves the complete sums of the vectors [begin, end), those of the first part and of all that follow it, to the
// tensors. `scratch` is the thread's. Returns false if the sums were made by Winograd and some are not finite.
template <class T>
bool unpack(const WgradPlan<T>& plan, const PackedSums& packed, int64_t begin, int64_t end, float* scratch,
            const WgradArgs& args) {
  bool finite = true;
  for (int64_t vector = begin; vector < end; ++vector) {
    const float* weights = packed.weights + (vector - begin) * plan.pack.vector_size();
    int64_t parts = plan.parts;
    if (plan.is_winograd()) {
      float* taps = scratch + plan.tile_scratch();
      finite &= make_weights(weights, parts, plan.part_size(), plan.pack.channels, taps);
      weights = taps;
      parts = 1;
    }
    unpack_vector<T>({weights, parts, plan.part_size()}, plan.pack, vector, args.grad_weight);
    if (plan.with_bias)
      unpack_bias(plan, packed.bias + (vector - begin) * lanes, vector, static_cast<T*>(args.grad_bias));
  }
  return finite;
}

// Sums the tiles of one part for the units [begin, end): tiles outermost, so that memory is read in its order. Returns
// what `unpack` does.
template <int slot, class T>
bool add_part(const WgradArgs& args, const WgradPlan<T>& plan, int64_t part, int64_t begin, int64_t end, float* own,
              float* shared) {
  const ConvShape& shape = args.problem.shape;
  const int64_t first = plan.tiles * part / plan.parts, last = plan.tiles * (part + 1) / plan.parts;
  float* all = shared + part * plan.part_size();
  if (first == last && begin == 0) std::fill_n(all, plan.part_size(), 0.0f);  // no images
  bool finite = true;
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
      add_tiles<slot>(shape, plan, here, next, tile == first, own, packed);
      if (plan.is_one_part() && tile == last - 1)
        finite &= unpack(plan, packed, vector, vector + here.grad_output.vectors, own, args);
    }
  return finite;
}

template <class T>
int64_t wgrad_workspace_bytes(const Problem& problem, int64_t slot, int threads, bool transformed = false) {
  const WgradPlan<T> plan = wgrad_plan<T>(args_of<WgradArgs>(problem), slot, transformed);
  return (plan.shared_size() + threads * plan.own_size()) * sizeof(float);
}

// Returns what `unpack` does.
template <class T, int slot>
bool run_wgrad(const WgradArgs& args, bool transformed = false) {
  const WgradPlan<T> plan = wgrad_plan<T>(args, slot, transformed);
  float* shared = static_cast<float*>(args.launch.workspace);
  bool finite = true;
#pragma omp parallel num_threads(args.launch.threads) reduction(&& : finite)
  {
    float* own = shared + plan.shared_size() + omp_get_thread_num() * plan.own_size();
    const Share share = thread_share(plan.parts * plan.units);
    for (int64_t task = share.begin; task < share.end;) {
      const int64_t part = task / plan.units, begin = task % plan.units;
      const int64_t end = std::min(plan.units, begin + share.end - task);
      finite &= add_part<slot>(args, plan, part, begin, end, own, shared);
      task += end - begin;
    }
    if (!plan.is_one_part()) {
#pragma omp barrier
#pragma omp for schedule(static)
      for (int64_t vector = 0; vector < plan.pack.map.vectors(); ++vector)
        finite &= unpack(plan, packed_sums(plan, shared, vector), vector, vector + 1, own, args);
    }
  }
  return finite;
}

}  // namespace
}  // namespace resnext::cpu
