#include <initializer_list>

#include "generic.h"
#include "grouped_conv.h"
#include "mma_nchw_entries.h"
#include "mma_nhwc_entries.h"
#include "mma_wgrad.h"
#include "rows.h"
#include "rows_nchw_entries.h"
#include "rows_wgrad.h"
#include "table_padded.h"

// What runs when: the first entry that accepts a problem. Most special first, the generic kernel, which accepts all,
// last.
namespace resnext::cuda {

namespace {

template <class Args>
KernelTable<Args> joined(std::initializer_list<KernelTable<Args>> parts) {
  KernelTable<Args> table;
  for (const auto& part : parts) table.insert(table.end(), part.begin(), part.end());
  return table;
}

KernelTable<FpropArgs> fprop_of_floats() {
  return {
      fprop_mma_tf32<8, 1, 1>("fprop_mma_gw8_tf32_nhwc"),
      fprop_mma_tf32<16, 1, 1>("fprop_mma_gw16_tf32_nhwc"),
      fprop_mma_tf32<32, 1, 1>("fprop_mma_gw32_tf32_nhwc"),
      fprop_mma_tf32<8, 2, 1>("fprop_mma_gw8_tf32_nhwc_s2"),
      fprop_mma_tf32<16, 2, 1>("fprop_mma_gw16_tf32_nhwc_s2"),
      fprop_mma_tf32<32, 2, 1>("fprop_mma_gw32_tf32_nhwc_s2"),
      fprop_mma_tf32<8, 1, 3>("fprop_mma_gw8_tf32x3_nhwc"),
      fprop_mma_tf32<16, 1, 3>("fprop_mma_gw16_tf32x3_nhwc"),
      fprop_mma_tf32<32, 1, 3>("fprop_mma_gw32_tf32x3_nhwc"),
      fprop_mma_tf32<16, 2, 3>("fprop_mma_gw16_tf32x3_nhwc_s2"),
      fprop_mma_tf32<32, 2, 3>("fprop_mma_gw32_tf32x3_nhwc_s2"),
      {"fprop_rows_gw4_f32_nhwc", rows_nhwc_why_not<4, 1>, no_workspace, fprop_rows_nhwc<4, 1>, true},
      {"fprop_rows_gw8_f32_nhwc", rows_nhwc_why_not<8, 1>, no_workspace, fprop_rows_nhwc<8, 1>, true},
      {"fprop_rows_gw16_f32_nhwc", rows_nhwc_why_not<16, 1>, no_workspace, fprop_rows_nhwc<16, 1>, true},
      {"fprop_rows_gw32_f32_nhwc", rows_nhwc_why_not<32, 1>, no_workspace, fprop_rows_nhwc<32, 1>, true},
      {"fprop_rows_gw4_f32_nhwc_s2", rows_nhwc_why_not<4, 2>, no_workspace, fprop_rows_nhwc<4, 2>, true},
      {"fprop_rows_gw8_f32_nhwc_s2", rows_nhwc_why_not<8, 2>, no_workspace, fprop_rows_nhwc<8, 2>, true},
      {"fprop_rows_gw16_f32_nhwc_s2", rows_nhwc_why_not<16, 2>, no_workspace, fprop_rows_nhwc<16, 2>, true},
      {"fprop_rows_gw32_f32_nhwc_s2", rows_nhwc_why_not<32, 2>, no_workspace, fprop_rows_nhwc<32, 2>, true},
      fprop_mma_tf32_nchw<8, 1, 1>("fprop_mma_gw8_tf32_nchw"),
      fprop_mma_tf32_nchw<16, 1, 1>("fprop_mma_gw16_tf32_nchw"),
      fprop_mma_tf32_nchw<32, 1, 1>("fprop_mma_gw32_tf32_nchw"),
      fprop_mma_tf32_nchw<8, 2, 1>("fprop_mma_gw8_tf32_nchw_s2"),
      fprop_mma_tf32_nchw<16, 2, 1>("fprop_mma_gw16_tf32_nchw_s2"),
      fprop_mma_tf32_nchw<32, 2, 1>("fprop_mma_gw32_tf32_nchw_s2"),
      fprop_mma_tf32_nchw<8, 1, 3>("fprop_mma_gw8_tf32x3_nchw"),
      fprop_mma_tf32_nchw<16, 1, 3>("fprop_mma_gw16_tf32x3_nchw"),
      fprop_mma_tf32_nchw<32, 1, 3>("fprop_mma_gw32_tf32x3_nchw"),
      fprop_mma_tf32_nchw<16, 2, 3>("fprop_mma_gw16_tf32x3_nchw_s2"),
      fprop_mma_tf32_nchw<32, 2, 3>("fprop_mma_gw32_tf32x3_nchw_s2"),
      {"fprop_rows_gw4_f32_nchw", rows_nchw_why_not<4, 1>, no_workspace, fprop_rows_nchw<4, 1>, true},
      {"fprop_rows_gw8_f32_nchw", rows_nchw_why_not<8, 1>, no_workspace, fprop_rows_nchw<8, 1>, true},
      {"fprop_rows_gw16_f32_nchw", rows_nchw_why_not<16, 1>, no_workspace, fprop_rows_nchw<16, 1>, true},
      {"fprop_rows_gw32_f32_nchw", rows_nchw_why_not<32, 1>, no_workspace, fprop_rows_nchw<32, 1>, true},
      {"fprop_rows_gw4_f32_nchw_s2", rows_nchw_why_not<4, 2>, no_workspace, fprop_rows_nchw<4, 2>, true},
      {"fprop_rows_gw8_f32_nchw_s2", rows_nchw_why_not<8, 2>, no_workspace, fprop_rows_nchw<8, 2>, true},
      {"fprop_rows_gw16_f32_nchw_s2", rows_nchw_why_not<16, 2>, no_workspace, fprop_rows_nchw<16, 2>, true},
      {"fprop_rows_gw32_f32_nchw_s2", rows_nchw_why_not<32, 2>, no_workspace, fprop_rows_nchw<32, 2>, true},
  };
}

KernelTable<FpropArgs> fprop_of_halves_nhwc() {
  return {
      fprop_mma_nhwc<DType::f16, 4, 1>("fprop_mma_gw4_f16_nhwc"),
      fprop_mma_nhwc<DType::f16, 8, 1>("fprop_mma_gw8_f16_nhwc"),
      fprop_mma_nhwc<DType::f16, 16, 1>("fprop_mma_gw16_f16_nhwc"),
      fprop_mma_nhwc<DType::f16, 32, 1>("fprop_mma_gw32_f16_nhwc"),
      fprop_mma_nhwc<DType::f16, 64, 1>("fprop_mma_gw64_f16_nhwc"),
      fprop_mma_nhwc<DType::f16, 24, 1>("fprop_mma_gw24_f16_nhwc"),
      fprop_mma_nhwc<DType::f16, 40, 1>("fprop_mma_gw40_f16_nhwc"),
      fprop_mma_nhwc<DType::f16, 48, 1>("fprop_mma_gw48_f16_nhwc"),
      fprop_mma_nhwc<DType::f16, 56, 1>("fprop_mma_gw56_f16_nhwc"),
      fprop_mma_nhwc<DType::f16, 4, 2>("fprop_mma_gw4_f16_nhwc_s2"),
      fprop_mma_nhwc<DType::f16, 8, 2>("fprop_mma_gw8_f16_nhwc_s2"),
      fprop_mma_nhwc<DType::f16, 16, 2>("fprop_mma_gw16_f16_nhwc_s2"),
      fprop_mma_nhwc<DType::f16, 32, 2>("fprop_mma_gw32_f16_nhwc_s2"),
      fprop_mma_nhwc<DType::f16, 64, 2>("fprop_mma_gw64_f16_nhwc_s2"),
      fprop_mma_nhwc<DType::f16, 24, 2>("fprop_mma_gw24_f16_nhwc_s2"),
      fprop_mma_nhwc<DType::f16, 40, 2>("fprop_mma_gw40_f16_nhwc_s2"),
      fprop_mma_nhwc<DType::f16, 48, 2>("fprop_mma_gw48_f16_nhwc_s2"),
      fprop_mma_nhwc<DType::f16, 56, 2>("fprop_mma_gw56_f16_nhwc_s2"),
      fprop_mma_nhwc<DType::bf16, 4, 1>("fprop_mma_gw4_bf16_nhwc"),
      fprop_mma_nhwc<DType::bf16, 8, 1>("fprop_mma_gw8_bf16_nhwc"),
      fprop_mma_nhwc<DType::bf16, 16, 1>("fprop_mma_gw16_bf16_nhwc"),
      fprop_mma_nhwc<DType::bf16, 32, 1>("fprop_mma_gw32_bf16_nhwc"),
      fprop_mma_nhwc<DType::bf16, 64, 1>("fprop_mma_gw64_bf16_nhwc"),
      fprop_mma_nhwc<DType::bf16, 24, 1>("fprop_mma_gw24_bf16_nhwc"),
      fprop_mma_nhwc<DType::bf16, 40, 1>("fprop_mma_gw40_bf16_nhwc"),
      fprop_mma_nhwc<DType::bf16, 48, 1>("fprop_mma_gw48_bf16_nhwc"),
      fprop_mma_nhwc<DType::bf16, 56, 1>("fprop_mma_gw56_bf16_nhwc"),
      fprop_mma_nhwc<DType::bf16, 4, 2>("fprop_mma_gw4_bf16_nhwc_s2"),
      fprop_mma_nhwc<DType::bf16, 8, 2>("fprop_mma_gw8_bf16_nhwc_s2"),
      fprop_mma_nhwc<DType::bf16, 16, 2>("fprop_mma_gw16_bf16_nhwc_s2"),
      fprop_mma_nhwc<DType::bf16, 32, 2>("fprop_mma_gw32_bf16_nhwc_s2"),
      fprop_mma_nhwc<DType::bf16, 64, 2>("fprop_mma_gw64_bf16_nhwc_s2"),
      fprop_mma_nhwc<DType::bf16, 24, 2>("fprop_mma_gw24_bf16_nhwc_s2"),
      fprop_mma_nhwc<DType::bf16, 40, 2>("fprop_mma_gw40_bf16_nhwc_s2"),
      fprop_mma_nhwc<DType::bf16, 48, 2>("fprop_mma_gw48_bf16_nhwc_s2"),
      fprop_mma_nhwc<DType::bf16, 56, 2>("fprop_mma_gw56_bf16_nhwc_s2"),
  };
}

KernelTable<FpropArgs> fprop_of_halves_nchw() {
  return {
      fprop_mma_nchw<DType::f16, 4, 1>("fprop_mma_gw4_f16_nchw"),
      fprop_mma_nchw<DType::f16, 8, 1>("fprop_mma_gw8_f16_nchw"),
      fprop_mma_nchw<DType::f16, 16, 1>("fprop_mma_gw16_f16_nchw"),
      fprop_mma_nchw<DType::f16, 32, 1>("fprop_mma_gw32_f16_nchw"),
      fprop_mma_nchw<DType::f16, 64, 1>("fprop_mma_gw64_f16_nchw"),
      fprop_mma_nchw<DType::f16, 4, 2>("fprop_mma_gw4_f16_nchw_s2"),
      fprop_mma_nchw<DType::f16, 8, 2>("fprop_mma_gw8_f16_nchw_s2"),
      fprop_mma_nchw<DType::f16, 16, 2>("fprop_mma_gw16_f16_nchw_s2"),
      fprop_mma_nchw<DType::f16, 32, 2>("fprop_mma_gw32_f16_nchw_s2"),
      fprop_mma_nchw<DType::f16, 64, 2>("fprop_mma_gw64_f16_nchw_s2"),
      fprop_mma_nchw<DType::bf16, 4, 1>("fprop_mma_gw4_bf16_nchw"),
      fprop_mma_nchw<DType::bf16, 8, 1>("fprop_mma_gw8_bf16_nchw"),
      fprop_mma_nchw<DType::bf16, 16, 1>("fprop_mma_gw16_bf16_nchw"),
      fprop_mma_nchw<DType::bf16, 32, 1>("fprop_mma_gw32_bf16_nchw"),
      fprop_mma_nchw<DType::bf16, 64, 1>("fprop_mma_gw64_bf16_nchw"),
      fprop_mma_nchw<DType::bf16, 4, 2>("fprop_mma_gw4_bf16_nchw_s2"),
      fprop_mma_nchw<DType::bf16, 8, 2>("fprop_mma_gw8_bf16_nchw_s2"),
      fprop_mma_nchw<DType::bf16, 16, 2>("fprop_mma_gw16_bf16_nchw_s2"),
      fprop_mma_nchw<DType::bf16, 32, 2>("fprop_mma_gw32_bf16_nchw_s2"),
      fprop_mma_nchw<DType::bf16, 64, 2>("fprop_mma_gw64_bf16_nchw_s2"),
  };
}

KernelTable<DgradArgs> dgrad_of_floats() {
  return {
      dgrad_mma_tf32<8, 1, 1>("dgrad_mma_gw8_tf32_nhwc"),
      dgrad_mma_tf32<16, 1, 1>("dgrad_mma_gw16_tf32_nhwc"),
      dgrad_mma_tf32<32, 1, 1>("dgrad_mma_gw32_tf32_nhwc"),
      dgrad_mma_tf32<8, 2, 1>("dgrad_mma_gw8_tf32_nhwc_s2"),
      dgrad_mma_tf32<16, 2, 1>("dgrad_mma_gw16_tf32_nhwc_s2"),
      dgrad_mma_tf32<32, 2, 1>("dgrad_mma_gw32_tf32_nhwc_s2"),
      dgrad_mma_tf32<8, 1, 3>("dgrad_mma_gw8_tf32x3_nhwc"),
      dgrad_mma_tf32<16, 1, 3>("dgrad_mma_gw16_tf32x3_nhwc"),
      dgrad_mma_tf32<32, 1, 3>("dgrad_mma_gw32_tf32x3_nhwc"),
      dgrad_mma_tf32<16, 2, 3>("dgrad_mma_gw16_tf32x3_nhwc_s2"),
      dgrad_mma_tf32<32, 2, 3>("dgrad_mma_gw32_tf32x3_nhwc_s2"),
      {"dgrad_rows_gw4_f32_nhwc", rows_nhwc_why_not<4, 1>, no_workspace, dgrad_rows_nhwc<4, 1>},
      {"dgrad_rows_gw8_f32_nhwc", rows_nhwc_why_not<8, 1>, no_workspace, dgrad_rows_nhwc<8, 1>},
      {"dgrad_rows_gw16_f32_nhwc", rows_nhwc_why_not<16, 1>, no_workspace, dgrad_rows_nhwc<16, 1>},
      {"dgrad_rows_gw32_f32_nhwc", rows_nhwc_why_not<32, 1>, no_workspace, dgrad_rows_nhwc<32, 1>},
      {"dgrad_rows_gw4_f32_nhwc_s2", rows_nhwc_why_not<4, 2>, no_workspace, dgrad_rows_nhwc<4, 2>},
      {"dgrad_rows_gw8_f32_nhwc_s2", rows_nhwc_why_not<8, 2>, no_workspace, dgrad_rows_nhwc<8, 2>},
      {"dgrad_rows_gw16_f32_nhwc_s2", rows_nhwc_why_not<16, 2>, no_workspace, dgrad_rows_nhwc<16, 2>},
      {"dgrad_rows_gw32_f32_nhwc_s2", rows_nhwc_why_not<32, 2>, no_workspace, dgrad_rows_nhwc<32, 2>},
      dgrad_mma_tf32_nchw<8, 1, 1>("dgrad_mma_gw8_tf32_nchw"),
      dgrad_mma_tf32_nchw<16, 1, 1>("dgrad_mma_gw16_tf32_nchw"),
      dgrad_mma_tf32_nchw<32, 1, 1>("dgrad_mma_gw32_tf32_nchw"),
      dgrad_mma_tf32_nchw<8, 2, 1>("dgrad_mma_gw8_tf32_nchw_s2"),
      dgrad_mma_tf32_nchw<16, 2, 1>("dgrad_mma_gw16_tf32_nchw_s2"),
      dgrad_mma_tf32_nchw<32, 2, 1>("dgrad_mma_gw32_tf32_nchw_s2"),
      dgrad_mma_tf32_nchw<8, 1, 3>("dgrad_mma_gw8_tf32x3_nchw"),
      dgrad_mma_tf32_nchw<16, 1, 3>("dgrad_mma_gw16_tf32x3_nchw"),
      dgrad_mma_tf32_nchw<32, 1, 3>("dgrad_mma_gw32_tf32x3_nchw"),
      dgrad_mma_tf32_nchw<16, 2, 3>("dgrad_mma_gw16_tf32x3_nchw_s2"),
      dgrad_mma_tf32_nchw<32, 2, 3>("dgrad_mma_gw32_tf32x3_nchw_s2"),
      {"dgrad_rows_gw4_f32_nchw", rows_nchw_why_not<4, 1>, no_workspace, dgrad_rows_nchw<4, 1>},
      {"dgrad_rows_gw8_f32_nchw", rows_nchw_why_not<8, 1>, no_workspace, dgrad_rows_nchw<8, 1>},
      {"dgrad_rows_gw16_f32_nchw", rows_nchw_why_not<16, 1>, no_workspace, dgrad_rows_nchw<16, 1>},
      {"dgrad_rows_gw32_f32_nchw", rows_nchw_why_not<32, 1>, no_workspace, dgrad_rows_nchw<32, 1>},
      {"dgrad_rows_gw4_f32_nchw_s2", rows_nchw_why_not<4, 2>, no_workspace, dgrad_rows_nchw<4, 2>},
      {"dgrad_rows_gw8_f32_nchw_s2", rows_nchw_why_not<8, 2>, no_workspace, dgrad_rows_nchw<8, 2>},
      {"dgrad_rows_gw16_f32_nchw_s2", rows_nchw_why_not<16, 2>, no_workspace, dgrad_rows_nchw<16, 2>},
      {"dgrad_rows_gw32_f32_nchw_s2", rows_nchw_why_not<32, 2>, no_workspace, dgrad_rows_nchw<32, 2>},
  };
}

KernelTable<DgradArgs> dgrad_of_halves_nhwc() {
  return {
      dgrad_mma_nhwc<DType::f16, 4, 1>("dgrad_mma_gw4_f16_nhwc"),
      dgrad_mma_nhwc<DType::f16, 8, 1>("dgrad_mma_gw8_f16_nhwc"),
      dgrad_mma_nhwc<DType::f16, 16, 1>("dgrad_mma_gw16_f16_nhwc"),
      dgrad_mma_nhwc<DType::f16, 32, 1>("dgrad_mma_gw32_f16_nhwc"),
      dgrad_mma_nhwc<DType::f16, 64, 1>("dgrad_mma_gw64_f16_nhwc"),
      dgrad_mma_nhwc<DType::f16, 24, 1>("dgrad_mma_gw24_f16_nhwc"),
      dgrad_mma_nhwc<DType::f16, 40, 1>("dgrad_mma_gw40_f16_nhwc"),
      dgrad_mma_nhwc<DType::f16, 48, 1>("dgrad_mma_gw48_f16_nhwc"),
      dgrad_mma_nhwc<DType::f16, 56, 1>("dgrad_mma_gw56_f16_nhwc"),
      dgrad_mma_nhwc<DType::f16, 4, 2>("dgrad_mma_gw4_f16_nhwc_s2"),
      dgrad_mma_nhwc<DType::f16, 8, 2>("dgrad_mma_gw8_f16_nhwc_s2"),
      dgrad_mma_nhwc<DType::f16, 16, 2>("dgrad_mma_gw16_f16_nhwc_s2"),
      dgrad_mma_nhwc<DType::f16, 32, 2>("dgrad_mma_gw32_f16_nhwc_s2"),
      dgrad_mma_nhwc<DType::f16, 64, 2>("dgrad_mma_gw64_f16_nhwc_s2"),
      dgrad_mma_nhwc<DType::f16, 24, 2>("dgrad_mma_gw24_f16_nhwc_s2"),
      dgrad_mma_nhwc<DType::f16, 40, 2>("dgrad_mma_gw40_f16_nhwc_s2"),
      dgrad_mma_nhwc<DType::f16, 48, 2>("dgrad_mma_gw48_f16_nhwc_s2"),
      dgrad_mma_nhwc<DType::f16, 56, 2>("dgrad_mma_gw56_f16_nhwc_s2"),
      dgrad_mma_nhwc<DType::bf16, 4, 1>("dgrad_mma_gw4_bf16_nhwc"),
      dgrad_mma_nhwc<DType::bf16, 8, 1>("dgrad_mma_gw8_bf16_nhwc"),
      dgrad_mma_nhwc<DType::bf16, 16, 1>("dgrad_mma_gw16_bf16_nhwc"),
      dgrad_mma_nhwc<DType::bf16, 32, 1>("dgrad_mma_gw32_bf16_nhwc"),
      dgrad_mma_nhwc<DType::bf16, 64, 1>("dgrad_mma_gw64_bf16_nhwc"),
      dgrad_mma_nhwc<DType::bf16, 24, 1>("dgrad_mma_gw24_bf16_nhwc"),
      dgrad_mma_nhwc<DType::bf16, 40, 1>("dgrad_mma_gw40_bf16_nhwc"),
      dgrad_mma_nhwc<DType::bf16, 48, 1>("dgrad_mma_gw48_bf16_nhwc"),
      dgrad_mma_nhwc<DType::bf16, 56, 1>("dgrad_mma_gw56_bf16_nhwc"),
      dgrad_mma_nhwc<DType::bf16, 4, 2>("dgrad_mma_gw4_bf16_nhwc_s2"),
      dgrad_mma_nhwc<DType::bf16, 8, 2>("dgrad_mma_gw8_bf16_nhwc_s2"),
      dgrad_mma_nhwc<DType::bf16, 16, 2>("dgrad_mma_gw16_bf16_nhwc_s2"),
      dgrad_mma_nhwc<DType::bf16, 32, 2>("dgrad_mma_gw32_bf16_nhwc_s2"),
      dgrad_mma_nhwc<DType::bf16, 64, 2>("dgrad_mma_gw64_bf16_nhwc_s2"),
      dgrad_mma_nhwc<DType::bf16, 24, 2>("dgrad_mma_gw24_bf16_nhwc_s2"),
      dgrad_mma_nhwc<DType::bf16, 40, 2>("dgrad_mma_gw40_bf16_nhwc_s2"),
      dgrad_mma_nhwc<DType::bf16, 48, 2>("dgrad_mma_gw48_bf16_nhwc_s2"),
      dgrad_mma_nhwc<DType::bf16, 56, 2>("dgrad_mma_gw56_bf16_nhwc_s2"),
  };
}

KernelTable<DgradArgs> dgrad_of_halves_nchw() {
  return {
      dgrad_mma_nchw<DType::f16, 4, 1>("dgrad_mma_gw4_f16_nchw"),
      dgrad_mma_nchw<DType::f16, 8, 1>("dgrad_mma_gw8_f16_nchw"),
      dgrad_mma_nchw<DType::f16, 16, 1>("dgrad_mma_gw16_f16_nchw"),
      dgrad_mma_nchw<DType::f16, 32, 1>("dgrad_mma_gw32_f16_nchw"),
      dgrad_mma_nchw<DType::f16, 64, 1>("dgrad_mma_gw64_f16_nchw"),
      dgrad_mma_nchw<DType::f16, 4, 2>("dgrad_mma_gw4_f16_nchw_s2"),
      dgrad_mma_nchw<DType::f16, 8, 2>("dgrad_mma_gw8_f16_nchw_s2"),
      dgrad_mma_nchw<DType::f16, 16, 2>("dgrad_mma_gw16_f16_nchw_s2"),
      dgrad_mma_nchw<DType::f16, 32, 2>("dgrad_mma_gw32_f16_nchw_s2"),
      dgrad_mma_nchw<DType::f16, 64, 2>("dgrad_mma_gw64_f16_nchw_s2"),
      dgrad_mma_nchw<DType::bf16, 4, 1>("dgrad_mma_gw4_bf16_nchw"),
      dgrad_mma_nchw<DType::bf16, 8, 1>("dgrad_mma_gw8_bf16_nchw"),
      dgrad_mma_nchw<DType::bf16, 16, 1>("dgrad_mma_gw16_bf16_nchw"),
      dgrad_mma_nchw<DType::bf16, 32, 1>("dgrad_mma_gw32_bf16_nchw"),
      dgrad_mma_nchw<DType::bf16, 64, 1>("dgrad_mma_gw64_bf16_nchw"),
      dgrad_mma_nchw<DType::bf16, 4, 2>("dgrad_mma_gw4_bf16_nchw_s2"),
      dgrad_mma_nchw<DType::bf16, 8, 2>("dgrad_mma_gw8_bf16_nchw_s2"),
      dgrad_mma_nchw<DType::bf16, 16, 2>("dgrad_mma_gw16_bf16_nchw_s2"),
      dgrad_mma_nchw<DType::bf16, 32, 2>("dgrad_mma_gw32_bf16_nchw_s2"),
      dgrad_mma_nchw<DType::bf16, 64, 2>("dgrad_mma_gw64_bf16_nchw_s2"),
  };
}

KernelTable<WgradArgs> wgrad_of_floats() {
  return {
      rows_wgrad_entry<8, 1, Layout::nhwc, 1>("wgrad_mma_gw8_tf32_nhwc"),
      rows_wgrad_entry<16, 1, Layout::nhwc, 1>("wgrad_mma_gw16_tf32_nhwc"),
      rows_wgrad_entry<32, 1, Layout::nhwc, 1>("wgrad_mma_gw32_tf32_nhwc"),
      rows_wgrad_entry<8, 2, Layout::nhwc, 1>("wgrad_mma_gw8_tf32_nhwc_s2"),
      rows_wgrad_entry<16, 2, Layout::nhwc, 1>("wgrad_mma_gw16_tf32_nhwc_s2"),
      rows_wgrad_entry<32, 2, Layout::nhwc, 1>("wgrad_mma_gw32_tf32_nhwc_s2"),
      rows_wgrad_entry<8, 1, Layout::nchw, 1>("wgrad_mma_gw8_tf32_nchw"),
      rows_wgrad_entry<16, 1, Layout::nchw, 1>("wgrad_mma_gw16_tf32_nchw"),
      rows_wgrad_entry<32, 1, Layout::nchw, 1>("wgrad_mma_gw32_tf32_nchw"),
      rows_wgrad_entry<8, 2, Layout::nchw, 1>("wgrad_mma_gw8_tf32_nchw_s2"),
      rows_wgrad_entry<16, 2, Layout::nchw, 1>("wgrad_mma_gw16_tf32_nchw_s2"),
      rows_wgrad_entry<32, 2, Layout::nchw, 1>("wgrad_mma_gw32_tf32_nchw_s2"),
      rows_wgrad_entry<16, 1, Layout::nhwc, 3>("wgrad_mma_gw16_tf32x3_nhwc"),
      rows_wgrad_entry<32, 1, Layout::nhwc, 3>("wgrad_mma_gw32_tf32x3_nhwc"),
      rows_wgrad_entry<16, 2, Layout::nhwc, 3>("wgrad_mma_gw16_tf32x3_nhwc_s2"),
      rows_wgrad_entry<32, 2, Layout::nhwc, 3>("wgrad_mma_gw32_tf32x3_nhwc_s2"),
      rows_wgrad_entry<16, 1, Layout::nchw, 3>("wgrad_mma_gw16_tf32x3_nchw"),
      rows_wgrad_entry<32, 1, Layout::nchw, 3>("wgrad_mma_gw32_tf32x3_nchw"),
      rows_wgrad_entry<16, 2, Layout::nchw, 3>("wgrad_mma_gw16_tf32x3_nchw_s2"),
      rows_wgrad_entry<32, 2, Layout::nchw, 3>("wgrad_mma_gw32_tf32x3_nchw_s2"),
      rows_wgrad_entry<4, 1, Layout::nhwc>("wgrad_rows_gw4_f32_nhwc"),
      rows_wgrad_entry<8, 1, Layout::nhwc>("wgrad_rows_gw8_f32_nhwc"),
      rows_wgrad_entry<16, 1, Layout::nhwc>("wgrad_rows_gw16_f32_nhwc"),
      rows_wgrad_entry<32, 1, Layout::nhwc>("wgrad_rows_gw32_f32_nhwc"),
      rows_wgrad_entry<4, 2, Layout::nhwc>("wgrad_rows_gw4_f32_nhwc_s2"),
      rows_wgrad_entry<8, 2, Layout::nhwc>("wgrad_rows_gw8_f32_nhwc_s2"),
      rows_wgrad_entry<16, 2, Layout::nhwc>("wgrad_rows_gw16_f32_nhwc_s2"),
      rows_wgrad_entry<32, 2, Layout::nhwc>("wgrad_rows_gw32_f32_nhwc_s2"),
      rows_wgrad_entry<4, 1, Layout::nchw>("wgrad_rows_gw4_f32_nchw"),
      rows_wgrad_entry<8, 1, Layout::nchw>("wgrad_rows_gw8_f32_nchw"),
      rows_wgrad_entry<16, 1, Layout::nchw>("wgrad_rows_gw16_f32_nchw"),
      rows_wgrad_entry<32, 1, Layout::nchw>("wgrad_rows_gw32_f32_nchw"),
      rows_wgrad_entry<4, 2, Layout::nchw>("wgrad_rows_gw4_f32_nchw_s2"),
      rows_wgrad_entry<8, 2, Layout::nchw>("wgrad_rows_gw8_f32_nchw_s2"),
      rows_wgrad_entry<16, 2, Layout::nchw>("wgrad_rows_gw16_f32_nchw_s2"),
      rows_wgrad_entry<32, 2, Layout::nchw>("wgrad_rows_gw32_f32_nchw_s2"),
  };
}

KernelTable<WgradArgs> wgrad_of_halves() {
  return {
      mma_wgrad_entry<__half, 4, 1, Layout::nhwc>("wgrad_mma_gw4_f16_nhwc"),
      mma_wgrad_entry<__half, 8, 1, Layout::nhwc>("wgrad_mma_gw8_f16_nhwc"),
      mma_wgrad_entry<__half, 16, 1, Layout::nhwc>("wgrad_mma_gw16_f16_nhwc"),
      mma_wgrad_entry<__half, 32, 1, Layout::nhwc>("wgrad_mma_gw32_f16_nhwc"),
      mma_wgrad_entry<__half, 64, 1, Layout::nhwc>("wgrad_mma_gw64_f16_nhwc"),
      mma_wgrad_entry<__half, 4, 2, Layout::nhwc>("wgrad_mma_gw4_f16_nhwc_s2"),
      mma_wgrad_entry<__half, 8, 2, Layout::nhwc>("wgrad_mma_gw8_f16_nhwc_s2"),
      mma_wgrad_entry<__half, 16, 2, Layout::nhwc>("wgrad_mma_gw16_f16_nhwc_s2"),
      mma_wgrad_entry<__half, 32, 2, Layout::nhwc>("wgrad_mma_gw32_f16_nhwc_s2"),
      mma_wgrad_entry<__half, 64, 2, Layout::nhwc>("wgrad_mma_gw64_f16_nhwc_s2"),
      mma_wgrad_entry<__nv_bfloat16, 4, 1, Layout::nhwc>("wgrad_mma_gw4_bf16_nhwc"),
      mma_wgrad_entry<__nv_bfloat16, 8, 1, Layout::nhwc>("wgrad_mma_gw8_bf16_nhwc"),
      mma_wgrad_entry<__nv_bfloat16, 16, 1, Layout::nhwc>("wgrad_mma_gw16_bf16_nhwc"),
      mma_wgrad_entry<__nv_bfloat16, 32, 1, Layout::nhwc>("wgrad_mma_gw32_bf16_nhwc"),
      mma_wgrad_entry<__nv_bfloat16, 64, 1, Layout::nhwc>("wgrad_mma_gw64_bf16_nhwc"),
      mma_wgrad_entry<__nv_bfloat16, 4, 2, Layout::nhwc>("wgrad_mma_gw4_bf16_nhwc_s2"),
      mma_wgrad_entry<__nv_bfloat16, 8, 2, Layout::nhwc>("wgrad_mma_gw8_bf16_nhwc_s2"),
      mma_wgrad_entry<__nv_bfloat16, 16, 2, Layout::nhwc>("wgrad_mma_gw16_bf16_nhwc_s2"),
      mma_wgrad_entry<__nv_bfloat16, 32, 2, Layout::nhwc>("wgrad_mma_gw32_bf16_nhwc_s2"),
      mma_wgrad_entry<__nv_bfloat16, 64, 2, Layout::nhwc>("wgrad_mma_gw64_bf16_nhwc_s2"),
      mma_wgrad_entry<__half, 4, 1, Layout::nchw>("wgrad_mma_gw4_f16_nchw"),
      mma_wgrad_entry<__half, 8, 1, Layout::nchw>("wgrad_mma_gw8_f16_nchw"),
      mma_wgrad_entry<__half, 16, 1, Layout::nchw>("wgrad_mma_gw16_f16_nchw"),
      mma_wgrad_entry<__half, 32, 1, Layout::nchw>("wgrad_mma_gw32_f16_nchw"),
      mma_wgrad_entry<__half, 64, 1, Layout::nchw>("wgrad_mma_gw64_f16_nchw"),
      mma_wgrad_entry<__half, 4, 2, Layout::nchw>("wgrad_mma_gw4_f16_nchw_s2"),
      mma_wgrad_entry<__half, 8, 2, Layout::nchw>("wgrad_mma_gw8_f16_nchw_s2"),
      mma_wgrad_entry<__half, 16, 2, Layout::nchw>("wgrad_mma_gw16_f16_nchw_s2"),
      mma_wgrad_entry<__half, 32, 2, Layout::nchw>("wgrad_mma_gw32_f16_nchw_s2"),
      mma_wgrad_entry<__half, 64, 2, Layout::nchw>("wgrad_mma_gw64_f16_nchw_s2"),
      mma_wgrad_entry<__nv_bfloat16, 4, 1, Layout::nchw>("wgrad_mma_gw4_bf16_nchw"),
      mma_wgrad_entry<__nv_bfloat16, 8, 1, Layout::nchw>("wgrad_mma_gw8_bf16_nchw"),
      mma_wgrad_entry<__nv_bfloat16, 16, 1, Layout::nchw>("wgrad_mma_gw16_bf16_nchw"),
      mma_wgrad_entry<__nv_bfloat16, 32, 1, Layout::nchw>("wgrad_mma_gw32_bf16_nchw"),
      mma_wgrad_entry<__nv_bfloat16, 64, 1, Layout::nchw>("wgrad_mma_gw64_bf16_nchw"),
      mma_wgrad_entry<__nv_bfloat16, 4, 2, Layout::nchw>("wgrad_mma_gw4_bf16_nchw_s2"),
      mma_wgrad_entry<__nv_bfloat16, 8, 2, Layout::nchw>("wgrad_mma_gw8_bf16_nchw_s2"),
      mma_wgrad_entry<__nv_bfloat16, 16, 2, Layout::nchw>("wgrad_mma_gw16_bf16_nchw_s2"),
      mma_wgrad_entry<__nv_bfloat16, 32, 2, Layout::nchw>("wgrad_mma_gw32_bf16_nchw_s2"),
      mma_wgrad_entry<__nv_bfloat16, 64, 2, Layout::nchw>("wgrad_mma_gw64_bf16_nchw_s2"),
  };
}

}  // namespace

const KernelTable<FpropArgs>& fprop_table() {
  static const auto table = joined<FpropArgs>({
      fprop_of_floats(),
      fprop_of_halves_nhwc(),
      fprop_of_halves_nchw(),
      fprop_of_padded_halves(),
      {{"fprop_generic", generic_why_not, generic_gather_workspace, fprop_generic, true}},
  });
  return table;
}

const KernelTable<DgradArgs>& dgrad_table() {
  static const auto table = joined<DgradArgs>({
      dgrad_of_floats(),
      dgrad_of_halves_nhwc(),
      dgrad_of_halves_nchw(),
      dgrad_of_padded_halves(),
      {{"dgrad_generic", generic_why_not, generic_gather_workspace, dgrad_generic}},
  });
  return table;
}

const KernelTable<WgradArgs>& wgrad_table() {
  static const auto table = joined<WgradArgs>({
      wgrad_of_floats(),
      wgrad_of_halves(),
      {{"wgrad_generic", generic_why_not, generic_wgrad_workspace, wgrad_generic}},
  });
  return table;
}

}  // namespace resnext::cuda
