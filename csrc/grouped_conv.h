#pragma once
#include "kernel_table.h"

// The torch-free C++ interface: the argument records of the three passes and the kernel tables of each device.
namespace resnext {

// A weight (or its gradient) of k x c/groups x r x s elements at arbitrary element strides: kernels pack
// weights before use, so any order will do.
template <class Pointer>
struct Weight {
  Pointer data;
  int64_t stride_k, stride_c, stride_r, stride_s;
};

// Where a launch runs and what scratch memory it may use.
struct Launch {
  void* workspace;  // workspace_bytes(problem, threads) bytes, 64-byte aligned, contents undefined
  int threads;      // CPU: size of the OpenMP team; results never depend on it
  void* stream;     // CUDA: the stream to launch on
};

// What follows the sum where problem.fused: output = activation(sum * scale[k] + shift[k] + residual), in the type of
// the sums and rounded once.
struct Epilogue {
  const void *scale, *shift;  // k elements each: float, or double for f64
  const void* residual;       // as the output, or null
  bool relu;
};

// Activations are dense in problem.layout. No output aliases an input. Every element of an output is
// written, and none is read.
struct FpropArgs {
  Problem problem;
  const void* input;  // n x c x h x w
  Weight<const void*> weight;
  const void* bias;  // k elements, or null; null if problem.fused
  void* output;      // n x k x p x q
  Launch launch;
  Epilogue epilogue{};
  void* packed = nullptr;  // the weight as this entry's `pack` has written it, 64-byte aligned, or null
};

struct DgradArgs {
  Problem problem;
  const void* grad_output;  // n x k x p x q
  Weight<const void*> weight;
  void* grad_input;  // n x c x h x w
  Launch launch;
};

struct WgradArgs {
  Problem problem;
  const void* grad_output;  // n x k x p x q
  const void* input;        // n x c x h x w
  Weight<void*> grad_weight;
  void* grad_bias;  // k elements: the sum of grad_output over n, p, q; or null
  Launch launch;
};

// What problem.alignment has to be.
inline int alignment_of(const void* one, const void* other, const void* third = nullptr) {
  const auto number = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); };
  const uintptr_t bits = number(one) | number(other) | number(third) | 16;
  return static_cast<int>(bits & -bits);
}
inline int alignment_of(const FpropArgs& args) { return alignment_of(args.input, args.output, args.epilogue.residual); }
inline int alignment_of(const DgradArgs& args) { return alignment_of(args.grad_output, args.grad_input); }
inline int alignment_of(const WgradArgs& args) { return alignment_of(args.grad_output, args.input); }

namespace cpu {
const KernelTable<FpropArgs>& fprop_table();
const KernelTable<DgradArgs>& dgrad_table();
const KernelTable<WgradArgs>& wgrad_table();
}  // namespace cpu

namespace cuda {
// What problem.architecture has to be for a GPU, or for the current one if `device` is -1; where there is none, the
// newest that this build has code for.
int gpu_architecture(int device);

const KernelTable<FpropArgs>& fprop_table();
const KernelTable<DgradArgs>& dgrad_table();
const KernelTable<WgradArgs>& wgrad_table();
}  // namespace cuda

}  // namespace resnext
