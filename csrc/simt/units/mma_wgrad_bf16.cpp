#include "cuda/mma_wgrad_bf16.cu"
