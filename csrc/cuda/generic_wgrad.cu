// Generic wgrad:
//
//   grad_weight[k,c,r,s] = sum over n,p,q of grad_output[n,k,p,q] * input[n,c,h,w]
//   grad_bias[k]         = sum over n,p,q of grad_output[n,k,p,q]
//
// with h = p * stride - pad + r * dilation, w likewise, k and c of one group. Deterministic: no atomics, and which
// terms are added in which order depends on the problem alone, not on the GPU.
//
// The n * p * q output pixels are cut into slices. In stage 1 a "unit" is a pair (k, c), up to nine taps of it and a
// slice: it loads each pixel of grad_output once and adds to nine sums, and to a tenth for grad_bias, which is kept
// where c and the first tap are 0.
//
//   NCHW: a warp owns a unit; its lanes take every 32nd pixel, so both loads are coalesced, and add up their sums by
//         shuffles at the end
//   NHWC: a thread owns a unit and takes every pixel; consecutive threads own consecutive c (then k, then groups), so
//         input loads are coalesced, and those of grad_output are shared by the threads of one k
//
// Sums go to the workspace as [slice][tap][pair], each slice followed by its [k] of grad_bias, in float (double for
// f64). In stage 2 a thread owns one weight or one k, adds its slices in order, and rounds once. With one slice, stage
// 1 writes the results itself and there is no stage 2.
#include "generic.h"
#include "generic_index.h"
#include "launch.h"
#include "numeric.h"

namespace resnext::cuda::generic {

constexpr int wgrad_threads = 128;
constexpr int taps_per_unit = 9;

template <class T>
struct Wgrad {
  const T *grad_output, *input;
  Weight<void*> grad_weight;
  T* grad_bias;  // or null
  Acc<T>* workspace;
  Strides output_strides, input_strides;
  int64_t k, c_per_group, k_per_group, pairs;  // pairs of k and c
  int64_t pixels, slices, pixels_per_slice;
  Axis rows, columns;
};

// How many threads share a unit, by layout.
constexpr int lanes_of(Layout layout) { return layout == Layout::nchw ? 32 : 1; }

int64_t units_per_slice(const ConvShape& shape) {
  return shape.k * shape.c_per_group() * blocks_for(shape.r * shape.s, taps_per_unit);
}

// Slices enough for 2^17 threads, which fill the largest GPUs, but none of less than 64 pixels per thread.
int64_t slice_count(const Problem& problem) {
  const ConvShape& shape = problem.shape;
  const int64_t lanes = lanes_of(problem.layout), pixels = shape.n * shape.p() * shape.q();
  const int64_t wanted = (int64_t(1) << 17) / (units_per_slice(shape) * lanes), most = pixels / (64 * lanes);
  const int64_t slices = wanted < most ? wanted : most;
  return slices < 1 ? 1 : slices;
}

// The sums of a slice: those of the weights, then those of the bias.
template <class T>
__host__ __device__ int64_t weight_count(const Wgrad<T>& g) {
  return g.rows.taps * g.columns.taps * g.pairs;
}

template <class T>
__host__ __device__ int64_t sum_count(const Wgrad<T>& g) {
  return weight_count(g) + g.k;
}

struct Pair {
  int64_t k, c;  // k among all output channels, c within its group
};

template <class T>
__device__ Pair pair_of(const Wgrad<T>& g, int64_t pair) {
  const Split c = split(pair, g.c_per_group);
  return {c.quotient, c.remainder};
}

template <class T>
__device__ void store_weight(const Wgrad<T>& g, int64_t pair, int64_t tap, Acc<T> value) {
  const Pair at = pair_of(g, pair);
  const Split r = split(tap, g.columns.taps);
  const auto& w = g.grad_weight;
  static_cast<T*>(w.data)[at.k * w.stride_k + at.c * w.stride_c + r.quotient * w.stride_r + r.remainder * w.stride_s] =
      from_acc<T>(value);
}

template <class T>
__device__ void store_bias(const Wgrad<T>& g, int64_t k, Acc<T> value) {
  if (g.grad_bias) g.grad_bias[k] = from_acc<T>(value);
}

// An output pixel that moves on by a fixed number of pixels without dividing.
struct Pixel {
  int64_t n, p, q;

  __device__ static Pixel of(int64_t index, const Axis& rows, const Axis& columns) {
    const Split q = split(index, columns.outputs), p = split(q.quotient, rows.outputs);
    return {p.quotient, p.remainder, q.remainder};
  }

  __device__ void advance(const Pixel& step, const Axis& rows, const Axis& columns) {
    n += step.n;
    p += step.p;
    q += step.q;
    if (q >= columns.outputs) {
      q -= columns.outputs;
      ++p;
    }
    if (p >= rows.outputs) {
      p -= rows.outputs;
      ++n;
    }
  }
};

// Adds the products of every `lanes`-th pixel from first to last to the sums of the taps from first_tap on, and
// grad_output itself to the last sum.
template <int lanes, class T>
__device__ void add_pixels(const Wgrad<T>& g, Pair at, int64_t first, int64_t last, int64_t first_tap, int taps,
                           Acc<T> (&sums)[taps_per_unit + 1]) {
  const Pixel step = Pixel::of(lanes, g.rows, g.columns);
  Pixel pixel = Pixel::of(first, g.rows, g.columns);
  const T* grads = g.grad_output + at.k * g.output_strides.channel;
  const T* inputs = g.input + (split(at.k, g.k_per_group).quotient * g.c_per_group + at.c) * g.input_strides.channel;
  const Split first_rs = split(first_tap, g.columns.taps);
  for (int64_t i = first; i < last; i += lanes) {
    const Acc<T> grad = to_acc(
        grads[pixel.n * g.output_strides.image + pixel.p * g.output_strides.row + pixel.q * g.output_strides.column]);
    sums[taps_per_unit] += grad;
    const T* image = inputs + pixel.n * g.input_strides.image;
    int64_t r = first_rs.quotient, s = first_rs.remainder;
    int64_t h = input_position(g.rows, pixel.p, r);
#pragma unroll
    for (int tap = 0; tap < taps_per_unit; ++tap) {
      if (tap < taps) {
        const int64_t w = input_position(g.columns, pixel.q, s);
        if (h >= 0 && w >= 0) sums[tap] += grad * to_acc(image[h * g.input_strides.row + w * g.input_strides.column]);
        if (++s == g.columns.taps) {
          s = 0;
          h = input_position(g.rows, pixel.p, ++r);
        }
      }
    }
    pixel.advance(step, g.rows, g.columns);
  }
}

template <int lanes, class T>
__global__ void __launch_bounds__(wgrad_threads) wgrad_sum(Wgrad<T> g) {
  const int64_t thread = int64_t(blockIdx.x) * wgrad_threads + threadIdx.x;
  const int64_t unit = thread / lanes, lane = thread % lanes;
  const Split chunk = split(unit, g.pairs);  // units are ordered slice, taps, pair
  const int64_t all_taps = g.rows.taps * g.columns.taps;
  const Split slice = split(chunk.quotient, (all_taps + taps_per_unit - 1) / taps_per_unit);
  if (slice.quotient >= g.slices) return;  // all lanes of a unit together
  const int64_t pair = chunk.remainder, first_tap = slice.remainder * taps_per_unit;
  const int taps = all_taps - first_tap < taps_per_unit ? static_cast<int>(all_taps - first_tap) : taps_per_unit;
  const int64_t first = slice.quotient * g.pixels_per_slice, end = first + g.pixels_per_slice;

  Acc<T> sums[taps_per_unit + 1] = {};
  const Pair at = pair_of(g, pair);
  add_pixels<lanes>(g, at, first + lane, end < g.pixels ? end : g.pixels, first_tap, taps, sums);
  if constexpr (lanes > 1) {
#pragma unroll
    for (Acc<T>& sum : sums)
      for (int flip = lanes / 2; flip > 0; flip /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, flip);
  }
  if (lane > 0) return;

  Acc<T>* slice_sums = g.workspace + slice.quotient * sum_count(g);
#pragma unroll
  for (int tap = 0; tap < taps_per_unit; ++tap) {
    if (tap >= taps) continue;
    if (g.slices == 1)
      store_weight(g, pair, first_tap + tap, sums[tap]);
    else
      slice_sums[(first_tap + tap) * g.pairs + pair] = sums[tap];
  }
  if (at.c > 0 || first_tap > 0) return;
  if (g.slices == 1)
    store_bias(g, at.k, sums[taps_per_unit]);
  else
    slice_sums[weight_count(g) + at.k] = sums[taps_per_unit];
}

template <class T>
__global__ void __launch_bounds__(wgrad_threads) wgrad_finish(Wgrad<T> g) {
  const int64_t thread = int64_t(blockIdx.x) * wgrad_threads + threadIdx.x;
  if (thread >= sum_count(g)) return;
  Acc<T> sum = 0;
  for (int64_t slice = 0; slice < g.slices; ++slice) sum += g.workspace[slice * sum_count(g) + thread];
  if (thread >= weight_count(g)) return store_bias(g, thread - weight_count(g), sum);
  const Split tap = split(thread, g.pairs);
  store_weight(g, tap.remainder, tap.quotient, sum);
}

template <int lanes, class T>
void launch_wgrad(const Wgrad<T>& g, int64_t units, void* stream) {
  launch(wgrad_sum<lanes, T>, {blocks_for(units * lanes, wgrad_threads)}, {wgrad_threads}, 0, stream, g);
  if (g.slices > 1) launch(wgrad_finish<T>, {blocks_for(sum_count(g), wgrad_threads)}, {wgrad_threads}, 0, stream, g);
}

template <class T>
void wgrad(const WgradArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const int64_t pixels = shape.n * shape.p() * shape.q(), slices = slice_count(args.problem);
  const Wgrad<T> g{static_cast<const T*>(args.grad_output),
                   static_cast<const T*>(args.input),
                   args.grad_weight,
                   static_cast<T*>(args.grad_bias),
                   static_cast<Acc<T>*>(args.launch.workspace),
                   output_strides(args.problem),
                   input_strides(args.problem),
                   shape.k,
                   shape.c_per_group(),
                   shape.k_per_group(),
                   shape.k * shape.c_per_group(),
                   pixels,
                   slices,
                   blocks_for(pixels, slices),
                   rows(shape),
                   columns(shape)};
  const int64_t units = units_per_slice(shape) * slices;
  if (args.problem.layout == Layout::nchw)
    launch_wgrad<lanes_of(Layout::nchw)>(g, units, args.launch.stream);
  else
    launch_wgrad<lanes_of(Layout::nhwc)>(g, units, args.launch.stream);
}

}  // namespace resnext::cuda::generic

namespace resnext::cuda {

int64_t generic_wgrad_workspace(const Problem& problem, int) {
  const ConvShape& shape = problem.shape;
  const int64_t slices = generic::slice_count(problem), size = problem.dtype == DType::f64 ? 8 : 4;
  return slices == 1 ? 0 : slices * shape.k * (shape.c_per_group() * shape.r * shape.s + 1) * size;
}

void wgrad_generic(const WgradArgs& args) {
  switch (args.problem.dtype) {
    case DType::f64:
      return generic::wgrad<double>(args);
    case DType::f32:
      return generic::wgrad<float>(args);
    case DType::f16:
      return generic::wgrad<__half>(args);
    case DType::bf16:
      return generic::wgrad<__nv_bfloat16>(args);
  }
}

}  // namespace resnext::cuda
