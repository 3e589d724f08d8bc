#include "table_padded.h"

#include "mma_nchw_entries.h"
#include "mma_nhwc_entries.h"

namespace resnext::cuda {

KernelTable<FpropArgs> fprop_of_padded_halves() {
  return {
      fprop_mma_padded_nhwc<DType::f16, 16, 1>("fprop_mma_padded16_f16_nhwc"),
      fprop_mma_padded_nhwc<DType::f16, 32, 1>("fprop_mma_padded32_f16_nhwc"),
      fprop_mma_padded_nhwc<DType::f16, 64, 1>("fprop_mma_padded64_f16_nhwc"),
      fprop_mma_padded_nhwc<DType::f16, 16, 2>("fprop_mma_padded16_f16_nhwc_s2"),
      fprop_mma_padded_nhwc<DType::f16, 32, 2>("fprop_mma_padded32_f16_nhwc_s2"),
      fprop_mma_padded_nhwc<DType::f16, 64, 2>("fprop_mma_padded64_f16_nhwc_s2"),
      fprop_mma_padded_nhwc<DType::bf16, 16, 1>("fprop_mma_padded16_bf16_nhwc"),
      fprop_mma_padded_nhwc<DType::bf16, 32, 1>("fprop_mma_padded32_bf16_nhwc"),
      fprop_mma_padded_nhwc<DType::bf16, 64, 1>("fprop_mma_padded64_bf16_nhwc"),
      fprop_mma_padded_nhwc<DType::bf16, 16, 2>("fprop_mma_padded16_bf16_nhwc_s2"),
      fprop_mma_padded_nhwc<DType::bf16, 32, 2>("fprop_mma_padded32_bf16_nhwc_s2"),
      fprop_mma_padded_nhwc<DType::bf16, 64, 2>("fprop_mma_padded64_bf16_nhwc_s2"),
      fprop_mma_padded_nchw<DType::f16, 16, 1>("fprop_mma_padded16_f16_nchw"),
      fprop_mma_padded_nchw<DType::f16, 32, 1>("fprop_mma_padded32_f16_nchw"),
      fprop_mma_padded_nchw<DType::f16, 64, 1>("fprop_mma_padded64_f16_nchw"),
      fprop_mma_padded_nchw<DType::f16, 16, 2>("fprop_mma_padded16_f16_nchw_s2"),
      fprop_mma_padded_nchw<DType::f16, 32, 2>("fprop_mma_padded32_f16_nchw_s2"),
      fprop_mma_padded_nchw<DType::f16, 64, 2>("fprop_mma_padded64_f16_nchw_s2"),
      fprop_mma_padded_nchw<DType::bf16, 16, 1>("fprop_mma_padded16_bf16_nchw"),
      fprop_mma_padded_nchw<DType::bf16, 32, 1>("fprop_mma_padded32_bf16_nchw"),
      fprop_mma_padded_nchw<DType::bf16, 64, 1>("fprop_mma_padded64_bf16_nchw"),
      fprop_mma_padded_nchw<DType::bf16, 16, 2>("fprop_mma_padded16_bf16_nchw_s2"),
      fprop_mma_padded_nchw<DType::bf16, 32, 2>("fprop_mma_padded32_bf16_nchw_s2"),
      fprop_mma_padded_nchw<DType::bf16, 64, 2>("fprop_mma_padded64_bf16_nchw_s2"),
  };
}

KernelTable<DgradArgs> dgrad_of_padded_halves() {
  return {
      dgrad_mma_padded_nhwc<DType::f16, 16, 1>("dgrad_mma_padded16_f16_nhwc"),
      dgrad_mma_padded_nhwc<DType::f16, 32, 1>("dgrad_mma_padded32_f16_nhwc"),
      dgrad_mma_padded_nhwc<DType::f16, 64, 1>("dgrad_mma_padded64_f16_nhwc"),
      dgrad_mma_padded_nhwc<DType::f16, 16, 2>("dgrad_mma_padded16_f16_nhwc_s2"),
      dgrad_mma_padded_nhwc<DType::f16, 32, 2>("dgrad_mma_padded32_f16_nhwc_s2"),
      dgrad_mma_padded_nhwc<DType::f16, 64, 2>("dgrad_mma_padded64_f16_nhwc_s2"),
      dgrad_mma_padded_nhwc<DType::bf16, 16, 1>("dgrad_mma_padded16_bf16_nhwc"),
      dgrad_mma_padded_nhwc<DType::bf16, 32, 1>("dgrad_mma_padded32_bf16_nhwc"),
      dgrad_mma_padded_nhwc<DType::bf16, 64, 1>("dgrad_mma_padded64_bf16_nhwc"),
      dgrad_mma_padded_nhwc<DType::bf16, 16, 2>("dgrad_mma_padded16_bf16_nhwc_s2"),
      dgrad_mma_padded_nhwc<DType::bf16, 32, 2>("dgrad_mma_padded32_bf16_nhwc_s2"),
      dgrad_mma_padded_nhwc<DType::bf16, 64, 2>("dgrad_mma_padded64_bf16_nhwc_s2"),
      dgrad_mma_padded_nchw<DType::f16, 16, 1>("dgrad_mma_padded16_f16_nchw"),
      dgrad_mma_padded_nchw<DType::f16, 32, 1>("dgrad_mma_padded32_f16_nchw"),
      dgrad_mma_padded_nchw<DType::f16, 64, 1>("dgrad_mma_padded64_f16_nchw"),
      dgrad_mma_padded_nchw<DType::f16, 16, 2>("dgrad_mma_padded16_f16_nchw_s2"),
      dgrad_mma_padded_nchw<DType::f16, 32, 2>("dgrad_mma_padded32_f16_nchw_s2"),
      dgrad_mma_padded_nchw<DType::f16, 64, 2>("dgrad_mma_padded64_f16_nchw_s2"),
      dgrad_mma_padded_nchw<DType::bf16, 16, 1>("dgrad_mma_padded16_bf16_nchw"),
      dgrad_mma_padded_nchw<DType::bf16, 32, 1>("dgrad_mma_padded32_bf16_nchw"),
      dgrad_mma_padded_nchw<DType::bf16, 64, 1>("dgrad_mma_padded64_bf16_nchw"),
      dgrad_mma_padded_nchw<DType::bf16, 16, 2>("dgrad_mma_padded16_bf16_nchw_s2"),
      dgrad_mma_padded_nchw<DType::bf16, 32, 2>("dgrad_mma_padded32_bf16_nchw_s2"),
      dgrad_mma_padded_nchw<DType::bf16, 64, 2>("dgrad_mma_padded64_bf16_nchw_s2"),
  };
}

}  // namespace resnext::cuda
