// The row-streaming wgrad with one of its synchronisations left out, for the emulation to catch: one image of 9 x 28
// pixels and 32 channels, and grad_output behind it.
#include <cstring>

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

// Of tensors without addresses; weights in KCRS order.
template <class Gw>
Wgrad plan(const ConvShape& shape) {
  Wgrad g = cuda::rows_wgrad::cut<Gw>(shape);
  g.weight_k = 9 * Gw::width;
  g.weight_c = 9;
  g.weight_r = 3;
  g.weight_s = 1;
  return g;
}

template <class Gw, class Sync>
bool run(const void* input, void* output, void* stream) {
  const ConvShape shape{1, 32, 9, 28, 32, 3, 3, 32 / Gw::width, 1, 1, 1, 1, 1, 1};
  Wgrad g = plan<Gw>(shape);
  g.input = static_cast<const float*>(input);
  g.grad_output = g.input + shape.h * shape.w * shape.c;
  g.grad_weight = static_cast<float*>(output);
  g.grad_bias = g.grad_weight + g.weight_k * shape.k;
  cuda::rows_wgrad::launch_wgrad<Gw, Sync>(g, stream);
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

// For tests/test_races.py: what a kernel is told of images, rows and columns of the input (`sizes`), as bytes; before
// them the threads of a block.
template <class Gw>
bool write_plan(const void* sizes, void* output) {
  const float* size = static_cast<const float*>(sizes);
  const auto at = [&](int i) { return static_cast<int64_t>(size[i]); };
  const Wgrad g = plan<Gw>({at(0), Gw::channels, at(1), at(2), Gw::channels, 3, 3, Gw::channels / Gw::width, Gw::stride,
                            Gw::stride, 1, 1, 1, 1});
  const int64_t threads = Gw::threads;
  std::memcpy(output, &threads, sizeof(threads));
  std::memcpy(static_cast<char*>(output) + sizeof(threads), &g, sizeof(g));
  return true;
}

template <class Form, int stride>
bool write_plan(const std::string& width, const void* sizes, void* output) {
  using namespace cuda::rows_wgrad;
  if constexpr (!Form::mma)
    if (width == "4") return write_plan<Gw<4, stride, Form>>(sizes, output);
  if (width == "8") return write_plan<Gw<8, stride, Form>>(sizes, output);
  if (width == "16") return write_plan<Gw<16, stride, Form>>(sizes, output);
  return write_plan<Gw<32, stride, Form>>(sizes, output);
}

}  // namespace rows_wgrad_bugs

bool launch_rows_wgrad_probe(const std::string& name, const void* input, void* output, int64_t, void* stream) {
  using namespace rows_wgrad_bugs;
  using namespace cuda::rows_wgrad;
  const auto starts = [&](const std::string& start) { return name.rfind(start, 0) == 0; };
  const std::string last = name.substr(name.rfind('/') + 1);
  if (starts("rows_wgrad/plan/nhwc/1/")) return write_plan<Nhwc, 1>(last, input, output);
  if (starts("rows_wgrad/plan/nhwc/2/")) return write_plan<Nhwc, 2>(last, input, output);
  if (starts("rows_wgrad/plan/nchw/1/")) return write_plan<Nchw, 1>(last, input, output);
  if (starts("rows_wgrad/plan/nchw/2/")) return write_plan<Nchw, 2>(last, input, output);
  if (starts("rows_wgrad/plan/tf32_nhwc/1/")) return write_plan<Tf32<Nhwc, 1>, 1>(last, input, output);
  if (starts("rows_wgrad/plan/tf32_nhwc/2/")) return write_plan<Tf32<Nhwc, 1>, 2>(last, input, output);
  if (starts("rows_wgrad/plan/tf32_nchw/1/")) return write_plan<Tf32<Nchw, 1>, 1>(last, input, output);
  if (starts("rows_wgrad/plan/tf32_nchw/2/")) return write_plan<Tf32<Nchw, 1>, 2>(last, input, output);
  if (starts("rows_wgrad/plan/tf32x3_nhwc/1/")) return write_plan<Tf32<Nhwc, 3>, 1>(last, input, output);
  if (starts("rows_wgrad/plan/tf32x3_nchw/1/")) return write_plan<Tf32<Nchw, 3>, 1>(last, input, output);
  if (starts("rows_wgrad/tf32_nhwc/")) return run<Gw<8, 1, Tf32<Nhwc, 1>>>(last, input, output, stream);
  if (starts("rows_wgrad/tf32_nchw/")) return run<Gw<8, 1, Tf32<Nchw, 1>>>(last, input, output, stream);
  if (starts("rows_wgrad/nhwc/")) return run<Gw<8, 1, Nhwc>>(last, input, output, stream);
  if (starts("rows_wgrad/nchw/")) return run<Gw<8, 1, Nchw>>(last, input, output, stream);
  return false;
}

}  // namespace resnext::testing
