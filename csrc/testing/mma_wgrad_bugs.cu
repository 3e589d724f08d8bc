// The tensor cores' wgrad with one of its synchronisations left out, for the emulation to catch: one image of 28 x 30
// pixels, and grad_output behind it, with the channels of one block.
#include "cuda/mma_wgrad_nchw_plan.h"
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

struct NoBarrierAtChunk : cuda::mma_wgrad::Sync {
  __device__ static void chunk() {}
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

// What the kernel is told about images of grad_output of a block's channels, in one slice.
template <class Gw, Layout layout>
MmaWgrad told(int64_t images, int64_t rows, int64_t columns) {
  constexpr int64_t c = Gw::channels, t = Gw::stride;
  const ConvShape shape{images, c, t * rows, t * columns, c, 3, 3, c / Gw::width, t, t, 1, 1, 1, 1};
  MmaWgrad g = cuda::mma_wgrad::Form<Gw, layout>::cut(shape);
  g.slices = 1;
  g.slice_walks = g.walks;
  g.weight_k = 9 * Gw::width;
  g.weight_c = 9;
  g.weight_r = 3;
  g.weight_s = 1;
  return g;
}

template <class Gw, Layout layout, class Sync>
bool run(const void* input, void* output, void* stream) {
  MmaWgrad g = told<Gw, layout>(1, 28, 30);
  g.input = input;
  g.grad_output = static_cast<const __half*>(input) + 28 * 30 * Gw::channels;
  g.grad_weight = output;
  g.grad_bias = static_cast<__half*>(output) + g.weight_k * Gw::channels;
  cuda::mma_wgrad::launch_wgrad<Gw, layout, Sync>(g, stream);
  return true;
}

template <class Gw, Layout layout>
bool run(const std::string& bug, const void* input, void* output, void* stream) {
  if (bug == "none") return run<Gw, layout, None>(input, output, stream);
  if (bug == "no_async_wait") return run<Gw, layout, NoAsyncWait>(input, output, stream);
  if (bug == "async_wait_too_lax") return run<Gw, layout, AsyncWaitTooLax>(input, output, stream);
  if (bug == "no_barrier_after_row") return run<Gw, layout, NoBarrierAfterRow>(input, output, stream);
  if (bug == "no_barrier_at_chunk") return run<Gw, layout, NoBarrierAtChunk>(input, output, stream);
  if (bug == "no_barrier_before_sums") return run<Gw, layout, NoBarrierBeforeSums>(input, output, stream);
  if (bug == "no_barrier_after_sums") return run<Gw, layout, NoBarrierAfterSums>(input, output, stream);
  if (bug == "no_barrier_before_results") return run<Gw, layout, NoBarrierBeforeResults>(input, output, stream);
  return false;
}

// Tells what launches are told, for tests/test_races.py: three sizes in, the struct out.
template <int width, int stride, Layout layout>
bool tell(const void* input, void* output) {
  const float* sizes = static_cast<const float*>(input);
  *static_cast<MmaWgrad*>(output) = told<cuda::mma_wgrad::Gw<__half, width, stride>, layout>(
      static_cast<int64_t>(sizes[0]), static_cast<int64_t>(sizes[1]), static_cast<int64_t>(sizes[2]));
  return true;
}

template <Layout layout>
bool tell(const std::string& kind, const void* input, void* output) {
  if (kind == "8, 1") return tell<8, 1, layout>(input, output);
  if (kind == "16, 1") return tell<16, 1, layout>(input, output);
  if (kind == "32, 1") return tell<32, 1, layout>(input, output);
  if (kind == "8, 2") return tell<8, 2, layout>(input, output);
  if (kind == "16, 2") return tell<16, 2, layout>(input, output);
  if (kind == "32, 2") return tell<32, 2, layout>(input, output);
  return false;
}

template <Layout layout>
bool launch(const std::string& what, const void* input, void* output, void* stream) {
  const auto rest = [&](const std::string& start) { return what.starts_with(start) ? what.substr(start.size()) : ""; };
  if (const auto bug = rest("8/"); !bug.empty())
    return run<cuda::mma_wgrad::Gw<__half, 8, 1>, layout>(bug, input, output, stream);
  if (const auto bug = rest("32/"); !bug.empty())
    return run<cuda::mma_wgrad::Gw<__half, 32, 1>, layout>(bug, input, output, stream);
  if (const auto kind = rest("plan/"); !kind.empty()) return tell<layout>(kind, input, output);
  return false;
}

}  // namespace mma_wgrad_bugs

bool launch_mma_wgrad_probe(const std::string& name, const void* input, void* output, int64_t, void* stream) {
  using namespace mma_wgrad_bugs;
  const auto rest = [&](const std::string& start) { return name.starts_with(start) ? name.substr(start.size()) : ""; };
  if (const auto what = rest("mma_wgrad/nhwc/"); !what.empty())
    return launch<Layout::nhwc>(what, input, output, stream);
  if (const auto what = rest("mma_wgrad/nchw/"); !what.empty())
    return launch<Layout::nchw>(what, input, output, stream);
  return false;
}

}  // namespace resnext::testing
