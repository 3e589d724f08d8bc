#include <algorithm>
#include <type_traits>

#include "direct_entries.h"
#include "grouped_conv.h"
#include "planes_entries.h"
#include "reference.h"
#include "winograd_entries.h"

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

#ifdef RESNEXT_EMULATE_AVX512
constexpr bool emulates_avx512 = true;
#else
constexpr bool emulates_avx512 = false;
#endif

struct Avx512 {
  static constexpr int lanes = avx512::vector_lanes;
  static const char* missing() {
    if (emulates_avx512) return nullptr;
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
    return emulates_avx512 || __builtin_cpu_supports("avx512bf16") ? nullptr : "this CPU has no AVX-512 with bfloat16";
  }
};

// Why only the reference computes a problem. All that is asked here and below must run on every CPU.
const char* why_not_common(const ConvShape& shape) {
  if (shape.r != 3 || shape.s != 3) return "the kernel is not 3x3";
  if (shape.dilation_h != 1 || shape.dilation_w != 1) return "the dilation is not 1";
  if (shape.pad_h != 1 || shape.pad_w != 1) return "the padding is not 1";
  if (shape.stride_h != shape.stride_w || shape.stride_h > 2) return "the stride is not 1 or 2";
  return nullptr;
}

template <class Isa, DType dtype, int slot>
const char* why_not_direct(const Problem& problem) {
  const ConvShape& shape = problem.shape;
  const int64_t width = std::max(shape.c_per_group(), shape.k_per_group());
  if (problem.dtype != dtype) return "it is for another dtype";
  if (slot < Isa::lanes && width > (slot == 1 ? widest_across : slot)) return "the groups are wider";
  if (slot > 4 && width <= slot / 2) return "the groups are narrower";
  if (const char* reason = why_not_common(shape)) return reason;
  return Isa::missing();
}

template <DType dtype>
const char* why_not_planes(const Problem& problem) {
  if (problem.dtype != dtype) return "it is for another dtype";
  if (problem.layout != Layout::nchw) return "it is for NCHW";
  if (const char* reason = why_not_common(problem.shape)) return reason;
  return Avx512::missing();
}

constexpr int64_t smallest_map = 5;

template <class Isa>
const char* why_not_winograd(const Problem& problem) {
  const ConvShape& shape = problem.shape;
  if (problem.dtype != DType::f32) return "it is for another dtype";
  if (const char* reason = why_not_common(shape)) return reason;
  if (shape.stride_h != 1) return "the stride is not 1";
  if (shape.c_per_group() % Isa::lanes || shape.k_per_group() % Isa::lanes) return "the groups are no whole vectors";
  // A tap that meets a pixel or two is rounded less than the sums of all taps that it would be made of.
  if (shape.p() < smallest_map || shape.q() < smallest_map) return "the maps are smaller than 5x5";
  return Isa::missing();
}

// Groups that leave too many lanes empty where they lie across vectors.
bool too_few_groups_across(const ConvShape& shape) {
  const int64_t vectors = (shape.groups + Avx512::lanes - 1) / Avx512::lanes;
  return 10 * shape.groups < 7 * vectors * Avx512::lanes;
}

bool fills_a_slot(int64_t width) { return width == 4 || width == 8; }

// Wide groups, rows that leave too much of their last vector empty, and groups that are no whole blocks of target
// channels, are faster by the other kernels (docs/performance.md).
bool planes_are_slower(const Problem& problem) {
  const ConvShape& shape = problem.shape;
  const int64_t columns = shape.q(), vectors = (columns + Avx512::lanes - 1) / Avx512::lanes;
  const int64_t width = std::max(shape.c_per_group(), shape.k_per_group());
  const bool uneven = width > 2 && !fills_a_slot(width) && !too_few_groups_across(shape);
  return width > 12 || 10 * columns < 7 * vectors * Avx512::lanes || uneven;
}

// Groups that fill their lanes side by side gain only where they are copied to tiles in either order and a permute
// takes a multiply-add's place: on Intel's CPUs (docs/performance.md).
template <class Args>
bool across_is_slower(const Problem& problem) {
  const ConvShape& shape = problem.shape;
  if (too_few_groups_across(shape)) return true;
  if (shape.c_per_group() != shape.k_per_group() || !fills_a_slot(shape.c_per_group())) return false;
  const bool in_place = problem.layout == Layout::nhwc && problem.dtype == DType::f32;
  return in_place || std::is_same_v<Args, WgradArgs> || !__builtin_cpu_is("intel");
}

// In multiply-adds of a channel and a target channel (docs/performance.md): a direct sum leaves padding out; positions
// are computed for whole squares, transforms take as long as eight channels more, and those of the weights as twice as
// many products as a group has channels, 125 at most. AMD's CPUs multiply as many floats in a cycle with AVX2 as with
// AVX-512, in shorter loops; Intel's half as many.
template <class Isa, class Args>
bool winograd_is_slower(const Problem& problem) {
  const ConvShape& shape = problem.shape;
  const int64_t width = std::max(shape.c_per_group(), shape.k_per_group()), pixels = shape.p() * shape.q();
  const bool beside_longer = std::is_same_v<Isa, Avx2> && !Avx512::missing();
  if (beside_longer && (__builtin_cpu_is("intel") || width < 16)) return true;
  // The sums of a wide group's gradient leave the cache, and have to meet many pixels when they come back.
  const int64_t sums = shape.c_per_group() * shape.k_per_group();
  if (std::is_same_v<Args, WgradArgs> && pixels < std::min<int64_t>(sums / 128, 512)) return true;
  const auto along = [](int64_t targets) { return 4 * (targets / 2) + 3 * (targets % 2); };
  const int64_t products = along(shape.p()) * along(shape.q());
  const int64_t winograd = (products + 8 * products / width) * (beside_longer ? 13 : 10) / 10;
  const int64_t for_weights = Isa::lanes == 16 ? std::min<int64_t>(2 * width, 125) : 125;
  return shape.n * winograd + for_weights > shape.n * (3 * shape.p() - 2) * (3 * shape.q() - 2);
}

bool is_last(const Problem&) { return true; }

// Weights are packed ahead for fprop alone: what the two other passes read changes from call to call.
#define RESNEXT_PACKING_fprop(function, ...) function##_packed<__VA_ARGS__>, function##_pack<__VA_ARGS__>
#define RESNEXT_PACKING_dgrad(...) nullptr, nullptr
#define RESNEXT_PACKING_wgrad(...) nullptr, nullptr

#define RESNEXT_WINOGRAD_PACKING_fprop(isa) isa::fprop_winograd_packed, isa::fprop_winograd_pack
#define RESNEXT_WINOGRAD_PACKING_dgrad(isa) nullptr, nullptr
#define RESNEXT_WINOGRAD_PACKING_wgrad(isa) nullptr, nullptr

// Rows of a table: one for each type, for each number of lanes that a group may take.
#define RESNEXT_ENTRY(pass, isa, Isa, slot, groups, dtype) \
  {#pass "_direct_" groups "_" #dtype "_" #isa,            \
   why_not_direct<Isa, DType::dtype, slot>,                \
   isa::pass##_workspace<DType::dtype, slot>,              \
   isa::pass<DType::dtype, slot>,                          \
   true,                                                   \
   nullptr,                                                \
   RESNEXT_PACKING_##pass(isa::pass, DType::dtype, slot)}

#define RESNEXT_ACROSS_ENTRY(pass, Args, dtype) \
  {#pass "_across_" #dtype "_avx512",           \
   why_not_direct<Avx512, DType::dtype, 1>,     \
   avx512::pass##_workspace<DType::dtype, 1>,   \
   avx512::pass<DType::dtype, 1>,               \
   true,                                        \
   across_is_slower<Args>,                      \
   RESNEXT_PACKING_##pass(avx512::pass, DType::dtype, 1)}

#define RESNEXT_ACROSS(pass, Args) \
  RESNEXT_ACROSS_ENTRY(pass, Args, f32), RESNEXT_ACROSS_ENTRY(pass, Args, bf16), RESNEXT_ACROSS_ENTRY(pass, Args, f16)

#define RESNEXT_PLANES_ENTRY(pass, dtype)  \
  {#pass "_planes_" #dtype "_avx512",      \
   why_not_planes<DType::dtype>,           \
   avx512::planes_workspace<DType::dtype>, \
   avx512::pass##_planes<DType::dtype>,    \
   true,                                   \
   planes_are_slower,                      \
   RESNEXT_PACKING_##pass(avx512::planes, DType::dtype)}

#define RESNEXT_PLANES(pass) RESNEXT_PLANES_ENTRY(pass, f32), RESNEXT_PLANES_ENTRY(pass, f16)

#define RESNEXT_WINOGRAD_ENTRY(pass, Args, isa, Isa) \
  {#pass "_winograd_f32_" #isa,                      \
   why_not_winograd<Isa>,                            \
   isa::pass##_winograd_workspace,                   \
   isa::pass##_winograd,                             \
   true,                                             \
   winograd_is_slower<Isa, Args>,                    \
   RESNEXT_WINOGRAD_PACKING_##pass(isa)}

#define RESNEXT_WINOGRAD(pass, Args) \
  RESNEXT_WINOGRAD_ENTRY(pass, Args, avx512, Avx512), RESNEXT_WINOGRAD_ENTRY(pass, Args, avx2, Avx2)

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

#define RESNEXT_REST(pass)                                                                             \
  RESNEXT_TYPES(pass, avx2, Avx2, 4, "gw4"), RESNEXT_TYPES(pass, avx2, Avx2, 8, "wide"), {             \
    #pass "_reference", reference_why_not, pass##_reference_workspace, pass##_reference, true, is_last \
  }

// vdpbf16ps does two multiply-adds a lane: AMD's CPUs begin as many of it in a cycle as of the float instruction,
// Intel's a quarter as many (docs/performance.md).
bool pairs_are_fast() { return !__builtin_cpu_is("intel"); }

// In the order in which they are tried.
template <class Args>
KernelTable<Args> in_order(const KernelTable<Args>& pairs, const KernelTable<Args>& floats,
                           const KernelTable<Args>& rest) {
  KernelTable<Args> table;
  for (const auto* part : {pairs_are_fast() ? &pairs : &floats, pairs_are_fast() ? &floats : &pairs, &rest})
    table.insert(table.end(), part->begin(), part->end());
  return table;
}

}  // namespace

const KernelTable<FpropArgs>& fprop_table() {
  static const KernelTable<FpropArgs> table =
      in_order<FpropArgs>({RESNEXT_PAIRS(fprop)},
                          {RESNEXT_WINOGRAD(fprop, FpropArgs), RESNEXT_PLANES(fprop), RESNEXT_ACROSS(fprop, FpropArgs),
                           RESNEXT_FLOATS(fprop)},
                          {RESNEXT_REST(fprop)});
  return table;
}

const KernelTable<DgradArgs>& dgrad_table() {
  static const KernelTable<DgradArgs> table =
      in_order<DgradArgs>({RESNEXT_PAIRS(dgrad)},
                          {RESNEXT_WINOGRAD(dgrad, DgradArgs), RESNEXT_PLANES(dgrad), RESNEXT_ACROSS(dgrad, DgradArgs),
                           RESNEXT_FLOATS(dgrad)},
                          {RESNEXT_REST(dgrad)});
  return table;
}

const KernelTable<WgradArgs>& wgrad_table() {
  static const KernelTable<WgradArgs> table =
      in_order<WgradArgs>({RESNEXT_PAIRS(wgrad)},
                          {RESNEXT_WINOGRAD(wgrad, WgradArgs), RESNEXT_ACROSS(wgrad, WgradArgs), RESNEXT_FLOATS(wgrad)},
                          {RESNEXT_REST(wgrad)});
  return table;
}

}  // namespace resnext::cpu
