#include "cuda/mma_nchw_f16.cu"
