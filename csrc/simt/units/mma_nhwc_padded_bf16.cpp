#include "cuda/mma_nhwc_padded_bf16.cu"
