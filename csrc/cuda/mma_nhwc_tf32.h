#pragma once
// Groups of floats in the tensor-core kernels of mma_nhwc.h, by TF32: see tf32.h.
//
// 16 bytes are 4 floats, and an A operand is 16 pixels x 8 channels, 32 bytes of each. So up to the registers a group
// of 8, 16 or 32 floats is one of 16, 32 or 64 16-bit channels: the ring, its copies, ldmatrix, which moves words as
// well as halves of them, and the walks are those. A warp makes one tile of 8 channels, which are a sector of a pixel.
#include "mma_nhwc_load.h"
#include "tf32.h"

namespace resnext::cuda::mma_nhwc {

// `Halves`: the kernel of groups of as many bytes, of 16-bit channels.
template <class Halves, int products_of_one>
struct Tf32 : Halves {
  static_assert(!Halves::pairs && Halves::width == Halves::channels);
  static constexpr int warp_channels = 8, vector_channels = 4;
  static constexpr int width = Halves::width / 2, channels = width, sources = 8, tiles = 1;
  static constexpr int products = products_of_one;
  static constexpr bool watches = products == 3;
  static constexpr int teams = Halves::warps == 2 ? 4 : Halves::teams, threads = 32 * Halves::warps * teams;
  static constexpr int blocks = Halves::warps == 1   ? (products == 1 ? 8 : 5)
                                : Halves::warps == 2 ? (products == 1 ? 3 : 2)
                                                     : (products == 1 ? 2 : 1);
};

}  // namespace resnext::cuda::mma_nhwc
