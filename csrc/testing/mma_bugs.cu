// The tensor-core kernels with one of their synchronisations left out, for the emulation to catch: two images of 9 x 30
// pixels and one block of channels in fp16 or float, and the weights behind them.
#include <cstring>

#include "cuda/mma_nhwc.h"
#include "simt_probes.h"

namespace resnext::testing {
namespace mma_bugs {

using cuda::mma_nhwc::Fused;
using cuda::mma_nhwc::Gather;
using cuda::mma_nhwc::Lines;
using cuda::mma_nhwc::PaddedGroups;
using cuda::mma_nhwc::Spread;
using cuda::mma_nhwc::Tf32;

struct None : cuda::mma_nhwc::Sync {
  static constexpr bool mends = false;
};

struct NoBarrierAfterWeights : None {
  __device__ static void weights() {}
};

struct NoTeamBarrier : None {
  template <int warps>
  __device__ static void row(int) {}
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

template <class Kind>
using Element = std::conditional_t<Kind::products == 0, __half, float>;

// A block of channels, weights in KCRS order. A group that is padded lacks a vector of its source.
template <class Kind>
Lines lines(int images, int rows, int columns) {
  constexpr int sources = Kind::pads ? Kind::width - 8 : Kind::channels;
  Lines g{};
  g.images = images;
  g.rows = rows;
  g.columns = columns;
  g.result_rows = (Kind::spread * g.rows - 1) / Kind::stride + 1;
  g.result_columns = (Kind::spread * g.columns - 1) / Kind::stride + 1;
  g.channels = Kind::channels;
  g.source_channels = g.source_width = sources;
  g.result_channels = g.result_width = Kind::channels;
  g.source_row = int64_t{sizeof(Element<Kind>)} * g.columns * sources;
  g.result_row = int64_t{sizeof(Element<Kind>)} * g.result_columns * g.channels;
  g.weight_s = 1;
  g.weight_r = 3;
  g.weight_source = 9;
  g.weight_result = 9 * (Kind::pads ? sources : Kind::width);
  g.weight_group = g.weight_result * Kind::width;
  return g;
}

template <class Kind, class Sync>
bool run(const void* input, void* output, void* stream) {
  Lines g = lines<Kind>(2, 9, 30);
  g.source = input;
  g.weight = static_cast<const char*>(input) + g.images * g.rows * g.source_row;
  g.result = output;
  cuda::mma_nhwc::launch_lines<Element<Kind>, Kind, Sync>(g, stream);
  return true;
}

// What launch_lines gives its kernel for a source of so many images, rows and columns.
template <class Kind>
bool tell(const void* input, void* output) {
  const float* size = static_cast<const float*>(input);
  Lines g = lines<Kind>(static_cast<int>(size[0]), static_cast<int>(size[1]), static_cast<int>(size[2]));
  cuda::mma_nhwc::share_out<Kind>(g);
  cuda::mma_nhwc::pack_weights<Kind>(g);
  std::memcpy(output, &g, sizeof(g));
  return true;
}

template <class Kind>
bool run_named(const std::string& bug, const void* input, void* output, void* stream) {
  if (bug == "none") return run<Kind, None>(input, output, stream);
  if (bug == "no_barrier_after_weights") return run<Kind, NoBarrierAfterWeights>(input, output, stream);
  if (bug == "no_team_barrier") return run<Kind, NoTeamBarrier>(input, output, stream);
  if (bug == "no_async_wait") return run<Kind, NoAsyncWait>(input, output, stream);
  if (bug == "async_wait_too_lax") return run<Kind, AsyncWaitTooLax>(input, output, stream);
  return false;
}

}  // namespace mma_bugs

bool launch_mma_probe(const std::string& name, const void* input, void* output, int64_t, void* stream) {
  using namespace mma_bugs;
  const auto rest = [&](const std::string& start) {
    return name.starts_with(start) ? name.substr(start.size()) : std::string();
  };
  if (const auto bug = rest("mma_4/"); !bug.empty()) return run_named<Gather<4, 1>>(bug, input, output, stream);
  if (const auto bug = rest("mma_4_s2/"); !bug.empty()) return run_named<Gather<4, 2>>(bug, input, output, stream);
  if (const auto bug = rest("spread_4/"); !bug.empty()) return run_named<Spread<4>>(bug, input, output, stream);
  if (const auto bug = rest("mma_8/"); !bug.empty()) return run_named<Gather<8, 1>>(bug, input, output, stream);
  if (const auto bug = rest("mma_24/"); !bug.empty()) return run_named<Gather<24, 1>>(bug, input, output, stream);
  if (const auto bug = rest("mma_32/"); !bug.empty()) return run_named<Gather<32, 1>>(bug, input, output, stream);
  if (const auto bug = rest("mma_32_s2/"); !bug.empty()) return run_named<Gather<32, 2>>(bug, input, output, stream);
  if (const auto bug = rest("spread_32/"); !bug.empty()) return run_named<Spread<32>>(bug, input, output, stream);
  if (const auto bug = rest("tf32x3_16/"); !bug.empty())
    return run_named<Tf32<Gather<32, 1>, 3>>(bug, input, output, stream);
  if (const auto bug = rest("padded_32/"); !bug.empty())
    return run_named<PaddedGroups<Fused<Gather<32, 1>>>>(bug, input, output, stream);
  const std::string kind = rest("mma_nhwc/plan/");
  if (kind == "PaddedGroups<Fused<Gather<16, 1> > >") return tell<PaddedGroups<Fused<Gather<16, 1>>>>(input, output);
  if (kind == "Gather<4, 1>") return tell<Gather<4, 1>>(input, output);
  if (kind == "Gather<4, 2>") return tell<Gather<4, 2>>(input, output);
  if (kind == "Spread<4>") return tell<Spread<4>>(input, output);
  if (kind == "Gather<8, 1>") return tell<Gather<8, 1>>(input, output);
  if (kind == "Gather<8, 2>") return tell<Gather<8, 2>>(input, output);
  if (kind == "Spread<8>") return tell<Spread<8>>(input, output);
  if (kind == "Gather<16, 1>") return tell<Gather<16, 1>>(input, output);
  if (kind == "Gather<16, 2>") return tell<Gather<16, 2>>(input, output);
  if (kind == "Spread<16>") return tell<Spread<16>>(input, output);
  if (kind == "Gather<32, 1>") return tell<Gather<32, 1>>(input, output);
  if (kind == "Tf32<Gather<16, 1>, 1>") return tell<Tf32<Gather<16, 1>, 1>>(input, output);
  if (kind == "Tf32<Spread<16>, 1>") return tell<Tf32<Spread<16>, 1>>(input, output);
  if (kind == "Tf32<Gather<16, 1>, 3>") return tell<Tf32<Gather<16, 1>, 3>>(input, output);
  return false;
}

}  // namespace resnext::testing
