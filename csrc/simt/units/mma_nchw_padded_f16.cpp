#include "cuda/mma_nchw_padded_f16.cu"
