#pragma once
#include <omp.h>

#include <algorithm>

#include "direct_layouts.h"
#include "direct_pack.h"
#include "direct_tiles.h"
#include "reference.h"

// The direct kernel for wgrad: 3x3, padding 1, stride 1 or 2, C == K, float.
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
// A tile of both tensors is copied to scratch first, from either layout: it is read 3 * group width / 4 times, and
// in NHWC its pixels are so far apart that few of them fit into the same cache at a time.
// The tiles are dealt out to a number of parts that depends on the shape alone. A part sums its tiles in order, and
// the parts are added in order, so the number of threads does not change the result.
namespace resnext::cpu {
namespace {

// A tile in scratch: output rows [first, last) of grad_output, and the input rows that they need.
struct Tile {
  const float* input;        // row `input_first`, pixels of unit_channels
  const float* grad_output;  // row `first`, pixels of one vector
  int64_t first, last, input_first;
};

constexpr int wgrad_channels = lanes == 16 ? 4 : 2;  // as many as there are registers for three sums each

template <int group_width, int stride>
class RowSums {
 public:
  [[gnu::always_inline]] void begin(const float* packed, bool first) {
    unroll<count>([&](auto i) RESNEXT_INLINE { sums_[i] = first ? Vec{} : load(packed + i * lanes); });
  }

  [[gnu::always_inline]] void end(float* packed) const {
    unroll<count>([&](auto i) RESNEXT_INLINE { store(packed + i * lanes, sums_[i]); });
  }

  // One row of grad_output and the input row that it meets by the taps r.
  [[gnu::always_inline]] void add_row(const float* input, const float* grad, int64_t inputs, int64_t outputs) {
    if constexpr (stride == 1)
      add_row_of_stride_1(input, grad, outputs);
    else
      add_row_of_stride_2(input, grad, inputs, outputs);
  }

 private:
  static constexpr int count = wgrad_channels * 3, pixel = unit_channels<group_width>;

  template <int s>
  [[gnu::always_inline]] void add(const float* input, Vec grad) {
    unroll<wgrad_channels>([&](auto j) RESNEXT_INLINE { sums_[j * 3 + s] += spread<group_width, j>(input) * grad; });
  }

  // Input column w meets the outputs w + 1, w and w - 1 by the taps 0, 1 and 2, if they exist.
  [[gnu::always_inline]] void add_row_of_stride_1(const float* input, const float* grad, int64_t columns) {
    Vec before = load(grad);
    if (columns == 1) return add<1>(input, before);
    Vec here = load(grad + lanes);
    add<0>(input, here);
    add<1>(input, before);
    for (int64_t column = 1; column < columns - 1; ++column) {
      const Vec after = load(grad + (column + 1) * lanes);
      const float* x = input + column * pixel;
      unroll<wgrad_channels>([&](auto j) RESNEXT_INLINE {
        const Vec spread_x = spread<group_width, j>(x);
        sums_[j * 3] += spread_x * after;
        sums_[j * 3 + 1] += spread_x * here;
        sums_[j * 3 + 2] += spread_x * before;
      });
      before = here;
      here = after;
    }
    add<1>(input + (columns - 1) * pixel, here);
    add<2>(input + (columns - 1) * pixel, before);
  }

  // Input column 2q meets output q by tap 1; column 2q + 1 meets q by tap 2 and q + 1 by tap 0.
  [[gnu::always_inline]] void add_row_of_stride_2(const float* input, const float* grad, int64_t inputs,
                                                  int64_t outputs) {
    Vec here = load(grad);
    for (int64_t q = 0; q < outputs - 1; ++q) {
      const Vec after = load(grad + (q + 1) * lanes);
      const float* x = input + 2 * q * pixel;
      add<1>(x, here);
      unroll<wgrad_channels>([&](auto j) RESNEXT_INLINE {
        const Vec spread_x = spread<group_width, j>(x + pixel);
        sums_[j * 3] += spread_x * after;
        sums_[j * 3 + 2] += spread_x * here;
      });
      here = after;
    }
    const float* x = input + 2 * (outputs - 1) * pixel;
    add<1>(x, here);
    if (2 * outputs - 1 < inputs) add<2>(x + pixel, here);
  }

  Vec sums_[count];
};

// Adds a tile to the packed weights of one vector of output channels.
template <int group_width, int stride>
[[gnu::noinline]] void add_tile(const ConvShape& shape, const Tile& tile, bool first, float* packed) {
  const int64_t columns = shape.w, outputs = shape.q();
  for (int64_t r = 0; r < 3; ++r)
    for (int64_t channel = 0; channel < group_width; channel += wgrad_channels) {
      float* place = packed + packed_place<group_width>(r, channel, 0);
      RowSums<group_width, stride> sums;
      sums.begin(place, first);
      for (int64_t p = tile.first; p < tile.last; ++p) {
        const int64_t h = p * stride - 1 + r;
        if (h < 0 || h >= shape.h) continue;
        const float* input = tile.input + (h - tile.input_first) * columns * unit_channels<group_width> + channel;
        sums.add_row(input, tile.grad_output + (p - tile.first) * outputs * lanes, columns, outputs);
      }
      sums.end(place);
    }
}

// How a problem is cut, from its shape alone.
struct WgradPlan {
  int64_t tile_rows, tiles_per_image, tiles, units, parts;
  int64_t input_scratch, output_scratch;  // floats

  int64_t scratch() const { return input_scratch + output_scratch; }
};

template <int group_width>
WgradPlan wgrad_plan(const ConvShape& shape) {
  constexpr int64_t width = unit_channels<group_width>, tile_floats = 24 * 1024, wanted_tasks = 32;
  const int64_t stride = shape.stride_h, outputs = shape.q();
  WgradPlan plan{};
  const int64_t row_floats = stride * shape.w * width + outputs * lanes;
  const int64_t rows_that_fit = std::clamp<int64_t>(tile_floats / row_floats, 1, shape.p());
  int64_t tiles = (shape.p() + rows_that_fit - 1) / rows_that_fit;
  if (tiles > 1) tiles += tiles % 2;  // an even number of equal tiles shares out well
  plan.tile_rows = (shape.p() + tiles - 1) / tiles;
  plan.tiles_per_image = (shape.p() + plan.tile_rows - 1) / plan.tile_rows;
  plan.tiles = shape.n * plan.tiles_per_image;
  plan.units = shape.c / width;
  plan.parts = std::max<int64_t>(1, std::min(plan.tiles, wanted_tasks / plan.units));
  const int64_t input_rows = std::min((plan.tile_rows - 1) * stride + 3, shape.h);
  plan.input_scratch = input_rows * shape.w * width;
  plan.output_scratch = plan.tile_rows * outputs * lanes;
  return plan;
}

// Copies rows [first, last) of `channels` channels of one image to scratch.
template <int channels>
void load_rows(const Problem& problem, const float* tensor, int64_t image, int64_t channel, int64_t rows,
               int64_t columns, int64_t first, int64_t last, float* to) {
  const int64_t all_channels = problem.shape.c, pixels = (last - first) * columns;
  if (problem.layout == Layout::nchw) {
    const float* planes = tensor + (image * all_channels + channel) * rows * columns + first * columns;
    return planes_to_pixels<channels>(planes, rows * columns, pixels, to);
  }
  const float* pixel = tensor + ((image * rows + first) * columns) * all_channels + channel;
  const bool prefetch = comes_from_memory(problem.shape);
  for (int64_t i = 0; i < pixels; ++i, pixel += all_channels, to += channels)
    for (int64_t j = 0; j < channels; j += lanes) {
      if (prefetch) __builtin_prefetch(pixel + channels + j, 0, 2);  // the next unit's pixel
      store(to + j, load(pixel + j));
    }
}

// Adds one tile to the packed weights of one unit: a group, or as many groups as fill a vector.
template <int group_width>
void add_unit_tile(const WgradArgs& args, const WgradPlan& plan, int64_t tile_index, int64_t unit, bool first,
                   float* scratch, float* packed) {
  constexpr int64_t width = unit_channels<group_width>;
  const ConvShape& shape = args.problem.shape;
  const int64_t image = tile_index / plan.tiles_per_image, stride = shape.stride_h;
  Tile tile{};
  tile.first = tile_index % plan.tiles_per_image * plan.tile_rows;
  tile.last = std::min(tile.first + plan.tile_rows, shape.p());
  tile.input_first = std::max<int64_t>(tile.first * stride - 1, 0);
  const int64_t input_last = std::min((tile.last - 1) * stride + 2, shape.h);
  float* grad_output = scratch + plan.input_scratch;
  tile.input = scratch;
  tile.grad_output = grad_output;
  load_rows<width>(args.problem, static_cast<const float*>(args.input), image, unit * width, shape.h, shape.w,
                   tile.input_first, input_last, scratch);
  for (int64_t channel = unit * width; channel < (unit + 1) * width; channel += lanes) {
    load_rows<lanes>(args.problem, static_cast<const float*>(args.grad_output), image, channel, shape.p(), shape.q(),
                     tile.first, tile.last, grad_output);
    float* vector = packed + channel / lanes * packed_vector_size<group_width>;
    if (stride == 1)
      add_tile<group_width, 1>(shape, tile, first, vector);
    else
      add_tile<group_width, 2>(shape, tile, first, vector);
  }
}

// Sums the tiles of one part for the units [begin, end): tiles outermost, so that memory is read in its order.
template <int group_width>
void add_part(const WgradArgs& args, const WgradPlan& plan, int64_t part, int64_t begin, int64_t end, float* scratch,
              float* packed) {
  constexpr int64_t unit_size = unit_channels<group_width> / lanes * packed_vector_size<group_width>;
  const int64_t first = plan.tiles * part / plan.parts, last = plan.tiles * (part + 1) / plan.parts;
  if (first == last) std::fill(packed + begin * unit_size, packed + end * unit_size, 0.0f);
  for (int64_t tile = first; tile < last; ++tile)
    for (int64_t unit = begin; unit < end; ++unit)
      add_unit_tile<group_width>(args, plan, tile, unit, tile == first, scratch, packed);
}

template <int group_width>
int64_t wgrad_workspace_bytes(const Problem& problem, int threads) {
  const WgradPlan plan = wgrad_plan<group_width>(problem.shape);
  return (plan.parts * packed_size<group_width>(problem.shape.c) + threads * plan.scratch()) * sizeof(float);
}

template <int group_width>
void run_wgrad(const WgradArgs& args) {
  grad_bias(args);
  const WgradPlan plan = wgrad_plan<group_width>(args.problem.shape);
  const int64_t part_size = packed_size<group_width>(args.problem.shape.c);
  float* packed = static_cast<float*>(args.launch.workspace);
#pragma omp parallel num_threads(args.launch.threads)
  {
    float* scratch = packed + plan.parts * part_size + omp_get_thread_num() * plan.scratch();
    const Share share = thread_share(plan.parts * plan.units);
    for (int64_t task = share.begin; task < share.end;) {
      const int64_t part = task / plan.units, begin = task % plan.units;
      const int64_t end = std::min(plan.units, begin + share.end - task);
      add_part<group_width>(args, plan, part, begin, end, scratch, packed + part * part_size);
      task += end - begin;
    }
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t vector = 0; vector < args.problem.shape.c / lanes; ++vector)
      unpack_vector<group_width>(packed + vector * packed_vector_size<group_width>, plan.parts, part_size, vector,
                                 args.grad_weight);
  }
}

}  // namespace
}  // namespace resnext::cpu
