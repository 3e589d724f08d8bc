// The entries of the tensor-core kernels of mma_nhwc.h in fp16 and bf16.
#include <type_traits>

#include "mma_nhwc_entries.h"
#include "mma_nhwc_fields.h"

namespace resnext::cuda {
namespace mma_nhwc {

template <DType dtype>
using Element = std::conditional_t<dtype == DType::f16, __half, __nv_bfloat16>;

template <int width, int stride>
using Dgrad = std::conditional_t<stride == 1, Gather<width, 1>, Spread<width>>;

}  // namespace mma_nhwc

template <DType dtype, int width, int stride>
KernelEntry<FpropArgs> fprop_mma_nhwc(const char* name) {
  using namespace mma_nhwc;
  using Kind = Gather<width, stride>;
  return {name, why_not<Element<dtype>, Kind>, no_workspace, fprop<Element<dtype>, Kind>, true};
}

template <DType dtype, int width, int stride>
KernelEntry<DgradArgs> dgrad_mma_nhwc(const char* name) {
  using namespace mma_nhwc;
  using Kind = Dgrad<width, stride>;
  return {name, why_not<Element<dtype>, Kind>, no_workspace, dgrad<Element<dtype>, Kind>};
}

template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 4, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 4, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 4, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 4, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 4, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 4, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 4, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 4, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 8, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 8, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 8, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 8, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 8, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 8, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 8, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 8, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 16, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 16, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 16, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 16, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 16, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 16, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 16, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 16, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 32, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 32, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 32, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 32, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 32, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 32, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 32, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 32, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 64, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 64, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 64, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 64, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 64, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 64, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 64, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 64, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 24, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 24, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 24, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 24, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 24, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 24, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 24, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 24, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 40, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 40, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 40, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 40, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 40, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 40, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 40, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 40, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 48, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 48, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 48, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 48, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 48, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 48, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 48, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 48, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 56, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 56, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::f16, 56, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::f16, 56, 2>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 56, 1>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 56, 1>(const char* name);
template KernelEntry<FpropArgs> fprop_mma_nhwc<DType::bf16, 56, 2>(const char* name);
template KernelEntry<DgradArgs> dgrad_mma_nhwc<DType::bf16, 56, 2>(const char* name);

}  // namespace resnext::cuda
