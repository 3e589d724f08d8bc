#include "cuda/mma_wgrad_nchw_bf16.cu"
