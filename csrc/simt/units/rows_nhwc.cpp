#include "cuda/rows_nhwc.cu"
