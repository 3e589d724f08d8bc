#pragma once
// What becomes of the products of the NCHW tensor-core kernels: they are shifted by their tap column and added up,
// finished, staged in the order of memory and stored. mma_nchw.h says how it all fits together.
#include "mma_nchw_products.h"

namespace resnext::cuda::mma_nchw {

// Of a lane's channels: the bias, or scale and shift of a fused fprop.
template <class Kind>
struct Channel {
  float bias[Kind::halves], scale[Kind::halves];
  int of_block;  // the first; the other one is 8 further
  bool exists;

  template <class T>
  __device__ __forceinline__ static Channel at(const Planes& g, const Channels<Kind>& channels) {
    Channel channel{};
    channel.of_block = threadIdx.x / 32 % Kind::parts * Kind::warp_channels + threadIdx.x % 32 / 4;
    channel.exists = channel.of_block < channels.count;
#pragma unroll
    for (int half = 0; half < Kind::halves; ++half) {
      const int of_image = channels.first + channel.of_block + 8 * half;
      if (!channel.exists) continue;
      if (g.scale) {
        channel.scale[half] = g.scale[of_image];
        channel.bias[half] = g.shift[of_image];
      } else if (g.bias) {
        channel.bias[half] = to_acc(static_cast<const T*>(g.bias)[of_image]);
      }
    }
    return channel;
  }
};

// A lane's result row: where it is staged, and what is added to it.
template <class Kind, class T>
struct Target {
  T* staged;          // of the lane's first channel
  const T* residual;  // or null

  __device__ __forceinline__ Target(const Planes& g, const Channels<Kind>& channels, const Channel<Kind>& channel,
                                    const Unit& unit, int image, int row, T* results) {
    const int line = g.unit_rows * g.result_columns;
    staged = results + (image * Kind::channels + channel.of_block) * line + row * g.result_columns;
    residual = static_cast<const T*>(g.residual);
    if (residual)
      residual +=
          (static_cast<int64_t>(unit.image + image) * g.channels + channels.first + channel.of_block) * g.result_plane +
          static_cast<int64_t>(unit.row + row) * g.result_columns;
  }
};

// The result of a sum, before it is rounded.
template <class Kind, class T>
__device__ __forceinline__ float finished(const Planes& g, const Channel<Kind>& channel, int half, float sum,
                                          const T* residual) {
  if (!g.scale) return sum + channel.bias[half];
  float value = sum * channel.scale[half] + channel.bias[half];
  if (residual) value += to_acc(*residual);
  return g.relu && value < 0 ? 0 : value;  // NaN stays
}

// Stages the results of `count` columns from `column` on, of which some may be beyond the row.
template <int count, class Kind, class T>
__device__ __forceinline__ void put(const Planes& g, const Channel<Kind>& channel, const Target<Kind, T>& target,
                                    int half, int column, const float (&sums)[count]) {
  if (!channel.exists || column >= g.result_columns) return;
  T values[count];
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const bool reads = target.residual && column + i < g.result_columns;
    values[i] = from_acc<T>(finished<Kind, T>(
        g, channel, half, sums[i], reads ? target.residual + 8 * half * g.result_plane + column + i : nullptr));
  }
  T* to = target.staged + 8 * half * g.unit_rows * g.result_columns + column;
  if constexpr (count == 2) {
    if (g.result_columns % 2 == 0) {
      uint32_t bits;
      __builtin_memcpy(&bits, values, sizeof(bits));
      *reinterpret_cast<uint32_t*>(to) = bits;
    } else {
      to[0] = values[0];
      if (column + 1 < g.result_columns) to[1] = values[1];
    }
  } else {
    to[0] = values[0];
  }
}

__device__ __forceinline__ float from_quad(float value, int step) {
  const int lane = threadIdx.x % 32;
  return __shfl_sync(0xffffffffu, value, lane / 4 * 4 + (lane + step + 4) % 4);
}

// What goes from one pair of tiles of a row to the next.
template <class Kind>
struct Carry {
  float left[Kind::halves];     // of the column before, for lane t = 0
  float late[Kind::halves][2];  // results of the pair before, which lack a product of this one in lane t = 3
};

// A result column, of tap column s, reads source column q + s - 1, so what tap column s makes of a source column is
// added one further for s = 0 and one before for s = 2; in Spread the other way, over every second column. What lies
// beside the map is not added. At stride 1, and in Spread, a lane's last column waits for the next tile's first.
template <class Kind, class T, bool narrow>
__device__ __forceinline__ void add_up(const Planes& g, const Columns<Kind>& columns, Carry<Kind>& carry,
                                       const Channel<Kind>& channel, const Target<Kind, T>& first,
                                       const Target<Kind, T>& second, const bool (&exists)[2], int column) {
  const int t = threadIdx.x % 4;
  constexpr int from_right = Kind::spread == 2 ? 0 : 2;
#pragma unroll
  for (int half = 0; half < Kind::halves; ++half) {
    float left[2], right[2];
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      left[tile] = Kind::spread == 2 ? 0 : from_quad(columns.of[0][tile][2 * half + 1], -1);
      right[tile] = Kind::stride == 2 ? 0 : from_quad(columns.of[from_right][tile][2 * half], 1);
    }
    if (!narrow && Kind::stride == 1 && column > 0) {
      carry.late[half][1] += t == 3 && column < g.columns ? right[0] : 0;
      const int before = column - tile_columns + 2 * t;
      put(g, channel, first, half, Kind::spread == 2 ? 2 * before + 2 : before, carry.late[half]);
    }
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      if (!exists[tile]) continue;
      const Target<Kind, T>& target = narrow && tile == 1 ? second : first;
      const int x = narrow ? 2 * t : column + tile * tile_columns + 2 * t;
      const auto of = [&](int s, int i) { return columns.of[s][tile][2 * half + i]; };
      const float before = t > 0 || narrow ? left[tile] : tile == 1 ? left[0] : carry.left[half];
      const bool ends_tile = t == 3 && (narrow || tile == 1);
      const float behind = x + 2 < g.columns && !ends_tile ? t == 3 ? right[1] : right[tile] : 0;
      const float even =
          Kind::spread == 2 ? of(1, 0) : (x > 0 ? before : 0) + of(1, 0) + (x + 1 < g.columns ? of(2, 1) : 0);
      if constexpr (Kind::stride == 2) {
        const float sums[1] = {even};
        put(g, channel, target, half, x / 2, sums);
        continue;
      }
      float sums[2] = {even, of(0, 0) + of(1, 1) + behind};
      if constexpr (Kind::spread == 2) {
        const float pair[2] = {even, of(2, 0) + (x + 1 < g.columns ? of(0, 1) : 0)};
        put(g, channel, target, half, 2 * x, pair);
        sums[0] = of(1, 1);
        sums[1] = of(2, 1) + behind;
      }
      if (!narrow && tile == 1) {
        carry.late[half][0] = sums[0];
        carry.late[half][1] = sums[1];
      } else {
        put(g, channel, target, half, Kind::spread == 2 ? 2 * x + 2 : x, sums);
      }
    }
    carry.left[half] = left[1];
  }
}

// Takes a unit's results to memory: its planes, which lie behind one another, or rows of each channel.
template <class Kind, class T, int vector>
__device__ __forceinline__ void store_unit(const Planes& g, const Channels<Kind>& channels, const Unit& unit,
                                           const T* results) {
  using Vector =
      std::conditional_t<vector == 8, uint4,
                         std::conditional_t<vector == 4, uint2, std::conditional_t<vector == 2, uint32_t, T>>>;
  const int line = g.unit_rows * g.result_columns;
  const int lines = g.whole ? unit.images : channels.count;
  const int length = (g.whole ? channels.count * line : unit.rows * g.result_columns) / vector;
  const int pitch = g.whole ? Kind::channels * line : line;
  const int64_t step = g.whole ? g.channels * g.result_plane : g.result_plane;
  const int first = g.whole ? threadIdx.x : threadIdx.x % 32, by = g.whole ? threads : 32;
  T* image = static_cast<T*>(g.result) +
             (static_cast<int64_t>(unit.image) * g.channels + channels.first) * g.result_plane +
             static_cast<int64_t>(unit.row) * g.result_columns;
  for (int i = g.whole ? 0 : threadIdx.x / 32; i < lines; i += g.whole ? 1 : warps) {
    const auto* from = reinterpret_cast<const Vector*>(results + i * pitch);
    auto* to = reinterpret_cast<Vector*>(image + i * step);
#pragma unroll 4
    for (int at = first; at < length; at += by) to[at] = from[at];
  }
}

}  // namespace resnext::cuda::mma_nchw
