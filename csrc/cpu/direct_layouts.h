#pragma once
#include "direct.h"
#include "direct_lanes.h"

// fprop and dgrad over whole tensors, in one of two ways:
//
//   in place   NHWC tensors of floats whose groups need no padded lanes to be read: the sum reads and writes them
//   by tiles   all others (NCHW, 16-bit types, padded lanes): rows of some channels are brought to cache as vectors of
//              floats (direct_lanes.h), summed there, and copied back
namespace resnext::cpu {
namespace {

// One fprop or dgrad, told as the sum in direct.h.
template <class T, int slot>
struct Sum {
  int64_t images;
  Tensor<const T, slot> source;
  Tensor<T, slot> target;
  const T* bias;  // of the target's channels, or null
  Weight<const void*> weight;
  bool lanes_are_inputs, flip;
  Launch launch;

  PackPlan<slot> pack_plan() const { return {target.map, source.map.width, lanes_are_inputs, flip}; }
  int64_t target_bytes() const { return images * target.map.channels() * target.pixels() * int64_t(sizeof(T)); }
  int64_t source_bytes() const { return images * source.map.channels() * source.pixels() * int64_t(sizeof(T)); }
};

constexpr int64_t cached_bytes = 8 << 20;

// Prefetching costs a little where the maps lie in cache anyway.
template <class T, int slot>
bool comes_from_memory(const Sum<T, slot>& sum) {
  return sum.source_bytes() + sum.target_bytes() > cached_bytes;
}

// Stores that pass the caches by save reading the target, but leave nothing for the next layer to find there: only for
// targets that would push each other out anyway.
template <class T, int slot>
bool worth_streaming(const Sum<T, slot>& sum) {
  return lanes == 16 && sum.target_bytes() > cached_bytes && sum.target.map.is_full() &&
         reinterpret_cast<uintptr_t>(sum.target.data) % sizeof(Vec) == 0;
}

// The part of [0, count) that falls to the calling thread of a team.
struct Share {
  int64_t begin, end;
};

inline Share thread_share(int64_t count) {
  const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
  return {count * thread / threads, count * (thread + 1) / threads};
}

template <class T, int slot>
Vec start_value(const Sum<T, slot>& sum, int64_t vector) {
  const Lanes<slot>& map = sum.target.map;
  return sum.bias ? Gaps<slot>(map).open(load_part(sum.bias + map.first_channel(vector), map.count(vector))) : Vec{};
}

template <class T, int slot>
bool is_in_place(const Sum<T, slot>& sum) {
  if (!std::is_same_v<T, float> || sum.source.layout != Layout::nhwc) return false;
  if (slot == lanes) return sum.source.map.width % 4 == 0;
  return sum.source.map.is_full() && sum.target.map.is_full();
}

// One unit is one row of targets for a block of channels: all of them where groups are narrow, else as many as keep
// their weights in the second-level cache. Consecutive units are consecutive rows, which share source rows.
template <class Walk, int slot>
void sum_in_place(const Sum<float, slot>& sum, const float* packed) {
  const Lanes<slot>&from = sum.source.map, &to = sum.target.map;
  const int64_t packed_size = sum.pack_plan().order().size(), vectors = to.vectors(), cached_floats = 150 * 1024;
  const int64_t block_vectors =
      to.width <= 16 ? vectors : std::clamp<int64_t>(cached_floats / packed_size, 1, 256 / lanes);
  const int64_t blocks = (vectors + block_vectors - 1) / block_vectors, rows = sum.target.rows;
  const Share share = thread_share(sum.images * blocks * rows);
  const bool stream = worth_streaming(sum);
  const auto vector_place = [&](int64_t vector) {
    const int64_t source_channel = from.first_channel(vector / to.vectors_per_group() * from.vectors_per_group());
    return VectorPlace{source_channel, packed + vector * packed_size, start_value(sum, vector),
                       to.first_channel(vector), to.count(vector)};
  };
  for (int64_t unit = share.begin; unit < share.end; ++unit) {
    const int64_t row = unit % rows, block = unit / rows % blocks, image = unit / rows / blocks;
    const Maps maps{sum.source.at(image, 0, 0),
                    sum.target.at(image, 0, 0),
                    0,
                    0,
                    sum.source.rows,
                    sum.source.columns,
                    sum.target.columns,
                    from.channels(),
                    to.channels(),
                    from.width,
                    comes_from_memory(sum),
                    stream};
    sum_row<Walk, slot>(maps, row, block * block_vectors, std::min((block + 1) * block_vectors, vectors), vector_place);
  }
  if (stream) _mm_sfence();  // the caller's other threads must see what was streamed
}

// How a sum is cut into tiles, from its shape alone. A unit is a group, or as many groups as share a vector.
struct TilePlan {
  int64_t units, blocks;                   // units of a block, blocks of an image
  int64_t source_vectors, target_vectors;  // of a block
  int64_t rows, tiles;                     // target rows of a tile, tiles of an image
  int64_t source_floats, target_floats;    // scratch

  int64_t scratch() const { return source_floats + target_floats; }
};

template <class Walk, class T, int slot>
TilePlan tile_plan(const Sum<T, slot>& sum) {
  constexpr int64_t cached_floats = 128 * 1024, line_channels = 64, fewest_rows = 8;
  const Lanes<slot>&from = sum.source.map, &to = sum.target.map;
  TilePlan plan{};
  const auto floats = [&](int64_t rows) {
    const int64_t source_rows = std::min(sum.source.rows, Walk::last_source_row(rows) - Walk::first_source_row(0) + 1);
    plan.source_floats = source_rows * sum.source.columns * plan.units * from.vectors_per_group() * lanes;
    plan.target_floats = rows * sum.target.columns * plan.units * to.vectors_per_group() * lanes;
    return plan.scratch();
  };
  // In NHWC a block takes whole lines of cache, unless a few rows of them would not fit into it.
  plan.units = sum.source.layout == Layout::nchw
                   ? 1
                   : std::clamp<int64_t>(line_channels / lanes / from.vectors_per_group(), 1, from.units());
  while (plan.units > 1 && floats(fewest_rows) > cached_floats) --plan.units;
  plan.rows = sum.target.rows;
  while (plan.rows > 1 && floats(plan.rows) > cached_floats) plan.rows = (plan.rows + 1) / 2;
  floats(plan.rows);
  plan.tiles = (sum.target.rows + plan.rows - 1) / plan.rows;
  plan.blocks = (from.units() + plan.units - 1) / plan.units;
  plan.source_vectors = plan.units * from.vectors_per_group();
  plan.target_vectors = plan.units * to.vectors_per_group();
  return plan;
}

// Asks for `step` of `steps` of the memory of a part, if it lies together: whole planes.
template <bool write, class T, int slot>
void prefetch_planes(const Tensor<T, slot>& tensor, const Part& part, int64_t step, int64_t steps) {
  if (tensor.layout != Layout::nchw || part.rows != tensor.rows) return;
  const int64_t first = tensor.map.first_channel(part.first_vector), last = part.first_vector + part.vectors - 1;
  const int64_t size = (tensor.map.first_channel(last) + tensor.map.count(last) - first) * tensor.pixels();
  constexpr int64_t line = 64 / sizeof(T);
  const T* from = tensor.at(part.image, first, 0);
  for (int64_t i = size * step / steps / line * line; i < size * (step + 1) / steps; i += line)
    __builtin_prefetch(from + i, write, 2);
}

// The source and the target of one tile.
struct TileParts {
  Part source, target;
};

template <class Walk, class T, int slot>
TileParts tile_parts(const Sum<T, slot>& sum, const TilePlan& plan, int64_t index) {
  const int64_t tile = index % plan.tiles, block = index / plan.tiles % plan.blocks;
  const int64_t image = index / plan.tiles / plan.blocks;
  const int64_t first = tile * plan.rows, last = std::min(first + plan.rows, sum.target.rows) - 1;
  const int64_t source_first = std::max<int64_t>(Walk::first_source_row(first), 0);
  const int64_t source_last = std::min(Walk::last_source_row(last), sum.source.rows - 1);
  const auto part = [&](const Lanes<slot>& map, int64_t vectors, int64_t first_row, int64_t last_row) {
    const int64_t begin = block * vectors, end = std::min(begin + vectors, map.vectors());
    return Part{image, begin, end - begin, first_row, last_row - first_row + 1};
  };
  return {part(sum.source.map, plan.source_vectors, source_first, source_last),
          part(sum.target.map, plan.target_vectors, first, last)};
}

template <class Walk, class T, int slot>
void sum_by_tiles(const Sum<T, slot>& sum, const TilePlan& plan, const float* packed, float* scratch) {
  const Lanes<slot>&from = sum.source.map, &to = sum.target.map;
  const PackedOrder order = sum.pack_plan().order();
  const Share share = thread_share(sum.images * plan.blocks * plan.tiles);
  const bool prefetch = comes_from_memory(sum);
  float* target = scratch + plan.source_floats;
  for (int64_t index = share.begin; index < share.end; ++index) {
    const auto [source_part, target_part] = tile_parts<Walk>(sum, plan, index);
    const Part next = tile_parts<Walk>(sum, plan, std::min(index + 1, share.end - 1)).source;
    load_pixels(sum.source, source_part, prefetch, scratch);
    const Maps maps{scratch,
                    target,
                    source_part.first_row,
                    target_part.first_row,
                    sum.source.rows,
                    sum.source.columns,
                    sum.target.columns,
                    source_part.vectors * lanes,
                    target_part.vectors * lanes,
                    order.channels,
                    false,
                    false};
    const auto vector_place = [&](int64_t i) {
      const int64_t vector = target_part.first_vector + i;
      const int64_t source_vector = i / to.vectors_per_group() * from.vectors_per_group();
      return VectorPlace{source_vector * lanes, packed + vector * order.size(), start_value(sum, vector), i * lanes,
                         lanes};
    };
    for (int64_t i = 0; i < target_part.rows; ++i) {
      if (prefetch) {
        prefetch_planes<true>(sum.target, target_part, i, target_part.rows);
        prefetch_planes<false>(sum.source, next, i, target_part.rows);
      }
      sum_row<Walk, slot>(maps, target_part.first_row + i, 0, target_part.vectors, vector_place);
    }
    store_pixels(target, target_part, sum.target);
  }
}

template <class Walk, class T, int slot>
int64_t sum_workspace(const Sum<T, slot>& sum, int threads) {
  const int64_t scratch = is_in_place(sum) ? 0 : tile_plan<Walk>(sum).scratch();
  return (sum.pack_plan().size() + threads * scratch) * sizeof(float);
}

template <class Walk, class T, int slot>
void run_sum(const Sum<T, slot>& sum) {
  float* packed = static_cast<float*>(sum.launch.workspace);
  const TilePlan plan = tile_plan<Walk>(sum);
#pragma omp parallel num_threads(sum.launch.threads)
  {
    pack<T>(sum.pack_plan(), sum.weight, packed);
    float* scratch = packed + sum.pack_plan().size() + omp_get_thread_num() * plan.scratch();
    if constexpr (std::is_same_v<T, float>) {
      if (is_in_place(sum))
        sum_in_place<Walk>(sum, packed);
      else
        sum_by_tiles<Walk>(sum, plan, packed, scratch);
    } else {
      sum_by_tiles<Walk>(sum, plan, packed, scratch);
    }
  }
}

// The tensors of a problem.
template <int slot, class T>
Tensor<T, slot> input_tensor(const Problem& problem, T* data) {
  const ConvShape& shape = problem.shape;
  return {data, problem.layout, shape.h, shape.w, {shape.c_per_group(), shape.groups}};
}

template <int slot, class T>
Tensor<T, slot> output_tensor(const Problem& problem, T* data) {
  const ConvShape& shape = problem.shape;
  return {data, problem.layout, shape.p(), shape.q(), {shape.k_per_group(), shape.groups}};
}

template <class T, int slot>
Sum<T, slot> fprop_sum(const FpropArgs& args) {
  return {args.problem.shape.n,
          input_tensor<slot>(args.problem, static_cast<const T*>(args.input)),
          output_tensor<slot>(args.problem, static_cast<T*>(args.output)),
          static_cast<const T*>(args.bias),
          args.weight,
          false,
          false,
          args.launch};
}

template <class T, int slot>
Sum<T, slot> dgrad_sum(const DgradArgs& args) {
  return {args.problem.shape.n,
          output_tensor<slot>(args.problem, static_cast<const T*>(args.grad_output)),
          input_tensor<slot>(args.problem, static_cast<T*>(args.grad_input)),
          nullptr,
          args.weight,
          true,
          args.problem.shape.stride_h == 1,
          args.launch};
}

template <class T, int slot>
int64_t fprop_workspace_bytes(const Problem& problem, int threads) {
  FpropArgs args{};
  args.problem = problem;
  const Sum<T, slot> sum = fprop_sum<T, slot>(args);
  return problem.shape.stride_h == 1 ? sum_workspace<Even>(sum, threads) : sum_workspace<Narrowing>(sum, threads);
}

template <class T, int slot>
int64_t dgrad_workspace_bytes(const Problem& problem, int threads) {
  DgradArgs args{};
  args.problem = problem;
  const Sum<T, slot> sum = dgrad_sum<T, slot>(args);
  return problem.shape.stride_h == 1 ? sum_workspace<Even>(sum, threads) : sum_workspace<Widening>(sum, threads);
}

template <class T, int slot>
void run_fprop(const FpropArgs& args) {
  const Sum<T, slot> sum = fprop_sum<T, slot>(args);
  args.problem.shape.stride_h == 1 ? run_sum<Even>(sum) : run_sum<Narrowing>(sum);
}

template <class T, int slot>
void run_dgrad(const DgradArgs& args) {
  const Sum<T, slot> sum = dgrad_sum<T, slot>(args);
  args.problem.shape.stride_h == 1 ? run_sum<Even>(sum) : run_sum<Widening>(sum);
}

}  // namespace
}  // namespace resnext::cpu
