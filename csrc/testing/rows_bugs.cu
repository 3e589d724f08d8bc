// The row-streaming kernel with one of its synchronisations left out, for the emulation to catch: one image of 9 x 30
// pixels and 32 channels, and the weights behind it.
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
  g.rows = g.result_rows = 9;
  g.columns = g.result_columns = 30;
  g.channels = 32;
  g.source = static_cast<const float*>(input);
  g.weight = g.source + g.rows * g.columns * g.channels;
  g.result = static_cast<float*>(output);
  g.weight_s = 1;
  g.weight_r = 3;
  g.weight_source = 9;
  g.weight_result = 9 * Gw::width;
  g.weight_group = g.weight_result * Gw::width;
  cuda::rows_nhwc::launch_rows<Gw, Sync>(g, 1, stream);
  return true;
}

}  // namespace rows_bugs

bool launch_rows_probe(const std::string& name, const void* input, void* output, int64_t, void* stream) {
  using namespace rows_bugs;
  using Gw8 = cuda::rows_nhwc::Gw<8, 1>;
  if (name == "rows/none") return run<Gw8, None>(input, output, stream);
  if (name == "rows/no_barrier_after_weights") return run<Gw8, NoBarrierAfterWeights>(input, output, stream);
  if (name == "rows/no_syncwarp") return run<Gw8, NoSyncwarp>(input, output, stream);
  if (name == "rows/no_async_wait") return run<Gw8, NoAsyncWait>(input, output, stream);
  if (name == "rows/async_wait_too_lax") return run<Gw8, AsyncWaitTooLax>(input, output, stream);
  return false;
}

}  // namespace resnext::testing
