#include "cuda/rows_wgrad_tf32_nchw.cu"
