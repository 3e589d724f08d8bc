// The direct kernels for AVX-512 with bfloat16 products; the build compiles this file for it by its name. In wgrad the
// sum runs over pixels, which no vector holds in pairs, so AVX-512 alone serves it.
#include "direct_define.h"

RESNEXT_DEFINE_DIRECT(avx512bf16)
RESNEXT_DIRECT_ENTRY(avx512bf16, fprop, FpropArgs, bf16, 4)
RESNEXT_DIRECT_ENTRY(avx512bf16, fprop, FpropArgs, bf16, 8)
RESNEXT_DIRECT_ENTRY(avx512bf16, fprop, FpropArgs, bf16, 16)
RESNEXT_DIRECT_ENTRY(avx512bf16, dgrad, DgradArgs, bf16, 4)
RESNEXT_DIRECT_ENTRY(avx512bf16, dgrad, DgradArgs, bf16, 8)
RESNEXT_DIRECT_ENTRY(avx512bf16, dgrad, DgradArgs, bf16, 16)
