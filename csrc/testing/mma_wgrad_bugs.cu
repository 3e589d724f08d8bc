// The tensor cores' wgrad with one of its synchronisations left out, for the emulation to catch: one image of 28 x 30
// pixels, and grad_output behind it, with the channels of one block.
#include "cuda/mma_wgrad_plan.h"
#include "simt_probes.h"

namespace resnext::testing {
namespace mma_wgrad_bugs {

using cuda::mma_wgrad::MmaWgrad;

struct None : cuda::mma_wgrad::Sync {};

struct NoAsyncWait : cuda::mma_wgrad::Sync {
  template <int newest>
  __device__ static void copies() {}
};

struct AsyncWaitTooLax : cuda::mma_wgrad::Sync {
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest + 1>();
  }
};

struct NoBarrierAfterRow : cuda::mma_wgrad::Sync {
  template <class Gw>
  __device__ static void row() {}
};

struct NoBarrierBeforeSums : cuda::mma_wgrad::Sync {
  __device__ static void before_sums() {}
};

struct NoBarrierAfterSums : cuda::mma_wgrad::Sync {
  __device__ static void after_sums() {}
};

struct NoBarrierBeforeResults : cuda::mma_wgrad::Sync {
  __device__ static void results() {}
};

template <class Gw, class Sync>
bool run(const void* input, void* output, void* stream) {
  const ConvShape shape{1, Gw::channels, 28, 30, Gw::channels, 3, 3, Gw::channels / Gw::width, 1, 1, 1, 1, 1, 1};
  MmaWgrad g = cuda::mma_wgrad::cut<Gw>(shape);
  g.slices = 1;
  g.slice_walks = g.walks;
  g.input = input;
  g.grad_output = static_cast<const __half*>(input) + shape.h * shape.w * shape.c;
  g.grad_weight = output;
  g.weight_k = 9 * Gw::width;
  g.weight_c = 9;
  g.weight_r = 3;
  g.weight_s = 1;
  g.grad_bias = static_cast<__half*>(output) + g.weight_k * shape.k;
  cuda::mma_wgrad::launch_wgrad<Gw, Sync>(g, stream);
  return true;
}

template <class Gw>
bool run(const std::string& bug, const void* input, void* output, void* stream) {
  if (bug == "none") return run<Gw, None>(input, output, stream);
  if (bug == "no_async_wait") return run<Gw, NoAsyncWait>(input, output, stream);
  if (bug == "async_wait_too_lax") return run<Gw, AsyncWaitTooLax>(input, output, stream);
  if (bug == "no_barrier_after_row") return run<Gw, NoBarrierAfterRow>(input, output, stream);
  if (bug == "no_barrier_before_sums") return run<Gw, NoBarrierBeforeSums>(input, output, stream);
  if (bug == "no_barrier_after_sums") return run<Gw, NoBarrierAfterSums>(input, output, stream);
  if (bug == "no_barrier_before_results") return run<Gw, NoBarrierBeforeResults>(input, output, stream);
  return false;
}

}  // namespace mma_wgrad_bugs

bool launch_mma_wgrad_probe(const std::string& name, const void* input, void* output, int64_t, void* stream) {
  const std::string kinds[] = {"mma_wgrad/8/", "mma_wgrad/32/"};
  if (name.starts_with(kinds[0]))
    return mma_wgrad_bugs::run<cuda::mma_wgrad::Gw<__half, 8, 1>>(name.substr(kinds[0].size()), input, output, stream);
  if (name.starts_with(kinds[1]))
    return mma_wgrad_bugs::run<cuda::mma_wgrad::Gw<__half, 32, 1>>(name.substr(kinds[1].size()), input, output, stream);
  return false;
}

}  // namespace resnext::testing
