#include "cuda/mma_nchw_tf32.cu"
