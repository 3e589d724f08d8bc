#pragma once
// The host side of the row-streaming wgrad: what it accepts, how a problem is cut, and the launches.
#include <algorithm>
#include <type_traits>

#include "launch.h"
#include "rows_wgrad.h"
#include "rows_wgrad_kernel.h"

namespace resnext::cuda::rows_wgrad {

// Cuts a problem, by its shape alone, so that every GPU adds in the same order.
template <class Gw>
Wgrad cut(const ConvShape& shape) {
  Wgrad g{};
  g.channels = static_cast<int>(shape.c);
  g.rows = static_cast<int>(shape.h);
  g.columns = static_cast<int>(shape.w);
  g.grad_rows = static_cast<int>(shape.p());
  g.grad_columns = static_cast<int>(shape.q());
  g.channel_blocks = static_cast<int>(blocks_for(shape.k, 4 * Gw::k_vectors));
  g.segment_tiles = 1;
  while (g.segment_tiles < Gw::tiles && g.segment_tiles * tile_columns < g.grad_columns) g.segment_tiles *= 2;
  const int64_t threads = Gw::tile_threads * g.segment_tiles;  // that share a segment
  if (Gw::Form::layout == Layout::nhwc) {
    g.row = shape.w * shape.c;
    g.grad_row = shape.q() * shape.k;
    g.step = threads / Gw::c_vectors * shape.c;
    g.grad_step = threads / Gw::k_vectors * shape.k;
  } else {
    g.row = shape.w;
    g.grad_row = shape.q();
    g.step = threads / 8 * shape.h * shape.w;
    g.grad_step = threads / 8 * shape.p() * shape.q();
  }
  g.strips = static_cast<int>(blocks_for(g.grad_columns, g.segment_tiles * tile_columns));
  // A slice writes and reads all weights once more: together at most 2/11 of what must be read. Nor are more blocks
  // than fill the largest GPUs worth it.
  const int64_t activations = shape.n * shape.c * (shape.h * shape.w + shape.p() * shape.q());
  const int64_t by_traffic = activations / (11 * shape.k * Gw::width * taps * taps);
  const int64_t by_blocks = 1024 / (g.channel_blocks * Gw::parts);
  const int64_t wanted = std::max<int64_t>(1, std::min(by_traffic, by_blocks));
  // Runs of fewer rows than the image make more walks, but none of less than 7 rows.
  constexpr int least_rows = 7;
  const int64_t per_walk = Gw::tiles / g.segment_tiles, whole_walks = blocks_for(shape.n * g.strips, per_walk);
  const int64_t most_runs = blocks_for(g.grad_rows, least_rows);
  const int64_t runs = std::clamp<int64_t>(wanted / std::max<int64_t>(whole_walks, 1), 1, most_runs);
  g.run_rows = static_cast<int>(blocks_for(g.grad_rows, runs));
  g.runs = static_cast<int>(blocks_for(g.grad_rows, g.run_rows));
  g.segments = static_cast<int>(shape.n) * g.strips * g.runs;
  g.walks = static_cast<int>(blocks_for(g.segments, per_walk));
  g.slice_walks = static_cast<int>(std::max<int64_t>(1, blocks_for(g.walks, wanted)));
  g.slices = static_cast<int>(std::max<int64_t>(1, blocks_for(g.walks, g.slice_walks)));
  return g;
}

template <class Gw>
int64_t workspace_bytes(const ConvShape& shape) {
  const Wgrad g = cut<Gw>(shape);
  return g.slices > 1 ? int64_t(g.slices) * slice_vectors<Gw>(g) * static_cast<int64_t>(sizeof(float4)) : 0;
}

template <class Gw, class Sync = Sync>
void launch_wgrad(const Wgrad& g, void* stream) {
  const int64_t blocks = g.channel_blocks * Gw::parts * g.slices;
  launch(wgrad_rows<Gw::width, Gw::stride, typename Gw::Form, Sync>, {blocks}, {Gw::threads}, sizeof(Smem<Gw>), stream,
         g);
  if (g.slices > 1)
    launch(wgrad_rows_finish<Gw::width>, {blocks_for(finish_parts * slice_vectors<Gw>(g), finish_threads)},
           {finish_threads}, 0, stream, g);
}

template <Layout layout>
using FormOf = std::conditional_t<layout == Layout::nhwc, Nhwc, Nchw>;

}  // namespace resnext::cuda::rows_wgrad

namespace resnext::cuda {

template <int width, int stride, Layout layout>
const char* rows_wgrad_why_not(const Problem& problem) {
  const ConvShape& s = problem.shape;
  if (problem.dtype != DType::f32) return "float only";
  if (problem.layout != layout) return layout == Layout::nhwc ? "NHWC only" : "NCHW only";
  if (s.c_per_group() != width || s.k_per_group() != width) return "another group width";
  if (s.r != 3 || s.s != 3) return "3x3 only";
  if (s.stride_h != stride || s.stride_w != stride) return "another stride";
  if (s.pad_h != 1 || s.pad_w != 1) return "padding 1 only";
  if (s.dilation_h != 1 || s.dilation_w != 1) return "dilation 1 only";
  if (layout == Layout::nhwc && problem.alignment < 16) return "activations are not 16-byte aligned";
  if (s.c >= 1 << 30 || s.h >= 1 << 30 || s.w >= 1 << 30) return "an axis has 2^30 elements";
  if (s.n * s.p() >= (int64_t(1) << 30) / s.q()) return "there are 2^30 output pixels";
  return nullptr;
}

template <int width, int stride, Layout layout>
int64_t rows_wgrad_workspace(const Problem& problem, int) {
  return rows_wgrad::workspace_bytes<rows_wgrad::Gw<width, stride, rows_wgrad::FormOf<layout>>>(problem.shape);
}

template <int width, int stride, Layout layout>
void rows_wgrad_run(const WgradArgs& args) {
  using Gw = rows_wgrad::Gw<width, stride, rows_wgrad::FormOf<layout>>;
  rows_wgrad::Wgrad g = rows_wgrad::cut<Gw>(args.problem.shape);
  g.input = static_cast<const float*>(args.input);
  g.grad_output = static_cast<const float*>(args.grad_output);
  const auto& w = args.grad_weight;
  g.grad_weight = static_cast<float*>(w.data);
  g.weight_k = w.stride_k;
  g.weight_c = w.stride_c;
  g.weight_r = w.stride_r;
  g.weight_s = w.stride_s;
  g.channels_closer = w.stride_c < w.stride_s;
  g.grad_bias = static_cast<float*>(args.grad_bias);
  g.workspace = static_cast<float*>(args.launch.workspace);
  rows_wgrad::launch_wgrad<Gw>(g, args.launch.stream);
}

template <int width, int stride, Layout layout>
KernelEntry<WgradArgs> rows_wgrad_entry(const char* name) {
  return {name, rows_wgrad_why_not<width, stride, layout>, rows_wgrad_workspace<width, stride, layout>,
          rows_wgrad_run<width, stride, layout>};
}

}  // namespace resnext::cuda
