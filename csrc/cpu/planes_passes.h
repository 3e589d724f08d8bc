#pragma once
#include "grouped_conv.h"
#include "planes.h"

// From the arguments of a pass to sums over planes.
namespace resnext::cpu {
namespace {

template <class T>
int64_t planes_workspace_bytes(const Problem& problem, int threads) {
  PlaneSum<T> sum{};
  sum.images = problem.shape.n;
  sum.groups = problem.shape.groups;
  sum.source.channels = problem.shape.c_per_group();
  sum.target.channels = problem.shape.k_per_group();
  return threads * sum.packed_groups(threads) * sum.packed_size() * int64_t(sizeof(float));
}

template <class T>
Weight<const T*> weight_of(const Weight<const void*>& weight) {
  return {static_cast<const T*>(weight.data), weight.stride_k, weight.stride_c, weight.stride_r, weight.stride_s};
}

template <class T>
PlaneSum<T> fprop_plane_sum(const FpropArgs& args) {
  const ConvShape& shape = args.problem.shape;
  return {shape.n,
          shape.groups,
          {static_cast<const T*>(args.input), shape.c_per_group(), shape.h, shape.w},
          {static_cast<T*>(args.output), shape.k_per_group(), shape.p(), shape.q()},
          static_cast<const T*>(args.bias),
          weight_of<T>(args.weight),
          false,
          false,
          args.launch,
          args.problem.fused,
          args.epilogue,
          static_cast<const float*>(args.packed)};
}

template <class T>
int64_t planes_packed_bytes(const Problem& problem) {
  FpropArgs args{};
  args.problem = problem;
  return problem.shape.groups * fprop_plane_sum<T>(args).packed_size() * int64_t(sizeof(float));
}

template <class T>
void pack_planes_ahead(const FpropArgs& args) {
  const PlaneSum<T> sum = fprop_plane_sum<T>(args);
  for (int64_t group = 0; group < sum.groups; ++group)
    pack_group(sum, group, static_cast<float*>(args.packed) + group * sum.packed_size());
}

template <class T>
void run_fprop_planes(const FpropArgs& args) {
  const PlaneSum<T> sum = fprop_plane_sum<T>(args);
  args.problem.shape.stride_h == 1 ? run_planes<Even>(sum) : run_planes<Narrowing>(sum);
}

template <class T>
void run_dgrad_planes(const DgradArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const PlaneSum<T> sum{shape.n,
                        shape.groups,
                        {static_cast<const T*>(args.grad_output), shape.k_per_group(), shape.p(), shape.q()},
                        {static_cast<T*>(args.grad_input), shape.c_per_group(), shape.h, shape.w},
                        nullptr,
                        weight_of<T>(args.weight),
                        true,
                        shape.stride_h == 1,
                        args.launch,
                        false,
                        {},
                        nullptr};
  shape.stride_h == 1 ? run_planes<Even>(sum) : run_planes<Widening>(sum);
}

}  // namespace
}  // namespace resnext::cpu
