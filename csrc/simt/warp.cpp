// Warp collectives: what each does once all its lanes have come. Fragment maps as in the PTX ISA.
#include <bit>
#include <cmath>
#include <cstring>

#include "simt/ptx.h"

namespace resnext::simt {
namespace {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xffffffffu;

template <class T>
T& operand(void* const* operands, int lane) {
  return *static_cast<T*>(operands[lane]);
}

void apply_shuffle(void* const* operands, unsigned mask) {
  for (int lane = 0; lane < warp_size; ++lane) {
    if (!(mask >> lane & 1)) continue;
    auto& own = operand<Shuffle>(operands, lane);
    if (!(mask >> own.source & 1))
      fail_lane(lane, "shuffle from lane " + std::to_string(own.source) + ", which its mask leaves out");
    own.result = operand<Shuffle>(operands, own.source).value;
  }
}

struct Vote {
  bool predicate;
  unsigned result;
};

void apply_vote(void* const* operands, unsigned mask) {
  unsigned ballot = 0;
  for (int lane = 0; lane < warp_size; ++lane)
    if (mask >> lane & 1 && operand<Vote>(operands, lane).predicate) ballot |= 1u << lane;
  for (int lane = 0; lane < warp_size; ++lane)
    if (mask >> lane & 1) operand<Vote>(operands, lane).result = ballot;
}

struct LoadMatrix {
  uint32_t* registers;
  const void* row;
  int matrices;
  bool transposed;
};

void apply_ldmatrix(void* const* operands, unsigned) {
  const int matrices = operand<LoadMatrix>(operands, 0).matrices;
  uint16_t matrix[8][8];
  for (int q = 0; q < matrices; ++q) {
    for (int row = 0; row < 8; ++row) {
      const void* address = operand<LoadMatrix>(operands, 8 * q + row).row;
      require_shared(address, 16, 16, "ldmatrix", 8 * q + row);
      std::memcpy(matrix[row], address, 16);
    }
    for (int lane = 0; lane < warp_size; ++lane) {
      const auto& own = operand<LoadMatrix>(operands, lane);
      const int g = lane / 4, t = lane % 4;
      const uint32_t low = own.transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const uint32_t high = own.transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      own.registers[q] = low | high << 16;
    }
  }
}

struct Mma {
  float* d;
  const uint32_t *a, *b;
};

// Element i of a fragment of 16-bit elements or of tf32 numbers, exactly.
template <Format format>
double element(const uint32_t* registers, int i) {
  if (format == Format::tf32) return std::bit_cast<float>(registers[i] & 0xffffe000u);
  const auto bits = static_cast<uint16_t>(registers[i / 2] >> (16 * (i % 2)));
  return format == Format::f16 ? __half2float({bits}) : __bfloat162float({bits});
}

template <Format format, int depth>
void apply_mma(void* const* operands, unsigned) {
  double a[16][depth], b[depth][8], sums[16][8];
  for (int lane = 0; lane < warp_size; ++lane) {
    const auto& own = operand<Mma>(operands, lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < depth / 2; ++i) {
      const double value = element<format>(own.a, i);
      if (format == Format::tf32)
        a[g + 8 * (i & 1)][t + 4 * (i >> 1)] = value;
      else
        a[g + 8 * (i >> 1 & 1)][2 * t + (i & 1) + 8 * (i >> 2)] = value;
    }
    for (int i = 0; i < depth / 4; ++i)
      b[format == Format::tf32 ? t + 4 * i : 2 * t + (i & 1) + 8 * (i >> 1)][g] = element<format>(own.b, i);
    for (int i = 0; i < 4; ++i) sums[g + 8 * (i >> 1)][2 * t + (i & 1)] = own.d[i];
  }
  for (int row = 0; row < 16; ++row)  // the columns side by side, each in the order of k
    for (int k = 0; k < depth; ++k)
      for (int column = 0; column < 8; ++column) sums[row][column] += a[row][k] * b[k][column];
  for (int lane = 0; lane < warp_size; ++lane)
    for (int i = 0; i < 4; ++i)
      operand<Mma>(operands, lane).d[i] = static_cast<float>(sums[lane / 4 + 8 * (i >> 1)][2 * (lane % 4) + (i & 1)]);
}

}  // namespace

uint64_t shuffle(const char* name, unsigned mask, uint64_t value, int source, const Site& site) {
  Shuffle own{value, source, 0};
  collective(name, mask, &own, apply_shuffle, site);
  return own.result;
}

unsigned vote(const char* name, unsigned mask, bool predicate, const Site& site) {
  Vote own{predicate, 0};
  collective(name, mask, &own, apply_vote, site);
  return own.result;
}

void ldmatrix(uint32_t* registers, const void* row, int matrices, bool transposed, const Site& site) {
  LoadMatrix own{registers, row, matrices, transposed};
  collective("ldmatrix", all_lanes, &own, apply_ldmatrix, site);
}

void mma(Format format, int depth, float* d, const uint32_t* a, const uint32_t* b, const Site& site) {
  Mma own{d, a, b};
  Apply apply = depth == 16 ? apply_mma<Format::f16, 16> : apply_mma<Format::f16, 8>;
  if (format == Format::bf16) apply = depth == 16 ? apply_mma<Format::bf16, 16> : apply_mma<Format::bf16, 8>;
  if (format == Format::tf32) apply = depth == 8 ? apply_mma<Format::tf32, 8> : apply_mma<Format::tf32, 4>;
  collective("mma", all_lanes, &own, apply, site);
}

}  // namespace resnext::simt

void __syncwarp(unsigned mask, const resnext::simt::Site& site) {
  resnext::simt::collective("__syncwarp", mask, nullptr, [](void* const*, unsigned) {}, site);
}

uint32_t resnext::ptx::round_to_tf32(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) >= 0x7f800000u) return std::isnan(value) ? 0x7fffffffu : bits;
  return (bits + 0x1000u) & 0xffffe000u;
}
