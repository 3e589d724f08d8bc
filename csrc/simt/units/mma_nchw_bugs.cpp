#include "testing/mma_nchw_bugs.cu"
