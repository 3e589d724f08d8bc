// The kernels of planes.h for AVX-512; the build compiles this file for it by its name.
#include "planes_entries.h"
#include "planes_passes.h"

#define RESNEXT_PLANES_ENTRY(Stored, dtype)                                                                    \
  template <>                                                                                                  \
  int64_t resnext::cpu::avx512::planes_workspace<resnext::DType::dtype>(const Problem& problem, int threads) { \
    return planes_workspace_bytes<Stored>(problem, threads);                                                   \
  }                                                                                                            \
  template <>                                                                                                  \
  int64_t resnext::cpu::avx512::planes_packed<resnext::DType::dtype>(const Problem& problem) {                 \
    return planes_packed_bytes<Stored>(problem);                                                               \
  }                                                                                                            \
  template <>                                                                                                  \
  void resnext::cpu::avx512::planes_pack<resnext::DType::dtype>(const FpropArgs& args) {                       \
    pack_planes_ahead<Stored>(args);                                                                           \
  }                                                                                                            \
  template <>                                                                                                  \
  void resnext::cpu::avx512::fprop_planes<resnext::DType::dtype>(const FpropArgs& args) {                      \
    run_fprop_planes<Stored>(args);                                                                            \
  }                                                                                                            \
  template <>                                                                                                  \
  void resnext::cpu::avx512::dgrad_planes<resnext::DType::dtype>(const DgradArgs& args) {                      \
    run_dgrad_planes<Stored>(args);                                                                            \
  }

RESNEXT_PLANES_ENTRY(float, f32)
RESNEXT_PLANES_ENTRY(f16, f16)
