#include "cuda/mma_nhwc_padded_f16.cu"
