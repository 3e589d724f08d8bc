#pragma once
// What a warp of the tensor-core kernels owns of a result: 16 pixels x 16 channels of some rows. mma_nhwc.h says how it
// all fits together.
#include "mma_nhwc_weights.h"

namespace resnext::cuda::mma_nhwc {

// Two tiles of 16 pixels x 8 channels, as mma leaves them: a lane has columns 2t and 2t + 1 of pixels g and g + 8.
using Sums = float[2][4];

// The first channel, within those of the team, that a lane stores of four.
template <class Kind>
__device__ __forceinline__ int lane_channel() {
  const int t = threadIdx.x % 4, of_warp = Kind::width == 8 ? t % 2 * 8 + t / 2 * 4 : t * 4;
  return threadIdx.x / 32 % Kind::warps * warp_channels + of_warp;
}

// What a lane stores: [0] is pixel g of its tile, [1] is g + 8.
template <class T>
struct Tile {
  T* result;              // four channels of the first row's pixel g (in Spread of the first of its two columns)
  bool exists[2];         // whether the pixel does
  bool second_exists[2];  // in Spread: whether it has a second column
  int images_left[2];     // from the pixel's image on; 0 if the pixel does not exist in any

  __device__ __forceinline__ void next_images(const Lines& g) {
    result = advance(result, static_cast<int64_t>(g.tile_images) * g.result_rows * g.result_row);
#pragma unroll
    for (int half = 0; half < 2; ++half) exists[half] = (images_left[half] -= g.tile_images) > 0;
  }
};

template <class Kind, class T>
__device__ __forceinline__ Tile<T> tile_of(const Lines& g, const Walk& walk) {
  const int channel = first_channel<Kind>(g) + lane_channel<Kind>();
  const bool has_channels = lane_channel<Kind>() < Kind::channels && channel < g.channels;
  Tile<T> tile;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int m = threadIdx.x % 32 / 4 + 8 * half, q = walk.column + m % g.tile_columns;
    const int image = walk.image + m / g.tile_columns;
    tile.images_left[half] = has_channels && Kind::spread * q < g.result_columns ? g.images - image : 0;
    tile.exists[half] = tile.images_left[half] > 0;
    tile.second_exists[half] = Kind::spread * q + 1 < g.result_columns;
    if (half == 0)
      tile.result = advance(static_cast<T*>(g.result),
                            (static_cast<int64_t>(image) * g.result_rows + Kind::spread * walk.row) * g.result_row) +
                    int64_t{Kind::spread} * q * g.channels + channel;
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

// The A operand of one step: 16 neighbouring pixels of a row x 16 channels, of which a lane addresses 8 of a pixel.
template <class Kind>
__device__ __forceinline__ void load_pixels(uint32_t (&pixels)[4], const uint4* row, int start, int step) {
  ptx::ldmatrix(pixels, row + 2 * step * pitch<Kind> + start);
}

// sums += pixels * weights of one step and tap.
template <class Kind, class T>
__device__ __forceinline__ void multiply(Sums& sums, const uint32_t (&pixels)[4],
                                         const uint32_t (&weights)[2][Kind::halves]) {
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
    if constexpr (Kind::depth == 8)  // a tile is a group, and half of the channels
      ptx::mma_m16n8k8<T>(sums[tile], {pixels[2 * tile], pixels[2 * tile + 1]}, weights[tile]);
    else
      ptx::mma_m16n8k16<T>(sums[tile], pixels, weights[tile]);
  }
}

template <class T>
__device__ __forceinline__ uint32_t packed(float low, float high) {
  const T pair[2] = {from_acc<T>(low), from_acc<T>(high)};
  uint32_t bits;
  __builtin_memcpy(&bits, pair, sizeof(bits));
  return bits;
}

// A lane's four values of the bias, or of the shift: in registers or, where those are short, in shared memory. And of
// the scale, in shared memory.
template <class Kind>
struct Bias {
  std::conditional_t<Kind::warps == 1, const float4, const float4&> value;
  const float4& scale;
};

// What a fused fprop makes of the four sums of a pixel that a lane has: of tile 0, then of tile 1. `result`: of what it
// will store of the pixel, where that exists.
template <class Kind, class T>
__device__ __forceinline__ void apply_epilogue(const Lines& g, float (&values)[4], const Bias<Kind>& bias,
                                               const T* result, bool exists) {
  const float4 scale = bias.scale, shift = bias.value;
  values[0] = values[0] * scale.x + shift.x;
  values[1] = values[1] * scale.y + shift.y;
  values[2] = values[2] * scale.z + shift.z;
  values[3] = values[3] * scale.w + shift.w;
  if (g.residual && exists) {
    const T* residual = static_cast<const T*>(g.residual) + (result - static_cast<T*>(g.result));
    const int t = threadIdx.x % 4;
    if constexpr (Kind::width == 8) residual += 2 * t - (t % 2 * 8 + t / 2 * 4);  // it stores other channels
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const uint32_t bits = *reinterpret_cast<const uint32_t*>(residual + tile * (Kind::width == 8 ? 8 : 2));
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
// bytes of a pixel. At width 8, where a lane has two channels of either group, it first gives those of the one to its
// neighbour for those of the other.
template <class Kind, class T>
__device__ __forceinline__ void store_row(const Lines& g, const Sums& sums, const Bias<Kind>& bias, T* result,
                                          const bool (&exists)[2]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float values[4] = {sums[0][2 * half], sums[0][2 * half + 1], sums[1][2 * half], sums[1][2 * half + 1]};
    if (Kind::spread == 1 && g.scale) {
      apply_epilogue<Kind>(g, values, bias, advance(result, half * g.lower_half), exists[half]);
    } else {
      values[0] += bias.value.x;
      values[1] += bias.value.y;
      values[2] += bias.value.z;
      values[3] += bias.value.w;
    }
    uint2 four = make_uint2(packed<T>(values[0], values[1]), packed<T>(values[2], values[3]));
    if constexpr (Kind::width == 8) {
      const bool odd = threadIdx.x % 2;
      const uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? four.x : four.y, 1);
      four = odd ? make_uint2(other, four.y) : make_uint2(four.x, other);
    }
    if (exists[half]) *reinterpret_cast<uint2*>(advance(result, half * g.lower_half)) = four;
  }
}

}  // namespace resnext::cuda::mma_nhwc
