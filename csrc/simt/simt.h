#pragma once
// The CUDA programming model on the CPU, to test .cu files that g++ compiles: what cuda_runtime.h declares, as far as
// this project uses it. Each CUDA thread is a fiber. One warp runs until every lane of it has blocked, the lanes in
// an order drawn from the launch's seed, so that a missing barrier shows: the others have not even started. Checked are
// barriers and warp collectives, shared and global bounds, array indices and alignment; the first violation ends the
// launch with an Error that names kernel, block and thread. docs/cuda.md describes the whole.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

#include "simt/float16.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using std::max;
using std::min;

// The running thread's; set by the scheduler at every switch.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace resnext::simt {

// A violation. what() is "kernel, block (x, y, z), thread (x, y, z): text".
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What a cudaStream_t points to here: the schedule of its launches, and a count of them. A null stream has seed 0.
// Unless it is empty, `last_blocks` tells how many of a grid's blocks run, of all that there are: the last ones.
struct Stream {
  uint64_t seed = 0;
  std::function<uint64_t(uint64_t)> last_blocks = {};
  int64_t launches = 0;
};

using Site = std::source_location;

// Ends the launch with an Error. To be called by the code of a CUDA thread, or by a collective (naming the lane).
[[noreturn]] void fail(const std::string& text);
[[noreturn]] void fail_lane(int lane, const std::string& text);

// The block's shared memory, checked to hold `bytes`.
void* dynamic_shared_memory(size_t bytes);
// Fails unless [pointer, pointer + bytes) is shared memory and aligned.
void require_shared(const void* pointer, size_t bytes, size_t alignment, const char* what, int lane);

// Blocks until every lane of `mask` has called with the same name, mask and site, then has apply(operands of the 32
// lanes, mask) run once. Operands of lanes outside the mask are null.
using Apply = void (*)(void* const* operands, unsigned mask);
void collective(const char* name, unsigned mask, void* operands, Apply apply, const Site& site);

// Blocks at one of the block's numbered barriers; see ptx.h.
void barrier_sync(int id, int threads, const Site& site);

// A thread's asynchronous copies; see ptx.h.
void async_copy(void* shared, const void* global, int bytes, int valid_bytes);
void async_commit();
void async_wait(int newest_groups_left, bool uncommitted_too);

// Runs body() as every thread of a grid.
struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes;
  Stream* stream;
  const void* kernel;
};
void run(const Grid& grid, const std::function<void()>& body);

// What the GPU calls itself, such as 90 for compute capability 9.0. One older or newer than the emulation pretends to
// have been built for runs nothing.
constexpr int oldest_architecture = 80, newest_architecture = 90;
extern int gpu_architecture;

// Whether a kernel has opted in to that much shared memory, if it is more than 48 KB.
bool may_use_shared(const void* kernel, size_t bytes);

struct Shuffle {
  uint64_t value;
  int source;
  uint64_t result;
};
uint64_t shuffle(const char* name, unsigned mask, uint64_t value, int source, const Site& site);
unsigned vote(const char* name, unsigned mask, bool predicate, const Site& site);
int lane();

template <class T>
T shuffle_value(const char* name, unsigned mask, T value, int source, const Site& site) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  bits = shuffle(name, mask, bits, source, site);
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace resnext::simt

void __syncthreads(const resnext::simt::Site& site = resnext::simt::Site::current());
void __syncwarp(unsigned mask = 0xffffffffu, const resnext::simt::Site& site = resnext::simt::Site::current());

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              const resnext::simt::Site& site = resnext::simt::Site::current()) {
  const int lane = resnext::simt::lane();
  return resnext::simt::shuffle_value("__shfl_sync", mask, value, (lane & ~(width - 1)) | (source & (width - 1)), site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32,
                  const resnext::simt::Site& site = resnext::simt::Site::current()) {
  const int lane = resnext::simt::lane(), source = lane ^ flip;
  const bool inside = (source & ~(width - 1)) <= (lane & ~(width - 1));  // a later segment is out of reach
  return resnext::simt::shuffle_value("__shfl_xor_sync", mask, value, inside ? source : lane, site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 const resnext::simt::Site& site = resnext::simt::Site::current()) {
  const int lane = resnext::simt::lane(), source = lane - static_cast<int>(delta);
  return resnext::simt::shuffle_value("__shfl_up_sync", mask, value, source < (lane & ~(width - 1)) ? lane : source,
                                      site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const resnext::simt::Site& site = resnext::simt::Site::current()) {
  const int lane = resnext::simt::lane(), source = lane + static_cast<int>(delta);
  return resnext::simt::shuffle_value("__shfl_down_sync", mask, value, source > (lane | (width - 1)) ? lane : source,
                                      site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const resnext::simt::Site& site = resnext::simt::Site::current()) {
  return resnext::simt::vote("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, const resnext::simt::Site& site = resnext::simt::Site::current()) {
  return resnext::simt::vote("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, const resnext::simt::Site& site = resnext::simt::Site::current()) {
  return resnext::simt::vote("__all_sync", mask, predicate != 0, site) == mask;
}

inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }

template <class T>
T __ldg(const T* pointer) {
  return *pointer;
}

// The part of the runtime API that launch.h uses.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222
};
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
using cudaStream_t = resnext::simt::Stream*;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};
namespace resnext::simt {
cudaError_t why_no_code();
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncGetName(const char** name, const void* kernel);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t status);

template <class... Params>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Params... args) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (const cudaError_t error = resnext::simt::why_no_code(); error != cudaSuccess) return error;
  if (!resnext::simt::may_use_shared(function, config->dynamicSmemBytes)) return cudaErrorInvalidValue;
  resnext::simt::run({config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream, function},
                     [&] { kernel(args...); });
  return cudaSuccess;
}
