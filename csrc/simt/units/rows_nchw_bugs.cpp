#include "testing/rows_nchw_bugs.cu"
