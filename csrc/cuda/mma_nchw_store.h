#pragma once
// What becomes of the products of the NCHW tensor-core kernels: they are shifted by their tap column and added up,
// finished, staged in the order of memory and stored. mma_nchw.h says how it all fits together.
#include "mma_nchw_products.h"

namespace resnext::cuda::mma_nchw {

// Of a lane's channels: the bias, or scale and shift of a fused fprop.
template <class Kind>
struct Channel {
  float bias[2], scale[2];  // by half; scale is 1 if there is none
  int of_block;             // the first half's; the other's is `half_channels` further
  bool exists;

  __device__ __forceinline__ bool has(const Channels<Kind>& channels, int half) const {
    if constexpr (Kind::pads) return of_block + half * Kind::half_channels < channels.count;
    return exists;
  }

  template <class T>
  __device__ __forceinline__ static Channel at(const Planes& g, const Channels<Kind>& channels) {
    const int lane = threadIdx.x % 32;
    Channel channel{{}, {1, 1}};
    channel.of_block = threadIdx.x / 32 % Kind::parts * Kind::warp_channels + (Kind::floats ? lane % 4 : lane / 4);
    channel.exists = channel.of_block < channels.count;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int of_image = channels.first + channel.of_block + half * Kind::half_channels;
      if (!channel.has(channels, half)) continue;
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

// What a lane makes of a tile: where its first half is staged, and in a fused fprop what is added to it.
template <class Kind, class T>
struct Target {
  T* staged;
  const T* residual;  // or null
  bool exists[2];     // by half

  __device__ __forceinline__ Target(const Planes& g, const Channels<Kind>& channels, const Channel<Kind>& channel,
                                    const Unit& unit, int image, int row, T* results) {
    staged =
        results +
        (image * (Kind::pads ? g.result_width : Kind::channels) + channel.of_block) * g.unit_rows * g.result_columns +
        row * g.result_columns;
    residual = static_cast<const T*>(g.residual);
    if (residual)
      residual +=
          (static_cast<int64_t>(unit.image + image) * channels.of_result(g) + channels.first + channel.of_block) *
              g.result_plane +
          static_cast<int64_t>(unit.row + row) * g.result_columns;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      exists[half] = channel.has(channels, half) && (Kind::rows == 1 || row + half < unit.rows);
  }
};

// Adds the bias or what else there is to be done, rounds and stages the results of `count` columns from `column` on, of
// which some may be beyond the row. `paired`: rows have an even number of columns.
template <bool fused, bool paired, int count, class Kind, class T>
__device__ __forceinline__ void put(const Planes& g, const Channel<Kind>& channel, const Target<Kind, T>& target,
                                    int half, int column, const float (&sums)[count]) {
  if (!target.exists[half] || column >= g.result_columns) return;
  T values[count];
#pragma unroll
  for (int i = 0; i < count; ++i) {
    float value = sums[i] + channel.bias[half];
    if constexpr (fused) {
      value = sums[i] * channel.scale[half] + channel.bias[half];
      if (g.residual && column + i < g.result_columns)
        value += to_acc(target.residual[half * (Kind::rows == 2 ? g.result_columns : 8 * g.result_plane) + column + i]);
      if (g.relu && value < 0) value = 0;  // NaN stays
    }
    values[i] = from_acc<T>(value);
  }
  T* to = target.staged + half * g.half_step + column;
  if constexpr (count == 2 && paired) {
    uint32_t bits;
    __builtin_memcpy(&bits, values, sizeof(bits));
    *reinterpret_cast<uint32_t*>(to) = bits;
  } else {
    to[0] = values[0];
    if constexpr (count == 2)
      if (column + 1 < g.result_columns) to[1] = values[1];
  }
}

__device__ __forceinline__ float from_quad(float value, int step) {
  const int lane = threadIdx.x % 32;
  return __shfl_sync(0xffffffffu, value, lane / 4 * 4 + (lane + step + 4) % 4);
}

// What goes from one pair of tiles of a row to the next.
struct Carry {
  float left[2];     // of the column before, for lane t = 0
  float late[2][2];  // results of the pair before, which lack a product of this one in lane t = 3
};

// A result column, of tap column s, reads source column q + s - 1, so what tap column s makes of a source column is
// added one further for s = 0 and one before for s = 2; in Spread the other way, over every second column. What lies
// beside the map is not added. At stride 1, and in Spread, a lane's last column waits for the next tile's first.
template <class Kind, class T, bool narrow, bool fused, bool paired>
__device__ __forceinline__ void add_up(const Planes& g, const Columns<Kind>& columns, Carry& carry,
                                       const Channel<Kind>& channel, const Target<Kind, T>& first,
                                       const Target<Kind, T>& second, bool second_exists, int column) {
  const int t = threadIdx.x % 4;
  constexpr int from_right = Kind::spread == 2 ? 0 : 2;
  constexpr bool waits = !narrow && Kind::stride == 1;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float left[2] = {}, right[2] = {};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      if (Kind::spread == 1) left[tile] = from_quad(columns.of[0][tile][half][1], -1);
      if (Kind::stride == 1) right[tile] = from_quad(columns.of[from_right][tile][half][0], 1);
    }
    if (waits && column > 0) {
      carry.late[half][1] += t == 3 ? right[0] : 0;
      const int x = column - tile_columns + 2 * t;
      put<fused, paired>(g, channel, first, half, Kind::spread == 2 ? 2 * x + 2 : x, carry.late[half]);
    }
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      if (tile == 1 && !second_exists) continue;
      const Target<Kind, T>& target = narrow && tile == 1 ? second : first;
      const int x = narrow ? 2 * t : column + tile * tile_columns + 2 * t;
      const auto of = [&](int s, int i) { return columns.of[s][tile][half][i]; };
      const float before = t > 0 ? left[tile] : narrow ? 0 : tile == 1 ? left[0] : carry.left[half];
      const bool ends = t == 3 && (narrow || tile == 1);  // what is behind comes with the next pair, if at all
      const float behind = x + 2 < g.columns && !ends ? (t == 3 ? right[1] : right[tile]) : 0;
      // In rows of an even number of columns there is one beside each.
      const bool has_odd = (paired && Kind::stride * Kind::spread == 1) || x + 1 < g.columns;
      if constexpr (Kind::stride == 2) {
        const float sums[1] = {before + of(1, 0) + (has_odd ? of(2, 1) : 0)};
        put<fused, paired>(g, channel, target, half, x / 2, sums);
      } else {
        float sums[2] = {before + of(1, 0) + (has_odd ? of(2, 1) : 0), of(0, 0) + of(1, 1) + behind};
        if constexpr (Kind::spread == 2) {
          const float pair[2] = {of(1, 0), of(2, 0) + (has_odd ? of(0, 1) : 0)};
          put<fused, paired>(g, channel, target, half, 2 * x, pair);
          sums[0] = of(1, 1);
          sums[1] = of(2, 1) + behind;
        }
        if (waits && tile == 1) {
          carry.late[half][0] = sums[0];
          carry.late[half][1] = sums[1];
        } else {
          put<fused, paired>(g, channel, target, half, Kind::spread == 2 ? 2 * x + 2 : x, sums);
        }
      }
    }
    carry.left[half] = left[1];
  }
}

// What a store takes to memory, with what follows scale and shift in a fused fprop in floats.
template <class Kind, int count, class Vector>
__device__ __forceinline__ Vector finished(const Planes& g, const Vector& from, const Vector* to) {
  if constexpr (!Kind::floats) {
    return from;
  } else {
    struct alignas(Vector) {
      float of[count];
    } values, residual;
    reinterpret_cast<Vector&>(values) = from;
    if (g.residual) {
      const auto bytes = reinterpret_cast<const char*>(to) - static_cast<const char*>(g.result);
      reinterpret_cast<Vector&>(residual) =
          *reinterpret_cast<const Vector*>(static_cast<const char*>(g.residual) + bytes);
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (g.residual) values.of[i] += residual.of[i];
      if (g.relu && values.of[i] < 0) values.of[i] = 0;  // NaN stays
    }
    return reinterpret_cast<const Vector&>(values);
  }
}

// Takes a unit's results to memory: its planes, which lie behind one another, or rows of each channel.
template <class Kind, class T, int vector>
__device__ __forceinline__ void store_unit(const Planes& g, const Channels<Kind>& channels, const Unit& unit,
                                           const T* results) {
  constexpr int bytes = vector * sizeof(T);
  using Vector = std::conditional_t<bytes == 16, uint4,
                                    std::conditional_t<bytes == 8, uint2, std::conditional_t<bytes == 4, uint32_t, T>>>;
  const int line = g.unit_rows * g.result_columns;
  const int lines = g.whole ? unit.images : channels.count;
  const int length = (g.whole ? channels.count * line : unit.rows * g.result_columns) / vector;
  const int pitch = g.whole ? (Kind::pads ? g.result_width : Kind::channels) * line : line;
  const int64_t step = g.whole ? channels.of_result(g) * g.result_plane : g.result_plane;
  const int first = g.whole ? threadIdx.x : threadIdx.x % 32, by = g.whole ? threads : 32;
  T* image = static_cast<T*>(g.result) +
             (static_cast<int64_t>(unit.image) * channels.of_result(g) + channels.first) * g.result_plane +
             static_cast<int64_t>(unit.row) * g.result_columns;
  for (int i = g.whole ? 0 : threadIdx.x / 32; i < lines; i += g.whole ? 1 : warps) {
    const auto* from = reinterpret_cast<const Vector*>(results + i * pitch);
    auto* to = reinterpret_cast<Vector*>(image + i * step);
#pragma unroll Kind::floats ? 1 : 4
    for (int at = first; at < length; at += by) to[at] = finished<Kind, vector>(g, from[at], to + at);
  }
}

template <class Kind, class T>
__device__ __forceinline__ void store_unit(const Planes& g, const Channels<Kind>& channels, const Unit& unit,
                                           const T* results) {
  if (!Kind::floats && g.store_vector == 8)
    store_unit<Kind, T, Kind::floats ? 4 : 8>(g, channels, unit, results);
  else if (g.store_vector == 4)
    store_unit<Kind, T, 4>(g, channels, unit, results);
  else if (g.store_vector == 2)
    store_unit<Kind, T, 2>(g, channels, unit, results);
  else
    store_unit<Kind, T, 1>(g, channels, unit, results);
}

}  // namespace resnext::cuda::mma_nchw
