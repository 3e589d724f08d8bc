#include <algorithm>

#include "direct_entries.h"
#include "grouped_conv.h"
#include "reference.h"

// What runs when: the first entry that accepts a problem. Most special first, the reference, which accepts all, last.
namespace resnext::cpu {
namespace {

struct Avx2 {
  static constexpr int lanes = avx2::vector_lanes;
  static const char* missing() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
               ? nullptr
               : "this CPU has no AVX2 with FMA and F16C";
  }
};

struct Avx512 {
  static constexpr int lanes = avx512::vector_lanes;
  static const char* missing() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("fma")
               ? nullptr
               : "this CPU has no AVX-512";
  }
};

struct Avx512Bf16 : Avx512 {
  static const char* missing() {
    if (const char* reason = Avx512::missing()) return reason;
    return __builtin_cpu_supports("avx512bf16") ? nullptr : "this CPU has no AVX-512 with bfloat16";
  }
};

// Why a direct kernel cannot compute a problem. All that is asked here must run on every CPU.
template <class Isa, DType dtype, int slot>
const char* why_not_direct(const Problem& problem) {
  const ConvShape& shape = problem.shape;
  const int64_t width = std::max(shape.c_per_group(), shape.k_per_group());
  if (problem.dtype != dtype) return "it is for another dtype";
  if (slot < Isa::lanes && width > slot) return "the groups are wider";
  if (slot > 4 && width <= slot / 2) return "the groups are narrower";
  if (shape.r != 3 || shape.s != 3) return "the kernel is not 3x3";
  if (shape.dilation_h != 1 || shape.dilation_w != 1) return "the dilation is not 1";
  if (shape.pad_h != 1 || shape.pad_w != 1) return "the padding is not 1";
  if (shape.stride_h != shape.stride_w || shape.stride_h > 2) return "the stride is not 1 or 2";
  return Isa::missing();
}

// Rows of a table: one for each type, for each number of lanes that a group may take.
#define RESNEXT_ENTRY(pass, isa, Isa, slot, groups, dtype)                               \
  {#pass "_direct_" groups "_" #dtype "_" #isa, why_not_direct<Isa, DType::dtype, slot>, \
   isa::pass##_workspace<DType::dtype, slot>, isa::pass<DType::dtype, slot>, true}

#define RESNEXT_TYPES(pass, isa, Isa, slot, groups)                                                    \
  RESNEXT_ENTRY(pass, isa, Isa, slot, groups, f32), RESNEXT_ENTRY(pass, isa, Isa, slot, groups, bf16), \
      RESNEXT_ENTRY(pass, isa, Isa, slot, groups, f16)

#define RESNEXT_PAIRS(pass)                                        \
  RESNEXT_ENTRY(pass, avx512bf16, Avx512Bf16, 4, "gw4", bf16),     \
      RESNEXT_ENTRY(pass, avx512bf16, Avx512Bf16, 8, "gw8", bf16), \
      RESNEXT_ENTRY(pass, avx512bf16, Avx512Bf16, 16, "wide", bf16)

#define RESNEXT_FLOATS(pass)                                                                    \
  RESNEXT_TYPES(pass, avx512, Avx512, 4, "gw4"), RESNEXT_TYPES(pass, avx512, Avx512, 8, "gw8"), \
      RESNEXT_TYPES(pass, avx512, Avx512, 16, "wide")

#define RESNEXT_REST(pass)                                                                    \
  RESNEXT_TYPES(pass, avx2, Avx2, 4, "gw4"), RESNEXT_TYPES(pass, avx2, Avx2, 8, "wide"), {    \
    #pass "_reference", reference_why_not, pass##_reference_workspace, pass##_reference, true \
  }

// vdpbf16ps does two multiply-adds a lane: AMD's CPUs begin as many of it in a cycle as of the float instruction,
// Intel's a quarter as many (docs/performance.md).
bool pairs_are_fast() { return !__builtin_cpu_is("intel"); }

// In the order in which they are tried.
#define RESNEXT_TABLE(pass, Args)                                                                     \
  pairs_are_fast() ? KernelTable<Args>{RESNEXT_PAIRS(pass), RESNEXT_FLOATS(pass), RESNEXT_REST(pass)} \
                   : KernelTable<Args> {                                                              \
    RESNEXT_FLOATS(pass), RESNEXT_PAIRS(pass), RESNEXT_REST(pass)                                     \
  }

}  // namespace

const KernelTable<FpropArgs>& fprop_table() {
  static const KernelTable<FpropArgs> table = RESNEXT_TABLE(fprop, FpropArgs);
  return table;
}

const KernelTable<DgradArgs>& dgrad_table() {
  static const KernelTable<DgradArgs> table = RESNEXT_TABLE(dgrad, DgradArgs);
  return table;
}

const KernelTable<WgradArgs>& wgrad_table() {
  static const KernelTable<WgradArgs> table = RESNEXT_TABLE(wgrad, WgradArgs);
  return table;
}

}  // namespace resnext::cpu
