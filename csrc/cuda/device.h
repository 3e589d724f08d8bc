#pragma once
// What a kernel sees of its compiler. The same .cu files go through nvcc, which makes GPU code of them, and through
// g++, where csrc/simt runs them on the CPU under checks; no other file of this folder asks which of the two it is.
#include <cstdint>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace resnext::cuda {

// The architecture that code is being compiled for, as in sm_80; 0 in host code. Features are gated with
// `if constexpr (architecture >= 80)`.
#ifdef __CUDA_ARCH__
constexpr int architecture = __CUDA_ARCH__ / 10;
#else
constexpr int architecture = 0;
#endif

// What this build holds code for, as in 800 for sm_80.
constexpr int built_architectures[] = {__CUDA_ARCH_LIST__};

// The block's dynamic shared memory. Each kernel has one `struct Smem` that lays it out, and is launched with
// sizeof(Smem) bytes or more.
template <class Smem>
__device__ __forceinline__ Smem& dynamic_smem() {
  static_assert(alignof(Smem) <= 128);
  extern __shared__ __align__(128) unsigned char resnext_dynamic_smem[];
  return *reinterpret_cast<Smem*>(resnext_dynamic_smem);
}

}  // namespace resnext::cuda

#include "ptx.h"

#else

#include "simt/ptx.h"
#include "simt/simt.h"

namespace resnext::cuda {

constexpr int architecture = 90;
constexpr int built_architectures[] = {simt::oldest_architecture * 10, simt::newest_architecture * 10};

template <class Smem>
Smem& dynamic_smem() {
  static_assert(alignof(Smem) <= 128);
  return *static_cast<Smem*>(simt::dynamic_shared_memory(sizeof(Smem)));
}

}  // namespace resnext::cuda

#endif
