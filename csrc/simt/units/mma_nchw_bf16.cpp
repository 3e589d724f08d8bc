#include "cuda/mma_nchw_bf16.cu"
