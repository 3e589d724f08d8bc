#pragma once
// What the row-streaming kernels are made of up to shared memory: tile sizes, problem, segments, and the loads of
// weights and rows. rows_nhwc.h says how it all fits together.
#include "device.h"
#include "generic_index.h"

namespace resnext::cuda::rows_nhwc {

constexpr int taps = 3, tile_columns = 7, vectors = 8, block_channels = 4 * vectors;

// What differs between group widths. A source row comes to shared memory in parts, each of some vectors of every group.
template <int group_width, int row_parts>
struct Sizes {
  static constexpr int width = group_width, parts = row_parts, stages = parts == 1 ? 2 : 3;
  static constexpr int part_vectors = vectors / parts;
  static constexpr int group_vectors = width / 4, group_part = group_vectors / parts;  // of a group: all, and in a part
  static constexpr int swizzle = width == 4 ? 4 : 1;
};

// A kernel that gathers: each result position reads three source rows and columns, `stride` apart from the next one's
// and starting `before` its own. Together, results read `halo` more than `stride` a result. Wide groups come in parts,
// as their weights leave less room.
template <int width, int result_stride>
    struct Gw : Sizes < width,
    width<16                                  ? 1
          : width == 32 && result_stride == 2 ? 4
                                              : 2> {
  static constexpr int stride = result_stride, halo = taps - stride, before = 1, spread = 1;
  static constexpr int warps = stride == 1 || width == 32 ? 4 : 2;
  static constexpr int blocks = 8 / warps;  // per multiprocessor, as far as registers go
};

// A kernel that spreads, dgrad at stride 2: each source position owns `spread` result rows and columns, for which it
// and the next one are read.
template <int width>
struct Spread : Sizes<width, 1> {
  static constexpr int stride = 1, halo = 1, before = 0, spread = 2;
  static constexpr int warps = width < 16 ? 4 : 3;
  static constexpr int blocks = width < 16 ? 2 : 3;
};

// How the four tiles of a warp are shared out to segments.
struct Wide {
  static constexpr int segment_tiles = 4, segments = 1;
};
struct Medium {
  static constexpr int segment_tiles = 2, segments = 2;
};
struct Narrow {
  static constexpr int segment_tiles = 1, segments = 4;
};

// Columns of a segment in the ring: those of its tiles, and the neighbours that their taps reach.
template <class Gw, class Map>
constexpr int segment_columns = Gw::stride * Map::segment_tiles * tile_columns + Gw::halo;

// Where the ring keeps a vector of a segment's column; columns of two tiles differ in the bit that is flipped.
template <class Gw>
__device__ __forceinline__ int swizzled(int vector, int segment, int column) {
  return vector ^ (column / Gw::stride + segment) % 2 * Gw::swizzle;
}

template <class Gw, class Map>
struct Smem {
  float4 ring[Gw::warps][Gw::stages][Map::segments * segment_columns<Gw, Map>][Gw::part_vectors];
  float4 weight[Gw::width * taps * taps][vectors];
  float4 bias[vectors];
  int special[4];  // whether one of the warps has loaded a weight that is not finite
};

// Pointers, sizes and strides; `turned`: the taps act turned by 180 degrees.
struct Rows {
  const float *source, *weight, *bias;
  float* result;
  int64_t weight_result, weight_source, weight_group, weight_r, weight_s;
  int64_t channels, images, channel_blocks, segments, strips, runs;
  int rows, columns, result_rows, result_columns, run_rows;
  bool turned;
  bool relu;  // the Epilogue of a fused fprop, else false and null
  const float *scale, *shift, *residual;
};

// What keeps the lanes in order; a parameter of the kernel so that tests can leave one out.
struct Sync {
  __device__ static void weights() { __syncthreads(); }
  __device__ static void row() { __syncwarp(); }
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest>();
  }
};

// Rows and columns are those of the result or, in a kernel that spreads, of the source.
struct Segment {
  int64_t image;
  int row, column;  // the first
  bool exists;
};

template <class Map>
__device__ __forceinline__ Segment segment_of(const Rows& g, int64_t index) {
  const Split run = split(index, g.runs), strip = split(run.quotient, g.strips);
  return {strip.quotient, static_cast<int>(run.remainder) * g.run_rows,
          static_cast<int>(strip.remainder) * Map::segment_tiles * tile_columns, index < g.segments};
}

// One weight of the block: the result channel counts from the block's first, the source channel within its group.
struct WeightAt {
  int result, source, tap;
};

// The weight that a lane loads in a warp's `step`th load: in order of source channels and taps, 8 lanes for each of the
// 4 result channels of a vector, where source channels are the closer ones in memory; else 32 lanes in order of result
// channels and taps. So loads are coalesced, and stores meet in a bank at most twice.
template <class Gw>
__device__ __forceinline__ WeightAt weight_at(bool sources_closer, int step, int lane) {
  constexpr int area = taps * taps;
  if (sources_closer) {
    const int row = step / vectors * 8 + lane % 8;
    return {step % vectors * 4 + lane / 8, row / area, row % area};
  }
  const int element = step % area * 32 + lane;
  return {element / area, step / area, element % area};
}

// The weights of the block's 32 result channels, and their bias.
template <class Gw, class Map>
__device__ __forceinline__ void load_weights(const Rows& g, int64_t first_channel, Smem<Gw, Map>& smem) {
  constexpr int weight_rows = Gw::width * taps * taps, threads = 32 * Gw::warps;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool sources_closer = g.weight_source < g.weight_result;
  bool finite = true;
#pragma unroll 4
  for (int step = warp; step < (weight_rows + 7) / 8 * vectors; step += Gw::warps) {
    const WeightAt at = weight_at<Gw>(sources_closer, step, lane);
    if (at.source >= Gw::width) continue;
    const int64_t channel = first_channel + at.result;
    float value = 0;
    if (channel < g.channels)
      value = g.weight[channel / Gw::width * g.weight_group + channel % Gw::width * g.weight_result +
                       at.source * g.weight_source + at.tap / taps * g.weight_r + at.tap % taps * g.weight_s];
    finite = finite && value - value == 0;
    const int row = at.source * taps * taps + (g.turned ? taps * taps - 1 - at.tap : at.tap);
    reinterpret_cast<float*>(&smem.weight[row][at.result / 4 ^ row % 8])[at.result % 4] = value;
  }
  for (int i = threadIdx.x; i < block_channels; i += threads)
    reinterpret_cast<float*>(smem.bias)[i] = g.bias && first_channel + i < g.channels ? g.bias[first_channel + i] : 0;
  const bool special = __any_sync(0xffffffffu, !finite);
  for (int i = warp; lane == 0 && i < 4; i += Gw::warps) smem.special[i] = special;
}

// Source rows that a run reads, some of which may lie outside the image.
template <class Gw>
__device__ __forceinline__ int source_rows(const Rows& g) {
  return Gw::stride * g.run_rows + Gw::halo;
}

// A lane's share in copying parts of rows to the ring: one vector of every `step`th column of one segment.
template <class Gw, class Map>
struct Loader {
  const float* from;                  // the lane's first column in the next part
  int y, part, end;                   // which that is, and the first row not to be copied
  unsigned valid;                     // bit i: column i exists
  int segment_index, column, vector;  // of the first

  static constexpr int step = 32 / Map::segments / Gw::part_vectors;
  static constexpr int count = (segment_columns<Gw, Map> + step - 1) / step;

  __device__ __forceinline__ Loader(const Rows& g, int64_t first_segment, int64_t first_channel, int lane) {
    constexpr int lanes = 32 / Map::segments;
    const Segment segment = segment_of<Map>(g, first_segment + lane / lanes);
    column = lane % lanes / Gw::part_vectors;
    segment_index = lane / lanes;
    const int at = Gw::stride * segment.column - Gw::before + column;
    vector = lane % Gw::part_vectors;
    const int64_t channel = first_channel + 4 * (vector / Gw::group_part * Gw::group_vectors + vector % Gw::group_part);
    y = Gw::stride * segment.row - Gw::before;
    part = 0;
    end = min(g.rows, y + source_rows<Gw>(g));
    const int64_t pixel = (segment.image * g.rows + y) * g.columns + at;
    from = g.source + pixel * g.channels + channel;
    valid = 0;
    for (int i = 0; i < count; ++i) {
      const int x = at + i * step;
      if (segment.exists && x >= 0 && x < g.columns && channel < g.channels) valid |= 1u << i;
    }
  }

  // Starts the copy of the next part and makes a group of it, an empty one if there is no such row.
  __device__ __forceinline__ void copy_next(const Rows& g, float4 (*stage)[Gw::part_vectors]) {
    if (y >= 0 && y < end) {
      const float* pixel = from;
#pragma unroll
      for (int i = 0; i < count; ++i, pixel += step * g.channels) {
        const int at = column + i * step;
        if ((i + 1) * step > segment_columns<Gw, Map> && at >= segment_columns<Gw, Map>) continue;
        const bool exists = valid >> i & 1;
        ptx::cp_async<16>(
            &stage[segment_index * segment_columns<Gw, Map> + at][swizzled<Gw>(vector, segment_index, at)],
            exists ? pixel : g.source, exists ? 16 : 0);
      }
    }
    ptx::cp_async_commit();
    from += 4 * Gw::group_part;
    if (++part == Gw::parts) {
      part = 0;
      ++y;
      from += g.columns * g.channels - Gw::width;
    }
  }
};

}  // namespace resnext::cuda::rows_nhwc
