#include "cuda/mma_nhwc.cu"
