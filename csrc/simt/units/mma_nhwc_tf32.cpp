#include "cuda/mma_nhwc_tf32.cu"
