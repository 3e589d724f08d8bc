#pragma once
#include "direct_layouts.h"
#include "grouped_conv.h"

// From the arguments of a pass to the tensors and sums of the direct kernels.
namespace resnext::cpu {
namespace {

// Two groups whose width is half a vector more than whole ones fill vectors together.
inline Lanes lanes_of(const ConvShape& shape, int64_t slot, int64_t width) {
  const bool paired = slot == lanes && lanes == 16 && width % 16 == 8 && shape.c_per_group() == shape.k_per_group();
  return {slot, width, shape.groups, paired};
}

// The tensors of a problem.
template <class T>
Tensor<T> input_tensor(const Problem& problem, int64_t slot, T* data) {
  const ConvShape& shape = problem.shape;
  const Lanes map = lanes_of(shape, slot, shape.c_per_group());
  return {data, problem.layout, shape.h, shape.w, map, Gaps(map)};
}

template <class T>
Tensor<T> output_tensor(const Problem& problem, int64_t slot, T* data) {
  const ConvShape& shape = problem.shape;
  const Lanes map = lanes_of(shape, slot, shape.k_per_group());
  return {data, problem.layout, shape.p(), shape.q(), map, Gaps(map)};
}

template <class T>
Sum<T> fprop_sum(const FpropArgs& args, int64_t slot, bool transformed = false) {
  return {args.problem.shape.n,
          input_tensor(args.problem, slot, static_cast<const T*>(args.input)),
          output_tensor(args.problem, slot, static_cast<T*>(args.output)),
          static_cast<const T*>(args.bias),
          args.weight,
          false,
          false,
          args.launch,
          args.problem.fused,
          args.epilogue,
          static_cast<const float*>(args.packed),
          transformed};
}

template <class T>
Sum<T> dgrad_sum(const DgradArgs& args, int64_t slot, bool transformed = false) {
  return {args.problem.shape.n,
          output_tensor(args.problem, slot, static_cast<const T*>(args.grad_output)),
          input_tensor(args.problem, slot, static_cast<T*>(args.grad_input)),
          nullptr,
          args.weight,
          true,
          args.problem.shape.stride_h == 1,
          args.launch,
          false,
          {},
          nullptr,
          transformed};
}

// The arguments that do not depend on data.
template <class Args>
Args args_of(const Problem& problem) {
  Args args{};
  args.problem = problem;
  return args;
}

template <class T>
int64_t fprop_workspace_bytes(const Problem& problem, int64_t slot, int threads) {
  const Sum<T> sum = fprop_sum<T>(args_of<FpropArgs>(problem), slot);
  return problem.shape.stride_h == 1 ? sum_workspace<Even>(sum, threads) : sum_workspace<Narrowing>(sum, threads);
}

template <class T>
int64_t dgrad_workspace_bytes(const Problem& problem, int64_t slot, int threads) {
  const Sum<T> sum = dgrad_sum<T>(args_of<DgradArgs>(problem), slot);
  return problem.shape.stride_h == 1 ? sum_workspace<Even>(sum, threads) : sum_workspace<Widening>(sum, threads);
}

template <class T>
int64_t packed_bytes(const Sum<T>& sum) {
  return sum.pack_plan().size() * int64_t(sizeof(float));
}

template <class T>
void pack_ahead(const Sum<T>& sum, float* packed) {
  const PackPlan plan = sum.pack_plan();
  for (int64_t vector = 0; vector < plan.map.vectors(); ++vector)
    pack<T>(plan, sum.weight, vector, packed + vector * plan.vector_size());
}

template <class T, int slot>
void run_fprop(const FpropArgs& args) {
  const Sum<T> sum = fprop_sum<T>(args, slot);
  args.problem.shape.stride_h == 1 ? run_sum<Even, slot>(sum) : run_sum<Narrowing, slot>(sum);
}

template <class T, int slot>
void run_dgrad(const DgradArgs& args) {
  const Sum<T> sum = dgrad_sum<T>(args, slot);
  args.problem.shape.stride_h == 1 ? run_sum<Even, slot>(sum) : run_sum<Widening, slot>(sum);
}

}  // namespace
}  // namespace resnext::cpu
