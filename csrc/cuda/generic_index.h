#pragma once
// Index arithmetic of the generic kernels. Everything is 64-bit: no axis and no product of axes has a limit.
#include "conv_shape.h"
#include "device.h"
#include "kernel_table.h"

namespace resnext::cuda {

struct Split {
  int64_t quotient, remainder;
};

// i / n and i % n of numbers >= 0. A 32-bit division takes a third of the time of a 64-bit one, and mostly suffices.
__device__ __forceinline__ Split split(int64_t i, int64_t n) {
  if (((i | n) >> 32) == 0) {
    const uint32_t small = static_cast<uint32_t>(i), quotient = small / static_cast<uint32_t>(n);
    return {quotient, small - quotient * static_cast<uint32_t>(n)};
  }
  return {i / n, i % n};
}

// Element strides of an activation tensor.
struct Strides {
  int64_t image, channel, row, column;
};

inline Strides strides(Layout layout, int64_t channels, int64_t rows, int64_t columns) {
  if (layout == Layout::nchw) return {channels * rows * columns, rows * columns, columns, 1};
  return {rows * columns * channels, 1, columns * channels, channels};
}

inline Strides input_strides(const Problem& problem) {
  return strides(problem.layout, problem.shape.c, problem.shape.h, problem.shape.w);
}

inline Strides output_strides(const Problem& problem) {
  return strides(problem.layout, problem.shape.k, problem.shape.p(), problem.shape.q());
}

// Rows or columns: how input positions, output positions and taps hang together.
struct Axis {
  int64_t inputs, outputs, taps;
  int64_t stride, pad, dilation;
};

inline Axis rows(const ConvShape& s) { return {s.h, s.p(), s.r, s.stride_h, s.pad_h, s.dilation_h}; }
inline Axis columns(const ConvShape& s) { return {s.w, s.q(), s.s, s.stride_w, s.pad_w, s.dilation_w}; }

// The input position that tap `tap` of output `output` reads, or -1 if that is padding.
__device__ __forceinline__ int64_t input_position(const Axis& axis, int64_t output, int64_t tap) {
  const int64_t input = output * axis.stride - axis.pad + tap * axis.dilation;
  return input < axis.inputs ? (input < 0 ? -1 : input) : -1;
}

// The output position that reads input `input` by tap `tap`, or -1 if there is none.
__device__ __forceinline__ int64_t output_position(const Axis& axis, int64_t input, int64_t tap) {
  const int64_t reach = input + axis.pad - tap * axis.dilation;
  if (reach < 0) return -1;
  const Split at = split(reach, axis.stride);
  return at.remainder == 0 && at.quotient < axis.outputs ? at.quotient : -1;
}

// The same for the kernels of 3x3 windows with padding 1, in rows or columns of a source: that of fprop, of dgrad at
// stride 1 with its taps turned, or in a Kind that spreads that of dgrad at stride 2.
template <class Kind>
__device__ __forceinline__ int source_position(int result, int tap, int size) {
  const int at = Kind::spread == 1 ? Kind::stride * result - 1 + tap : result + 1 - tap;
  if (Kind::spread == 2 && at % 2 != 0) return -1;
  return at / Kind::spread < size ? at / Kind::spread : -1;
}

inline int64_t blocks_for(int64_t count, int64_t per_block) { return (count + per_block - 1) / per_block; }

}  // namespace resnext::cuda
