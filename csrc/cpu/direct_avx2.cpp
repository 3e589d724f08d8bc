// The direct kernels for AVX2 with FMA and F16C; the build compiles this file for them by its name.
#include "direct_define.h"

RESNEXT_DEFINE_DIRECT(avx2)
RESNEXT_DIRECT_ENTRIES(avx2, f32, 4)
RESNEXT_DIRECT_ENTRIES(avx2, f32, 8)
RESNEXT_DIRECT_ENTRIES(avx2, bf16, 4)
RESNEXT_DIRECT_ENTRIES(avx2, bf16, 8)
RESNEXT_DIRECT_ENTRIES(avx2, f16, 4)
RESNEXT_DIRECT_ENTRIES(avx2, f16, 8)
