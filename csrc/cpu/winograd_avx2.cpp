// The kernels of winograd.h for AVX2; the build compiles this file for it by its name.
#include "winograd_define.h"

RESNEXT_DEFINE_WINOGRAD(avx2)
