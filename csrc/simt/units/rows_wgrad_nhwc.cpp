#include "cuda/rows_wgrad_nhwc.cu"
