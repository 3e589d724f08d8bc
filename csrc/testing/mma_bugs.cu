// The tensor-core kernels with one of their synchronisations left out, for the emulation to catch: two images of 9 x 30
// pixels and one block of channels in fp16, and the weights behind them.
#include "cuda/mma_nhwc.h"
#include "simt_probes.h"

namespace resnext::testing {
namespace mma_bugs {

using cuda::mma_nhwc::Gather;
using cuda::mma_nhwc::Lines;
using cuda::mma_nhwc::Pairs;
using cuda::mma_nhwc::Spread;

struct None : cuda::mma_nhwc::Sync {};

struct NoBarrierAfterWeights : cuda::mma_nhwc::Sync {
  __device__ static void weights() {}
};

struct NoTeamBarrier : cuda::mma_nhwc::Sync {
  template <int warps>
  __device__ static void row(int) {}
};

struct NoAsyncWait : cuda::mma_nhwc::Sync {
  template <int newest>
  __device__ static void copies() {}
};

struct AsyncWaitTooLax : cuda::mma_nhwc::Sync {
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest + 1>();
  }
};

template <class Kind, class Sync>
bool run(const void* input, void* output, void* stream) {
  Lines g{};
  g.images = 2;
  g.rows = 9;
  g.columns = 30;
  g.result_rows = (Kind::spread * g.rows - 1) / Kind::stride + 1;
  g.result_columns = Kind::spread * g.columns / Kind::stride;
  g.channels = Kind::channels;
  g.source_row = int64_t{2} * g.columns * g.channels;
  g.result_row = int64_t{2} * g.result_columns * g.channels;
  g.source = input;
  g.weight = static_cast<const char*>(input) + g.images * g.rows * g.source_row;
  g.result = output;
  g.weight_s = 1;
  g.weight_r = 3;
  g.weight_source = 9;
  g.weight_result = 9 * Kind::width;
  g.weight_group = g.weight_result * Kind::width;
  cuda::mma_nhwc::launch_lines<__half, Kind, Sync>(g, stream);
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
  if (name.starts_with("mma_4/")) return run_named<Pairs>(name.substr(6), input, output, stream);
  if (name.starts_with("mma_8/")) return run_named<Gather<8, 1>>(name.substr(6), input, output, stream);
  if (name.starts_with("mma_32/")) return run_named<Gather<32, 1>>(name.substr(7), input, output, stream);
  if (name.starts_with("mma_32_s2/")) return run_named<Gather<32, 2>>(name.substr(10), input, output, stream);
  if (name.starts_with("spread_32/")) return run_named<Spread<32>>(name.substr(10), input, output, stream);
  return false;
}

}  // namespace resnext::testing
