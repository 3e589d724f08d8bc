#pragma once
// How the tensor cores' wgrad cuts and launches a problem in NHWC.
#include "mma_wgrad_entry.h"
#include "mma_wgrad_kernel.h"

namespace resnext::cuda::mma_wgrad {

template <class Gw>
MmaWgrad cut_nhwc(const ConvShape& shape) {
  MmaWgrad g = sizes<Gw>(shape);
  g.segment_bits = g.grad_columns <= 8 ? 0 : g.grad_columns <= 16 ? 1 : 2;
  const int64_t vectors = shape.c / 8;
  g.row = shape.w * vectors;
  g.grad_row = shape.q() * vectors;
  g.step = InputColumns<Gw>::step(g) * vectors;
  g.grad_step = GradColumns<Gw>::step(g) * vectors;
  g.strips = static_cast<int>(blocks_for(g.grad_columns, 8 * octets));
  g.strip_columns = static_cast<int>(blocks_for(g.grad_columns, g.strips));
  const int64_t wanted = wanted_slices<Gw>(g, shape), walks = g.strips * blocks_for(shape.n, octets >> g.segment_bits);
  cut_runs(g, wanted * Gw::teams, walks);
  cut_slices(g, wanted, walks, Gw::teams);
  return g;
}

template <class Gw>
struct Form<Gw, Layout::nhwc> {
  static MmaWgrad cut(const ConvShape& shape) { return cut_nhwc<Gw>(shape); }
  static bool fits(const MmaWgrad&) { return true; }

  template <class Sync = Sync>
  static void launch(const MmaWgrad& g, void* stream) {
    cuda::launch(wgrad_mma<typename Gw::T, Gw::width, Gw::stride, Sync>, blocks_of<Gw>(g), {Gw::threads},
                 sizeof(Smem<Gw>), stream, g);
  }
};

}  // namespace resnext::cuda::mma_wgrad
