#include "cuda/rows_wgrad_nchw.cu"
