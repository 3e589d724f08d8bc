#include "cuda/mma_nhwc_f16.cu"
