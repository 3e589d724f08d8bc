#pragma once
#include "direct_lanes.h"
#include "transpose.h"

// Tiles of pairs for wgrad in bfloat16 (PairSums in direct_wgrad_sums.h says which): a vector holds a channel in each
// lane, and in its halves that channel of two pixels.
namespace resnext::cpu {
namespace {

// What the part of a tile stands for.
enum class Operand { input, grad_output };

// Vectors in a row of a tile.
template <Operand operand>
constexpr int64_t pair_columns(int64_t columns, int64_t stride) {
  if (operand == Operand::grad_output) return columns + 1;
  return stride == 1 ? (columns + 1) / 2 : (columns + 3) / 4 * 2;
}

// Up to 32 pixels of `count` channels, from planes to pairs of neighbours in memory.
template <class T>
[[gnu::always_inline]] inline void load_pair_square(const T* planes, int64_t plane_stride, int count, int pixels,
                                                    const Gaps& gaps, float* to) {
  Vec rows[lanes];
  const auto copy = [&](const auto& load_row, const auto& store_pair) RESNEXT_INLINE {
    unroll<lanes>([&](auto i) RESNEXT_INLINE {
      rows[i] = load_row(i);
      planes = opaque(planes + plane_stride);
    });
    transpose(rows);
    unroll<lanes>([&](auto i) RESNEXT_INLINE { store_pair(i, rows[i]); });
  };
  if (count == lanes && pixels == square_pixels<T>)
    copy([&](int) RESNEXT_INLINE { return load_bits(planes); },
         [&](int i, Vec pair) RESNEXT_INLINE { store(to + i * lanes, pair); });
  else
    copy([&](int i) RESNEXT_INLINE { return i < count ? load_bits_part(planes, pixels) : Vec{}; },
         [&](int i, Vec pair) RESNEXT_INLINE {
           if (2 * i < pixels) store(to + i * lanes, gaps.open(pair));
         });
}

// Writes a row of a tile; `pixel(column)` has a pixel's channels in the lower halves of the lanes.
template <Operand operand, class Pixel>
[[gnu::always_inline]] inline void write_pair_row(const Pixel& pixel, int64_t columns, int64_t stride, float* to,
                                                  int64_t distance) {
  const auto at = [&](int64_t column) RESNEXT_INLINE { return column < columns ? pixel(column) : Bits{}; };
  const auto write = [&](Bits first, Bits second) RESNEXT_INLINE {
    store(to, reinterpret_cast<Vec>(first | second << 16));
    to += distance;
  };
  if constexpr (operand == Operand::grad_output) {
    Bits before{};
    for (int64_t column = 0; column < columns; ++column) {
      const Bits here = pixel(column);
      write(before, here);
      before = here;
    }
    write(before, Bits{});
  } else if (stride == 1) {
    for (int64_t column = 0; column < columns; column += 2) write(pixel(column), at(column + 1));
  } else {
    for (int64_t column = 0; column < columns; column += 4) {
      write(pixel(column), at(column + 2));
      write(at(column + 1), at(column + 3));
    }
  }
}

// Copies a part to scratch as pairs. `linear` holds a pair for every two pixels of the part, if it comes from planes.
template <Operand operand, class T>
[[gnu::noinline]] void load_pairs(const Tensor<const T>& tensor, const Part& part, int64_t stride, float* linear,
                                  float* to) {
  const int64_t distance = part.vectors * lanes, columns = tensor.columns;
  const int64_t row_size = pair_columns<operand>(columns, stride) * distance, pixels = part.rows * columns;
  for (int64_t i = 0; i < part.vectors; ++i) {
    const int64_t channel = tensor.map.first_channel(part.first_vector + i);
    const int count = tensor.map.count(part.first_vector + i);
    const T* from = tensor.at(part.image, channel, part.first_row);
    float* vector = to + i * lanes;
    if (tensor.layout == Layout::nhwc) {
      for (int64_t row = 0; row < part.rows; ++row, vector += row_size) {
        const T* first = from + row * columns * tensor.map.channels();
        const auto pixel = [&](int64_t column) RESNEXT_INLINE {
          const T* channels = first + column * tensor.map.channels();
          return reinterpret_cast<Bits>(tensor.gaps.open(load_lower_halves(channels, count)));
        };
        write_pair_row<operand>(pixel, columns, stride, vector, distance);
      }
      continue;
    }
    for (int64_t pixel = 0; pixel < pixels; pixel += square_pixels<T>)
      load_pair_square(from + pixel, tensor.channel_stride(), count,
                       static_cast<int>(std::min<int64_t>(pixels - pixel, square_pixels<T>)), tensor.gaps,
                       linear + pixel / 2 * lanes);
    for (int64_t row = 0; row < part.rows; ++row, vector += row_size) {
      const auto pixel = [&](int64_t column) RESNEXT_INLINE {
        const int64_t place = row * columns + column;
        const Bits pair = reinterpret_cast<Bits>(load(linear + place / 2 * lanes));
        return place % 2 ? pair >> 16 : pair & 0xffffu;
      };
      write_pair_row<operand>(pixel, columns, stride, vector, distance);
    }
  }
}

}  // namespace
}  // namespace resnext::cpu
