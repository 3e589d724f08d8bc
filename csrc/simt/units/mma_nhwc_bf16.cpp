#include "cuda/mma_nhwc_bf16.cu"
