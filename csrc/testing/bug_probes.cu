// Kernels of a few lines that break one rule each, for the emulation to catch. Their names say which. All are launched
// with two blocks of 64 threads, an input and an output of float.
#include "cuda/device.h"
#include "cuda/launch.h"
#include "simt_probes.h"

namespace resnext::testing::bugs {

using cuda::dynamic_smem;
constexpr int threads = 64;

struct Smem {
  alignas(16) float tile[threads];
  float edge[8];
};

enum Bug {
  none,
  no_barrier_before_reading,
  no_barrier_before_overwriting,
  no_async_wait,
  async_wait_without_barrier,
  async_wait_too_lax,
  async_into_what_is_read,
  no_syncwarp,
  uninitialised_shared,
  shared_index,
  shared_overrun,
  shared_overrun_far,
  smem_too_small,
  global_read,
  global_read_before,
  global_write,
  global_read_near,
  global_write_near,
  local_overrun,
  input_written,
  barrier_after_return,
  barrier_in_a_branch,
  two_barriers,
  barrier_without_a_warp,
  no_named_barrier,
  named_barrier_for_each_warp,
  named_barrier_16,
  named_barrier_of_48,
  named_barrier_of_96,
  named_barrier_too_small,
  named_barrier_of_two_sizes,
  named_barrier_in_a_branch,
  named_barrier_without_a_warp,
  two_named_barriers,
  float4_misaligned_in_global,
  float2_misaligned_in_shared,
  async_misaligned,
  ldmatrix_misaligned,
  ldmatrix_of_global,
  async_to_global,
  divergent_shuffle,
  shuffle_outside_own_mask,
  shuffle_from_outside_the_mask,
  shuffle_after_return,
  division_by_zero,
};

// Two tiles pass through shared memory, each read back to front.
template <Bug bug>
__global__ void tiles(const float* in, float* out) {
  auto& smem = dynamic_smem<Smem>();
  const int t = threadIdx.x;
  for (int tile = 0; tile < 2; ++tile) {
    smem.tile[t] = in[threads * tile + t];
    if constexpr (bug != no_barrier_before_reading) __syncthreads();
    out[threads * tile + t] = smem.tile[threads - 1 - t];
    if constexpr (bug != no_barrier_before_overwriting) __syncthreads();
  }
}

// The same by asynchronous copies into two halves.
template <Bug bug>
__global__ void async_tiles(const float* in, float* out) {
  auto& smem = dynamic_smem<float[2][threads]>();
  const int t = threadIdx.x;
  for (int tile = 0; tile < 2; ++tile) {
    ptx::cp_async<4>(&smem[tile][t], in + threads * tile + t);
    ptx::cp_async_commit();
  }
  if constexpr (bug == async_wait_too_lax)
    ptx::cp_async_wait_group<1>();
  else if constexpr (bug != no_async_wait)
    ptx::cp_async_wait_group<0>();
  if constexpr (bug != async_wait_without_barrier) __syncthreads();
  for (int tile = 0; tile < 2; ++tile) out[threads * tile + t] = smem[tile][threads - 1 - t];
}

// The same through one tile: the second copy may start only when all have read the first.
template <Bug bug>
__global__ void async_reuse(const float* in, float* out) {
  auto& smem = dynamic_smem<Smem>();
  const int t = threadIdx.x;
  for (int tile = 0; tile < 2; ++tile) {
    if (tile == 0 || bug != async_into_what_is_read) {
      ptx::cp_async<4>(&smem.tile[t], in + threads * tile + t);
      ptx::cp_async_commit();
    }
    ptx::cp_async_wait_group<0>();
    __syncthreads();
    if constexpr (bug == async_into_what_is_read) {
      if (tile == 0) ptx::cp_async<4>(&smem.tile[t], in + threads + t);
      ptx::cp_async_commit();
    }
    out[threads * tile + t] = smem.tile[threads - 1 - t];
    __syncthreads();
  }
}

template <Bug bug>
__global__ void neighbours(const float* in, float* out) {
  auto& smem = dynamic_smem<Smem>();
  const int t = threadIdx.x;
  smem.tile[t] = in[t];
  if constexpr (bug != no_syncwarp) __syncwarp();
  out[t] = smem.tile[t ^ 1];
}

template <Bug bug>
__global__ void memory(const float* in, float* out, int count) {
  auto& smem = dynamic_smem<Smem>();
  const int t = threadIdx.x, last = threads - 1;
  smem.tile[t] = in[t];
  smem.edge[t % 8] = 0;
  if constexpr (bug == shared_index) smem.tile[t + 1] = 1;                    // into edge
  if constexpr (bug == shared_overrun) (smem.tile + 8)[threads + t % 8] = 1;  // past both, by less than the alignment
  if constexpr (bug == shared_overrun_far) (&smem)[1 + t].tile[0] = 1;
  if constexpr (bug == global_read) smem.tile[t] = in[count + 4 * t];
  if constexpr (bug == global_read_before) smem.tile[t] = in[t - 4 * last];
  if constexpr (bug == global_write) out[count + 4 * t] = 1;
  if constexpr (bug == global_read_near) smem.tile[t] = in[count + t / last];
  if constexpr (bug == local_overrun) {
    float local[4] = {0, 0, 0, 0};
    float* pointer = local;
    pointer[t % 4] = in[t];
    smem.tile[t] = pointer[count / 32 + t / last];
  }
  if constexpr (bug == global_write_near) out[count + t / last] = 1;
  if constexpr (bug == input_written) const_cast<float*>(in)[t] = 1;
  if constexpr (bug == division_by_zero) smem.tile[t] = static_cast<float>(count / (static_cast<int>(in[t]) / 1000));
  out[t] = smem.tile[t];
}

template <Bug bug>
__global__ void uninitialised(const float* in, float* out) {
  auto& smem = dynamic_smem<Smem>();
  if (bug == none || threadIdx.x > 0) smem.tile[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = smem.tile[threadIdx.x];
}

template <Bug bug>
__global__ void barriers(const float* in, float* out) {
  const unsigned t = threadIdx.x;
  if (bug == barrier_after_return && t == 40) return;
  if constexpr (bug == barrier_in_a_branch) {
    if (t < 40) __syncthreads();
  } else if constexpr (bug == two_barriers) {
    if (t < 40)
      __syncthreads();
    else
      __syncthreads();
  } else if constexpr (bug == barrier_without_a_warp) {
    if (t < 32) __syncthreads();
  } else {
    __syncthreads();
  }
  out[t] = in[t];
}

template <Bug bug>
__global__ void named_barriers(const float* in, float* out) {
  auto& smem = dynamic_smem<Smem>();
  const int t = threadIdx.x, all = blockDim.x;
  smem.tile[t] = in[t];
  if constexpr (bug == named_barrier_for_each_warp)
    ptx::barrier_sync(1 + t / 32, 32);
  else if constexpr (bug == named_barrier_16)
    ptx::barrier_sync(all / 4, all);
  else if constexpr (bug == named_barrier_of_48)
    ptx::barrier_sync(1, all - 16);
  else if constexpr (bug == named_barrier_of_96)
    ptx::barrier_sync(1, all + 32);
  else if constexpr (bug == named_barrier_too_small)
    ptx::barrier_sync(1, 32);
  else if constexpr (bug == named_barrier_of_two_sizes)
    ptx::barrier_sync(1, t < 32 ? 32 : 64);
  else if constexpr (bug == two_named_barriers)
    ptx::barrier_sync(1 + t / 32, 64);
  else if (bug == none || (bug == named_barrier_in_a_branch && t < 40) ||
           (bug == named_barrier_without_a_warp && t < 32))
    ptx::barrier_sync(1, 64);
  out[t] = smem.tile[threads - 1 - t];
}

template <Bug bug>
__global__ void alignment(const float* in, float* out) {
  auto& smem = dynamic_smem<Smem>();
  const unsigned t = threadIdx.x;
  smem.tile[t] = in[t];
  __syncthreads();
  float sum = 0;
  if constexpr (bug == float4_misaligned_in_global) sum = reinterpret_cast<const float4*>(in + 2)->x;
  if constexpr (bug == float2_misaligned_in_shared) sum = reinterpret_cast<const float2*>(&smem.tile[1])->y;
  if constexpr (bug == async_misaligned) ptx::cp_async<16>(&smem.tile[2], in);
  if constexpr (bug == async_to_global) ptx::cp_async<4>(out + t, in + t);
  uint32_t r[1] = {0};
  if constexpr (bug == ldmatrix_misaligned) ptx::ldmatrix<1>(r, &smem.tile[t % 8 * 4 + 2]);
  if constexpr (bug == ldmatrix_of_global) ptx::ldmatrix<1>(r, in + t % 8 * 4);
  out[t] = smem.tile[t] + sum + static_cast<float>(r[0]);
}

template <Bug bug>
__global__ void shuffles(const float* in, float* out) {
  const unsigned all = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  float value = in[threadIdx.x];
  if (bug == shuffle_after_return && lane == 7) return;
  if constexpr (bug == divergent_shuffle) {
    if (lane < 16) value = __shfl_xor_sync(all, value, 1);
  } else if constexpr (bug == shuffle_outside_own_mask) {
    value = __shfl_xor_sync(0xfffffffeu, value, 1);
  } else if constexpr (bug == shuffle_from_outside_the_mask) {
    if (lane < 16) value = __shfl_sync(0x0000ffffu, value, lane + 1);
  } else {
    value = __shfl_xor_sync(all, value, 1);
  }
  out[threadIdx.x] = value;
}

}  // namespace resnext::testing::bugs

namespace resnext::testing {

bool launch_bug_probe(const std::string& name, const void* input, void* output, int64_t count, void* stream) {
  using namespace bugs;
  const auto* in = static_cast<const float*>(input);
  auto* out = static_cast<float*>(output);
  const auto run = [&](auto kernel, size_t smem_bytes, const auto&... more) {
    cuda::launch(kernel, {2}, {threads}, smem_bytes, stream, in, out, more...);
    return true;
  };
#define PROBE(kernel, bug, ...) \
  if (name == #kernel "/" #bug) return run(kernel<bug>, __VA_ARGS__)
  PROBE(tiles, none, sizeof(Smem));
  PROBE(tiles, no_barrier_before_reading, sizeof(Smem));
  PROBE(tiles, no_barrier_before_overwriting, sizeof(Smem));
  PROBE(tiles, smem_too_small, sizeof(Smem) - 4);
  PROBE(async_tiles, none, sizeof(float[2][threads]));
  PROBE(async_tiles, no_async_wait, sizeof(float[2][threads]));
  PROBE(async_tiles, async_wait_without_barrier, sizeof(float[2][threads]));
  PROBE(async_tiles, async_wait_too_lax, sizeof(float[2][threads]));
  PROBE(async_reuse, none, sizeof(Smem));
  PROBE(async_reuse, async_into_what_is_read, sizeof(Smem));
  PROBE(neighbours, none, sizeof(Smem));
  PROBE(neighbours, no_syncwarp, sizeof(Smem));
  const int size = static_cast<int>(count);
  PROBE(memory, none, sizeof(Smem), size);
  PROBE(memory, shared_index, sizeof(Smem), size);
  PROBE(memory, shared_overrun, sizeof(Smem), size);
  PROBE(memory, shared_overrun_far, sizeof(Smem), size);
  PROBE(memory, global_read, sizeof(Smem), size);
  PROBE(memory, global_read_before, sizeof(Smem), size);
  PROBE(memory, global_write, sizeof(Smem), size);
  PROBE(memory, global_read_near, sizeof(Smem), size);
  PROBE(memory, local_overrun, sizeof(Smem), size);
  PROBE(memory, global_write_near, sizeof(Smem), size);
  PROBE(memory, input_written, sizeof(Smem), size);
  PROBE(memory, division_by_zero, sizeof(Smem), size);
  PROBE(uninitialised, none, sizeof(Smem));
  PROBE(uninitialised, uninitialised_shared, sizeof(Smem));
  PROBE(barriers, none, 0);
  PROBE(barriers, barrier_after_return, 0);
  PROBE(barriers, barrier_in_a_branch, 0);
  PROBE(barriers, two_barriers, 0);
  PROBE(barriers, barrier_without_a_warp, 0);
  PROBE(named_barriers, none, sizeof(Smem));
  PROBE(named_barriers, no_named_barrier, sizeof(Smem));
  PROBE(named_barriers, named_barrier_for_each_warp, sizeof(Smem));
  PROBE(named_barriers, named_barrier_16, sizeof(Smem));
  PROBE(named_barriers, named_barrier_of_48, sizeof(Smem));
  PROBE(named_barriers, named_barrier_of_96, sizeof(Smem));
  PROBE(named_barriers, named_barrier_too_small, sizeof(Smem));
  PROBE(named_barriers, named_barrier_of_two_sizes, sizeof(Smem));
  PROBE(named_barriers, named_barrier_in_a_branch, sizeof(Smem));
  PROBE(named_barriers, named_barrier_without_a_warp, sizeof(Smem));
  PROBE(named_barriers, two_named_barriers, sizeof(Smem));
  PROBE(alignment, none, sizeof(Smem));
  PROBE(alignment, float4_misaligned_in_global, sizeof(Smem));
  PROBE(alignment, float2_misaligned_in_shared, sizeof(Smem));
  PROBE(alignment, async_misaligned, sizeof(Smem));
  PROBE(alignment, async_to_global, sizeof(Smem));
  PROBE(alignment, ldmatrix_misaligned, sizeof(Smem));
  PROBE(alignment, ldmatrix_of_global, sizeof(Smem));
  PROBE(shuffles, none, 0);
  PROBE(shuffles, divergent_shuffle, 0);
  PROBE(shuffles, shuffle_outside_own_mask, 0);
  PROBE(shuffles, shuffle_from_outside_the_mask, 0);
  PROBE(shuffles, shuffle_after_return, 0);
#undef PROBE
  if (name == "launch/shared_memory_of_227_KB") return run(tiles<none>, 227 * 1024);
  if (name == "launch/shared_memory_of_228_KB") return run(tiles<none>, 228 * 1024);
  if (name == "launch/grid_of_none") return cuda::launch(barriers<none>, {0}, {threads}, 0, stream, in, out), true;
  if (name == "launch/grid_too_high")
    return cuda::launch(barriers<none>, {1, 65536}, {threads}, 0, stream, in, out), true;
  if (name == "launch/block_too_large") return cuda::launch(barriers<none>, {1}, {64, 32}, 0, stream, in, out), true;
  return false;
}

}  // namespace resnext::testing
