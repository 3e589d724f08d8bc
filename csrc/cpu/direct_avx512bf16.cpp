// The direct kernels for AVX-512 with bfloat16 products; the build compiles this file for it by its name.
#include "direct_define.h"

RESNEXT_DEFINE_DIRECT(avx512bf16)
RESNEXT_DIRECT_ENTRIES(avx512bf16, bf16, 4)
RESNEXT_DIRECT_ENTRIES(avx512bf16, bf16, 8)
RESNEXT_DIRECT_ENTRIES(avx512bf16, bf16, 16)
