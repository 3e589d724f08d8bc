#pragma once
// What the tensor-core kernels are made of up to shared memory: sizes, what a launch is told, segments, and the copies
// of source rows. mma_nhwc.h says how it all fits together.
#include <type_traits>

#include "device.h"
#include "generic_index.h"

namespace resnext::cuda::mma_nhwc {

constexpr int taps = 3, tile_pixels = 16;

// What differs between group widths. A team of warps shares the source rows of its channels, a multiple of 16: those of
// one group, of two where the width is an odd multiple of 8, of four at width 4. Of two groups, a warp in the middle
// has a tile of either, so all warps address the source channels of their two tiles apart. At width 4, two result
// columns share an mma, see mma_nhwc_pairs.h.
template <int group_width>
struct Team {
  static constexpr int warp_channels = 16, vector_channels = 8;  // channels of a warp's results, and of 16 bytes
  static constexpr int width = group_width;
  static constexpr bool pairs = width == 4, fuses = false, pads = false;
  static constexpr bool exchanges = width % 16 != 0;  // lanes store what a neighbour has summed
  static constexpr bool watches = pairs;              // for sums that are NaN and should not be, see mma_nhwc_edges.h
  static constexpr int products = 0;                  // in floats: mmas for one, see mma_nhwc_tf32.h
  static constexpr int channels = pairs ? 16 : exchanges ? 2 * width : width, warps = channels / warp_channels;
  static constexpr int vectors = 2 * warps;  // of 16 bytes, of a pixel in the ring
  static constexpr int abreast = vectors % 8 == 0 ? 8 : vectors % 4 == 0 ? 4 : 2;  // that lanes copy of a pixel
  static constexpr int depth = width % 16 == 8 ? 8 : 16;  // source channels of one mma; x columns in pairs
  static constexpr int sources = pairs ? 4 : depth;       // source channels of a step
  static constexpr int steps = width / sources;           // mmas over the source channels of a group
  static constexpr int halves = depth / 8;                // of a step
  static constexpr int tiles = pairs ? 4 : 2;             // of a warp's results, 8 columns each
  // of a block, which share the weights
  static constexpr int teams = warps == 2 ? 8 : warps == 7 ? 1 : warps == 4 || warps == 5 ? 2 : 4;
  static constexpr int threads = 32 * warps * teams;
  // Along several images, as the teams are few for so many weights; unless registers are, too.
  static constexpr bool walks = width == 40 || width > 48;
  // per multiprocessor
  static constexpr int blocks = pairs ? 4 : width <= 8 ? 6 : width <= 16 ? 5 : 1;
};

// Kernels that gather: a result position reads three source rows and columns, `stride` apart from the next one's and
// starting `before` its own. At stride 2 the ring keeps even columns before odd ones, so that each tap reads
// neighbouring pixels. `across`: positions of a row of mma; `operands`: those over which the tap columns are spread.
template <int width, int result_stride>
struct Gather : Team<width> {
  static constexpr int stride = result_stride, before = 1, halo = taps - stride, spread = 1, across = 1;
  static constexpr int stages = stride == 1 ? 3 : 4;  // of the ring
  static constexpr int pixels = stride * (tile_pixels - 1) + taps, operands = taps;

  // The ring's pixel, and column in the segment, of a lane's ith copy, of which the first is of pixel `first` < 16.
  static constexpr int column(int first, int i) {
    if constexpr (stride == 1) return first + tile_pixels * i - 1;
    return 2 * first + (i == 2 ? 2 * tile_pixels - 1 : -i);
  }
  // Where the pixels are that tap column s reads for the tile's first result.
  __device__ static int start(int s) {
    if constexpr (stride == 1) return s;
    return s == 1 ? 0 : tile_pixels + s / 2;
  }
};

template <int result_stride>
struct Gather<4, result_stride> : Team<4> {
  static constexpr int stride = result_stride, before = 1, halo = taps - stride, spread = 1, across = 2;
  static constexpr int stages = stride == 1 ? 3 : 4;
  static constexpr int pixels = stride * (2 * tile_pixels - 1) + taps, operands = stride;
  static constexpr int blocks = stride == 1 ? 4 : 3;
  static constexpr int apart = 2 * stride;  // pixels from one row of mma to the next

  static constexpr int column(int first, int i) { return first + tile_pixels * i - 1; }
  // Where a lane finds its pixel of an operand, in the row of mma: lane t has column t or, of the second one, column 4.
  __device__ static int start(int operand) { return operand == 0 ? 0 : 4 - static_cast<int>(threadIdx.x % 4); }
  __device__ static int lane_pixel() { return threadIdx.x % 4; }
  // The tap column by which lane t's pixel reaches result column `own` of the pair, or none, which is not 0, 1 or 2.
  static constexpr int tap(int operand, int t, int own) {
    return operand > 0 && t > 0 ? taps : 4 * operand + t - stride * own;
  }
};

// The kernel that spreads, dgrad at stride 2: each source position owns two result rows and columns, for which it and
// the next one are read.
template <int width>
struct Spread : Team<width> {
  static constexpr int stride = 1, before = 0, halo = 1, spread = 2, stages = 4, across = 1;
  static constexpr int pixels = tile_pixels + 1, operands = taps;
  static constexpr bool walks = width > 48;
  // At widths 40 and 48 a team more would leave too few registers.
  static constexpr int teams = Team<width>::teams / (width == 40 || width == 48 ? 2 : 1);
  static constexpr int threads = 32 * Team<width>::warps * teams;
  static constexpr int column(int first, int i) { return first + tile_pixels * i; }
  __device__ static int start(int s) { return s == 0; }
};

template <>
struct Spread<4> : Team<4> {
  static constexpr int stride = 1, before = 0, halo = 1, spread = 2, stages = 4, across = 1;
  static constexpr int pixels = tile_pixels + 1, operands = 1, apart = 1;
  static constexpr int column(int first, int i) { return first + tile_pixels * i; }
  __device__ static int start(int) { return 0; }
  __device__ static int lane_pixel() { return min(threadIdx.x % 4, 1u); }  // the others' meet no weight
  static constexpr int tap(int, int t, int own) { return t == 0 ? 1 + own : t == 1 && own == 1 ? 0 : taps; }
};

// A kernel that gathers and applies an Epilogue, which takes registers.
template <class Kind>
struct Fused : Kind {
  static constexpr bool fuses = true, walks = Kind::walks && Kind::width != 40;
  static constexpr bool of_two_warps = Kind::warps == 2 && Kind::products == 0;
  static constexpr int teams = of_two_warps || Kind::width == 48 ? 2 : Kind::teams, threads = 32 * Kind::warps * teams;
  static constexpr int blocks = of_two_warps ? 3 : Kind::blocks > 1 ? Kind::blocks - 1 : 1;
};

// A kernel of groups of up to Kind::width channels, how many of the source and how many of the result is known at its
// launch. Those that a group lacks are zeros in the ring and among the weights, and are not stored; whole steps of them
// are left out, and warps that would make nothing else only copy.
template <class Kind>
struct PaddedGroups : Kind {
  static constexpr bool pads = true;
};

// A stage of the ring: [vector][pixel]. The pitch is such that the 8 vectors that 8 lanes copy, 2, 4 or 8 of 4, 2 or 1
// pixels, lie in different banks, as do any 8 neighbouring pixels that ldmatrix reads of one vector.
template <class Kind>
constexpr int pitch = (Kind::pixels + 7 - 8 / Kind::abreast) / 8 * 8 + 8 / Kind::abreast;
template <class Kind>
constexpr int stage_vectors = Kind::vectors * pitch<Kind>;

// What a launch is told. Strides of weights are in elements.
struct Lines {
  const void *source, *weight, *bias;
  void* result;
  int64_t weight_result, weight_source, weight_group, weight_r, weight_s;
  // Weights that can be copied 16 bytes at a time, or null: of a step, pieces of so many vectors, so far apart in
  // memory; and the strides of the copy in shared memory.
  const void* packed;
  int piece_vectors, piece_bytes, step_bytes, copy_first, copy_result, copy_source, copy_r, copy_s;
  int64_t source_row, result_row;  // lengths in bytes
  int64_t lower_half;              // bytes from the result of a tile's row m to that of m + 8
  int64_t copy_1, copy_2;          // bytes from the source of a lane's copy 2i to that of 2i + 1, and of 2i + 2
  int images, channels, channel_blocks, rows, columns, result_rows, result_columns;
  int tile_columns, tile_images, strips, runs, run_rows, walk;
  bool relu;  // the Epilogue of a fused fprop, else false and null
  const float *scale, *shift;
  const void* residual;
  // In PaddedGroups, channels of a group and of a pixel; `channels` counts Kind::width for each group there.
  int source_width, result_width, source_channels, result_channels;
};

template <class T>
__device__ __forceinline__ T* advance(T* pointer, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(pointer) + bytes);
}

// What keeps the lanes in order; a parameter of the kernel so that tests can leave one out.
struct Sync {
  static constexpr bool mends = true;  // results that are not finite; that would hide what tests look for
  __device__ static void weights() { __syncthreads(); }
  template <int warps>
  __device__ static void row(int team) {
    if constexpr (warps == 1)
      __syncwarp();
    else
      ptx::barrier_sync(1 + team, 32 * warps);
  }
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest>();
  }
};

// A block has the channels from this one on.
template <class Kind>
__device__ __forceinline__ int first_channel(const Lines& g) {
  return static_cast<int>(blockIdx.x % static_cast<unsigned>(g.channel_blocks)) * Kind::channels;
}

// Channels of a group, and of a pixel; and where the block's begin, which PaddedGroups count apart in source and
// result.
template <class Kind>
__host__ __device__ __forceinline__ int source_width(const Lines& g) {
  return Kind::pads ? g.source_width : Kind::width;
}
template <class Kind>
__host__ __device__ __forceinline__ int result_width(const Lines& g) {
  return Kind::pads ? g.result_width : Kind::width;
}
template <class Kind>
__device__ __forceinline__ int source_channels(const Lines& g) {
  if constexpr (Kind::pads) return g.source_channels;
  return g.channels;
}
template <class Kind>
__device__ __forceinline__ int result_channels(const Lines& g) {
  if constexpr (Kind::pads) return g.result_channels;
  return g.channels;
}
template <class Kind>
__device__ __forceinline__ int first_source(const Lines& g) {
  if constexpr (Kind::pads) return first_channel<Kind>(g) / Kind::width * g.source_width;
  return first_channel<Kind>(g);
}
template <class Kind>
__device__ __forceinline__ int first_result(const Lines& g) {
  if constexpr (Kind::pads) return first_channel<Kind>(g) / Kind::width * g.result_width;
  return first_channel<Kind>(g);
}

// Whether the block's result channel `own` exists, which is `channel` of the result.
template <class Kind>
__device__ __forceinline__ bool has_result(const Lines& g, int own, int channel) {
  if constexpr (Kind::pads) return own < g.result_width;
  return own < Kind::channels && channel < g.channels;
}

// Steps with source channels that exist, of a block and of a warp, which has none if its result channels do not exist.
template <class Kind>
__device__ __forceinline__ int used_steps(const Lines& g) {
  return Kind::pads ? (g.source_width + Kind::sources - 1) / Kind::sources : Kind::steps;
}
template <class Kind>
__device__ __forceinline__ int warp_steps(const Lines& g) {
  const bool idle =
      Kind::pads && static_cast<int>(threadIdx.x / 32 % Kind::warps) * Kind::warp_channels >= g.result_width;
  return idle ? 0 : used_steps<Kind>(g);
}

// What a team makes: a run of rows in a strip of 16 columns of an image (32 where it takes pairs), or in narrow images
// side by side; where groups are wide, then the same of the next images, up to `segments` times. Rows and columns are
// those of the result or, in Spread, of the source.
struct Walk {
  int image, row, column, segments;  // the first image, row and column
  int source_rows, made;             // that it reads of a segment; results of its own that they make at stride 1
  int turns;                         // of the ring in a segment: at stride 1 each begins in the first stage
};

// The source rows that a run reads, as far as the image has them.
template <class Kind>
__device__ __forceinline__ int first_source_row(const Walk& walk) {
  return max(Kind::stride * walk.row - Kind::before, 0);
}
template <class Kind>
__device__ __forceinline__ int end_source_row(const Lines& g, const Walk& walk) {
  return min(Kind::stride * (walk.row + g.run_rows) - Kind::before + Kind::halo, g.rows);
}

template <class Kind>
__device__ __forceinline__ Walk walk_of(const Lines& g) {
  const unsigned block = blockIdx.x / static_cast<unsigned>(g.channel_blocks);
  const Split run = split(static_cast<int64_t>(block) * Kind::teams + threadIdx.x / (32 * Kind::warps), g.runs);
  const Split strip = split(run.quotient, g.strips);
  const int64_t images = static_cast<int64_t>(g.walk) * g.tile_images, image = strip.quotient * images;
  const int64_t left = max(min(images, g.images - image), int64_t{0});
  Walk walk{static_cast<int>(image), static_cast<int>(run.remainder) * g.run_rows,
            static_cast<int>(strip.remainder) * tile_pixels * Kind::across,
            (static_cast<int>(left) + g.tile_images - 1) / g.tile_images};
  const int first = first_source_row<Kind>(walk);
  walk.source_rows = end_source_row<Kind>(g, walk) - first;
  walk.made = first + walk.source_rows - 1 - walk.row;
  walk.turns = Kind::stages == taps ? (walk.source_rows + taps - 1) / taps * taps : walk.source_rows;
  return walk;
}

// Turns of the ring that are left, where so many source rows are left of a segment.
template <class Kind>
__device__ __forceinline__ int left_of_walk(const Walk& walk, int segment, int left) {
  return left + (Kind::walks ? (walk.segments - segment) * walk.turns - walk.source_rows : 0);
}

// A lane's share in copying source rows to the ring: one vector of every 16th pixel.
template <class Kind, class T>
struct Loader {
  static constexpr int count = (Kind::pixels + tile_pixels - 1) / tile_pixels;
  const T* from;   // the lane's first pixel in the next row
  unsigned valid;  // bit i: the lane's ith pixel exists; bit 8 + i: in the last segment too

  // The first pixel, and the vector. Eight lanes take as many vectors of a pixel as lie in different banks.
  __device__ __forceinline__ static int pixel() {
    const int of_team = threadIdx.x % (32 * Kind::warps), eight = of_team / 8;
    return eight / (Kind::vectors / Kind::abreast) * (8 / Kind::abreast) + of_team % 8 / Kind::abreast;
  }
  __device__ __forceinline__ static int vector() {
    const int eight = threadIdx.x % (32 * Kind::warps) / 8;
    return eight % (Kind::vectors / Kind::abreast) * Kind::abreast + threadIdx.x % Kind::abreast;
  }

  // The image, from the walk's first on, and the column of a lane's ith copy.
  __device__ __forceinline__ static int2 place(const Lines& g, int i) {
    if (Kind::pairs && g.tile_images > 1) {
      const int at = pixel() + tile_pixels * i, columns = Kind::stride * g.tile_columns;
      return make_int2(at / columns, at % columns - Kind::before);
    }
    return make_int2(pixel() / g.tile_columns, Kind::column(pixel() % g.tile_columns, i));
  }

  __device__ __forceinline__ Loader(const Lines& g, const Walk& walk) {
    const int2 first = place(g, 0);
    const int y = first_source_row<Kind>(walk), channel = first_source<Kind>(g) + Kind::vector_channels * vector();
    from = advance(static_cast<const T*>(g.source),
                   (static_cast<int64_t>(walk.image + first.x) * g.rows + y) * g.source_row) +
           static_cast<int64_t>(Kind::stride * walk.column + first.y) * source_channels<Kind>(g) + channel;
    valid = 0;
    const int last_image = Kind::walks ? (walk.segments - 1) * g.tile_images : 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const int2 at = place(g, i);
      const int image = walk.image + at.x, x = Kind::stride * walk.column + at.y;
      const bool beyond = i >= Kind::stride * Kind::across && g.tile_images > 1;
      if (channel >= (Kind::pads ? first_source<Kind>(g) + g.source_width : g.channels) || x < 0 || x >= g.columns ||
          beyond)
        continue;
      if (image < g.images) valid |= 1u << i;
      if (Kind::walks && image + last_image < g.images) valid |= 256u << i;
    }
    if (Kind::walks) from = advance(from, -to_next_images(g, walk));
  }

  // Bytes from the end of a segment to the beginning of the next one.
  __device__ __forceinline__ static int64_t to_next_images(const Lines& g, const Walk& walk) {
    return (static_cast<int64_t>(g.tile_images) * g.rows - walk.source_rows) * g.source_row;
  }

  // Whether a step reads the lane's vector.
  __device__ __forceinline__ static bool is_read(const Lines& g) {
    return vector() < used_steps<Kind>(g) * Kind::halves;
  }

  // Copies a vector, or zeros; halves of it where groups, which begin 8 bytes apart, may end in the middle of one.
  __device__ __forceinline__ static void copy(const Lines& g, uint4* to, const T* pointer, bool exists) {
    if (Kind::pads && g.source_width % 8 != 0) {
      const bool second = exists && Kind::vector_channels * vector() + 4 < g.source_width;
      ptx::cp_async<8>(to, pointer, exists ? 8 : 0);
      ptx::cp_async<8>(reinterpret_cast<uint2*>(to) + 1, pointer + 4, second ? 8 : 0);
    } else {
      ptx::cp_async<16>(to, pointer, exists ? 16 : 0);
    }
  }

  // Starts the copy of the next row to the lane's place in a stage, and makes a group of it, an empty one if there is
  // no such row. `left`: turns of the walk from it on; one along several images goes on with the next of them.
  __device__ __forceinline__ void copy_next(const Lines& g, const Walk& walk, uint4* to, int left) {
    const unsigned of_segment = Kind::walks ? static_cast<unsigned>(left) % static_cast<unsigned>(walk.turns) : left;
    const bool first = Kind::walks && of_segment == 0;
    if (left > 0 && (!Kind::walks || first || static_cast<int>(of_segment) > walk.turns - walk.source_rows)) {
      if (first) {
        from = advance(from, to_next_images(g, walk));
        if (left == walk.turns) valid >>= 8;
      }
#pragma unroll
      for (int i = 0; i < count; ++i) {
        if (pixel() + tile_pixels * i >= Kind::pixels) continue;
        if (Kind::pads && !is_read(g)) continue;
        const T* pointer = advance(from, i % 2 * g.copy_1 + i / 2 * g.copy_2);
        copy(g, to + tile_pixels * i, pointer, valid >> i & 1);
      }
      from = advance(from, g.source_row);
    }
    ptx::cp_async_commit();
  }
};

// The rows that a team walks along, in the ring: one is multiplied while the next are on their way.
template <class Kind, class T, class Sync>
struct Ring {
  Loader<Kind, T> loader;
  uint4* target;        // of the lane's copies, in stage 0
  const uint4* source;  // what it addresses for ldmatrix, likewise: a pixel of a vector of the first step; or its own

  __device__ __forceinline__ Ring(const Lines& g, const Walk& walk, uint4* ring)
      : loader(g, walk), target(ring + loader.vector() * pitch<Kind> + loader.pixel()), source(ring + first_pixel()) {
#pragma unroll 1
    for (int i = 0; i < Kind::stages - 1; ++i)
      loader.copy_next(g, walk, target + i * stage_vectors<Kind>, left_of_walk<Kind>(walk, 0, walk.source_rows) - i);
  }

  __device__ __forceinline__ static int first_pixel() {
    if constexpr (Kind::pairs) return Kind::apart * (threadIdx.x % 32 / 4) + Kind::lane_pixel();
    const int half = threadIdx.x % 32 / 16;  // of the channels or, where a tile has 8 at a time, the tile
    if constexpr (Kind::depth == 16) return half * pitch<Kind> + threadIdx.x % 16;
    const int group = (threadIdx.x / 32 % Kind::warps * 2 + half) / Kind::steps;  // a vector is a tile, and a step
    return group * Kind::steps * pitch<Kind> + threadIdx.x % 16;
  }

  // The next row, once it is there, in the stage named; starts a copy to the one before it. The walk has `left` turns
  // from the next one on.
  __device__ __forceinline__ const uint4* next(const Lines& g, const Walk& walk, int stage, int left) {
    Sync::template copies<Kind::stages - 2>();
    Sync::template row<Kind::warps>(threadIdx.x / (32 * Kind::warps));
    loader.copy_next(g, walk, target + (stage == 0 ? Kind::stages - 1 : stage - 1) * stage_vectors<Kind>,
                     left - (Kind::stages - 1));
    return source + stage * stage_vectors<Kind>;
  }
};

}  // namespace resnext::cuda::mma_nhwc
