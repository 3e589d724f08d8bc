// The row-streaming NCHW kernels with one of their synchronisations left out, for the emulation to catch: an image of
// 32 channels and the weights behind it; 30 x 56 pixels in fprop at stride 2, 15 x 28 in dgrad.
#include <cstring>

#include "cuda/rows_nchw.h"
#include "simt_probes.h"

namespace resnext::testing {
namespace rows_nchw_bugs {

using cuda::rows_nchw::Plan;

struct None : cuda::rows_nchw::Sync {};

struct NoAsyncWait : cuda::rows_nchw::Sync {
  template <int newest>
  __device__ static void copies() {}
};

struct AsyncWaitTooLax : cuda::rows_nchw::Sync {
  template <int newest>
  __device__ static void copies() {
    ptx::cp_async_wait_group<newest + 1>();
  }
};

struct NoBarrierAtStage : cuda::rows_nchw::Sync {
  __device__ static void stage() {}
};

struct NoBarrierBeforeResults : cuda::rows_nchw::Sync {
  __device__ static void operands_done() {}
};

struct NoSyncwarp : cuda::rows_nchw::Sync {
  __device__ static void warp() {}
};

// A plan for weights in KCRS order, up to its tiles; `rows` and `columns` are the source's.
template <class K>
Plan plan(int64_t images, int64_t channels, int rows, int columns) {
  Plan g{};
  const bool spreads = K::spread == 2;
  g.images = images;
  g.channels = channels;
  g.rows = rows;
  g.columns = columns;
  g.result_rows = spreads ? 2 * rows : (rows - 1) / K::stride + 1;
  g.result_columns = spreads ? 2 * columns : (columns - 1) / K::stride + 1;
  g.weight_s = 1;
  g.weight_r = 3;
  g.weight_source = 9;
  g.weight_result = 9 * K::width;
  g.weight_group = g.weight_result * K::width;
  return g;
}

template <class K, class Sync>
bool run(const void* input, void* output, void* stream) {
  Plan g = K::spread == 2 ? plan<K>(1, 32, 15, 28) : plan<K>(1, 32, 30, 56);
  g.source = static_cast<const float*>(input);
  g.weight = g.source + g.channels * g.rows * g.columns;
  g.result = static_cast<float*>(output);
  cuda::rows_nchw::launch_tiles<K, Sync>(g, stream);
  return true;
}

template <class K>
bool run(const std::string& bug, const void* input, void* output, void* stream) {
  if (bug == "none") return run<K, None>(input, output, stream);
  if (bug == "no_async_wait") return run<K, NoAsyncWait>(input, output, stream);
  if (bug == "async_wait_too_lax") return run<K, AsyncWaitTooLax>(input, output, stream);
  if (bug == "no_barrier_at_stage") return run<K, NoBarrierAtStage>(input, output, stream);
  if (bug == "no_barrier_before_results") return run<K, NoBarrierBeforeResults>(input, output, stream);
  if (bug == "no_syncwarp") return run<K, NoSyncwarp>(input, output, stream);
  return false;
}

// For tests/test_races.py: what a kernel is told of a group of images, rows and columns (`sizes`), as bytes.
template <class K>
bool tell(const float* sizes, void* output) {
  Plan g = plan<K>(static_cast<int64_t>(sizes[0]), K::width, static_cast<int>(sizes[1]), static_cast<int>(sizes[2]));
  cuda::rows_nchw::complete<K>(g);
  std::memcpy(output, &g, sizeof g);
  return true;
}

template <int width>
bool tell(const std::string& kind, const float* sizes, void* output) {
  using namespace cuda::rows_nchw;
  if (kind == "Gw<" + std::to_string(width) + ", 1>") return tell<Gw<width, 1>>(sizes, output);
  if (kind == "Gw<" + std::to_string(width) + ", 2>") return tell<Gw<width, 2>>(sizes, output);
  if (kind == "Spread<" + std::to_string(width) + ">") return tell<Spread<width>>(sizes, output);
  return false;
}

}  // namespace rows_nchw_bugs

bool launch_rows_nchw_probe(const std::string& name, const void* input, void* output, int64_t, void* stream) {
  using namespace cuda::rows_nchw;
  const std::string fprop = "rows_nchw/fprop/", dgrad = "rows_nchw/dgrad/", plan = "rows_nchw/plan/";
  if (name.starts_with(plan)) {
    const std::string kind = name.substr(plan.size());
    const float* sizes = static_cast<const float*>(input);
    return rows_nchw_bugs::tell<4>(kind, sizes, output) || rows_nchw_bugs::tell<8>(kind, sizes, output) ||
           rows_nchw_bugs::tell<16>(kind, sizes, output) || rows_nchw_bugs::tell<32>(kind, sizes, output);
  }
  if (name.starts_with(fprop)) return rows_nchw_bugs::run<Gw<16, 2>>(name.substr(fprop.size()), input, output, stream);
  if (name.starts_with(dgrad)) return rows_nchw_bugs::run<Spread<16>>(name.substr(dgrad.size()), input, output, stream);
  return false;
}

}  // namespace resnext::testing
