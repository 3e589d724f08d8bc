#pragma once
// The host side of the tensor cores' wgrad: what it accepts, how a problem is cut, and the launches.
#include <algorithm>

#include "launch.h"
#include "mma_wgrad.h"
#include "mma_wgrad_kernel.h"
#include "padded_3x3.h"

namespace resnext::cuda::mma_wgrad {

inline int64_t blocks_for(int64_t count, int64_t per_block) { return (count + per_block - 1) / per_block; }

// Cuts a problem, by its shape alone, so that every GPU adds in the same order.
template <class Gw>
MmaWgrad cut(const ConvShape& shape) {
  MmaWgrad g{};
  g.channels = static_cast<int>(shape.c);
  g.rows = static_cast<int>(shape.h);
  g.columns = static_cast<int>(shape.w);
  g.grad_rows = static_cast<int>(shape.p());
  g.grad_columns = static_cast<int>(shape.q());
  g.channel_blocks = static_cast<int>(blocks_for(shape.c, Gw::channels));
  g.segment_bits = g.grad_columns <= 8 ? 0 : g.grad_columns <= 16 ? 1 : 2;
  const int64_t vectors = shape.c / 8;
  g.row = shape.w * vectors;
  g.grad_row = shape.q() * vectors;
  g.step = InputColumns<Gw>::step(g) * vectors;
  g.grad_step = GradColumns<Gw>::step(g) * vectors;
  g.strips = static_cast<int>(blocks_for(g.grad_columns, 8 * octets));
  g.strip_columns = static_cast<int>(blocks_for(g.grad_columns, g.strips));
  g.images = static_cast<int>(shape.n);
  // A slice writes and reads all weights once more, in float: together at most a fifth of the bytes that must be read;
  // half of them where there would be fewer blocks than fill a GPU.
  const int64_t blocks = int64_t(g.channel_blocks) * Gw::parts;
  const int64_t activations = 2 * shape.n * shape.c * (shape.h * shape.w + shape.p() * shape.q());
  const int64_t by_traffic = activations / (8 * shape.k * Gw::width * taps * taps);
  const int64_t wanted = std::max<int64_t>(
      1, std::min(std::max(by_traffic / 5, std::min<int64_t>(by_traffic / 2, 128 / blocks)), 256 / blocks));
  // Runs of fewer rows than the image make more walks, but none of less than 7 rows.
  constexpr int least_rows = 7;
  const int64_t walks = g.strips * blocks_for(shape.n, octets >> g.segment_bits);
  const int64_t most_runs = blocks_for(g.grad_rows, least_rows);
  const int64_t runs = std::clamp<int64_t>(wanted * Gw::teams / std::max<int64_t>(walks, 1), 1, most_runs);
  g.run_rows = static_cast<int>(blocks_for(g.grad_rows, runs));
  g.runs = static_cast<int>(blocks_for(g.grad_rows, g.run_rows));
  g.walks = static_cast<int>(walks * g.runs);
  g.slice_walks = static_cast<int>(std::max<int64_t>(1, blocks_for(g.walks, wanted * Gw::teams)) * Gw::teams);
  g.slices = static_cast<int>(std::max<int64_t>(1, blocks_for(g.walks, g.slice_walks)));
  return g;
}

template <class Gw, class Sync = Sync>
void launch_wgrad(const MmaWgrad& g, void* stream) {
  using T = typename Gw::T;
  launch(wgrad_mma<T, Gw::width, Gw::stride, Sync>, {int64_t(g.channel_blocks) * Gw::parts * g.slices}, {Gw::threads},
         sizeof(Smem<Gw>), stream, g);
  if (g.slices > 1)
    launch(wgrad_mma_finish<T, Gw::width>, {blocks_for(slice_size<Gw::width>(g), finish_threads)}, {finish_threads}, 0,
           stream, g);
}

template <class T>
constexpr DType dtype_of = std::is_same_v<T, __half> ? DType::f16 : DType::bf16;

}  // namespace resnext::cuda::mma_wgrad

namespace resnext::cuda {

template <class T, int width, int stride>
const char* mma_wgrad_why_not(const Problem& problem) {
  const ConvShape& s = problem.shape;
  const DType dtype = mma_wgrad::dtype_of<T>;
  if (const char* reason = padded_3x3_mma_why_not(problem, dtype, Layout::nhwc, width, stride)) return reason;
  if (s.c % 8 != 0) return "channels are no multiple of 8";
  if (s.c >= 1 << 26 || s.h >= 1 << 26 || s.w >= 1 << 26) return "an axis has 2^26 elements";
  if (s.n * s.p() >= (int64_t(1) << 30) / s.q()) return "there are 2^30 output pixels";
  return nullptr;
}

template <class T, int width, int stride>
int64_t mma_wgrad_workspace(const Problem& problem, int) {
  const mma_wgrad::MmaWgrad g = mma_wgrad::cut<mma_wgrad::Gw<T, width, stride>>(problem.shape);
  return g.slices > 1 ? g.slices * mma_wgrad::slice_size<width>(g) * int64_t(sizeof(float)) : 0;
}

template <class T, int width, int stride>
void mma_wgrad_run(const WgradArgs& args) {
  using Gw = mma_wgrad::Gw<T, width, stride>;
  mma_wgrad::MmaWgrad g = mma_wgrad::cut<Gw>(args.problem.shape);
  g.input = args.input;
  g.grad_output = args.grad_output;
  const auto& w = args.grad_weight;
  g.grad_weight = w.data;
  g.weight_k = w.stride_k;
  g.weight_c = w.stride_c;
  g.weight_r = w.stride_r;
  g.weight_s = w.stride_s;
  g.channels_closer = w.stride_c < w.stride_s;
  g.grad_bias = args.grad_bias;
  g.workspace = static_cast<float*>(args.launch.workspace);
  mma_wgrad::launch_wgrad<Gw>(g, args.launch.stream);
}

template <class T, int width, int stride>
KernelEntry<WgradArgs> mma_wgrad_entry(const char* name) {
  return {name, mma_wgrad_why_not<T, width, stride>, mma_wgrad_workspace<T, width, stride>,
          mma_wgrad_run<T, width, stride>};
}

}  // namespace resnext::cuda
