#include "direct_entries.h"
#include "grouped_conv.h"
#include "reference.h"

// What runs when: the first entry that accepts a problem. Most special first, the reference, which accepts all, last.
namespace resnext::cpu {
namespace {

struct Avx2 {
  static constexpr int lanes = avx2::vector_lanes;
  static const char* missing() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? nullptr : "this CPU has no AVX2 with FMA";
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

// Why a direct kernel cannot compute a problem. All that is asked here must run on every CPU.
template <class Isa, int group_width>
const char* why_not_direct(const Problem& problem) {
  const ConvShape& shape = problem.shape;
  if (problem.dtype != DType::f32) return "the dtype is not float32";
  if (shape.c_per_group() != group_width || shape.k_per_group() != group_width) return "the groups have another width";
  if (shape.r != 3 || shape.s != 3) return "the kernel is not 3x3";
  if (shape.dilation_h != 1 || shape.dilation_w != 1) return "the dilation is not 1";
  if (shape.pad_h != 1 || shape.pad_w != 1) return "the padding is not 1";
  if (shape.stride_h != shape.stride_w || shape.stride_h > 2) return "the stride is not 1 or 2";
  if (shape.c % Isa::lanes != 0) return "the channels do not fill whole vectors";
  return Isa::missing();
}

}  // namespace

const KernelTable<FpropArgs>& fprop_table() {
  static const KernelTable<FpropArgs> table = {
      {"fprop_direct_gw4_f32_avx512", why_not_direct<Avx512, 4>, avx512::fprop_workspace<4>, avx512::fprop<4>},
      {"fprop_direct_gw8_f32_avx512", why_not_direct<Avx512, 8>, avx512::fprop_workspace<8>, avx512::fprop<8>},
      {"fprop_direct_gw16_f32_avx512", why_not_direct<Avx512, 16>, avx512::fprop_workspace<16>, avx512::fprop<16>},
      {"fprop_direct_gw32_f32_avx512", why_not_direct<Avx512, 32>, avx512::fprop_workspace<32>, avx512::fprop<32>},
      {"fprop_direct_gw64_f32_avx512", why_not_direct<Avx512, 64>, avx512::fprop_workspace<64>, avx512::fprop<64>},
      {"fprop_direct_gw4_f32_avx2", why_not_direct<Avx2, 4>, avx2::fprop_workspace<4>, avx2::fprop<4>},
      {"fprop_direct_gw8_f32_avx2", why_not_direct<Avx2, 8>, avx2::fprop_workspace<8>, avx2::fprop<8>},
      {"fprop_direct_gw16_f32_avx2", why_not_direct<Avx2, 16>, avx2::fprop_workspace<16>, avx2::fprop<16>},
      {"fprop_direct_gw32_f32_avx2", why_not_direct<Avx2, 32>, avx2::fprop_workspace<32>, avx2::fprop<32>},
      {"fprop_direct_gw64_f32_avx2", why_not_direct<Avx2, 64>, avx2::fprop_workspace<64>, avx2::fprop<64>},
      {"fprop_reference", reference_why_not, fprop_reference_workspace, fprop_reference},
  };
  return table;
}

const KernelTable<DgradArgs>& dgrad_table() {
  static const KernelTable<DgradArgs> table = {
      {"dgrad_direct_gw4_f32_avx512", why_not_direct<Avx512, 4>, avx512::dgrad_workspace<4>, avx512::dgrad<4>},
      {"dgrad_direct_gw8_f32_avx512", why_not_direct<Avx512, 8>, avx512::dgrad_workspace<8>, avx512::dgrad<8>},
      {"dgrad_direct_gw16_f32_avx512", why_not_direct<Avx512, 16>, avx512::dgrad_workspace<16>, avx512::dgrad<16>},
      {"dgrad_direct_gw32_f32_avx512", why_not_direct<Avx512, 32>, avx512::dgrad_workspace<32>, avx512::dgrad<32>},
      {"dgrad_direct_gw64_f32_avx512", why_not_direct<Avx512, 64>, avx512::dgrad_workspace<64>, avx512::dgrad<64>},
      {"dgrad_direct_gw4_f32_avx2", why_not_direct<Avx2, 4>, avx2::dgrad_workspace<4>, avx2::dgrad<4>},
      {"dgrad_direct_gw8_f32_avx2", why_not_direct<Avx2, 8>, avx2::dgrad_workspace<8>, avx2::dgrad<8>},
      {"dgrad_direct_gw16_f32_avx2", why_not_direct<Avx2, 16>, avx2::dgrad_workspace<16>, avx2::dgrad<16>},
      {"dgrad_direct_gw32_f32_avx2", why_not_direct<Avx2, 32>, avx2::dgrad_workspace<32>, avx2::dgrad<32>},
      {"dgrad_direct_gw64_f32_avx2", why_not_direct<Avx2, 64>, avx2::dgrad_workspace<64>, avx2::dgrad<64>},
      {"dgrad_reference", reference_why_not, dgrad_reference_workspace, dgrad_reference},
  };
  return table;
}

const KernelTable<WgradArgs>& wgrad_table() {
  static const KernelTable<WgradArgs> table = {
      {"wgrad_direct_gw4_f32_avx512", why_not_direct<Avx512, 4>, avx512::wgrad_workspace<4>, avx512::wgrad<4>},
      {"wgrad_direct_gw8_f32_avx512", why_not_direct<Avx512, 8>, avx512::wgrad_workspace<8>, avx512::wgrad<8>},
      {"wgrad_direct_gw16_f32_avx512", why_not_direct<Avx512, 16>, avx512::wgrad_workspace<16>, avx512::wgrad<16>},
      {"wgrad_direct_gw32_f32_avx512", why_not_direct<Avx512, 32>, avx512::wgrad_workspace<32>, avx512::wgrad<32>},
      {"wgrad_direct_gw64_f32_avx512", why_not_direct<Avx512, 64>, avx512::wgrad_workspace<64>, avx512::wgrad<64>},
      {"wgrad_direct_gw4_f32_avx2", why_not_direct<Avx2, 4>, avx2::wgrad_workspace<4>, avx2::wgrad<4>},
      {"wgrad_direct_gw8_f32_avx2", why_not_direct<Avx2, 8>, avx2::wgrad_workspace<8>, avx2::wgrad<8>},
      {"wgrad_direct_gw16_f32_avx2", why_not_direct<Avx2, 16>, avx2::wgrad_workspace<16>, avx2::wgrad<16>},
      {"wgrad_direct_gw32_f32_avx2", why_not_direct<Avx2, 32>, avx2::wgrad_workspace<32>, avx2::wgrad<32>},
      {"wgrad_direct_gw64_f32_avx2", why_not_direct<Avx2, 64>, avx2::wgrad_workspace<64>, avx2::wgrad<64>},
      {"wgrad_reference", reference_why_not, wgrad_reference_workspace, wgrad_reference},
  };
  return table;
}

}  // namespace resnext::cpu
