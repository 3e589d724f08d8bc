// The direct kernels for AVX-512; the build compiles this file for it by its name.
#include "direct_define.h"

RESNEXT_DEFINE_DIRECT(avx512)

namespace resnext::cpu::avx512 {
RESNEXT_DEFINE_DIRECT_SLOT(16)
}
