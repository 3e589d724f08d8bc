// The NCHW tensor-core kernels with one of their synchronisations left out, for the emulation to catch: six images of
// 10 x 24 pixels and one block of channels in fp16 or float, and the weights behind them.
#include <cstring>

#include "cuda/mma_nchw.h"
#include "simt_probes.h"

namespace resnext::testing {
namespace mma_nchw_bugs {

using cuda::mma_nchw::Gather;
using cuda::mma_nchw::PaddedGroups;
using cuda::mma_nchw::Planes;
using cuda::mma_nchw::Spread;
using cuda::mma_nchw::Tf32;

struct None : cuda::mma_nchw::Sync {
  static constexpr bool mends = false;
};

struct Mends : cuda::mma_nchw::Sync {};

struct NoBarrierBeforeMending : cuda::mma_nchw::Sync {
  __device__ static void stored() {}
};

struct NoBarrierAfterWeights : None {
  __device__ static void weights() {}
};

struct NoAsyncWait : None {
  template <int newest>
  __device__ static void copies() {}
};

struct AsyncWaitTooLax : None {
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest + 1>();
  }
};

struct NoBarrierAtUnit : None {
  __device__ static void unit() {}
};

struct NoBarrierAtResults : None {
  __device__ static void results() {}
};

template <class Kind>
using Element = std::conditional_t<Kind::floats, float, __half>;

// What a kernel is told of one block of channels, but for tensors. The sizes are the source's. A group that is padded
// has half as many channels there.
template <class Kind>
Planes planes(int images, int rows, int columns) {
  constexpr int sources = Kind::pads ? Kind::width / 2 : Kind::channels;
  Planes g{};
  g.images = images;
  g.rows = rows;
  g.columns = columns;
  g.result_rows = (Kind::spread * rows - 1) / Kind::stride + 1;
  g.result_columns = (Kind::spread * columns - 1) / Kind::stride + 1;
  g.channels = Kind::channels;
  g.source_channels = g.source_width = sources;
  g.result_channels = g.result_width = Kind::channels;
  g.weight_s = 1;
  g.weight_r = 3;
  g.weight_source = 9;
  g.weight_result = 9 * (Kind::pads ? sources : Kind::width);
  g.weight_group = g.weight_result * Kind::width;
  return g;
}

template <class Kind, class Sync>
bool run(const void* input, void* output, void* stream) {
  Planes g = planes<Kind>(6, 10, 24);
  g.source = input;
  g.weight = static_cast<const Element<Kind>*>(input) + g.images * g.source_channels * g.rows * g.columns;
  g.result = output;
  cuda::mma_nchw::launch_planes<Element<Kind>, Kind, Sync>(g, stream, 6);
  return true;
}

template <class Kind>
bool run_named(const std::string& bug, const void* input, void* output, void* stream) {
  if (bug == "none") return run<Kind, None>(input, output, stream);
  if (bug == "no_barrier_after_weights") return run<Kind, NoBarrierAfterWeights>(input, output, stream);
  if (bug == "no_async_wait") return run<Kind, NoAsyncWait>(input, output, stream);
  if (bug == "async_wait_too_lax") return run<Kind, AsyncWaitTooLax>(input, output, stream);
  if (bug == "no_barrier_at_unit") return run<Kind, NoBarrierAtUnit>(input, output, stream);
  if (bug == "no_barrier_at_results") return run<Kind, NoBarrierAtResults>(input, output, stream);
  if constexpr (Kind::floats) {
    if (bug == "mends") return run<Kind, Mends>(input, output, stream);
    if (bug == "no_barrier_before_mending") return run<Kind, NoBarrierBeforeMending>(input, output, stream);
  }
  return false;
}

// For tests/test_races.py: what a kernel is told of images, rows and columns (`sizes`), as bytes.
template <class Kind>
bool tell(const void* sizes, void* told) {
  const auto* size = static_cast<const float*>(sizes);
  Planes g = planes<Kind>(static_cast<int>(size[0]), static_cast<int>(size[1]), static_cast<int>(size[2]));
  cuda::mma_nchw::plan<Kind>(g);
  g.walk = static_cast<int>(g.units);
  std::memcpy(told, &g, sizeof(g));
  return true;
}

}  // namespace mma_nchw_bugs

bool launch_mma_nchw_probe(const std::string& name, const void* input, void* output, int64_t, void* stream) {
  using namespace mma_nchw_bugs;
  if (name == "mma_nchw/plan/Gather<8, 1>") return tell<Gather<8, 1>>(input, output);
  if (name == "mma_nchw/plan/Gather<16, 1>") return tell<Gather<16, 1>>(input, output);
  if (name == "mma_nchw/plan/Gather<4, 2>") return tell<Gather<4, 2>>(input, output);
  if (name == "mma_nchw/plan/PaddedGroups<Gather<16, 1> >") return tell<PaddedGroups<Gather<16, 1>>>(input, output);
  if (name == "mma_nchw/plan/Spread<8>") return tell<Spread<8>>(input, output);
  if (name == "mma_nchw/plan/Tf32<Gather<8, 1>, 1>") return tell<Tf32<Gather<8, 1>, 1>>(input, output);
  if (name == "mma_nchw/plan/Tf32<Gather<8, 1>, 3>") return tell<Tf32<Gather<8, 1>, 3>>(input, output);
  if (name == "mma_nchw/plan/Tf32<Gather<8, 2>, 1>") return tell<Tf32<Gather<8, 2>, 1>>(input, output);
  if (name == "mma_nchw/plan/Tf32<Spread<8>, 1>") return tell<Tf32<Spread<8>, 1>>(input, output);
  if (name.starts_with("nchw_tf32x3_16/"))
    return run_named<Tf32<Gather<16, 1>, 3>>(name.substr(15), input, output, stream);
  if (name.starts_with("nchw_8/")) return run_named<Gather<8, 1>>(name.substr(7), input, output, stream);
  if (name.starts_with("nchw_32/")) return run_named<Gather<32, 1>>(name.substr(8), input, output, stream);
  if (name.starts_with("nchw_16_s2/")) return run_named<Gather<16, 2>>(name.substr(11), input, output, stream);
  if (name.starts_with("nchw_padded_16/"))
    return run_named<PaddedGroups<Gather<16, 1>>>(name.substr(15), input, output, stream);
  if (name.starts_with("nchw_spread_4/")) return run_named<Spread<4>>(name.substr(14), input, output, stream);
  return false;
}

}  // namespace resnext::testing
