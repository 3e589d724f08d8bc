#include "cuda/rows_nchw.cu"
