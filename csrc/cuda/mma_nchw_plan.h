#pragma once
// How the NCHW tensor-core kernels cut a problem into units: chosen on the host, from the shape alone. mma_nchw.h says
// how it all fits together.
#include <algorithm>
#include <numeric>

#include "rows_nchw_plan.h"

namespace resnext::cuda::mma_nchw {

using rows_nchw::Divisor;
using rows_nchw::divisor;
using rows_nchw::SmallSplit;
using rows_nchw::split;

constexpr int taps = 3, tile_columns = 8;  // of an mma tile; and 16-bit pixels of a 16-byte vector
constexpr int threads = 256, warps = threads / 32;
constexpr int most_bytes = 96 * 1024;  // of shared memory, for a block
constexpr int fixed_vectors = 1;       // in front

// What differs between group widths. A warp makes 8 channels (two groups of 4, or one of 8) of two rows at a time, or
// 16 channels of a larger group. Of these rows or eights of channels, its two halves, a lane has one each.
template <int group_width>
struct Width {
  static constexpr int width = group_width;
  static constexpr int rows = width <= 8 ? 2 : 1, warp_channels = width <= 8 ? 8 : 16;  // of a warp's tiles
  static constexpr int channels = std::max(width, 8);                                   // of a block
  static constexpr int parts = channels / warp_channels;                                // warps with different channels
  static constexpr int steps = std::max(width / 16, 1);                   // mmas over the source channels of a group
  static constexpr int products = width == 4 ? 4 : 3;                     // accumulators of a tile
  static constexpr int fragments = width == 4 ? 8 : width == 8 ? 9 : 36;  // registers of weights, of a step
  static constexpr int blocks = width <= 16 ? 2 : 1;                      // per multiprocessor
  static constexpr bool floats = false;                                   // or 16-bit
  static constexpr bool pads = false;
  static constexpr int half_channels = rows == 2 ? 0 : 8;       // from a lane's first half to its second
  static constexpr int step_sources = std::min(width, 16);      // source channels of an mma
  static constexpr int registers = fragments;                   // the same when a warp has them
  static constexpr int cell = tile_columns, vector_pixels = 8;  // pitches are in cells, of so many pixels
  static constexpr int usual_bytes = 48 * 1024;                 // of a block
};

// Kernels that gather: a result reads three source rows and columns, `stride` apart from those of the next one.
template <int width, int result_stride>
struct Gather : Width<width> {
  static constexpr int stride = result_stride, spread = 1;
  static constexpr int sources = stride * (Width<width>::rows - 1) + taps;  // rows that a warp reads at a time
  // The source row, of these, that tap row r reads for half `half`, and the tap row that reads source row k; -1 if
  // none.
  __host__ __device__ static constexpr int source_of(int r, int half) { return stride * half + r; }
  __host__ __device__ static constexpr int tap_of(int k, int half) {
    return k >= stride * half && k < stride * half + taps ? k - stride * half : -1;
  }
};

// The kernel that spreads, dgrad at stride 2: a source pixel becomes two rows and columns of the result.
template <int width>
struct Spread : Width<width> {
  static constexpr int stride = 1, spread = 2, sources = 2;
  __host__ __device__ static constexpr int source_of(int r, int half) {
    return half == 0 ? (r == 1 ? 0 : -1) : r == 2 ? 0 : r == 0 ? 1 : -1;
  }
  __host__ __device__ static constexpr int tap_of(int k, int half) {
    return half == 0 ? (k == 0 ? 1 : -1) : k == 0 ? 2 : k == 1 ? 0 : -1;
  }
};

// A kernel of groups of up to Kind::width channels, 16 or more, how many of the source and how many of the result is
// known at its launch. Source channels that a group lacks are zeros up to whole steps, and further ones are left out,
// as are warps without a result channel.
template <class Kind>
struct PaddedGroups : Kind {
  static constexpr bool pads = true;
};

// Everything that a kernel is told. A unit is `unit_rows` result rows of `unit_images` images; a block makes `walk` of
// them, in `channels` channels. Strides of weights are in elements.
struct Planes {
  const void *source, *weight, *bias;
  void* result;
  int64_t weight_result, weight_source, weight_group, weight_r, weight_s;
  int64_t source_plane, result_plane, units;  // planes in elements
  int images, channels, channel_blocks, rows, columns, result_rows, result_columns;
  int unit_images, unit_rows, runs, walk;
  // A stage: [channel][image][row][column], pitches in vectors of 8 columns or, in floats, in columns. A thread copies
  // the same position of every `copy_groups`th channel; there are `positions` of `copy_vector` pixels, in whole warps
  // `copy_threads`.
  int source_rows, row_pitch, channel_pitch, positions, copy_vector, copy_threads, copy_groups;
  int store_vector;  // elements
  int half_step;     // from the first half of a tile to the second, where results are staged
  int walk_rows;     // in floats: that a warp makes at a time, of the result or, in Spread, of the source
  int stage_vectors, result_vectors;
  Divisor by_tile_rows, by_tile_columns, by_source_rows, by_row_copies;
  bool whole;  // a unit has whole planes
  bool relu;   // the Epilogue of a fused fprop, else false and null
  const float *scale, *shift;
  const void* residual;
  // In PaddedGroups, channels of a group and of an image; `channels` counts Kind::width for each group there.
  int source_width, result_width, source_channels, result_channels;
};

// Channels in a stage, and among the staged results.
template <class Kind>
__host__ __device__ __forceinline__ int stage_channels(const Planes& g) {
  return Kind::pads ? (g.source_width + 15) / 16 * 16 : Kind::channels;
}
template <class Kind>
int staged_channels(const Planes& g) {
  return Kind::pads ? g.result_width : Kind::channels;
}

template <class Kind>
int source_rows_of(const Planes& g, int unit_rows) {
  const int rows = Kind::spread == 2 ? unit_rows / 2 + 1 : Kind::stride * (unit_rows - 1) + taps;
  return std::min(rows, g.rows);
}

// The distance of channels in a stage: so that the eight rows that ldmatrix reads lie in different banks. These are
// eight channels or, in groups of 4, four channels of two rows. In floats: that four channels of 8 columns are.
template <class Kind>
int channel_pitch_of(const Planes& g, int image_rows) {
  const int least = image_rows * g.row_pitch;
  if constexpr (Kind::floats) {
    return static_cast<int>(blocks_for(least + 8, 16)) * 16 - 8;
  } else {
    for (int pitch = least; Kind::width == 4 && pitch < least + 8; ++pitch) {
      int banks = 0;
      for (int i = 0; i < 8; ++i) banks |= 1 << (i % 4 * pitch + i / 4 * g.row_pitch) % 8;
      if (banks == 255) return pitch;
    }
    return least | 1;
  }
}

template <class Kind>
int stage_vectors_of(const Planes& g, int images, int unit_rows) {
  return stage_channels<Kind>(g) * channel_pitch_of<Kind>(g, images * source_rows_of<Kind>(g, unit_rows)) * Kind::cell /
         Kind::vector_pixels;
}

// The results of a unit and, before them, the weights of a step pass through the same memory.
template <class Kind>
int result_vectors_of(const Planes& g, int images, int unit_rows) {
  const int64_t results = int64_t{images} * staged_channels<Kind>(g) * unit_rows * g.result_columns;
  return static_cast<int>(
      std::max(blocks_for(results, Kind::vector_pixels), int64_t{Kind::parts * Kind::fragments * 8}));
}

template <class Kind>
int64_t bytes_of_unit(const Planes& g, int images, int unit_rows) {
  const int64_t vectors = fixed_vectors + 2 * int64_t{stage_vectors_of<Kind>(g, images, unit_rows)} +
                          result_vectors_of<Kind>(g, images, unit_rows);
  return 16 * vectors;
}

// Whole planes of as many images as fit, else runs of rows as tall as fit.
template <class Kind>
void plan_unit(Planes& g) {
  constexpr int together = std::max(Kind::rows, Kind::spread);  // rows that no other unit shall begin or end among
  const int all_rows = static_cast<int>(blocks_for(g.result_rows, together)) * together;
  g.unit_images = 1;
  g.unit_rows = together;
  const auto fits = [&](int64_t images, int64_t rows) {
    if (images * rows * std::max(g.row_pitch * Kind::cell, g.result_columns) > most_bytes)
      return false;  // before it overflows
    return bytes_of_unit<Kind>(g, static_cast<int>(images), static_cast<int>(rows)) <= Kind::usual_bytes;
  };
  if (fits(1, all_rows)) {
    g.unit_rows = all_rows;
    while (g.unit_images < g.images && fits(g.unit_images + 1, all_rows)) ++g.unit_images;
  } else {
    while (fits(1, g.unit_rows + together)) g.unit_rows += together;
  }
  const int64_t runs = blocks_for(all_rows, g.unit_rows);
  g.unit_rows = static_cast<int>(blocks_for(all_rows, runs * together)) * together;
  g.runs = static_cast<int>(blocks_for(all_rows, g.unit_rows));
  g.whole = g.runs == 1;
  if (g.whole) g.unit_rows = g.result_rows;
}

// How the warps share a unit's tiles: in floats a tile is two eights of columns, along some rows. Each such walk reads
// about two rows more than it makes.
template <class Kind>
void plan_tiles(Planes& g) {
  g.walk_rows = Kind::rows;
  if (Kind::floats) {
    const int eights = static_cast<int>(blocks_for(Kind::spread == 2 ? g.columns : g.result_columns, tile_columns));
    const int64_t rows = blocks_for(g.unit_rows, Kind::spread), tiles = blocks_for(int64_t{g.unit_images} * eights, 2);
    const auto time = [&](int64_t of_walk) {
      return blocks_for(tiles * blocks_for(rows, of_walk) * Kind::parts, warps) * (Kind::stride * of_walk + 2);
    };
    g.walk_rows = static_cast<int>(rows);
    for (int64_t walk = rows; walk > 0; --walk)
      if (time(walk) < time(g.walk_rows)) g.walk_rows = static_cast<int>(walk);
    g.by_tile_columns = divisor(eights);
    g.by_tile_rows = divisor(static_cast<int>(blocks_for(rows, g.walk_rows)));
  } else {
    g.by_tile_rows = divisor(static_cast<int>(blocks_for(g.unit_rows, Kind::rows)));
  }
}

// Fills in the rest of what a kernel is told, whose tensors and sizes are set.
template <class Kind>
void plan(Planes& g) {
  g.source_plane = int64_t{g.rows} * g.columns;
  g.result_plane = int64_t{g.result_rows} * g.result_columns;
  g.row_pitch = static_cast<int>(blocks_for(g.columns, Kind::cell));
  g.channel_blocks = static_cast<int>(blocks_for(g.channels, Kind::channels));
  plan_unit<Kind>(g);
  g.source_rows = g.whole ? g.rows : source_rows_of<Kind>(g, g.unit_rows);
  g.channel_pitch = channel_pitch_of<Kind>(g, g.unit_images * g.source_rows);
  g.stage_vectors = stage_channels<Kind>(g) * g.channel_pitch * Kind::cell / Kind::vector_pixels;
  g.result_vectors = result_vectors_of<Kind>(g, g.unit_images, g.unit_rows);
  g.copy_vector = std::gcd(g.columns, Kind::vector_pixels);
  g.by_row_copies = divisor(g.columns / g.copy_vector);
  g.half_step = (Kind::rows == 2 ? 1 : Kind::half_channels * g.unit_rows) * g.result_columns;
  g.by_source_rows = divisor(g.source_rows);
  plan_tiles<Kind>(g);
  g.positions = g.unit_images * g.source_rows * (g.columns / g.copy_vector);
  g.copy_threads = std::min((g.positions + 31) / 32 * 32, threads);
  g.copy_groups = threads / g.copy_threads;
  const int64_t block = Kind::pads ? g.result_width : std::gcd(int64_t{Kind::channels}, int64_t{g.channels});
  const int64_t line =
      g.whole ? block * g.result_plane : std::gcd(g.result_plane, int64_t{g.unit_rows} * g.result_columns);
  const int64_t last = g.whole ? line : (g.result_rows % g.unit_rows) * int64_t{g.result_columns};
  g.store_vector = static_cast<int>(std::gcd(std::gcd(line, last), int64_t{Kind::vector_pixels}));
  g.units = blocks_for(g.images, g.unit_images) * g.runs;
  // A block walks along several units, as it reads its weights once; but there shall be blocks for a large GPU.
  const int64_t weights = int64_t{taps * taps} * Kind::channels * Kind::width;
  const int64_t pixels = int64_t{g.unit_images} * Kind::channels *
                         (g.source_rows * int64_t{g.columns} + g.unit_rows * int64_t{g.result_columns});
  g.walk = 1;
  const auto many = [&](int64_t walk) { return 8 * weights > walk * pixels ? 128 : 1024; };
  while (2 * g.walk <= g.units && g.channel_blocks * blocks_for(g.units, 2 * g.walk) >= many(g.walk)) g.walk *= 2;
}

// Whether the least unit of a map so wide fits into shared memory; in PaddedGroups, of `g`'s widths.
template <class Kind>
bool fits(int64_t columns, int64_t result_columns, Planes g = {}) {
  if (columns > most_bytes || result_columns > most_bytes) return false;
  g.rows = 2 * taps;
  g.columns = static_cast<int>(columns);
  g.result_columns = static_cast<int>(result_columns);
  g.row_pitch = static_cast<int>(blocks_for(columns, Kind::cell));
  return bytes_of_unit<Kind>(g, 1, std::max(Kind::rows, Kind::spread)) <= most_bytes;
}

}  // namespace resnext::cuda::mma_nchw
