// The direct kernels for AVX2 with FMA; the build compiles this file for them by its name.
#include "direct_define.h"

RESNEXT_DEFINE_DIRECT(avx2)
