#pragma once
// How the row-streaming NCHW kernels cut a problem into blocks and stages: chosen on the host, from the shape alone.
// rows_nchw.h says how it all fits together.
#include <algorithm>

#include "device.h"
#include "generic_index.h"

namespace resnext::cuda::rows_nchw {

constexpr int64_t most_floats = 1 << 28;  // of a plane, and of what lies between the images of a block
constexpr int taps = 3, tile_columns = 7, warp_lanes = 32;

// One kernel. A tile is 7 columns of the result, or of the source where each of its pixels `spreads` to two rows and
// two columns of the result.
template <int width_, int stride_, bool spreads, int lane_results_, int tile_warps_, int stage_floats_>
struct Kind {
  static constexpr int width = width_, stride = stride_, spread = spreads ? 2 : 1;
  static constexpr int lane_results = lane_results_;  // result channels of a lane
  static constexpr int tile_warps = tile_warps_;      // warps side by side, each with 32 tiles
  static constexpr int warps = tile_warps * (width / lane_results), threads = warp_lanes * warps;
  static constexpr int stages = 4, stage_floats = stage_floats_;
  // That a multiprocessor holds: with 255, 168, 96 or 128 registers each.
  static constexpr int resident_threads = spreads ? 256 : stride == 2 ? 384 : lane_results == 4 ? 640 : 512;
  static constexpr int source_rows = spreads ? 2 : taps;  // that a tile reads
  static constexpr int source_columns = spreads ? tile_columns + 1 : stride * (tile_columns - 1) + taps;
  static constexpr int before = spreads ? 0 : 1;  // how many of them, and of the columns, lie before the tile
  // In strips of wide maps, and with it the most copies that a thread makes for a stage.
  static constexpr int strip_tiles = 16 / stride, longest_pitch = strip_tiles * stride * tile_columns + 8;
  static constexpr int shortest_stage = source_rows * longest_pitch + (stride == 2 ? 32 : 0);
  static constexpr int usual_vector = width == 32 && stride == 2 ? 2 : 4;
  static constexpr int copies =
      std::max((stage_floats / usual_vector - 1) / threads, (shortest_stage - 1) / threads) + 1;
  static_assert(shortest_stage <= stage_floats);
};

// Fprop at stride 1, which dgrad is too, and at stride 2.
template <int width, int stride>
struct Gw : Kind<width, stride, false, width == 4 ? 4 : 8, width <= 8 && stride == 1 ? 4 : 2,
                 width == 32                 ? 1600
                 : width == 4 && stride == 1 ? 960
                                             : 1792> {};

// Dgrad at stride 2.
template <int width>
struct Spread : Kind<width, 1, true, 4,
                     width == 4    ? 4
                     : width == 32 ? 1
                                   : 2,
                     width <= 8 ? 896 : 1600> {};

// Division of numbers below 2^15 by a number below 2^15 that is known on the host.
struct Divisor {
  int value;
  uint32_t inverse;  // 2^31 / value, rounded up
};

inline Divisor divisor(int value) { return {value, ((1u << 31) - 1) / static_cast<uint32_t>(value) + 1}; }

struct SmallSplit {
  int quotient, remainder;
};

using cuda::split;

__device__ __forceinline__ SmallSplit split(int i, const Divisor& by) {
  const int quotient = static_cast<int>(static_cast<uint64_t>(i) * by.inverse >> 31);
  return {quotient, i - quotient * by.value};
}

// Everything that a kernel is told. A block has one group of `block_images` images, and of these `tile_rows` rows of
// `row_tiles` tiles; runs, strips and image_blocks count the blocks in each direction.
struct Plan {
  const float *source, *weight, *bias;
  float* result;
  int64_t weight_result, weight_source, weight_group, weight_r, weight_s;
  int64_t channels, images, source_plane, result_plane;
  int64_t groups, image_blocks, strips, runs;
  int rows, columns, result_rows, result_columns;
  int block_images, tile_rows;
  Divisor image_tiles, row_tiles;
  // A stage of the ring: [image][channel of the chunk][line][column], pitches and `odd` in floats. At stride 2 a tile's
  // second line starts at `odd`, behind all first and third ones.
  Divisor image_vectors, line_vectors,
      lines;   // vectors of an image (with gaps at stride 1) and a line, lines of a channel
  int vector;  // floats of a copy
  int chunk, lead, odd, pitch, channel_pitch, image_pitch;
  bool planes;  // the block reads whole planes, which lie behind one another in memory
  bool whole;   // a warp has whole planes of the result
  bool turned;  // the taps act turned by 180 degrees
  bool relu;    // the Epilogue of a fused fprop, else false and null
  const float *scale, *shift, *residual;
};

inline int up(int64_t value, int multiple) { return static_cast<int>(blocks_for(value, multiple) * multiple); }

// Source channels of a stage: enough stages to fill the ring with, but no more than `limit` allows.
template <class K>
int largest_chunk(int64_t floats_per_channel, int64_t limit, int least = 1) {
  int chunk = std::max(K::width / K::stages, least);
  while (chunk > least && chunk * floats_per_channel > limit) chunk /= 2;
  return chunk;
}

// Whole planes whose rows are no whole vectors: 7 or 14 columns. False if they do not fit.
template <class K>
bool plan_planes(Plan& g, int rows, int row_tiles) {
  if (g.columns % 4 == 0 || g.columns % (K::stride * tile_columns) != 0 || int64_t{rows} * row_tiles > warp_lanes)
    return false;
  int image_tiles = 1;
  while (image_tiles < rows * row_tiles) image_tiles *= 2;
  g.planes = true;
  g.vector = K::stride == 2 ? 2 : 4;  // by twos, images can start an odd number of pairs apart, in other banks
  const int images = std::min(g.block_images, K::tile_warps * warp_lanes / image_tiles);
  const int limit = std::min(K::stage_floats, K::copies * K::threads * g.vector);
  g.chunk = largest_chunk<K>(images * (g.source_plane + g.vector), limit, g.source_plane % 4 ? 4 : 1);
  const int image_floats = static_cast<int>(g.chunk * g.source_plane);
  g.image_pitch = image_floats + g.vector;
  if (g.image_pitch > limit) return false;
  g.block_images = std::min(images, limit / g.image_pitch);
  g.tile_rows = rows;
  g.image_tiles = divisor(image_tiles);
  g.row_tiles = divisor(row_tiles);
  g.image_vectors = divisor((K::stride == 2 ? image_floats : g.image_pitch) / g.vector);
  g.line_vectors = g.lines = divisor(1);
  g.lead = 0;
  g.pitch = g.columns;
  g.channel_pitch = static_cast<int>(g.source_plane);
  return true;
}

// Where the second lines start at stride 2: so that in each two rows of the source, lines follow one another's banks.
inline int odd_start(int rows, int pitch) { return up(rows * pitch, 32) + pitch; }

template <class K>
int channel_floats(int rows, int pitch) {
  return K::stride == 2 ? odd_start(rows, pitch) + rows * pitch : (rows - 1 + K::source_rows) * pitch;
}

// Runs of rows, in strips where they are long. Lines hold whole tiles; what is not in the image is zero there.
template <class K>
void plan_rows(Plan& g, int64_t rows, int64_t all_row_tiles) {
  const int row_tiles = static_cast<int>(std::min<int64_t>(all_row_tiles, K::strip_tiles));
  g.planes = false;
  g.vector = g.columns % 4 == 0 ? 4 : 1;
  g.strips = blocks_for(all_row_tiles, row_tiles);
  g.lead = g.strips > 1 ? 4 : 0;
  g.pitch = g.lead + up(K::stride * tile_columns * row_tiles, 4) + g.lead;
  const int limit = std::min(K::stage_floats, K::copies * K::threads * g.vector);
  int most_rows = K::tile_warps * warp_lanes / row_tiles;
  while (channel_floats<K>(most_rows, g.pitch) > limit) --most_rows;
  g.runs = blocks_for(rows, most_rows);
  g.tile_rows = static_cast<int>(blocks_for(rows, g.runs));
  int image_tiles = g.tile_rows * row_tiles;
  const bool entire = g.runs == 1 && g.strips == 1;
  if (entire && image_tiles <= warp_lanes)
    for (image_tiles = 1; image_tiles < g.tile_rows * row_tiles;) image_tiles *= 2;
  g.odd = odd_start(g.tile_rows, g.pitch);
  g.channel_pitch = channel_floats<K>(g.tile_rows, g.pitch);
  const int most_images = std::min(limit / g.channel_pitch, K::tile_warps * warp_lanes / image_tiles);
  g.block_images = entire ? std::min(g.block_images, most_images) : 1;
  g.chunk = largest_chunk<K>(int64_t{g.block_images} * g.channel_pitch, limit);
  g.image_pitch = g.chunk * g.channel_pitch;
  g.image_tiles = divisor(image_tiles);
  g.row_tiles = divisor(row_tiles);
  g.lines = divisor(K::stride * (g.tile_rows - 1) + K::source_rows);
  g.line_vectors = divisor(g.pitch / g.vector);
  g.image_vectors = divisor(g.chunk * g.lines.value * g.line_vectors.value);
}

// Fills in the rest of a plan whose tensors and sizes are set.
template <class K>
void complete(Plan& g) {
  const int rows = K::spread == 2 ? g.rows : g.result_rows, columns = K::spread == 2 ? g.columns : g.result_columns;
  g.source_plane = int64_t{g.rows} * g.columns;
  g.result_plane = int64_t{g.result_rows} * g.result_columns;
  g.groups = g.channels / K::width;
  g.strips = g.runs = 1;
  const int64_t image_floats = g.channels * g.source_plane;  // a block counts in 32 bits from its first image on
  const int64_t images = std::min<int64_t>(g.images, most_floats / std::max<int64_t>(image_floats, 1));
  g.block_images = static_cast<int>(std::max<int64_t>(images, 1));
  const int64_t row_tiles = blocks_for(columns, tile_columns);
  if (!plan_planes<K>(g, rows, static_cast<int>(row_tiles))) plan_rows<K>(g, rows, row_tiles);
  g.image_blocks = blocks_for(g.images, g.block_images);
  g.whole = g.strips == 1 && g.runs == 1 && g.image_tiles.value <= warp_lanes;
}

}  // namespace resnext::cuda::rows_nchw
