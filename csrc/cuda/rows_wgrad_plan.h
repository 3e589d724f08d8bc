#pragma once
// The host side of the row-streaming wgrad: what it accepts, how a problem is cut, and the launches.
#include <algorithm>
#include <type_traits>

#include "launch.h"
#include "padded_3x3.h"
#include "rows_wgrad.h"
#include "rows_wgrad_kernel.h"
#include "tf32.h"

namespace resnext::cuda::rows_wgrad {

inline int up(int64_t value, int multiple) { return static_cast<int>(blocks_for(value, multiple) * multiple); }

// The vectors, in NHWC, that a thread copies of a row are `step` or `grad_step` apart.
template <class Gw>
void plan_pixels(Wgrad& g, const ConvShape& shape) {
  const int64_t columns = Gw::tile_threads * g.segment_tiles / Gw::vectors;  // that a segment's threads copy at a time
  g.row = shape.w * shape.c;
  g.grad_row = shape.q() * shape.k;
  g.step = columns * shape.c;
  g.grad_step = columns * shape.k;
}

// How one of the tensors streams in NCHW: `band` rows in a step, or `whole` images. Returns the end of its ring.
template <class Gw>
int plan_stream(const Wgrad& g, Stream& s, int start, int rows, int columns, int band, bool whole) {
  const bool input = &s == &g.input_stream;
  const int plane = rows * columns;
  s.line = whole && plane % 4 != 0 ? 4 : 1;
  s.lines = Gw::channels / s.line;
  s.lead = g.strips > 1 && input ? 4 : 0;
  s.row = g.vectors ? columns : up(columns, 4);
  if (g.strips > 1)
    s.row = (input ? Gw::stride : 1) * g.segment_tiles * tile_columns + (input ? 12 - 4 * Gw::stride : 0);
  s.chunk = whole ? s.line * plane : band * s.row;
  s.step = band * columns;
  for (s.lane_bits = 0; 4 << s.lane_bits < s.chunk;) ++s.lane_bits;
  s.together = Gw::threads / 2 >> s.lane_bits;
  const bool half_sectors = g.vectors && g.strips == 1 && plane % 8 == 4 && s.chunk % 8 == 0 && s.together % 2 == 0;
  s.odd = Gw::stride == 1 && !whole && half_sectors ? 4 : 0;
  s.behind = Gw::stride == 1 && !whole && (input || s.odd > 0);
  int ring_rows = (Gw::ahead + 1 + s.behind) * band + (input ? 1 : 0);
  while (ring_rows * s.row % 4 != 0) ++ring_rows;
  s.ring = whole ? (Gw::ahead + 1) * s.chunk : ring_rows * s.row;
  s.since = (s.behind + Gw::ahead) * s.chunk;
  // Of lines of four channels, tensor cores read two channels of each of four lines at a time.
  const int turn = Gw::Form::mma && s.line > 1 ? 32 : 8, end = turn == 32 ? 8 : 4;
  for (s.pitch = s.ring; s.pitch % turn != end;) s.pitch += 4;
  s.mix = input || Gw::Form::mma ? 2 : 4;
  if (s.line > 1 || s.together % s.mix != 0) s.mix = 1;
  s.mix_pitch = s.lines / s.mix * s.pitch + (s.mix == 4 && s.lines == 32 ? 16 : 0);
  s.channel = s.line > 1 ? plane : s.mix > 1 ? s.mix_pitch : s.pitch;
  s.half = 16 / s.line / s.mix * s.pitch;
  s.line_floats = s.line * plane;
  s.jump = s.together * s.line_floats;
  s.stage_jump = s.together / s.mix * s.pitch;
  s.start = start;
  return start + s.mix * s.mix_pitch;
}

// The streams of both tensors. Whether they fit.
template <class Gw>
bool plan_streams(Wgrad& g, int band, bool whole, bool vectors) {
  g.band = band;
  g.vectors = vectors;
  const int input_end = plan_stream<Gw>(g, g.input_stream, 0, g.rows, g.columns, Gw::stride * band, whole);
  const int end = plan_stream<Gw>(g, g.grad_stream, input_end, g.grad_rows, g.grad_columns, band, whole);
  const int most = 2 * Gw::threads;
  return end <= ring_floats<Gw> && g.input_stream.chunk <= most && g.grad_stream.chunk <= most;
}

// In NCHW a step has as many rows as give each tile of the block one, or as many as it multiplies together if they fit.
// By 16 bytes, steps must begin at whole vectors, and had better at whole sectors; or they are whole images.
template <class Gw>
void plan_channels(Wgrad& g) {
  g.tile_rows = Gw::tiles / g.segment_tiles;
  const int input_row = Gw::stride * g.columns, grad_row = g.grad_columns, most = std::min(g.grad_rows, 64);
  const auto band_of = [&](int rows, int floats) {
    int band = rows * g.tile_rows;
    while (g.strips == 1 && band < most && (band * input_row % floats != 0 || band * grad_row % floats != 0)) band *= 2;
    return band;
  };
  const bool planes = g.rows * g.columns % 4 == 0 && g.grad_rows * g.grad_columns % 4 == 0;
  const bool rows = g.strips == 1 || (g.columns % 4 == 0 && g.grad_columns % 4 == 0);
  const int together = Gw::rows_together;
  const bool whole =
      g.strips == 1 && (!planes || band_of(together, 8) >= g.grad_rows || band_of(together, 4) >= g.grad_rows);
  if (whole && g.grad_rows <= 64 && plan_streams<Gw>(g, g.grad_rows, true, true)) return;
  for (int at_once = together; at_once > 0; --at_once)
    for (int floats = 8; floats >= 4; floats /= 2) {
      const int band = band_of(at_once, floats);
      if (planes && rows && band < g.grad_rows && plan_streams<Gw>(g, band, false, true)) return;
    }
  plan_streams<Gw>(g, g.tile_rows, false, false);
}

// Cuts a problem, by its shape alone, so that every GPU adds in the same order.
template <class Gw>
Wgrad cut(const ConvShape& shape) {
  constexpr bool nhwc = Gw::Form::layout == Layout::nhwc;
  Wgrad g{};
  g.channels = static_cast<int>(shape.c);
  g.rows = static_cast<int>(shape.h);
  g.columns = static_cast<int>(shape.w);
  g.grad_rows = static_cast<int>(shape.p());
  g.grad_columns = static_cast<int>(shape.q());
  g.channel_blocks = static_cast<int>(blocks_for(shape.k, Gw::channels));
  g.k_vectors = g.channel_blocks * Gw::vectors;
  g.segment_tiles = 1;
  while (g.segment_tiles < Gw::tiles && g.segment_tiles * tile_columns < g.grad_columns) g.segment_tiles *= 2;
  g.strips = static_cast<int>(blocks_for(g.grad_columns, g.segment_tiles * tile_columns));
  if (nhwc)
    plan_pixels<Gw>(g, shape);
  else
    plan_channels<Gw>(g);
  // A slice writes and reads all weights once more: together at most 2/11 of what must be read. Nor are more blocks
  // than fill the largest GPUs worth it.
  const int64_t activations = shape.n * shape.c * (shape.h * shape.w + shape.p() * shape.q());
  const int64_t weights = shape.k * Gw::width * taps * taps, by_traffic = activations / (11 * weights);
  const int64_t by_blocks = 1024 / g.channel_blocks;
  // Tensor cores, which multiply fast enough for memory to matter, write and read up to half as much where there would
  // be too few blocks to keep it busy.
  const int64_t by_half = Gw::Form::mma ? std::min<int64_t>(activations / (4 * weights), 128 / g.channel_blocks) : 0;
  const int64_t wanted = std::max<int64_t>(1, std::min(std::max(by_traffic, by_half), by_blocks));
  // Runs of fewer rows than the image make more walks, but none of less than 7 rows.
  constexpr int least_rows = 7;
  g.walk_segments = nhwc ? Gw::tiles / g.segment_tiles : 1;
  const int64_t whole_walks = blocks_for(shape.n * g.strips, g.walk_segments);
  const int64_t most_runs = blocks_for(g.grad_rows, least_rows);
  const int64_t runs = std::clamp<int64_t>(wanted / std::max<int64_t>(whole_walks, 1), 1, most_runs);
  g.run_rows = up(blocks_for(g.grad_rows, runs), nhwc ? 1 : g.band);
  g.runs = static_cast<int>(blocks_for(g.grad_rows, g.run_rows));
  g.lag = g.input_stream.behind + (g.runs > 1);
  if (!nhwc) g.steps = g.run_rows / g.band + g.lag;
  g.input_stream.image_jump = shape.c * shape.h * shape.w - int64_t(g.steps) * g.input_stream.step;
  g.grad_stream.image_jump = shape.k * shape.p() * shape.q() - int64_t(g.steps) * g.grad_stream.step;
  g.segments = static_cast<int>(shape.n) * g.strips * g.runs;
  g.walks = static_cast<int>(blocks_for(g.segments, g.walk_segments));
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
  const int64_t blocks = g.channel_blocks * g.slices;
  launch(wgrad_rows<Gw::width, Gw::stride, typename Gw::Form, Sync>, {blocks}, {Gw::threads}, sizeof(Smem<Gw>), stream,
         g);
  if (g.slices > 1)
    launch(wgrad_rows_finish<Gw::width>, {blocks_for(finish_parts * slice_vectors<Gw>(g), finish_threads)},
           {finish_threads}, 0, stream, g);
}

// The sizes of an entry. `products`: 0 by plain floats, 1 or 3 of TF32 numbers.
template <int width, int stride, Layout layout, int products>
struct Entry {
  using Plain = std::conditional_t<layout == Layout::nhwc, Nhwc, Nchw>;
  using Sizes = Gw<width, stride, std::conditional_t<products == 0, Plain, Tf32<Plain, products>>>;
};

}  // namespace resnext::cuda::rows_wgrad

namespace resnext::cuda {

template <int width, int stride, Layout layout, int products>
const char* rows_wgrad_why_not(const Problem& problem) {
  const ConvShape& s = problem.shape;
  auto* why_not = products == 0 ? padded_3x3_why_not : padded_3x3_mma_why_not;
  if (const char* reason = why_not(problem, DType::f32, layout, width, stride)) return reason;
  if (const char* reason = why_no_tf32(problem, products)) return reason;
  if (s.c >= 1 << 30 || s.h >= 1 << 30 || s.w >= 1 << 30) return "an axis has 2^30 elements";
  if (layout == Layout::nchw && s.h * s.w >= 1 << 25) return "maps have 2^25 pixels";
  if (s.n * s.p() >= (int64_t(1) << 30) / s.q()) return "there are 2^30 output pixels";
  // What three products leave out, 2^-21 of each, is more than the rounding of so short a sum of floats.
  if (products == 3 && s.n * s.p() * s.q() < 16) return "fewer than 16 output pixels";
  return nullptr;
}

template <int width, int stride, Layout layout, int products>
int64_t rows_wgrad_workspace(const Problem& problem, int) {
  using Gw = typename rows_wgrad::Entry<width, stride, layout, products>::Sizes;
  return rows_wgrad::workspace_bytes<Gw>(problem.shape);
}

template <int width, int stride, Layout layout, int products>
void rows_wgrad_run(const WgradArgs& args) {
  using Gw = typename rows_wgrad::Entry<width, stride, layout, products>::Sizes;
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

template <int width, int stride, Layout layout, int products>
KernelEntry<WgradArgs> rows_wgrad_entry(const char* name) {
  return {name,
          rows_wgrad_why_not<width, stride, layout, products>,
          rows_wgrad_workspace<width, stride, layout, products>,
          rows_wgrad_run<width, stride, layout, products>,
          false,
          tf32_yields<products>};
}

}  // namespace resnext::cuda
