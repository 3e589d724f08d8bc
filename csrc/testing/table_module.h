#pragma once
// What the test-only modules have in common: every entry of a device's kernel tables, on flat numpy arrays and without
// torch. The caller presets outputs (tests fill them with NaN, inside a larger array whose ends they check afterwards).
// A `Device` policy has
//   static table(const Args*) -> the device's kernel table for that pass
//   number                    -> what its launches take a number for: threads, or a seed
//   Session(number)           -> array(what, host pointer, bytes, written) makes an array known to the kernel, and
//                                launch(entry, args) runs one in a fenced workspace full of NaN
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "grouped_conv.h"

namespace resnext::testing {

namespace py = pybind11;

using Strides = std::array<int64_t, 4>;

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::invalid_argument((std::string() + ... + parts));
}

inline int64_t element_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// n c h w k r s groups stride_h stride_w pad_h pad_w dilation_h dilation_w, the order of ConvShape.
inline ConvShape make_shape(const std::array<int64_t, 14>& v) {
  for (size_t i = 0; i < v.size(); ++i) {
    const bool may_be_zero = i == 0 || i == 10 || i == 11;  // n and the padding
    require(v[i] >= (may_be_zero ? 0 : 1) && v[i] < (1 << 24), "shape value ", std::to_string(i), " is out of range");
  }
  const ConvShape shape{v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7], v[8], v[9], v[10], v[11], v[12], v[13]};
  require(shape.c % shape.groups == 0 && shape.k % shape.groups == 0, "groups must divide c and k");
  require(shape.h + 2 * shape.pad_h > shape.dilation_h * (shape.r - 1) &&
              shape.w + 2 * shape.pad_w > shape.dilation_w * (shape.s - 1),
          "the kernel is larger than the padded input");
  return shape;
}

inline Problem make_problem(const std::array<int64_t, 14>& shape, const std::string& dtype, const std::string& layout) {
  Problem problem{make_shape(shape), DType::f32, Layout::nchw};
  if (dtype == "f64")
    problem.dtype = DType::f64;
  else if (dtype == "f16")
    problem.dtype = DType::f16;
  else if (dtype == "bf16")
    problem.dtype = DType::bf16;
  else if (dtype == "tf32")  // float32 where the setting allows TF32
    problem.allow_tf32 = true;
  else
    require(dtype == "f32", "expected dtype to be f64, f32, tf32, f16 or bf16, got '", dtype, "'");
  if (layout == "NHWC")
    problem.layout = Layout::nhwc;
  else
    require(layout == "NCHW", "expected layout to be NCHW or NHWC, got '", layout, "'");
  return problem;
}

inline int64_t product(std::array<int64_t, 4> factors) {
  int64_t result = 1;
  for (int64_t factor : factors) require(!__builtin_mul_overflow(result, factor, &result), "the problem is too large");
  return result;
}

template <class Session>
void* data(Session& session, py::array& array, const char* what, int64_t elements, DType dtype, bool written) {
  require(array.ndim() == 1 && array.itemsize() == element_size(dtype), what, " must be flat and of the dtype named");
  require(array.size() == elements, what, " must have ", std::to_string(elements), " elements, got ",
          std::to_string(array.size()));
  require(array.size() < 2 || array.strides(0) == array.itemsize(), what, " must be contiguous");
  require(!written || array.writeable(), what, " must be writeable");
  void* host = written ? array.mutable_data() : const_cast<void*>(array.data());
  return session.array(what, host, array.nbytes(), written);
}

template <class Session>
void* input_data(Session& session, py::array& array, const char* what, const Problem& problem, bool written = false) {
  const ConvShape& shape = problem.shape;
  return data(session, array, what, product({shape.n, shape.c, shape.h, shape.w}), problem.dtype, written);
}

template <class Session>
void* output_data(Session& session, py::array& array, const char* what, const Problem& problem, bool written = false) {
  const ConvShape& shape = problem.shape;
  return data(session, array, what, product({shape.n, shape.k, shape.p(), shape.q()}), problem.dtype, written);
}

template <class Pointer, class Session>
Weight<Pointer> weight_data(Session& session, py::array& array, const char* what, const Problem& problem,
                            const Strides& strides) {
  const ConvShape& shape = problem.shape;
  const Strides sizes = {shape.k, shape.c_per_group(), shape.r, shape.s};
  int64_t last = 0;
  for (size_t i = 0; i < 4; ++i) {
    require(strides[i] >= 0 && strides[i] < (int64_t(1) << 32), "a weight stride is out of range");
    last += (sizes[i] - 1) * strides[i];
  }
  require(last < array.size(), what, " is too small for its strides");
  void* pointer = data(session, array, what, array.size(), problem.dtype, !std::is_same_v<Pointer, const void*>);
  return {pointer, strides[0], strides[1], strides[2], strides[3]};
}

template <class Session, class Args>
std::string run(Session& session, const std::string& name, Args args) {
  args.problem.alignment = alignment_of(args);
  args.problem.architecture = Session::DeviceType::architecture();
  std::string error;
  const KernelEntry<Args>* entry = select(Session::DeviceType::table(&args), args.problem, name, error);
  require(entry, error);
  session.launch(*entry, args);
  return entry->name;
}

template <class Device, class Visitor>
auto with_table(const std::string& pass, const Visitor& visitor) {
  if (pass == "fprop" || pass == "fprop_act") return visitor(Device::table(static_cast<FpropArgs*>(nullptr)));
  if (pass == "dgrad") return visitor(Device::table(static_cast<DgradArgs*>(nullptr)));
  require(pass == "wgrad", "expected pass to be fprop, fprop_act, dgrad or wgrad, got '", pass, "'");
  return visitor(Device::table(static_cast<WgradArgs*>(nullptr)));
}

template <class Device>
std::vector<std::string> entries(const std::string& pass) {
  return with_table<Device>(pass, [](const auto& table) {
    std::vector<std::string> names;
    for (const auto& entry : table) names.push_back(entry.name);
    return names;
  });
}

// (name, reason) of every entry; the reason is empty for an entry that accepts the problem.
template <class Device>
std::vector<std::pair<std::string, std::string>> explain_entries(const std::string& pass,
                                                                 const std::array<int64_t, 14>& shape,
                                                                 const std::string& dtype, const std::string& layout) {
  Problem problem = make_problem(shape, dtype, layout);
  problem.architecture = Device::architecture();
  problem.fused = pass == "fprop_act";
  return with_table<Device>(pass, [&](const auto& table) {
    std::vector<std::pair<std::string, std::string>> reasons;
    first(table, problem, [&](const auto& entry) {
      const char* reason = reason_against(entry, problem);
      reasons.emplace_back(entry.name, reason ? reason : "");
      return false;
    });
    return reasons;
  });
}

template <class Session>
FpropArgs fprop_args(Session& session, const std::array<int64_t, 14>& shape, const std::string& dtype,
                     const std::string& layout, py::array& input, py::array& weight, const Strides& weight_strides,
                     py::array& output) {
  FpropArgs args{};
  args.problem = make_problem(shape, dtype, layout);
  args.input = input_data(session, input, "input", args.problem);
  args.weight = weight_data<const void*>(session, weight, "weight", args.problem, weight_strides);
  args.output = output_data(session, output, "output", args.problem, true);
  return args;
}

template <class Device>
std::string run_fprop(const std::array<int64_t, 14>& shape, const std::string& dtype, const std::string& layout,
                      py::array input, py::array weight, const Strides& weight_strides, std::optional<py::array> bias,
                      py::array output, int number, const std::string& name) {
  typename Device::Session session(number);
  FpropArgs args = fprop_args(session, shape, dtype, layout, input, weight, weight_strides, output);
  if (bias) args.bias = data(session, *bias, "bias", args.problem.shape.k, args.problem.dtype, false);
  return run(session, name, args);
}

template <class Device>
std::string run_fprop_act(const std::array<int64_t, 14>& shape, const std::string& dtype, const std::string& layout,
                          py::array input, py::array weight, const Strides& weight_strides, py::array scale,
                          py::array shift, std::optional<py::array> residual, bool relu, py::array output, int number,
                          const std::string& name) {
  typename Device::Session session(number);
  FpropArgs args = fprop_args(session, shape, dtype, layout, input, weight, weight_strides, output);
  const int64_t k = args.problem.shape.k;
  const DType type = args.problem.dtype == DType::f64 ? DType::f64 : DType::f32;
  args.problem.fused = true;
  args.epilogue = {data(session, scale, "scale", k, type, false), data(session, shift, "shift", k, type, false),
                   residual ? output_data(session, *residual, "residual", args.problem) : nullptr, relu};
  return run(session, name, args);
}

template <class Device>
std::string run_dgrad(const std::array<int64_t, 14>& shape, const std::string& dtype, const std::string& layout,
                      py::array grad_output, py::array weight, const Strides& weight_strides, py::array grad_input,
                      int number, const std::string& name) {
  typename Device::Session session(number);
  DgradArgs args{};
  args.problem = make_problem(shape, dtype, layout);
  args.grad_output = output_data(session, grad_output, "grad_output", args.problem);
  args.weight = weight_data<const void*>(session, weight, "weight", args.problem, weight_strides);
  args.grad_input = input_data(session, grad_input, "grad_input", args.problem, true);
  return run(session, name, args);
}

template <class Device>
std::string run_wgrad(const std::array<int64_t, 14>& shape, const std::string& dtype, const std::string& layout,
                      py::array grad_output, py::array input, py::array grad_weight, const Strides& weight_strides,
                      std::optional<py::array> grad_bias, int number, const std::string& name) {
  typename Device::Session session(number);
  WgradArgs args{};
  args.problem = make_problem(shape, dtype, layout);
  args.grad_output = output_data(session, grad_output, "grad_output", args.problem);
  args.input = input_data(session, input, "input", args.problem);
  args.grad_weight = weight_data<void*>(session, grad_weight, "grad_weight", args.problem, weight_strides);
  if (grad_bias)
    args.grad_bias = data(session, *grad_bias, "grad_bias", args.problem.shape.k, args.problem.dtype, true);
  return run(session, name, args);
}

template <class Device>
void define(py::module_& module) {
  using namespace pybind11::literals;
  const py::arg_v number(Device::number, 1);
  module.def("entries", &entries<Device>, "pass_name"_a, "The names of a pass's kernels, in table order.");
  module.def("explain", &explain_entries<Device>, "pass_name"_a, "shape"_a, "dtype"_a, "layout"_a,
             "(name, reason) of each kernel; the reason is empty for a kernel that accepts the problem.");
  module.def("fprop", &run_fprop<Device>, "shape"_a, "dtype"_a, "layout"_a, "input"_a, "weight"_a, "weight_strides"_a,
             "bias"_a, "output"_a, number, "kernel"_a = "", "Fill output; returns the kernel's name.");
  module.def("fprop_act", &run_fprop_act<Device>, "shape"_a, "dtype"_a, "layout"_a, "input"_a, "weight"_a,
             "weight_strides"_a, "scale"_a, "shift"_a, "residual"_a, "relu"_a, "output"_a, number, "kernel"_a = "",
             "The same with scale, shift, residual and ReLU; returns the kernel's name.");
  module.def("dgrad", &run_dgrad<Device>, "shape"_a, "dtype"_a, "layout"_a, "grad_output"_a, "weight"_a,
             "weight_strides"_a, "grad_input"_a, number, "kernel"_a = "",
             "Fill grad_input; returns the kernel's name.");
  module.def("wgrad", &run_wgrad<Device>, "shape"_a, "dtype"_a, "layout"_a, "grad_output"_a, "input"_a, "grad_weight"_a,
             "weight_strides"_a, "grad_bias"_a, number, "kernel"_a = "",
             "Fill grad_weight and grad_bias, if given; returns the kernel's name.");
}

}  // namespace resnext::testing
