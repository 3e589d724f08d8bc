#pragma once
#include "direct_layouts.h"
#include "grouped_conv.h"

// From the arguments of a pass to the tensors and sums of the direct kernels.
namespace resnext::cpu {
namespace {

// Two groups whose width is half a vector more than whole ones fill vectors together.
template <int slot>
Lanes<slot> lanes_of(const ConvShape& shape, int64_t width) {
  const bool paired = slot == lanes && lanes == 16 && width % 16 == 8 && shape.c_per_group() == shape.k_per_group();
  return {width, shape.groups, paired};
}

// The tensors of a problem.
template <int slot, class T>
Tensor<T, slot> input_tensor(const Problem& problem, T* data) {
  const ConvShape& shape = problem.shape;
  const Lanes<slot> map = lanes_of<slot>(shape, shape.c_per_group());
  return {data, problem.layout, shape.h, shape.w, map, Gaps<slot>(map)};
}

template <int slot, class T>
Tensor<T, slot> output_tensor(const Problem& problem, T* data) {
  const ConvShape& shape = problem.shape;
  const Lanes<slot> map = lanes_of<slot>(shape, shape.k_per_group());
  return {data, problem.layout, shape.p(), shape.q(), map, Gaps<slot>(map)};
}

template <class T, int slot>
Sum<T, slot> fprop_sum(const FpropArgs& args, bool transformed = false) {
  return {args.problem.shape.n,
          input_tensor<slot>(args.problem, static_cast<const T*>(args.input)),
          output_tensor<slot>(args.problem, static_cast<T*>(args.output)),
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

template <class T, int slot>
Sum<T, slot> dgrad_sum(const DgradArgs& args, bool transformed = false) {
  return {args.problem.shape.n,
          output_tensor<slot>(args.problem, static_cast<const T*>(args.grad_output)),
          input_tensor<slot>(args.problem, static_cast<T*>(args.grad_input)),
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

template <class T, int slot>
int64_t fprop_workspace_bytes(const Problem& problem, int threads) {
  const Sum<T, slot> sum = fprop_sum<T, slot>(args_of<FpropArgs>(problem));
  return problem.shape.stride_h == 1 ? sum_workspace<Even>(sum, threads) : sum_workspace<Narrowing>(sum, threads);
}

template <class T, int slot>
int64_t dgrad_workspace_bytes(const Problem& problem, int threads) {
  const Sum<T, slot> sum = dgrad_sum<T, slot>(args_of<DgradArgs>(problem));
  return problem.shape.stride_h == 1 ? sum_workspace<Even>(sum, threads) : sum_workspace<Widening>(sum, threads);
}

template <class T, int slot>
int64_t packed_bytes(const Sum<T, slot>& sum) {
  return sum.pack_plan().size() * int64_t(sizeof(float));
}

template <class T, int slot>
void pack_ahead(const Sum<T, slot>& sum, float* packed) {
  const PackPlan<slot> plan = sum.pack_plan();
  for (int64_t vector = 0; vector < plan.map.vectors(); ++vector)
    pack<T>(plan, sum.weight, vector, packed + vector * plan.vector_size());
}

template <class T, int slot>
void run_fprop(const FpropArgs& args) {
  const Sum<T, slot> sum = fprop_sum<T, slot>(args);
  args.problem.shape.stride_h == 1 ? run_sum<Even>(sum) : run_sum<Narrowing>(sum);
}

template <class T, int slot>
void run_dgrad(const DgradArgs& args) {
  const Sum<T, slot> sum = dgrad_sum<T, slot>(args);
  args.problem.shape.stride_h == 1 ? run_sum<Even>(sum) : run_sum<Widening>(sum);
}

}  // namespace
}  // namespace resnext::cpu
