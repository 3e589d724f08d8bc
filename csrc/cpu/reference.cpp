// The reference kernels: the three passes of a grouped convolution as plain loops, for every shape, type and layout.
//
//   fprop  output[n,k,p,q]     = bias[k] + sum over c,r,s of input[n,c,h,w] * weight[k,c,r,s]
//          or, if it is fused, activation(the sum * scale[k] + shift[k] + residual[n,k,p,q])
//   dgrad  grad_input[n,c,h,w] =           sum over k,r,s of grad_output[n,k,p,q] * weight[k,c,r,s]
//   wgrad  grad_weight[k,c,r,s] =          sum over n,p,q of grad_output[n,k,p,q] * input[n,c,h,w]
//          grad_bias[k]         =          sum over n,p,q of grad_output[n,k,p,q]
//
// where h = p * stride_h - pad_h + r * dilation_h, w likewise from q and s, only pixels inside the maps count, and k
// and c belong to the same group. Sums are kept in double for f64, else in float, and rounded once at the end.
// Rows are copied to scratch first, which takes type and layout out of the inner loops and leaves them contiguous.
// Each element is summed by one thread in a fixed order, so results do not depend on the number of threads.
#include "reference.h"

#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "float16.h"

namespace resnext::cpu {
namespace {

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
Acc<T> load(T value) {
  if constexpr (sizeof(T) == 2)
    return to_float(value);
  else
    return value;
}

template <class T>
T store(Acc<T> value) {
  if constexpr (std::is_same_v<T, bf16>)
    return to_bf16(value);
  else
    return static_cast<T>(value);
}

// Element strides of an activation tensor.
struct Strides {
  int64_t image, channel, row, column;
};

Strides strides(Layout layout, int64_t channels, int64_t rows, int64_t columns) {
  if (layout == Layout::nchw) return {channels * rows * columns, rows * columns, columns, 1};
  return {rows * columns * channels, 1, columns * channels, channels};
}

Strides input_strides(const Problem& problem) {
  return strides(problem.layout, problem.shape.c, problem.shape.h, problem.shape.w);
}

Strides output_strides(const Problem& problem) {
  return strides(problem.layout, problem.shape.k, problem.shape.p(), problem.shape.q());
}

// Copies one row of `channels` channels to scratch, channel by channel.
template <class T>
void load_row(const T* row, const Strides& strides, int64_t channels, int64_t columns, Acc<T>* scratch) {
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int64_t column = 0; column < columns; ++column)
      scratch[channel * columns + column] = load(row[channel * strides.channel + column * strides.column]);
}

template <class T>
void store_row(const Acc<T>* scratch, const Strides& strides, int64_t columns, T* row) {
  for (int64_t column = 0; column < columns; ++column) row[column * strides.column] = store<T>(scratch[column]);
}

// The outputs [begin, end) of one row or column axis whose tap `tap` lies inside the input.
struct Range {
  int64_t begin, end;
  int64_t first;  // the input position of output 0, perhaps outside
};

Range outputs_inside(int64_t tap, int64_t dilation, int64_t stride, int64_t pad, int64_t inputs, int64_t outputs) {
  const int64_t first = tap * dilation - pad;
  const int64_t begin = first < 0 ? (-first + stride - 1) / stride : 0;
  const int64_t end = first < inputs ? (inputs - 1 - first) / stride + 1 : 0;
  return {begin, std::min(end, outputs), first};
}

Range columns_inside(const ConvShape& shape, int64_t s) {
  return outputs_inside(s, shape.dilation_w, shape.stride_w, shape.pad_w, shape.w, shape.q());
}

// The output row that reads input row h by tap r, or -1.
int64_t output_row(const ConvShape& shape, int64_t h, int64_t r) {
  const int64_t position = h + shape.pad_h - r * shape.dilation_h;
  if (position < 0 || position % shape.stride_h != 0) return -1;
  return position / shape.stride_h < shape.p() ? position / shape.stride_h : -1;
}

template <class A>
void gather(A* __restrict sums, const A* __restrict row, A weight, Range range, int64_t stride) {
  for (int64_t i = range.begin; i < range.end; ++i) sums[i] += weight * row[i * stride + range.first];
}

template <class A>
void scatter(A* __restrict sums, const A* __restrict row, A weight, Range range, int64_t stride) {
  for (int64_t i = range.begin; i < range.end; ++i) sums[i * stride + range.first] += weight * row[i];
}

// Eight sums side by side, so that the additions need not wait for one another.
template <class A>
A dot(const A* __restrict outputs, const A* __restrict inputs, Range range, int64_t stride) {
  A sums[8] = {};
  int64_t i = range.begin;
  for (; i + 8 <= range.end; i += 8)
    for (int64_t j = 0; j < 8; ++j) sums[j] += outputs[i + j] * inputs[(i + j) * stride + range.first];
  for (int64_t j = 0; i + j < range.end; ++j) sums[j] += outputs[i + j] * inputs[(i + j) * stride + range.first];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// Scratch of one thread: `rows` for copies of rows, `sums` for what is being summed. In elements.
struct Scratch {
  int64_t rows, sums;

  int64_t total() const { return (rows + sums + 15) / 16 * 16; }
};

int64_t bytes(const Scratch& scratch, const Problem& problem, int threads) {
  return scratch.total() * threads * (problem.dtype == DType::f64 ? 8 : 4);
}

// Calls unit(index, rows, sums) for every index below count, on the launch's threads with their own scratch.
template <class A, class Unit>
void for_each_unit(const Launch& launch, int64_t count, const Scratch& scratch, const Unit& unit) {
#pragma omp parallel for schedule(static) num_threads(launch.threads)
  for (int64_t index = 0; index < count; ++index) {
    A* rows = static_cast<A*>(launch.workspace) + omp_get_thread_num() * scratch.total();
    unit(index, rows, rows + scratch.rows);
  }
}

// Takes a row of channel k's sums to its outputs; `at` is where that row begins in output and residual.
template <class T>
void apply(const Epilogue& epilogue, int64_t k, int64_t at, int64_t columns, int64_t stride, Acc<T>* sums) {
  const Acc<T> scale = static_cast<const Acc<T>*>(epilogue.scale)[k];
  const Acc<T> shift = static_cast<const Acc<T>*>(epilogue.shift)[k];
  const T* residual = static_cast<const T*>(epilogue.residual);
  for (int64_t column = 0; column < columns; ++column) {
    Acc<T> value = sums[column] * scale + shift;
    if (residual) value += load(residual[at + column * stride]);
    sums[column] = epilogue.relu && value < 0 ? 0 : value;  // NaN stays
  }
}

Scratch fprop_scratch(const ConvShape& shape) { return {shape.c_per_group() * shape.r * shape.w, shape.q()}; }

// One unit: output row p of one group of one image.
template <class T>
void fprop(const FpropArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const Strides in = input_strides(args.problem), out = output_strides(args.problem);
  const auto* bias = static_cast<const T*>(args.bias);
  const auto* weight = static_cast<const T*>(args.weight.data);
  const int64_t cg = shape.c_per_group(), kg = shape.k_per_group(), rows_of_outputs = shape.p();
  const int64_t count = shape.n * shape.groups * rows_of_outputs;
  for_each_unit<Acc<T>>(args.launch, count, fprop_scratch(shape), [&](int64_t unit, Acc<T>* rows, Acc<T>* sums) {
    const int64_t p = unit % rows_of_outputs, g = unit / rows_of_outputs % shape.groups;
    const int64_t n = unit / rows_of_outputs / shape.groups;
    const T* image = static_cast<const T*>(args.input) + n * in.image + g * cg * in.channel;
    const auto row_of_tap = [&](int64_t r) { return p * shape.stride_h - shape.pad_h + r * shape.dilation_h; };
    const auto inside = [&](int64_t r) { return row_of_tap(r) >= 0 && row_of_tap(r) < shape.h; };
    for (int64_t r = 0; r < shape.r; ++r)
      if (inside(r)) load_row(image + row_of_tap(r) * in.row, in, cg, shape.w, rows + r * cg * shape.w);

    for (int64_t k = g * kg; k < (g + 1) * kg; ++k) {
      std::fill_n(sums, shape.q(), bias ? load(bias[k]) : Acc<T>(0));
      for (int64_t r = 0; r < shape.r; ++r) {
        if (!inside(r)) continue;
        for (int64_t c = 0; c < cg; ++c)
          for (int64_t s = 0; s < shape.s; ++s) {
            const T w = weight[k * args.weight.stride_k + c * args.weight.stride_c + r * args.weight.stride_r +
                               s * args.weight.stride_s];
            gather(sums, rows + (r * cg + c) * shape.w, load(w), columns_inside(shape, s), shape.stride_w);
          }
      }
      const int64_t at = n * out.image + k * out.channel + p * out.row;
      if (args.problem.fused) apply<T>(args.epilogue, k, at, shape.q(), out.column, sums);
      store_row(sums, out, shape.q(), static_cast<T*>(args.output) + at);
    }
  });
}

Scratch dgrad_scratch(const ConvShape& shape) { return {shape.k_per_group() * shape.r * shape.q(), shape.w}; }

// One unit: input row h of one group of one image.
template <class T>
void dgrad(const DgradArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const Strides in = input_strides(args.problem), out = output_strides(args.problem);
  const auto* weight = static_cast<const T*>(args.weight.data);
  const int64_t cg = shape.c_per_group(), kg = shape.k_per_group(), columns = shape.q();
  const int64_t count = shape.n * shape.groups * shape.h;
  for_each_unit<Acc<T>>(args.launch, count, dgrad_scratch(shape), [&](int64_t unit, Acc<T>* rows, Acc<T>* sums) {
    const int64_t h = unit % shape.h, g = unit / shape.h % shape.groups, n = unit / shape.h / shape.groups;
    const T* image = static_cast<const T*>(args.grad_output) + n * out.image + g * kg * out.channel;
    for (int64_t r = 0; r < shape.r; ++r)
      if (const int64_t p = output_row(shape, h, r); p >= 0)
        load_row(image + p * out.row, out, kg, columns, rows + r * kg * columns);

    for (int64_t c = 0; c < cg; ++c) {
      std::fill_n(sums, shape.w, Acc<T>(0));
      for (int64_t r = 0; r < shape.r; ++r) {
        if (output_row(shape, h, r) < 0) continue;
        for (int64_t k = 0; k < kg; ++k)
          for (int64_t s = 0; s < shape.s; ++s) {
            const T w = weight[(g * kg + k) * args.weight.stride_k + c * args.weight.stride_c +
                               r * args.weight.stride_r + s * args.weight.stride_s];
            scatter(sums, rows + (r * kg + k) * columns, load(w), columns_inside(shape, s), shape.stride_w);
          }
      }
      T* row = static_cast<T*>(args.grad_input) + n * in.image + (g * cg + c) * in.channel + h * in.row;
      store_row(sums, in, shape.w, row);
    }
  });
}

constexpr int64_t wgrad_block = 16;  // output channels of one unit: few enough for many units, enough to share rows

Scratch wgrad_scratch(const ConvShape& shape) {
  const int64_t block = std::min(wgrad_block, shape.k_per_group());
  return {shape.c_per_group() * shape.w + block * shape.q(), block * shape.c_per_group() * shape.r * shape.s};
}

// One unit: the weights of a block of output channels of one group, over all images and rows.
template <class T>
void wgrad(const WgradArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const Strides in = input_strides(args.problem), out = output_strides(args.problem);
  const int64_t cg = shape.c_per_group(), kg = shape.k_per_group(), columns = shape.q();
  const int64_t blocks = (kg + wgrad_block - 1) / wgrad_block, taps = shape.r * shape.s;
  for_each_unit<Acc<T>>(
      args.launch, shape.groups * blocks, wgrad_scratch(shape), [&](int64_t unit, Acc<T>* rows, Acc<T>* sums) {
        const int64_t g = unit / blocks, k0 = unit % blocks * wgrad_block, ks = std::min(wgrad_block, kg - k0);
        Acc<T>* grad_rows = rows + cg * shape.w;
        std::fill_n(sums, ks * cg * taps, Acc<T>(0));
        for (int64_t n = 0; n < shape.n; ++n)
          for (int64_t p = 0; p < shape.p(); ++p) {
            const T* grad = static_cast<const T*>(args.grad_output) + n * out.image + (g * kg + k0) * out.channel;
            load_row(grad + p * out.row, out, ks, columns, grad_rows);
            for (int64_t r = 0; r < shape.r; ++r) {
              const int64_t h = p * shape.stride_h - shape.pad_h + r * shape.dilation_h;
              if (h < 0 || h >= shape.h) continue;
              const T* image = static_cast<const T*>(args.input) + n * in.image + g * cg * in.channel;
              load_row(image + h * in.row, in, cg, shape.w, rows);
              for (int64_t k = 0; k < ks; ++k)
                for (int64_t c = 0; c < cg; ++c)
                  for (int64_t s = 0; s < shape.s; ++s)
                    sums[((k * cg + c) * shape.r + r) * shape.s + s] +=
                        dot(grad_rows + k * columns, rows + c * shape.w, columns_inside(shape, s), shape.stride_w);
            }
          }
        const auto& weight = args.grad_weight;
        for (int64_t i = 0; i < ks * cg * taps; ++i) {
          const int64_t k = g * kg + k0 + i / taps / cg, c = i / taps % cg, r = i / shape.s % shape.r, s = i % shape.s;
          static_cast<T*>(
              weight.data)[k * weight.stride_k + c * weight.stride_c + r * weight.stride_r + s * weight.stride_s] =
              store<T>(sums[i]);
        }
      });
}

// Adds up a map, every 16th pixel to the same sum, so that the additions need not wait for one another.
template <class T>
Acc<T> sum_of_map(const T* map, int64_t pixels) {
  Acc<T> sums[16] = {}, total = 0;
  for (int64_t i = 0; i + 16 <= pixels; i += 16)
    for (int64_t j = 0; j < 16; ++j) sums[j] += load(map[i + j]);
  for (int64_t i = pixels / 16 * 16; i < pixels; ++i) total += load(map[i]);
  for (const Acc<T> sum : sums) total += sum;
  return total;
}

// One unit: 16 output channels, over all images.
template <class T>
void sum_grad_output(const WgradArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const Strides out = output_strides(args.problem);
  const auto* grads = static_cast<const T*>(args.grad_output);
  const int64_t pixels = shape.p() * shape.q();
#pragma omp parallel for schedule(static) num_threads(args.launch.threads)
  for (int64_t k = 0; k < shape.k; k += 16) {
    const int64_t ks = std::min<int64_t>(16, shape.k - k);
    Acc<T> sums[16] = {};
    for (int64_t n = 0; n < shape.n; ++n) {
      const T* image = grads + n * out.image + k * out.channel;
      Acc<T> of_image[16] = {};
      if (out.column == 1)
        for (int64_t j = 0; j < ks; ++j) of_image[j] = sum_of_map(image + j * out.channel, pixels);
      else
        for (int64_t i = 0; i < pixels; ++i)
          for (int64_t j = 0; j < ks; ++j) of_image[j] += load(image[i * out.column + j]);
      for (int64_t j = 0; j < ks; ++j) sums[j] += of_image[j];
    }
    for (int64_t j = 0; j < ks; ++j) static_cast<T*>(args.grad_bias)[k + j] = store<T>(sums[j]);
  }
}

// Fills grad_bias, if it is not null.
void grad_bias(const WgradArgs& args) {
  if (!args.grad_bias) return;
  switch (args.problem.dtype) {
    case DType::f64:
      return sum_grad_output<double>(args);
    case DType::f32:
      return sum_grad_output<float>(args);
    case DType::f16:
      return sum_grad_output<f16>(args);
    case DType::bf16:
      return sum_grad_output<bf16>(args);
  }
}

}  // namespace

const char* reference_why_not(const Problem&) { return nullptr; }

int64_t fprop_reference_workspace(const Problem& problem, int threads) {
  return bytes(fprop_scratch(problem.shape), problem, threads);
}

int64_t dgrad_reference_workspace(const Problem& problem, int threads) {
  return bytes(dgrad_scratch(problem.shape), problem, threads);
}

int64_t wgrad_reference_workspace(const Problem& problem, int threads) {
  return bytes(wgrad_scratch(problem.shape), problem, threads);
}

void fprop_reference(const FpropArgs& args) {
  switch (args.problem.dtype) {
    case DType::f64:
      return fprop<double>(args);
    case DType::f32:
      return fprop<float>(args);
    case DType::f16:
      return fprop<f16>(args);
    case DType::bf16:
      return fprop<bf16>(args);
  }
}

void dgrad_reference(const DgradArgs& args) {
  switch (args.problem.dtype) {
    case DType::f64:
      return dgrad<double>(args);
    case DType::f32:
      return dgrad<float>(args);
    case DType::f16:
      return dgrad<f16>(args);
    case DType::bf16:
      return dgrad<bf16>(args);
  }
}

void wgrad_reference(const WgradArgs& args) {
  grad_bias(args);
  switch (args.problem.dtype) {
    case DType::f64:
      return wgrad<double>(args);
    case DType::f32:
      return wgrad<float>(args);
    case DType::f16:
      return wgrad<f16>(args);
    case DType::bf16:
      return wgrad<bf16>(args);
  }
}

}  // namespace resnext::cpu
