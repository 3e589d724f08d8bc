#include <pthread.h>

#include <algorithm>
#include <cstdlib>
#include <future>
#include <memory>
#include <new>

#include "kept_memory.h"
#include "operator.h"

// Library 1, in every install: the operators' schemas and their CPU kernels.
namespace resnext::binding {
namespace {

// A team is worth its fork and join (a few microseconds) only if each thread has about this much to do.
constexpr int64_t kMultiplyAddsPerThread = 1 << 18;

// GCC's OpenMP keeps the team of each thread that has had one. A fork copies none of its threads, and the child would
// wait for them for ever.
bool forked = false;
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

int team_size(const ConvShape& shape) {
  const int64_t work = shape.n * shape.k * shape.p() * shape.q() * shape.c_per_group() * shape.r * shape.s;
  return static_cast<int>(std::clamp<int64_t>(work / kMultiplyAddsPerThread, 1, torch::stable::get_num_threads()));
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

struct Cpu {
  static constexpr const char* name = "CPU";
  static bool has(const Tensor& tensor) { return tensor.is_cpu(); }
  static const auto& table(const FpropArgs*) { return cpu::fprop_table(); }
  static const auto& table(const DgradArgs*) { return cpu::dgrad_table(); }
  static const auto& table(const WgradArgs*) { return cpu::wgrad_table(); }

  static int architecture(int) { return 0; }
  static bool allow_tf32(DType) { return false; }

  // The output or, if it is large, one like it in kept memory.
  static Tensor prepare(const Tensor& output) {
    const size_t bytes = output.numel() * bytes_of(dtype_of(output.scalar_type(), "output"));
    void* memory = bytes < KeptMemory::kLeast ? nullptr : KeptMemory::instance().take(bytes);
    if (!memory) return output;
    return torch::stable::from_blob(memory, output.sizes(), output.strides(), output.device(), output.scalar_type(),
                                    [bytes](void* data) { KeptMemory::instance().give_back(data, bytes); });
  }

  template <class Args>
  static void launch(const KernelEntry<Args>& entry, Args& args, const Tensor&) {
    args.launch.threads = team_size(args.problem.shape);
    const int64_t bytes = entry.workspace_bytes(args.problem, args.launch.threads);
    const std::unique_ptr<void, Free> workspace(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    STD_TORCH_CHECK(workspace || bytes == 0, "not enough memory: a kernel's workspace takes ", bytes, " bytes");
    args.launch.workspace = workspace.get();
    if (forked && args.launch.threads > 1)  // by a new thread, which has had no team
      std::async(std::launch::async, [&] { entry.launch(args); }).get();
    else
      entry.launch(args);
  }
};

// The weight as the kernel that grouped_conv2d_act picks for such a problem reads it, behind a PackedLabel; nothing if
// that kernel packs none ahead.
Tensor pack_weight(const Tensor& weight, const Ints& problem_shape, bool channels_last) {
  check_device<Cpu>(weight, "weight");
  FpropArgs args{numbered_problem(problem_shape, weight.scalar_type(), channels_last)};
  args.problem.fused = true;
  const ConvShape& shape = args.problem.shape;
  check_size(weight, "weight", {shape.k, shape.c_per_group(), shape.r, shape.s});
  std::string error;
  const auto* entry = select(cpu::fprop_table(), args.problem, "", error);
  STD_TORCH_CHECK(entry, error);
  const auto bytes = [&](int64_t size) {
    return torch::stable::empty({size}, ScalarType::Byte, std::nullopt, weight.device());
  };
  if (!entry->pack) return bytes(0);
  const Tensor packed = bytes(sizeof(PackedLabel) + entry->packed_bytes(args.problem));
  auto* label = new (packed.mutable_data_ptr()) PackedLabel(entry->name, shape);
  args.weight = weight_view(weight.const_data_ptr(), weight);
  args.packed = label + 1;
  entry->pack(args);
  return packed;
}

}  // namespace

STABLE_TORCH_LIBRARY(resnext_kernels, library) {
  library.def(
      "grouped_conv2d(Tensor input, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] dilation, "
      "SymInt groups, *, str kernel_name=\"\") -> Tensor");
  library.def(
      "grouped_conv2d_act(Tensor input, Tensor weight, Tensor scale, Tensor shift, Tensor? residual, int[2] stride, "
      "int[2] padding, int[2] dilation, SymInt groups, str activation, *, str kernel_name=\"\", Tensor? packed=None) "
      "-> Tensor");
  library.def(
      "grouped_conv2d_grad_input(Tensor grad_output, Tensor weight, SymInt[2] input_hw, int[2] stride, "
      "int[2] padding, int[2] dilation, SymInt groups, *, str kernel_name=\"\") -> Tensor");
  library.def(
      "grouped_conv2d_grad_weight(Tensor grad_output, Tensor input, SymInt[2] kernel_hw, int[2] stride, "
      "int[2] padding, int[2] dilation, SymInt groups, *, str kernel_name=\"\") -> Tensor");
  library.def(
      "grouped_conv2d_grad_weight_bias(Tensor grad_output, Tensor input, SymInt[2] kernel_hw, int[2] stride, "
      "int[2] padding, int[2] dilation, SymInt groups, *, str kernel_name=\"\") -> (Tensor, Tensor)");
  library.def("_pack_weight(Tensor weight, int[] problem_shape, bool channels_last) -> Tensor");
  library.def("_allow_tf32() -> bool");
  library.def("_explain_cpu(str pass_name, int[] problem_shape, ScalarType dtype, bool channels_last) -> str");
  library.def("_explain_cuda(str pass_name, int[] problem_shape, ScalarType dtype, bool channels_last) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(resnext_kernels, CPU, library) {
  register_kernels<Cpu>(library);
  library.impl("_pack_weight", TORCH_BOX(&pack_weight));
}

STABLE_TORCH_LIBRARY_IMPL(resnext_kernels, CompositeExplicitAutograd, library) {
  library.impl("_explain_cpu", TORCH_BOX(&explain_problem<Cpu>));
}

}  // namespace resnext::binding
