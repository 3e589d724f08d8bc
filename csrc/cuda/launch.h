#pragma once
// The one way in which a kernel is started: checked, asynchronous, and without allocation or synchronisation, so that
// a CUDA graph can capture it. Everything wrong is a std::runtime_error, raised before anything runs.
#include <stdexcept>
#include <string>

#include "device.h"

namespace resnext::cuda {

// Blocks of a grid, or threads of a block, before they are known to fit the hardware's limits.
struct Extent {
  int64_t x, y = 1, z = 1;
};

inline std::string text(const Extent& e) {
  return "(" + std::to_string(e.x) + ", " + std::to_string(e.y) + ", " + std::to_string(e.z) + ")";
}

// Says that this build has no code for the GPU, which and what it has, and what to do.
inline std::string no_code_for_this_gpu(cudaError_t status) {
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  const std::string own = std::to_string(major) + "." + std::to_string(minor);
  std::string built;
  for (const int number : built_architectures)
    built += (built.empty() ? "" : ", ") + std::to_string(number / 100) + "." + std::to_string(number / 10 % 10);
  return "resnext_kernels was built for GPUs of compute capability " + built + ", this one has " + own + " (" +
         cudaGetErrorString(status) + "): build it from source with TORCH_CUDA_ARCH_LIST=" + own +
         ", or use torch.nn.functional.conv2d";
}

inline void check(cudaError_t status, const void* kernel) {
  if (status == cudaSuccess) return;
  const char* name = nullptr;
  cudaGetLastError();  // the error is reported here, later calls shall not see it
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction ||
      status == cudaErrorUnsupportedPtxVersion)
    throw std::runtime_error(no_code_for_this_gpu(status));
  const bool has_name = cudaFuncGetName(&name, kernel) == cudaSuccess && name;
  throw std::runtime_error(std::string("launch of ") + (has_name ? name : "a kernel") +
                           " failed: " + cudaGetErrorString(status));
}

inline dim3 checked(const Extent& extent, const Extent& limit, const char* what) {
  const auto fits = [](int64_t value, int64_t most) { return value >= 1 && value <= most; };
  if (!fits(extent.x, limit.x) || !fits(extent.y, limit.y) || !fits(extent.z, limit.z))
    throw std::runtime_error(std::string(what) + " of " + text(extent) + " exceeds the limit " + text(limit));
  return dim3(static_cast<unsigned>(extent.x), static_cast<unsigned>(extent.y), static_cast<unsigned>(extent.z));
}

// Starts kernel(args...) on `stream`. More shared memory than the 48 KB that every kernel may use is asked for first.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), const Extent& grid, const Extent& block, size_t smem_bytes, void* stream,
            const Args&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = checked(grid, {2147483647, 65535, 65535}, "a grid");
  config.blockDim = checked(block, {1024, 1024, 64}, "a block");
  if (block.x * block.y * block.z > 1024)
    throw std::runtime_error("a block of " + text(block) + " has over 1024 threads");
  config.dynamicSmemBytes = smem_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  const void* function = reinterpret_cast<const void*>(kernel);
  if (smem_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem_bytes)),
          function);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), function);
}

}  // namespace resnext::cuda
