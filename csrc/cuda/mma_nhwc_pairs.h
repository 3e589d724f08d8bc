#pragma once
// Groups of 4 channels: a row of mma is a pair of neighbouring result columns, a column is one of them x a channel of
// the group, and the sum runs over four source columns x 4 channels. So one mma serves one group and all tap columns:
//
//   stride 1            source column   2m - 1   2m   2m + 1   2m + 2        at stride 2 the pair reads five columns,
//   result column 2m                     s=0     s=1    s=2      0           for which there is a second mma; in dgrad
//   result column 2m+1                    0      s=0    s=1     s=2          at stride 2 it reads two only
//
// Three of four weights are not zero by their place, and each pixel is read by the lanes twice instead of three times.
//
// Operand A. The order of the sum is free, so lane t takes source column t of its row, all 4 channels: of the ring's
// vector, which is two groups of a pixel, it makes its share of two operands by one 16-byte load. Eight lanes that
// load at a time read neighbouring pixels.
//
// Where a pixel that is infinite or NaN meets a zero that stands for no weight, the result is NaN although it does not
// depend on the pixel. Nothing else makes such a result, and it is of the same group: Watch notices that a lane has
// had one that is not finite, and then the warp sums those once more, see mma_nhwc_edges.h.
#include "mma_nhwc_load.h"
#include "numeric.h"

namespace resnext::cuda::mma_nhwc {

// The A operands of the four groups.
template <class Kind>
__device__ __forceinline__ void load_pairs(uint32_t (&pixels)[4][4], const uint4* row) {
#pragma unroll
  for (int vector = 0; vector < 2; ++vector)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 pixel = row[vector * pitch<Kind> + half * 8 * Kind::apart];
      pixels[2 * vector][half] = pixel.x;
      pixels[2 * vector][2 + half] = pixel.y;
      pixels[2 * vector + 1][half] = pixel.z;
      pixels[2 * vector + 1][2 + half] = pixel.w;
    }
}

// Puts the weights of one pair of channels where the operands B are that they belong to, and zeros beside them: result
// channel n of the warp, source channel of its group.
template <class Kind, class T, class Stage>
__device__ __forceinline__ void stage_pair(const T (&values)[taps * taps], int n, int source, Stage& stage) {
#pragma unroll
  for (int operand = 0; operand < Kind::operands; ++operand)
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int t = i % 4, own = i / 4, tap = Kind::tap(operand, t, own), tile = n / 4, half = source / 2;
      const int lane = ((4 * own + n % 4) * 4 + t) ^ tile ^ half * 2;
#pragma unroll
      for (int r = 0; r < taps; ++r)
        reinterpret_cast<T*>(&stage.word[0][r * Kind::operands + operand][tile][half][lane])[source % 2] =
            0 <= tap && tap < taps ? values[r * taps + tap] : from_acc<T>(0);
    }
}

// A lane has two neighbouring channels of each of four groups, its neighbour the two others. The even one of them gets
// the first two groups, the other one the last two.
__device__ __forceinline__ uint4 exchange_pairs(uint32_t group_0, uint32_t group_1, uint32_t group_2,
                                                uint32_t group_3) {
  const bool odd = threadIdx.x % 2;
  const uint32_t first = __shfl_xor_sync(0xffffffffu, odd ? group_0 : group_2, 1);
  const uint32_t second = __shfl_xor_sync(0xffffffffu, odd ? group_1 : group_3, 1);
  return odd ? make_uint4(first, group_2, second, group_3) : make_uint4(group_0, first, group_1, second);
}

// Whether a lane has had sums that are not finite. Pairs have to know, and floats that are split.
template <class Kind>
struct Watch {
  float products = 0;  // of sums; once it is not finite, it stays so

  __device__ __forceinline__ void see(const float (&sums)[Kind::tiles][4]) {
    if constexpr (Kind::watches)
#pragma unroll
      for (auto& tile : sums) products = fmaf(tile[0], tile[1], fmaf(tile[2], tile[3], products));
  }
};

}  // namespace resnext::cuda::mma_nhwc
