#pragma once
// How the tensor cores' wgrad cuts a problem, by its shape alone, so that every GPU adds in the same order.
#include <algorithm>

#include "grouped_conv.h"
#include "mma_wgrad_load.h"

namespace resnext::cuda::mma_wgrad {

inline int64_t blocks_for(int64_t count, int64_t per_block) { return (count + per_block - 1) / per_block; }

template <class Gw>
MmaWgrad sizes(const ConvShape& shape) {
  MmaWgrad g{};
  g.channels = static_cast<int>(shape.c);
  g.rows = static_cast<int>(shape.h);
  g.columns = static_cast<int>(shape.w);
  g.grad_rows = static_cast<int>(shape.p());
  g.grad_columns = static_cast<int>(shape.q());
  g.channel_blocks = static_cast<int>(blocks_for(shape.c, Gw::channels));
  g.images = static_cast<int>(shape.n);
  return g;
}

// A slice writes and reads all weights once more, in float: together at most a fifth of the bytes that must be read;
// half of them where there would be fewer blocks than fill a GPU.
template <class Gw>
int64_t wanted_slices(const MmaWgrad& g, const ConvShape& shape) {
  const int64_t blocks = int64_t(g.channel_blocks) * Gw::parts;
  const int64_t activations = 2 * shape.n * shape.c * (shape.h * shape.w + shape.p() * shape.q());
  const int64_t by_traffic = activations / (8 * shape.k * Gw::width * taps * taps);
  return std::max<int64_t>(
      1, std::min(std::max(by_traffic / 5, std::min<int64_t>(by_traffic / 2, 128 / blocks)), 256 / blocks));
}

// Runs of fewer rows than the image make more walks than the `walks` of whole ones, if more are wanted, but none of
// less than 7 rows.
inline void cut_runs(MmaWgrad& g, int64_t wanted, int64_t walks) {
  constexpr int least_rows = 7;
  const int64_t most_runs = blocks_for(g.grad_rows, least_rows);
  const int64_t runs = std::clamp<int64_t>(wanted / std::max<int64_t>(walks, 1), 1, most_runs);
  g.run_rows = static_cast<int>(blocks_for(g.grad_rows, runs));
  g.runs = static_cast<int>(blocks_for(g.grad_rows, g.run_rows));
}

// Deals the walks, of which there are `walks` for each run, out to slices, for `teams` at a time.
inline void cut_slices(MmaWgrad& g, int64_t wanted, int64_t walks, int64_t teams) {
  g.walks = static_cast<int>(walks * g.runs);
  g.slice_walks = static_cast<int>(std::max<int64_t>(1, blocks_for(g.walks, wanted * teams)) * teams);
  g.slices = static_cast<int>(std::max<int64_t>(1, blocks_for(g.walks, g.slice_walks)));
}

}  // namespace resnext::cuda::mma_wgrad
