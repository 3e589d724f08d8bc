#define USE_CUDA  // declares aoti_torch_get_current_cuda_stream
#include "operator.h"

// Library 2, in CUDA builds only: the operators' CUDA kernels.
namespace resnext::binding {
namespace {

struct Cuda {
  static constexpr const char* name = "CUDA";
  static bool has(const Tensor& tensor) { return tensor.is_cuda(); }
  static const auto& table(const FpropArgs*) { return cuda::fprop_table(); }
  static const auto& table(const DgradArgs*) { return cuda::dgrad_table(); }
  static const auto& table(const WgradArgs*) { return cuda::wgrad_table(); }

  static Tensor prepare(const Tensor& output) { return output; }

  static int architecture(int device) { return cuda::gpu_architecture(device); }

  // PyTorch keeps the setting where the stable ABI does not reach; _ops.py implements the operator that reads it. A
  // process without Python, such as one that runs an AOTInductor package, has no such operator and computes in full.
  static bool allow_tf32(DType dtype) {
    if (dtype != DType::f32) return false;
    StableIValue result{};
    const AOTITorchError error = torch_call_dispatcher("resnext_kernels::_allow_tf32", "", &result, TORCH_ABI_VERSION);
    return error == AOTI_TORCH_SUCCESS && torch::stable::detail::to<bool>(result);
  }

  template <class Args>
  static void launch(const KernelEntry<Args>& entry, Args& args, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(like.get_device_index(), &args.launch.stream));
    const int64_t bytes = entry.workspace_bytes(args.problem, 0);
    const Tensor workspace = torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt, like.device());
    args.launch.workspace = workspace.mutable_data_ptr();
    entry.launch(args);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnext_kernels, CUDA, library) { register_kernels<Cuda>(library); }

STABLE_TORCH_LIBRARY_IMPL(resnext_kernels, CompositeExplicitAutograd, library) {
  library.impl("_explain_cuda", TORCH_BOX(&explain_problem<Cuda>));
}

}  // namespace resnext::binding
