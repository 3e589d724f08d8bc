#pragma once
// How the tensor cores' wgrad cuts and launches a problem in NCHW.
#include <numeric>

#include "mma_wgrad_entry.h"
#include "mma_wgrad_nchw_kernel.h"

namespace resnext::cuda::mma_wgrad {

inline int64_t up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Of shared memory: so that as many blocks fit into a multiprocessor as registers allow.
template <class Gw>
constexpr int64_t most_ring_bytes = (Gw::threads == 256 ? 96 : 48) * 1024;

// How a tensor's rows lie in the ring and are copied there.
template <class Gw>
void plan_stream(Stream& s, int64_t columns, int channels, int64_t band_rows, int64_t slots, int64_t images) {
  s.slots = static_cast<int>(slots);
  s.vector = static_cast<int>(std::gcd(columns, int64_t{8}));
  s.row_copies = static_cast<int>(columns / s.vector);
  s.copies = static_cast<int>(band_rows * s.row_copies);
  s.copy_threads = static_cast<int>(std::min<int64_t>(up(s.copies, 32), Gw::threads));
  s.copy_groups = std::min(Gw::threads / s.copy_threads, channels);
  s.channel_pitch = static_cast<int>(images * slots * s.row_pitch);
}

// Plans chunks of `band` steps of `images` images. Whether they fit.
template <class Gw>
bool plan_chunk(MmaWgrad& g, int64_t band, int64_t images, bool whole) {
  Stream &in = g.input_stream, &out = g.grad_stream;
  const int64_t octets = (int64_t{g.grad_columns} + 7) / 8;
  g.narrow = octets <= 1;
  const int64_t row_pairs = g.narrow ? 1 : (octets + 1) / 2, most = most_ring_bytes<Gw> / 16;
  const int64_t out_pitch = g.narrow ? 1 : 2 * row_pairs;
  const int64_t in_pitch = std::max(Gw::stride * out_pitch, (int64_t{g.columns} + 8) / 8);
  const int64_t in_slots = 2 * Gw::stride * band, out_slots = 2 * band + (whole ? 0 : 3 - Gw::stride);
  if (in_slots * in_pitch > most || out_slots * out_pitch > most) return false;  // before it overflows
  g.band = static_cast<int>(band);
  g.walk_images = static_cast<int>(images);
  g.by_row_pairs = divisor(static_cast<int>(row_pairs));
  g.step_pairs = static_cast<int>(row_pairs * images / (g.narrow ? 2 : 1));
  for (g.side_bits = 0; 1 << g.side_bits < Gw::teams && g.step_pairs % (2 << g.side_bits) == 0;) ++g.side_bits;
  in.row_pitch = static_cast<int>(in_pitch);
  out.row_pitch = static_cast<int>(out_pitch);
  plan_stream<Gw>(in, g.columns, 8 * Gw::c_planes, Gw::stride * band, in_slots, images);
  plan_stream<Gw>(out, g.grad_columns, 8 * Gw::k_planes, band, out_slots, images);
  in.channel_pitch = Gw::stride == 1 ? in.channel_pitch | 1 : in.channel_pitch + (6 - in.channel_pitch % 4) % 4;
  out.channel_pitch |= 1;
  in.start = 1;
  const int64_t vectors = int64_t{8} * Gw::c_planes * in.channel_pitch + 1;
  out.start = static_cast<int>(vectors);
  const int64_t all = vectors + int64_t{8} * Gw::k_planes * out.channel_pitch;
  g.ring_vectors = static_cast<int>(std::min(all, most + 1));
  return all <= most;
}

// Chooses what a chunk has: whole walks of as many images as fit and leave `walks` of them, else as many steps as fit,
// such that chunks begin at whole sectors.
template <class Gw>
void plan_chunks(MmaWgrad& g, int64_t steps, int64_t sector_rows, int64_t walks) {
  const int64_t least = g.grad_columns <= 8 ? 2 : 1;
  if (plan_chunk<Gw>(g, steps, least, true)) {
    int64_t images = least;
    while (images < g.images && blocks_for(g.images, images + least) * g.runs >= walks &&
           plan_chunk<Gw>(g, steps, images + least, true))
      images += least;
    plan_chunk<Gw>(g, steps, images, true);
    return;
  }
  const int64_t most = std::min<int64_t>(steps - 1, 1024);
  for (int64_t band = most / sector_rows * sector_rows; band > 0; band -= sector_rows)
    if (plan_chunk<Gw>(g, band, least, false)) return;
  for (int64_t band = std::min(sector_rows, most + 1) - 1; band > 0; --band)
    if (plan_chunk<Gw>(g, band, least, false)) return;
  g.ring_vectors = 0;  // rows are too long
}

template <class Gw>
MmaWgrad cut_nchw(const ConvShape& shape) {
  MmaWgrad g = sizes<Gw>(shape);
  const auto rows_of_sectors = [](int64_t columns) { return 16 / std::gcd(columns, int64_t{16}); };
  const int64_t sector_rows = std::max(rows_of_sectors(shape.q()), rows_of_sectors(Gw::stride * shape.w));
  const int64_t wanted = wanted_slices<Gw>(g, shape);
  cut_runs(g, wanted, std::max<int64_t>(shape.n, 1));
  if (g.runs > 1) g.run_rows = static_cast<int>(std::min<int64_t>(up(g.run_rows, sector_rows), g.grad_rows));
  g.runs = static_cast<int>(blocks_for(g.grad_rows, g.run_rows));
  plan_chunks<Gw>(g, g.run_rows + (Gw::stride == 1 && g.runs > 1 ? 2 : 1), sector_rows, wanted);
  if (g.ring_vectors > 0) cut_slices(g, wanted, blocks_for(shape.n, g.walk_images), 1);
  return g;
}

template <class Gw>
struct Form<Gw, Layout::nchw> {
  static MmaWgrad cut(const ConvShape& shape) { return cut_nchw<Gw>(shape); }
  static bool fits(const MmaWgrad& g) { return g.ring_vectors > 0; }

  template <class Sync = Sync>
  static void launch(const MmaWgrad& g, void* stream) {
    cuda::launch(wgrad_mma_nchw<typename Gw::T, Gw::width, Gw::stride, Sync>, blocks_of<Gw>(g), {Gw::threads},
                 std::max(sizeof(PlanesSmem<Gw>), sizeof(uint4) * g.ring_vectors), stream, g);
  }
};

}  // namespace resnext::cuda::mma_wgrad
