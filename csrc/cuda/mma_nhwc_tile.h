#pragma once
// What a warp of the tensor-core kernels owns of a result: 16 pixels x 16 channels of some rows. mma_nhwc.h says how it
// all fits together.
#include "mma_nhwc_weights.h"

namespace resnext::cuda::mma_nhwc {

// Tiles of 16 pixels x 8 channels (or 16 pairs of pixels x 4), as mma leaves them: a lane has columns 2t and 2t + 1 of
// rows g and g + 8.
template <class Kind>
using Sums = float[Kind::tiles][4];

// The first channel, within those of the team, that a lane stores of four, or of eight in pairs.
template <class Kind>
__device__ __forceinline__ int lane_channel() {
  const int t = threadIdx.x % 4, of_warp = Kind::pairs       ? t % 2 * 8
                                           : Kind::exchanges ? t % 2 * 8 + t / 2 * 4
                                                             : t * Kind::warp_channels / 4;
  return threadIdx.x / 32 % Kind::warps * Kind::warp_channels + of_warp;
}

// What a lane stores: [0] is in row g of its tile, [1] in g + 8.
template <class T>
struct Tile {
  T* result;              // four channels of the first row's pixel g (in Spread of the first of its two columns)
  bool exists[2];         // whether the pixel does
  bool second_exists[2];  // in Spread: whether it has a second column
};

template <class Kind, class T>
__device__ __forceinline__ Tile<T> tile_of(const Lines& g, const Walk& walk, int segment) {
  const int channel = first_result<Kind>(g) + lane_channel<Kind>();
  const bool has_channels = has_result<Kind>(g, lane_channel<Kind>(), channel);
  Tile<T> tile;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int m = Kind::across * (threadIdx.x % 32 / 4 + 8 * half),
              image = walk.image + segment * g.tile_images + m / g.tile_columns;
    const int own = Kind::pairs ? threadIdx.x % 4 / 2 : 0;  // of a pair
    const int q = Kind::spread * (walk.column + m % g.tile_columns) + own;
    tile.exists[half] = has_channels && q < g.result_columns && image < g.images;
    tile.second_exists[half] = q + 1 < g.result_columns;
    if (half == 0)
      tile.result = advance(static_cast<T*>(g.result),
                            (static_cast<int64_t>(image) * g.result_rows + Kind::spread * walk.row) * g.result_row) +
                    static_cast<int64_t>(q) * result_channels<Kind>(g) + channel;
  }
  return tile;
}

template <int tiles>
__device__ __forceinline__ void clear(float (&sums)[tiles][4]) {
#pragma unroll
  for (auto& tile : sums)
#pragma unroll
    for (float& sum : tile) sum = 0;
}

// The A operands of one step: 16 neighbouring pixels of a row x 16 channels, or 8 for either tile, of which a lane
// addresses 8 of a pixel for ldmatrix; in pairs, one for each group. In floats 8 channels, of which it addresses 4, and
// what is left of them.
template <class Kind>
using Pixels = uint32_t[Kind::pairs    ? Kind::tiles
                        : splits<Kind> ? 2
                                       : 1][4];

template <class Kind>
__device__ __forceinline__ void load_pixels(Pixels<Kind>& pixels, const uint4* row, int start, int step) {
  if constexpr (Kind::pairs)
    load_pairs<Kind>(pixels, row + start);
  else
    ptx::ldmatrix(pixels[0], row + Kind::halves * step * pitch<Kind> + start);
  if constexpr (Kind::products > 0)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (splits<Kind>)
        split_tf32(pixels[0][i], pixels[1][i]);
      else
        pixels[0][i] = rounded_for_mma(__uint_as_float(pixels[0][i]));
    }
}

// sums += pixels * weights of one step and tap.
template <class Kind, class T>
__device__ __forceinline__ void multiply(Sums<Kind>& sums, const Pixels<Kind>& pixels,
                                         const Operand<Kind> (&weights)[Kind::tiles]) {
  if constexpr (Kind::products > 0) {
    multiply_tf32<Kind>(sums[0], pixels, weights[0]);
  } else {
#pragma unroll
    for (int tile = 0; tile < Kind::tiles; ++tile) {
      if constexpr (Kind::depth == 8)  // a tile has channels of its own
        ptx::mma_m16n8k8<T>(sums[tile], {pixels[0][2 * tile], pixels[0][2 * tile + 1]}, weights[tile]);
      else
        ptx::mma_m16n8k16<T>(sums[tile], pixels[Kind::pairs ? tile : 0], weights[tile]);
    }
  }
}

// Two neighbouring results.
template <class T>
using Two = std::conditional_t<sizeof(T) == 4, uint2, uint32_t>;

template <class T>
__device__ __forceinline__ Two<T> packed(float low, float high) {
  const T pair[2] = {from_acc<T>(low), from_acc<T>(high)};
  Two<T> bits;
  __builtin_memcpy(&bits, pair, sizeof(bits));
  return bits;
}

// A lane's values of the bias, or of the shift: in registers or, where those are short, in shared memory. And of the
// scale, in shared memory.
template <class Kind>
struct Bias {
  using Value = const typename WeightStage<Kind>::PerChannel;
  std::conditional_t<Kind::warps == 1, Value, Value&> value;
  Value& scale;
};

// From the channel of the first that a lane stores to that of the first sum that it has in a tile.
template <class Kind>
__device__ __forceinline__ int channel_of_tile(int tile) {
  const int t = threadIdx.x % 4;
  if constexpr (Kind::pairs) return 4 * tile + 2 * (t % 2) - 8 * (t % 2);
  if constexpr (Kind::exchanges) return 8 * tile + 2 * t - (t % 2 * 8 + t / 2 * 4);
  return 2 * tile;
}

// What a fused fprop makes of the sums of a pixel that a lane has: two of each tile. `result`: of what it will store of
// the pixel, where that exists.
template <class Kind, class T>
__device__ __forceinline__ void apply_epilogue(const Lines& g, float (&values)[2 * Kind::tiles], const Bias<Kind>& bias,
                                               const T* result, bool exists) {
#pragma unroll
  for (int tile = 0; tile < Kind::tiles; ++tile) {
    const float2 scale = bias.scale.of_tile[tile], shift = bias.value.of_tile[tile];
    values[2 * tile] = values[2 * tile] * scale.x + shift.x;
    values[2 * tile + 1] = values[2 * tile + 1] * scale.y + shift.y;
  }
  if (g.residual) {
    const T* residual = static_cast<const T*>(g.residual) + (result - static_cast<T*>(g.result));
#pragma unroll
    for (int tile = 0; tile < Kind::tiles; ++tile) {
      bool reads = exists;  // if they exchange, the sums are of channels that another lane of the pair may store
      if (Kind::exchanges) reads = __shfl_sync(0xffffffffu, exists, (threadIdx.x % 32 & ~1u) + 2 * tile / Kind::tiles);
      if (!reads) continue;
      const Two<T> bits = *reinterpret_cast<const Two<T>*>(residual + channel_of_tile<Kind>(tile));
      T pair[2];
      __builtin_memcpy(pair, &bits, sizeof(bits));
      values[2 * tile] += to_acc(pair[0]);
      values[2 * tile + 1] += to_acc(pair[1]);
    }
  }
  for (float& value : values)
    if (g.relu && value < 0) value = 0;  // NaN stays
}

// Adds the bias to a row of results, or what else there is to be done, rounds and stores them. Four lanes store the 32
// bytes of a pixel. Where the tiles are 8 channels each, a lane first gives those of the one to its neighbour for those
// of the other; in pairs, of two groups for those of two others.
template <class Kind, class T>
__device__ __forceinline__ void store_row(const Lines& g, const Sums<Kind>& sums, const Bias<Kind>& bias,
                                          Watch<Kind>& watch, T* result, const bool (&exists)[2]) {
  watch.see(sums);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float values[2 * Kind::tiles];
#pragma unroll
    for (int i = 0; i < 2 * Kind::tiles; ++i) values[i] = sums[i / 2][2 * half + i % 2];
    if constexpr (Kind::fuses) {
      apply_epilogue<Kind>(g, values, bias, advance(result, half * g.lower_half), exists[half]);
    } else if constexpr (Kind::spread == 1) {  // the other one is dgrad
#pragma unroll
      for (int tile = 0; tile < Kind::tiles; ++tile) {
        values[2 * tile] += bias.value.of_tile[tile].x;
        values[2 * tile + 1] += bias.value.of_tile[tile].y;
      }
    }
    if constexpr (Kind::pairs) {
      const uint4 eight = exchange_pairs(packed<T>(values[0], values[1]), packed<T>(values[2], values[3]),
                                         packed<T>(values[4], values[5]), packed<T>(values[6], values[7]));
      if (exists[half]) *reinterpret_cast<uint4*>(advance(result, half * g.lower_half)) = eight;
    } else if constexpr (Kind::tiles == 1) {
      const uint2 two = packed<T>(values[0], values[1]);
      if (exists[half]) *reinterpret_cast<uint2*>(advance(result, half * g.lower_half)) = two;
    } else {
      uint2 four = make_uint2(packed<T>(values[0], values[1]), packed<T>(values[2], values[3]));
      if constexpr (Kind::exchanges) {
        const bool odd = threadIdx.x % 2;
        const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? four.x : four.y, 1);
        four = odd ? make_uint2(other, four.y) : make_uint2(four.x, other);
      }
      if (exists[half]) *reinterpret_cast<uint2*>(advance(result, half * g.lower_half)) = four;
    }
  }
}

}  // namespace resnext::cuda::mma_nhwc
