#include "cuda/mma_nchw_padded_bf16.cu"
