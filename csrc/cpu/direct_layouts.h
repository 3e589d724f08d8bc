#pragma once
#include <unistd.h>

#include "direct.h"
#include "direct_lanes.h"
#include "winograd.h"

// fprop and dgrad over whole tensors, cut into tiles: some channels of some rows. The sum reads pixels of NHWC where
// they lie if it can multiply them as they are: their type is float (or bfloat16, where pairs of it are multiplied),
// and their groups fill the lanes that are read. Otherwise (NCHW, other types, padded lanes) a tile is brought to cache
// first, as vectors of floats (direct_lanes.h), and the target is copied from one, unless it is NHWC of the type that
// the sum stores.
namespace resnext::cpu {
namespace {

// One fprop or dgrad, told as the sum in direct.h.
template <class T>
struct Sum {
  int64_t images;
  Tensor<const T> source;
  Tensor<T> target;
  const T* bias;  // of the target's channels, or null
  Weight<const void*> weight;
  bool lanes_are_inputs, flip;
  Launch launch;
  bool fused;
  Epilogue epilogue;    // if fused
  const float* packed;  // all weights, if they were packed before this call, or null
  bool transformed;     // the weights are packed for Winograd

  PackPlan pack_plan() const {
    const int64_t channels = summed_channels(source.map.slot, per_lane<T>, source.map.width);
    return {target.map, source.map.width, channels, per_lane<T>, lanes_are_inputs, flip, transformed};
  }
  int64_t target_bytes() const { return images * target.map.channels() * target.pixels() * int64_t(sizeof(T)); }
  int64_t source_bytes() const { return images * source.map.channels() * source.pixels() * int64_t(sizeof(T)); }
};

// Prefetching costs a little where the maps lie in cache anyway.
template <class T>
bool comes_from_memory(const Sum<T>& sum) {
  return sum.source_bytes() + sum.target_bytes() > cached_bytes;
}

// The part of [0, count) that falls to the calling thread of a team.
struct Share {
  int64_t begin, end;
};

inline Share thread_share(int64_t count) {
  const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
  return {count * thread / threads, count * (thread + 1) / threads};
}

// How a sum is cut into tiles, from its shape alone.
struct TilePlan {
  bool source_in_place, target_in_place;
  bool crowded;           // the source's pixels push each other out of the first-level cache if they are many
  int64_t units, blocks;  // units of a block, blocks of an image
  int64_t source_vectors, target_vectors;  // of a block
  int64_t rows, tiles;                     // target rows of a tile, tiles of an image
  // Whether a block's weights meet all images before the next block's are read: in NCHW, and where those of all blocks
  // would not fit into the second-level cache. Else an image's blocks follow one another: in NHWC they share its pages.
  bool images_innermost;
  bool one_block_at_a_time;  // whether a thread is done with a block's weights when it comes to the next block
  int64_t source_floats, target_floats, residual_floats, winograd_floats;  // scratch

  int64_t tile_floats() const { return source_floats + target_floats + residual_floats; }
  int64_t scratch() const { return tile_floats() + winograd_floats; }
};

// Units of a block that is read in place: all of them where groups are narrow, so that whole pixels are read, else as
// many as keep their weights in the second-level cache.
template <class T>
int64_t units_in_place(const Sum<T>& sum) {
  constexpr int64_t most_channels = 256;
  const int64_t cached_floats = (sum.transformed ? 32 : 150) * 1024;
  const Lanes& map = sum.target.map;
  if (map.width <= 16 && !sum.transformed) return map.units();
  const int64_t vectors = std::clamp<int64_t>(cached_floats / sum.pack_plan().vector_size(), 1, most_channels / lanes);
  return std::clamp<int64_t>(vectors / map.vectors_per_unit(), 1, map.units());
}

// Pixels 4 KB apart share one set of the first-level cache, which holds as many as it has ways.
inline long first_level_cache_ways() {
  static const long ways = sysconf(_SC_LEVEL1_DCACHE_ASSOC);  // 0 if unknown
  return ways;
}

template <class Walk, class T>
TilePlan tile_plan(const Sum<T>& sum) {
  constexpr int64_t cached_floats = 128 * 1024, line_channels = 64, fewest_rows = 8;
  constexpr int64_t cached_weights = 512 * 1024, page = 4096, ways_for_short_blocks = 12;
  const Lanes &from = sum.source.map, &to = sum.target.map;
  const bool nhwc = sum.source.layout == Layout::nhwc, wide = from.slot == lanes;
  TilePlan plan{};
  // Sums of pairs take one pair of channels of all pixels at a time (channels_at_once), so they mind half of it, too.
  const int64_t distance = from.channels() * sizeof(T);
  const bool crowded = std::is_same_v<Walk, Narrowing> && wide && distance % (page / per_lane<T>) == 0;
  const bool too_crowded = crowded && distance % page == 0 && first_level_cache_ways() < ways_for_short_blocks;
  plan.source_in_place = nhwc && !too_crowded && sizeof(T) * per_lane<T> == sizeof(float) &&
                         (wide ? from.width == sum.pack_plan().channels : from.is_full());
  plan.crowded = crowded && plan.source_in_place;
  plan.target_in_place = nhwc && std::is_same_v<T, Result<per_lane<T>>> && (wide || to.is_full());
  const auto floats = [&](int64_t rows) {
    const int64_t source_rows = std::min(sum.source.rows, Walk::last_source_row(rows) - Walk::first_source_row(0) + 1);
    const int64_t source_pixels = plan.source_in_place ? 0 : source_rows * sum.source.columns;
    const int64_t target_pixels = plan.target_in_place ? 0 : rows * sum.target.columns;
    plan.source_floats = source_pixels * plan.units * from.vectors_per_unit() * lanes / per_lane<T>;
    plan.target_floats = target_pixels * plan.units * to.vectors_per_unit() * lanes / per_lane<T>;
    plan.residual_floats = sum.fused ? plan.target_floats : 0;
    return plan.tile_floats();
  };
  plan.rows = plan.source_in_place ? 1 : sum.target.rows;
  if (plan.source_in_place) {
    plan.units = units_in_place(sum);
  } else {  // in NHWC a block takes whole lines of cache, unless a few rows of them would not fit into it
    plan.units = nhwc ? std::clamp<int64_t>(line_channels / lanes / from.vectors_per_unit(), 1, from.units()) : 1;
    while (plan.units > 1 && floats(fewest_rows) > cached_floats) --plan.units;
    while (plan.rows > 1 && floats(plan.rows) > cached_floats) plan.rows = (plan.rows + 1) / 2;
  }
  if constexpr (std::is_same_v<Walk, Winograd>) {
    plan.rows = plan.source_in_place ? rows_of_squares(sum.target.rows, sum.target.columns) : plan.rows + plan.rows % 2;
    plan.winograd_floats = winograd_scratch(sum.pack_plan().channels);
  }
  floats(plan.rows);
  plan.tiles = (sum.target.rows + plan.rows - 1) / plan.rows;
  plan.blocks = (from.units() + plan.units - 1) / plan.units;
  plan.source_vectors = plan.units * from.vectors_per_unit();
  plan.target_vectors = plan.units * to.vectors_per_unit();
  const int64_t weights = sum.pack_plan().size();
  plan.images_innermost = !nhwc || sum.transformed || weights > cached_weights;
  plan.one_block_at_a_time = plan.images_innermost || sum.images == 1;
  return plan;
}

// Stores that pass the caches by save reading the target, but leave nothing for the next layer to find there: only for
// targets that would push each other out anyway.
template <class T>
bool worth_streaming(const Sum<T>& sum, const TilePlan& plan) {
  return lanes == 16 && std::is_same_v<T, float> && plan.target_in_place && sum.target_bytes() > cached_bytes &&
         sum.target.map.is_full() && reinterpret_cast<uintptr_t>(sum.target.data) % sizeof(Vec) == 0;
}

// The source and the target of one tile.
struct TileParts {
  Part source, target;
};

template <class Walk, class T>
TileParts tile_parts(const Sum<T>& sum, const TilePlan& plan, int64_t index) {
  const int64_t tile = index % plan.tiles, rest = index / plan.tiles;
  const int64_t block = plan.images_innermost ? rest / sum.images : rest % plan.blocks;
  const int64_t image = plan.images_innermost ? rest % sum.images : rest / plan.blocks;
  const int64_t first = tile * plan.rows, last = std::min(first + plan.rows, sum.target.rows) - 1;
  const int64_t source_first = std::max<int64_t>(Walk::first_source_row(first), 0);
  const int64_t source_last = std::min(Walk::last_source_row(last), sum.source.rows - 1);
  const auto part = [&](const Lanes& map, int64_t vectors, int64_t first_row, int64_t last_row) {
    const int64_t begin = block * vectors, end = std::min(begin + vectors, map.vectors());
    return Part{image, begin, end - begin, first_row, last_row - first_row + 1};
  };
  return {part(sum.source.map, plan.source_vectors, source_first, source_last),
          part(sum.target.map, plan.target_vectors, first, last)};
}

// Scratch for the source: floats, or pairs.
template <class T>
auto source_scratch(float* scratch) {
  return reinterpret_cast<std::conditional_t<per_lane<T> == 2, T, float>*>(scratch);
}

template <class T>
Tensor<const T> residual_of(const Sum<T>& sum) {
  const Tensor<T>& target = sum.target;
  return {static_cast<const T*>(sum.epilogue.residual),
          target.layout,
          target.rows,
          target.columns,
          target.map,
          target.gaps};
}

// What the sum of one tile reads and writes.
template <class T>
Maps<per_lane<T>> tile_maps(const Sum<T>& sum, const TilePlan& plan, const TileParts& parts, float* scratch) {
  using Target = Result<per_lane<T>>;
  Maps<per_lane<T>> maps{};
  maps.source = scratch;
  maps.source_first = parts.source.first_row;
  maps.source_channel = parts.source.first_vector * lanes / per_lane<T>;
  maps.source_stride = parts.source.vectors * lanes / per_lane<T>;
  if (plan.source_in_place) {
    maps.source = reinterpret_cast<const float*>(sum.source.at(parts.source.image, 0, 0));
    maps.source_first = maps.source_channel = 0;
    maps.source_stride = sum.source.map.channels() / per_lane<T>;
  }
  maps.target = reinterpret_cast<Target*>(scratch + plan.source_floats);
  maps.target_first = parts.target.first_row;
  maps.target_stride = parts.target.vectors * lanes;
  maps.target_channel = parts.target.first_vector * lanes;
  if (plan.target_in_place) {
    maps.target = reinterpret_cast<Target*>(sum.target.at(parts.target.image, 0, 0));
    maps.target_first = maps.target_channel = 0;
    maps.target_stride = sum.target.map.channels();
  }
  maps.source_rows = sum.source.rows;
  maps.source_columns = sum.source.columns;
  maps.target_columns = sum.target.columns;
  maps.channels = sum.pack_plan().channels / per_lane<T>;
  maps.group_distance = sum.source.map.group_distance() / per_lane<T>;
  maps.crowded = plan.crowded;
  maps.stream = worth_streaming(sum, plan);
  maps.fused = sum.fused;
  maps.relu = sum.epilogue.relu;
  if (sum.epilogue.residual) {
    const auto* residual = static_cast<const Target*>(sum.epilogue.residual);
    maps.residual = plan.target_in_place ? residual + (maps.target - reinterpret_cast<Target*>(sum.target.data))
                                         : reinterpret_cast<Target*>(scratch + plan.source_floats + plan.target_floats);
  }
  return maps;
}

// The place of a vector of target channels, as its block wants to know it.
template <class T>
VectorPlace vector_place(const Sum<T>& sum, const TilePlan& plan, int64_t vector) {
  const Lanes &from = sum.source.map, &to = sum.target.map;
  const int64_t unit = vector / to.vectors_per_unit(), first_group = unit * to.groups_per_unit();
  const int64_t group_in_unit = to.first_group(vector) - first_group;
  const int64_t unit_channel = plan.source_in_place ? first_group * from.width : unit * from.vectors_per_unit() * lanes;
  const auto spread = [&](const auto* channels) { return sum.target.gaps.open(load_channels(to, vector, channels)); };
  VectorPlace place{};
  if (sum.bias) place.start = spread(sum.bias);
  if (sum.fused) {
    place.scale = spread(static_cast<const float*>(sum.epilogue.scale));
    place.shift = spread(static_cast<const float*>(sum.epilogue.shift));
  }
  const bool from_own_block = plan.one_block_at_a_time && !sum.packed;
  place.weights = (from_own_block ? vector % plan.target_vectors : vector) * sum.pack_plan().vector_size();
  place.source_channel = (unit_channel + group_in_unit * from.width) / per_lane<T>;
  place.target_channel = plan.target_in_place ? to.first_channel(vector) : vector * lanes;
  place.count = plan.target_in_place ? to.count(vector) : lanes;
  place.straddles = to.straddles(vector);
  return place;
}

// What the next tile needs of its source beside what this one has of it.
inline Part new_rows(const TileParts& here, const TileParts& next) {
  Part rows = next.source;
  if (rows.image != here.source.image || rows.first_vector != here.source.first_vector) return rows;
  const int64_t known = std::clamp<int64_t>(here.source.first_row + here.source.rows - rows.first_row, 0, rows.rows);
  return {rows.image, rows.first_vector, rows.vectors, rows.first_row + known, rows.rows - known};
}

// Where the workspace of one thread holds what, in floats: places, packed weights, scratch for a tile. Threads share
// none of it: lines that another core wrote are slow to read where cores have no cache in common (docs/performance.md).
template <class T>
struct SumWorkspace {
  int64_t weights, scratch, size;

  SumWorkspace(const Sum<T>& sum, const TilePlan& plan) {
    constexpr int64_t line = 64 / sizeof(float);
    const int64_t vectors = plan.one_block_at_a_time ? plan.target_vectors : sum.target.map.vectors();
    weights = sum.target.map.vectors() * int64_t(sizeof(VectorPlace) / sizeof(float));
    scratch = weights + (sum.packed ? 0 : vectors * sum.pack_plan().vector_size());
    size = (scratch + plan.scratch() + line - 1) / line * line;
  }
};

// The calling thread's share of the tiles. Returns false if the sums were made by Winograd and some are not finite.
template <class Walk, int slot, class T>
bool sum_tiles(const Sum<T>& sum, const TilePlan& plan, float* workspace) {
  constexpr bool across = slot == 1;
  const PackPlan pack_plan = sum.pack_plan();
  const Share share = thread_share(sum.images * plan.blocks * plan.tiles);
  const bool from_memory = comes_from_memory(sum);
  AllFinite finite;
  const SumWorkspace<T> own(sum, plan);
  auto* places = reinterpret_cast<VectorPlace*>(workspace);
  float *packed = workspace + own.weights, *scratch = workspace + own.scratch;
  int64_t last_vector = -1, prepared = 0;  // blocks, which come one after another, and again for the next image
  for (int64_t index = share.begin; index < share.end; ++index) {
    const TileParts parts = tile_parts<Walk>(sum, plan, index);
    const TileParts next = tile_parts<Walk>(sum, plan, std::min(index + 1, share.end - 1));
    if (parts.target.first_vector != last_vector && prepared < plan.blocks) {
      last_vector = parts.target.first_vector;
      ++prepared;
      for (int64_t vector = last_vector; vector < last_vector + parts.target.vectors; ++vector) {
        places[vector] = vector_place(sum, plan, vector);
        if (!sum.packed) pack<T>(pack_plan, sum.weight, vector, packed + places[vector].weights);
      }
    }
    Maps<per_lane<T>> maps = tile_maps(sum, plan, parts, scratch);
    maps.weights = sum.packed ? sum.packed : packed;
    if (!plan.source_in_place)
      load_pixels<across>(sum.source, parts.source, {parts.source.vectors * lanes, lanes}, source_scratch<T>(scratch));
    if (sum.epilogue.residual && !plan.target_in_place)
      load_pixels<across>(residual_of(sum), parts.target, {parts.target.vectors * lanes, lanes},
                          reinterpret_cast<Result<per_lane<T>>*>(scratch + plan.source_floats + plan.target_floats));
    const VectorPlace* block = places + parts.target.first_vector;
    const int64_t first_row = parts.target.first_row, rows = parts.target.rows;
    constexpr bool winograd = std::is_same_v<Walk, Winograd>;
    MemoryAhead ahead;
    if (winograd || from_memory) {  // transforms have nothing to hide the way from a near cache behind
      int64_t asks = rows;
      if constexpr (winograd)
        asks = winograd_asks({rows, maps.target_columns, patches_at_once}, parts.target.vectors,
                             sum.target.map.vectors_per_unit());
      ahead.source = {sum.source, plan.source_in_place ? new_rows(parts, next) : next.source, asks};
      if (sum.epilogue.residual && plan.target_in_place)  // read, which waits longer than what is only written
        ahead.target = {residual_of(sum), next.target, asks};
      else if (!maps.stream)
        ahead.target = {sum.target, plan.target_in_place ? next.target : parts.target, asks};
    }
    if constexpr (winograd)
      sum_squares(maps, first_row, first_row + rows, block, parts.target.vectors, ahead, scratch + plan.tile_floats(),
                  finite);
    else
      for (int64_t i = 0; i < rows; ++i)
        sum_row<Walk, slot, per_lane<T>>(maps, first_row + i, block, parts.target.vectors, ahead);
    if (!plan.target_in_place) store_pixels<across>(maps.target, parts.target, sum.target);
  }
  if (worth_streaming(sum, plan)) _mm_sfence();  // the caller's other threads must see what was streamed
  return static_cast<bool>(finite);
}

template <class Walk, class T>
int64_t sum_workspace(const Sum<T>& sum, int threads) {
  return threads * SumWorkspace<T>(sum, tile_plan<Walk>(sum)).size * int64_t(sizeof(float));
}

// Returns what sum_tiles does.
template <class Walk, int slot, class T>
bool run_sum(const Sum<T>& sum) {
  const TilePlan plan = tile_plan<Walk>(sum);
  const int64_t size = SumWorkspace<T>(sum, plan).size;
  bool finite = true;
#pragma omp parallel num_threads(sum.launch.threads) reduction(&& : finite)
  finite = sum_tiles<Walk, slot>(sum, plan, static_cast<float*>(sum.launch.workspace) + omp_get_thread_num() * size);
  return finite;
}

}  // namespace
}  // namespace resnext::cpu
