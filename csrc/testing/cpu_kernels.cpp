// Test-only module: every entry of the CPU kernel tables, on flat numpy arrays and without torch. The caller presets
// outputs (tests fill them with NaN, inside a larger array whose ends they check afterwards). The workspace is
// allocated here, filled with NaN and fenced by guard bytes, which are checked after the launch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "grouped_conv.h"

namespace py = pybind11;

namespace resnext {
namespace {

using Strides = std::array<int64_t, 4>;

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::invalid_argument((std::string() + ... + parts));
}

int64_t element_size(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// n c h w k r s groups stride_h stride_w pad_h pad_w dilation_h dilation_w, the order of ConvShape.
ConvShape make_shape(const std::array<int64_t, 14>& v) {
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

Problem make_problem(const std::array<int64_t, 14>& shape, const std::string& dtype, const std::string& layout) {
  Problem problem{make_shape(shape), DType::f32, Layout::nchw};
  if (dtype == "f64")
    problem.dtype = DType::f64;
  else if (dtype == "f16")
    problem.dtype = DType::f16;
  else if (dtype == "bf16")
    problem.dtype = DType::bf16;
  else
    require(dtype == "f32", "expected dtype to be f64, f32, f16 or bf16, got '", dtype, "'");
  if (layout == "NHWC")
    problem.layout = Layout::nhwc;
  else
    require(layout == "NCHW", "expected layout to be NCHW or NHWC, got '", layout, "'");
  return problem;
}

int64_t product(std::array<int64_t, 4> factors) {
  int64_t result = 1;
  for (int64_t factor : factors) require(!__builtin_mul_overflow(result, factor, &result), "the problem is too large");
  return result;
}

void* data(py::array& array, const char* what, int64_t elements, DType dtype, bool written) {
  require(array.ndim() == 1 && array.itemsize() == element_size(dtype), what, " must be flat and of the dtype named");
  require(array.size() == elements, what, " must have ", std::to_string(elements), " elements, got ",
          std::to_string(array.size()));
  require(array.size() < 2 || array.strides(0) == array.itemsize(), what, " must be contiguous");
  require(!written || array.writeable(), what, " must be writeable");
  return written ? array.mutable_data() : const_cast<void*>(array.data());
}

void* input_data(py::array& array, const char* what, const Problem& problem, bool written = false) {
  const ConvShape& shape = problem.shape;
  return data(array, what, product({shape.n, shape.c, shape.h, shape.w}), problem.dtype, written);
}

void* output_data(py::array& array, const char* what, const Problem& problem, bool written = false) {
  const ConvShape& shape = problem.shape;
  return data(array, what, product({shape.n, shape.k, shape.p(), shape.q()}), problem.dtype, written);
}

template <class Pointer>
Weight<Pointer> weight_data(py::array& array, const char* what, const Problem& problem, const Strides& strides) {
  const ConvShape& shape = problem.shape;
  const Strides sizes = {shape.k, shape.c_per_group(), shape.r, shape.s};
  int64_t last = 0;
  for (size_t i = 0; i < 4; ++i) {
    require(strides[i] >= 0 && strides[i] < (int64_t(1) << 32), "a weight stride is out of range");
    last += (sizes[i] - 1) * strides[i];
  }
  require(last < array.size(), what, " is too small for its strides");
  void* pointer = data(array, what, array.size(), problem.dtype, !std::is_same_v<Pointer, const void*>);
  return {pointer, strides[0], strides[1], strides[2], strides[3]};
}

// Memory full of NaN between two guards.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(bytes) {
    require(bytes >= 0 && bytes < (int64_t(1) << 40), "workspace_bytes is out of range");
    const int64_t total = (bytes + 2 * guard + 63) / 64 * 64;
    memory_.reset(static_cast<unsigned char*>(std::aligned_alloc(64, total)));
    if (!memory_) throw std::bad_alloc();
    std::memset(memory_.get(), guard_byte, bytes + 2 * guard);
    std::memset(data(), 0xff, bytes);  // a NaN in every float type
  }

  void* data() const { return memory_.get() + guard; }

  void check() const {
    for (int64_t i = 0; i < guard; ++i)
      if (memory_.get()[i] != guard_byte || memory_.get()[guard + bytes_ + i] != guard_byte)
        throw std::runtime_error("the kernel wrote outside its workspace");
  }

 private:
  static constexpr int64_t guard = 4096;
  static constexpr unsigned char guard_byte = 0xa5;
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  int64_t bytes_;
  std::unique_ptr<unsigned char, Free> memory_;
};

template <class Args>
std::string run(const KernelTable<Args>& table, const std::string& name, int threads, Args args) {
  require(threads >= 1 && threads <= 256, "expected 1 to 256 threads");
  std::string error;
  const KernelEntry<Args>* entry = select(table, args.problem, name, error);
  require(entry, error);
  const Workspace workspace(entry->workspace_bytes(args.problem, threads));
  args.launch = {workspace.data(), threads, nullptr};
  {
    py::gil_scoped_release unlocked;
    entry->launch(args);
  }
  workspace.check();
  return entry->name;
}

template <class Visitor>
auto with_table(const std::string& pass, const Visitor& visitor) {
  if (pass == "fprop") return visitor(cpu::fprop_table());
  if (pass == "dgrad") return visitor(cpu::dgrad_table());
  require(pass == "wgrad", "expected pass to be fprop, dgrad or wgrad, got '", pass, "'");
  return visitor(cpu::wgrad_table());
}

std::vector<std::string> entries(const std::string& pass) {
  return with_table(pass, [](const auto& table) {
    std::vector<std::string> names;
    for (const auto& entry : table) names.push_back(entry.name);
    return names;
  });
}

// (name, reason) of every entry; the reason is empty for an entry that accepts the problem.
std::vector<std::pair<std::string, std::string>> explain_entries(const std::string& pass,
                                                                 const std::array<int64_t, 14>& shape,
                                                                 const std::string& dtype, const std::string& layout) {
  const Problem problem = make_problem(shape, dtype, layout);
  return with_table(pass, [&](const auto& table) {
    std::vector<std::pair<std::string, std::string>> reasons;
    for (const auto& entry : table) {
      const char* reason = entry.why_not(problem);
      reasons.emplace_back(entry.name, reason ? reason : "");
    }
    return reasons;
  });
}

std::string run_fprop(const std::array<int64_t, 14>& shape, const std::string& dtype, const std::string& layout,
                      py::array input, py::array weight, const Strides& weight_strides, std::optional<py::array> bias,
                      py::array output, int threads, const std::string& name) {
  FpropArgs args{};
  args.problem = make_problem(shape, dtype, layout);
  args.input = input_data(input, "input", args.problem);
  args.weight = weight_data<const void*>(weight, "weight", args.problem, weight_strides);
  args.bias = bias ? data(*bias, "bias", args.problem.shape.k, args.problem.dtype, false) : nullptr;
  args.output = output_data(output, "output", args.problem, true);
  return run(cpu::fprop_table(), name, threads, args);
}

std::string run_dgrad(const std::array<int64_t, 14>& shape, const std::string& dtype, const std::string& layout,
                      py::array grad_output, py::array weight, const Strides& weight_strides, py::array grad_input,
                      int threads, const std::string& name) {
  DgradArgs args{};
  args.problem = make_problem(shape, dtype, layout);
  args.grad_output = output_data(grad_output, "grad_output", args.problem);
  args.weight = weight_data<const void*>(weight, "weight", args.problem, weight_strides);
  args.grad_input = input_data(grad_input, "grad_input", args.problem, true);
  return run(cpu::dgrad_table(), name, threads, args);
}

std::string run_wgrad(const std::array<int64_t, 14>& shape, const std::string& dtype, const std::string& layout,
                      py::array grad_output, py::array input, py::array grad_weight, const Strides& weight_strides,
                      int threads, const std::string& name) {
  WgradArgs args{};
  args.problem = make_problem(shape, dtype, layout);
  args.grad_output = output_data(grad_output, "grad_output", args.problem);
  args.input = input_data(input, "input", args.problem);
  args.grad_weight = weight_data<void*>(grad_weight, "grad_weight", args.problem, weight_strides);
  return run(cpu::wgrad_table(), name, threads, args);
}

}  // namespace
}  // namespace resnext

PYBIND11_MODULE(_testing_cpu, module) {
  using namespace pybind11::literals;
  module.doc() = "The CPU kernel tables on flat numpy arrays, for tests. bf16 is passed as uint16 bit patterns.";
  module.def("entries", &resnext::entries, "pass_name"_a, "The names of a pass's kernels, in table order.");
  module.def("explain", &resnext::explain_entries, "pass_name"_a, "shape"_a, "dtype"_a, "layout"_a,
             "(name, reason) of each kernel; the reason is empty for a kernel that accepts the problem.");
  module.def("fprop", &resnext::run_fprop, "shape"_a, "dtype"_a, "layout"_a, "input"_a, "weight"_a, "weight_strides"_a,
             "bias"_a, "output"_a, "threads"_a = 1, "kernel"_a = "", "Fill output; returns the kernel's name.");
  module.def("dgrad", &resnext::run_dgrad, "shape"_a, "dtype"_a, "layout"_a, "grad_output"_a, "weight"_a,
             "weight_strides"_a, "grad_input"_a, "threads"_a = 1, "kernel"_a = "",
             "Fill grad_input; returns the kernel's name.");
  module.def("wgrad", &resnext::run_wgrad, "shape"_a, "dtype"_a, "layout"_a, "grad_output"_a, "input"_a,
             "grad_weight"_a, "weight_strides"_a, "threads"_a = 1, "kernel"_a = "",
             "Fill grad_weight; returns the kernel's name.");
}
