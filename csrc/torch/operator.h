#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>

#include <cstdio>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "grouped_conv.h"

// From tensors to kernels: argument checks (in PyTorch's words where it has them), output allocation, kernel
// selection. Both libraries include this file; what differs between devices is a `Device` policy:
//   static constexpr const char* name
//   static has(const Tensor&) -> whether the tensor is on such a device
//   static table(const Args*) -> the device's kernel table for that pass
//   static prepare(const Tensor& output) -> the output, or one like it, in the memory that is best to write
//   static architecture(device index, -1 for the current) -> Problem::architecture
//   static allow_tf32(DType) -> Problem::allow_tf32, as PyTorch's settings have it now
//   static launch(const KernelEntry<Args>&, Args&, const Tensor& like) -> workspace, stream or threads, and go
namespace resnext::binding {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

struct Geometry {  // the four arguments that every operator takes
  const Ints &stride, &padding, &dilation;
  int64_t groups;
};

// What grouped_conv2d_act does with each sum.
struct Fused {
  Tensor scale, shift;
  std::optional<Tensor> residual;
  bool relu;
};

std::string text(const Ints& values);
Ints sizes(const Tensor& tensor);
DType dtype_of(ScalarType type, const char* argument);

// c10's is_channels_last_strides_2d: decides by sizes and strides together, ambiguous tensors count as contiguous.
bool is_channels_last(const Tensor& tensor);

// Checks everything that does not depend on data; `input` is (n, c, h, w), `weight` (k, c / groups, r, s).
ConvShape checked_shape(const Ints& input, const Ints& weight, const Geometry& geometry);
void check_operand(const Tensor& tensor, const char* argument, const Tensor& first, const char* first_argument);
void check_size(const Tensor& tensor, const char* argument, const Ints& expected);
void check_per_channel(const Tensor& tensor, const char* argument, const Tensor& input, int64_t channels);
void check_pair(const Ints& values, const char* argument);
std::string device_name(const Tensor& tensor);

Tensor dense(const Tensor& tensor);  // of one axis
Tensor dense(const Tensor& tensor, Layout layout);
Tensor new_output(const Tensor& like, const Ints& size, Layout layout);

template <class Pointer>
Weight<Pointer> weight_view(Pointer data, const Tensor& tensor) {
  return {data, tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

inline Layout layout_of(const Tensor& a, const Tensor& b) {
  return is_channels_last(a) || is_channels_last(b) ? Layout::nhwc : Layout::nchw;
}

// What packed weights begin with: whose they are. A kernel must not read those of another.
struct PackedLabel {
  char kernel[40]{};
  int64_t k = 0, c_per_group = 0, groups = 0;

  PackedLabel() = default;
  PackedLabel(const char* name, const ConvShape& shape)
      : k(shape.k), c_per_group(shape.c_per_group()), groups(shape.groups) {
    std::snprintf(kernel, sizeof(kernel), "%s", name);
  }
};
static_assert(sizeof(PackedLabel) == 64);  // so that weights behind it are aligned as it is

// Where the weights begin in packed ones, which have to be those of the kernel and of a weight of this size.
void* checked_packed(const Tensor& packed, const PackedLabel& expected, int64_t bytes);

template <class Device, class Args>
void run(Args args, const std::string& kernel_name, const Tensor& like,
         const std::optional<Tensor>& packed = std::nullopt) {
  const auto& table = Device::table(&args);
  args.problem.alignment = alignment_of(args);
  args.problem.architecture = Device::architecture(like.get_device_index());
  args.problem.allow_tf32 = Device::allow_tf32(args.problem.dtype);
  std::string error;
  const auto* entry = select(table, args.problem, kernel_name, error);
  STD_TORCH_CHECK(entry, error);
  if constexpr (requires { args.packed; })
    if (packed) {
      STD_TORCH_CHECK(entry->pack, "expected packed to be None for kernel '", entry->name,
                      "', which packs no weights ahead");
      args.packed = checked_packed(*packed, {entry->name, args.problem.shape}, entry->packed_bytes(args.problem));
    }
  Device::launch(*entry, args, like);
}

// A kernel must never see a pointer of another device, however the operator was reached.
template <class Device>
void check_device(const Tensor& tensor, const char* argument) {
  STD_TORCH_CHECK(Device::has(tensor), "expected ", argument, " on a ", Device::name, " device, got ",
                  device_name(tensor));
}

// The output of a convolution whose arguments are checked. `bias` has to be dense.
template <class Device>
Tensor fprop(const ConvShape& shape, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
             const std::string& kernel_name, const std::optional<Fused>& fused = std::nullopt,
             const std::optional<Tensor>& packed = std::nullopt) {
  const Layout layout = layout_of(input, weight);
  const Problem problem{shape, dtype_of(input.scalar_type(), "input"), layout, 16, fused.has_value()};
  Tensor output = Device::prepare(new_output(input, {shape.n, shape.k, shape.p(), shape.q()}, layout));
  if (output.numel() == 0) return output;

  const Tensor x = dense(input, layout);
  const bool adds = fused && fused->residual;
  const Tensor residual = adds ? dense(*fused->residual, layout) : x;  // x only stands in for none
  FpropArgs args{problem,
                 x.const_data_ptr(),
                 weight_view(weight.const_data_ptr(), weight),
                 bias ? bias->const_data_ptr() : nullptr,
                 output.mutable_data_ptr(),
                 {}};
  if (fused)
    args.epilogue = {fused->scale.const_data_ptr(), fused->shift.const_data_ptr(),
                     adds ? residual.const_data_ptr() : nullptr, fused->relu};
  run<Device>(args, kernel_name, input, packed);
  return output;
}

template <class Device>
Tensor grouped_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                      const Ints& padding, const Ints& dilation, int64_t groups, const std::string& kernel_name) {
  check_device<Device>(input, "input");
  const ConvShape shape = checked_shape(sizes(input), sizes(weight), {stride, padding, dilation, groups});
  check_operand(weight, "weight", input, "input");
  if (bias) {
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == shape.k, "Given weight of size ", text(sizes(weight)),
                    ", expected bias to be 1-dimensional with ", shape.k, " elements, but got bias of size ",
                    text(sizes(*bias)), " instead");
    check_operand(*bias, "bias", input, "input");
  }
  const auto dense_bias = bias ? std::optional(dense(*bias)) : std::nullopt;
  return fprop<Device>(shape, input, weight, dense_bias, kernel_name);
}

// activation(convolution * scale[k] + shift[k] + residual), for inference.
template <class Device>
Tensor grouped_conv2d_act(const Tensor& input, const Tensor& weight, const Tensor& scale, const Tensor& shift,
                          const std::optional<Tensor>& residual, const Ints& stride, const Ints& padding,
                          const Ints& dilation, int64_t groups, const std::string& activation,
                          const std::string& kernel_name, const std::optional<Tensor>& packed) {
  check_device<Device>(input, "input");
  const ConvShape shape = checked_shape(sizes(input), sizes(weight), {stride, padding, dilation, groups});
  check_operand(weight, "weight", input, "input");
  check_per_channel(scale, "scale", input, shape.k);
  check_per_channel(shift, "shift", input, shape.k);
  if (residual) {
    check_operand(*residual, "residual", input, "input");
    check_size(*residual, "residual", {shape.n, shape.k, shape.p(), shape.q()});
  }
  STD_TORCH_CHECK(activation == "relu" || activation == "none", "expected activation to be 'relu' or 'none', got '",
                  activation, "'");
  const Fused fused{dense(scale), dense(shift), residual, activation == "relu"};
  return fprop<Device>(shape, input, weight, std::nullopt, kernel_name, fused, packed);
}

template <class Device>
Tensor grouped_conv2d_grad_input(const Tensor& grad_output, const Tensor& weight, const Ints& input_hw,
                                 const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                 const std::string& kernel_name) {
  check_device<Device>(grad_output, "grad_output");
  check_pair(input_hw, "input_hw");
  STD_TORCH_CHECK(grad_output.dim() == 4 && weight.dim() == 4, "expected 4-dimensional grad_output and weight, got ",
                  text(sizes(grad_output)), " and ", text(sizes(weight)));
  const Ints input_size{grad_output.size(0), weight.size(1) * groups, input_hw[0], input_hw[1]};
  const ConvShape shape = checked_shape(input_size, sizes(weight), {stride, padding, dilation, groups});
  check_size(grad_output, "grad_output", {shape.n, shape.k, shape.p(), shape.q()});
  check_operand(weight, "weight", grad_output, "grad_output");
  const Layout layout = layout_of(grad_output, weight);
  const Problem problem{shape, dtype_of(grad_output.scalar_type(), "grad_output"), layout};
  Tensor grad_input = Device::prepare(new_output(grad_output, input_size, layout));
  if (grad_input.numel() == 0) return grad_input;

  const Tensor dy = dense(grad_output, layout);
  run<Device>(DgradArgs{problem,
                        dy.const_data_ptr(),
                        weight_view(weight.const_data_ptr(), weight),
                        grad_input.mutable_data_ptr(),
                        {}},
              kernel_name, grad_output);
  return grad_input;
}

// The weight's gradient and, if asked for, the bias's by the same pass over grad_output.
template <class Device>
std::pair<Tensor, std::optional<Tensor>> grad_weight_and_bias(const Tensor& grad_output, const Tensor& input,
                                                              const Ints& kernel_hw, const Geometry& geometry,
                                                              const std::string& kernel_name, bool with_bias) {
  check_device<Device>(grad_output, "grad_output");
  check_pair(kernel_hw, "kernel_hw");
  STD_TORCH_CHECK(grad_output.dim() == 4 && input.dim() == 4, "expected 4-dimensional grad_output and input, got ",
                  text(sizes(grad_output)), " and ", text(sizes(input)));
  const int64_t groups = geometry.groups;
  STD_TORCH_CHECK(groups > 0, "non-positive groups is not supported");
  STD_TORCH_CHECK(input.size(1) % groups == 0, "expected input channels to be divisible by groups=", groups,
                  ", got input of size ", text(sizes(input)));
  const Ints weight_size{grad_output.size(1), input.size(1) / groups, kernel_hw[0], kernel_hw[1]};
  const ConvShape shape = checked_shape(sizes(input), weight_size, geometry);
  check_size(grad_output, "grad_output", {shape.n, shape.k, shape.p(), shape.q()});
  check_operand(input, "input", grad_output, "grad_output");
  const Layout layout = layout_of(grad_output, input);
  const Problem problem{shape, dtype_of(grad_output.scalar_type(), "grad_output"), layout};
  Tensor grad_weight = new_output(grad_output, weight_size, layout);
  std::optional<Tensor> grad_bias;
  if (with_bias)
    grad_bias = torch::stable::empty({shape.k}, grad_output.scalar_type(), std::nullopt, grad_output.device());
  if (shape.n == 0) {
    torch::stable::zero_(grad_weight);
    if (grad_bias) torch::stable::zero_(*grad_bias);
    return {grad_weight, grad_bias};
  }

  const Tensor dy = dense(grad_output, layout), x = dense(input, layout);
  run<Device>(WgradArgs{problem,
                        dy.const_data_ptr(),
                        x.const_data_ptr(),
                        weight_view(grad_weight.mutable_data_ptr(), grad_weight),
                        grad_bias ? grad_bias->mutable_data_ptr() : nullptr,
                        {}},
              kernel_name, grad_output);
  return {grad_weight, grad_bias};
}

template <class Device>
Tensor grouped_conv2d_grad_weight(const Tensor& grad_output, const Tensor& input, const Ints& kernel_hw,
                                  const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                                  const std::string& kernel_name) {
  const Geometry geometry{stride, padding, dilation, groups};
  return grad_weight_and_bias<Device>(grad_output, input, kernel_hw, geometry, kernel_name, false).first;
}

template <class Device>
std::tuple<Tensor, Tensor> grouped_conv2d_grad_weight_bias(const Tensor& grad_output, const Tensor& input,
                                                           const Ints& kernel_hw, const Ints& stride,
                                                           const Ints& padding, const Ints& dilation, int64_t groups,
                                                           const std::string& kernel_name) {
  const Geometry geometry{stride, padding, dilation, groups};
  auto [weight, bias] = grad_weight_and_bias<Device>(grad_output, input, kernel_hw, geometry, kernel_name, true);
  return {weight, *bias};
}

// A problem in numbers: input size, weight size, groups, then stride, padding and dilation as pairs.
Problem numbered_problem(const Ints& numbers, ScalarType dtype, bool channels_last);

// One line per table entry: its name, a tab, and why it does not take the problem (nothing if it does).
template <class Device>
std::string explain_problem(const std::string& pass, const Ints& problem_shape, ScalarType dtype, bool channels_last) {
  Problem problem = numbered_problem(problem_shape, dtype, channels_last);
  problem.architecture = Device::architecture(-1);
  problem.allow_tf32 = Device::allow_tf32(problem.dtype);
  problem.fused = pass == "fprop_act";
  if (pass == "fprop" || problem.fused) return explain(Device::table(static_cast<FpropArgs*>(nullptr)), problem);
  if (pass == "dgrad") return explain(Device::table(static_cast<DgradArgs*>(nullptr)), problem);
  if (pass == "wgrad") return explain(Device::table(static_cast<WgradArgs*>(nullptr)), problem);
  STD_TORCH_CHECK(false, "expected pass to be fprop, fprop_act, dgrad or wgrad, got '", pass, "'");
}

template <class Device>
void register_kernels(torch::stable::detail::StableLibrary& library) {
  library.impl("grouped_conv2d", TORCH_BOX(&grouped_conv2d<Device>));
  library.impl("grouped_conv2d_act", TORCH_BOX(&grouped_conv2d_act<Device>));
  library.impl("grouped_conv2d_grad_input", TORCH_BOX(&grouped_conv2d_grad_input<Device>));
  library.impl("grouped_conv2d_grad_weight", TORCH_BOX(&grouped_conv2d_grad_weight<Device>));
  library.impl("grouped_conv2d_grad_weight_bias", TORCH_BOX(&grouped_conv2d_grad_weight_bias<Device>));
}

}  // namespace resnext::binding
