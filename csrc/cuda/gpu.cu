// What the tables ask of the GPU.
#include <algorithm>
#include <iterator>

#include "device.h"
#include "grouped_conv.h"

namespace resnext::cuda {

int gpu_architecture(int device) {
  int major = 0, minor = 0;
  if ((device >= 0 || cudaGetDevice(&device) == cudaSuccess) &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess)
    return 10 * major + minor;
  cudaGetLastError();  // there is no GPU, which is no error of a later call
  return *std::max_element(std::begin(built_architectures), std::end(built_architectures)) / 10;
}

}  // namespace resnext::cuda
