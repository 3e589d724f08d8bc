// The row-streaming wgrad with one of its synchronisations left out, for the emulation to catch: one image of 9 x 30
// pixels and 32 channels, and grad_output behind it.
#include "cuda/rows_wgrad_plan.h"
#include "simt_probes.h"

namespace resnext::testing {
namespace rows_wgrad_bugs {

using cuda::rows_wgrad::Wgrad;

struct None : cuda::rows_wgrad::Sync {};

struct NoAsyncWait : cuda::rows_wgrad::Sync {
  template <int newest>
  __device__ static void copies() {}
};

struct AsyncWaitTooLax : cuda::rows_wgrad::Sync {
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest + 1>();
  }
};

struct NoBarrierAfterRow : cuda::rows_wgrad::Sync {
  __device__ static void row() {}
};

struct NoBarrierBeforeSums : cuda::rows_wgrad::Sync {
  __device__ static void before_sums() {}
};

struct NoBarrierAfterSums : cuda::rows_wgrad::Sync {
  __device__ static void after_sums() {}
};

struct NoBarrierBeforeResults : cuda::rows_wgrad::Sync {
  __device__ static void results() {}
};

template <class Gw, class Sync>
bool run(const void* input, void* output, void* stream) {
  const ConvShape shape{1, 32, 9, 30, 32, 3, 3, 32 / Gw::width, 1, 1, 1, 1, 1, 1};
  Wgrad g = cuda::rows_wgrad::cut<Gw>(shape);
  g.input = static_cast<const float*>(input);
  g.grad_output = g.input + shape.h * shape.w * shape.c;
  g.grad_weight = static_cast<float*>(output);
  g.weight_k = 9 * Gw::width;
  g.weight_c = 9;
  g.weight_r = 3;
  g.weight_s = 1;
  g.grad_bias = g.grad_weight + g.weight_k * shape.k;
  cuda::rows_wgrad::launch_wgrad<Gw, Sync>(g, stream);
  return true;
}

}  // namespace rows_wgrad_bugs

bool launch_rows_wgrad_probe(const std::string& name, const void* input, void* output, int64_t, void* stream) {
  using namespace rows_wgrad_bugs;
  using Gw8 = cuda::rows_wgrad::Gw<8, 1, cuda::rows_wgrad::Nhwc>;
  if (name == "rows_wgrad/none") return run<Gw8, None>(input, output, stream);
  if (name == "rows_wgrad/no_async_wait") return run<Gw8, NoAsyncWait>(input, output, stream);
  if (name == "rows_wgrad/async_wait_too_lax") return run<Gw8, AsyncWaitTooLax>(input, output, stream);
  if (name == "rows_wgrad/no_barrier_after_row") return run<Gw8, NoBarrierAfterRow>(input, output, stream);
  if (name == "rows_wgrad/no_barrier_before_sums") return run<Gw8, NoBarrierBeforeSums>(input, output, stream);
  if (name == "rows_wgrad/no_barrier_after_sums") return run<Gw8, NoBarrierAfterSums>(input, output, stream);
  if (name == "rows_wgrad/no_barrier_before_results") return run<Gw8, NoBarrierBeforeResults>(input, output, stream);
  return false;
}

}  // namespace resnext::testing
