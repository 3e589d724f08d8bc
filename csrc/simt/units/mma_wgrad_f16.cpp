#include "cuda/mma_wgrad_f16.cu"
