#include "cuda/mma_wgrad_nchw_f16.cu"
