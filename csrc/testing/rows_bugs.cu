// The row-streaming kernels with one of their synchronisations left out, for the emulation to catch: one image of 9 x
// 30 pixels and 32 channels, and the weights behind it.
#include "cuda/rows_nhwc.h"
#include "simt_probes.h"

namespace resnext::testing {
namespace rows_bugs {

using cuda::rows_nhwc::Rows;

struct None : cuda::rows_nhwc::Sync {};

struct NoBarrierAfterWeights : cuda::rows_nhwc::Sync {
  __device__ static void weights() {}
};

struct NoSyncwarp : cuda::rows_nhwc::Sync {
  __device__ static void row() {}
};

struct NoAsyncWait : cuda::rows_nhwc::Sync {
  template <int newest>
  __device__ static void copies() {}
};

struct AsyncWaitTooLax : cuda::rows_nhwc::Sync {
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest + 1>();
  }
};

template <class Gw, class Sync>
bool run(const void* input, void* output, void* stream) {
  Rows g{};
  g.rows = 9;
  g.columns = 30;
  g.result_rows = Gw::spread * g.rows;
  g.result_columns = Gw::spread * g.columns;
  g.channels = 32;
  g.images = 1;
  g.source = static_cast<const float*>(input);
  g.weight = g.source + g.rows * g.columns * g.channels;
  g.result = static_cast<float*>(output);
  g.weight_s = 1;
  g.weight_r = 3;
  g.weight_source = 9;
  g.weight_result = 9 * Gw::width;
  g.weight_group = g.weight_result * Gw::width;
  cuda::rows_nhwc::launch_map<Gw, cuda::rows_nhwc::Wide, Sync>(g, stream);
  return true;
}

template <class Gw>
bool run_named(const std::string& bug, const void* input, void* output, void* stream) {
  if (bug == "none") return run<Gw, None>(input, output, stream);
  if (bug == "no_barrier_after_weights") return run<Gw, NoBarrierAfterWeights>(input, output, stream);
  if (bug == "no_syncwarp") return run<Gw, NoSyncwarp>(input, output, stream);
  if (bug == "no_async_wait") return run<Gw, NoAsyncWait>(input, output, stream);
  if (bug == "async_wait_too_lax") return run<Gw, AsyncWaitTooLax>(input, output, stream);
  return false;
}

}  // namespace rows_bugs

bool launch_rows_probe(const std::string& name, const void* input, void* output, int64_t, void* stream) {
  using namespace cuda::rows_nhwc;
  if (name.starts_with("rows/")) return rows_bugs::run_named<Gw<8, 1>>(name.substr(5), input, output, stream);
  if (name.starts_with("spread/")) return rows_bugs::run_named<Spread<8>>(name.substr(7), input, output, stream);
  return false;
}

}  // namespace resnext::testing
