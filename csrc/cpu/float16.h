#pragma once
#include <bit>
#include <cstdint>

// The two 16-bit float types, and conversions to and from float. In an anonymous namespace: every file that is
// compiled for an instruction set of its own needs its own copy.
namespace resnext::cpu {
namespace {

using f16 = _Float16;  // the compiler converts: round to nearest even, NaN and infinities kept

struct bf16 {
  uint16_t bits;
};

inline float to_float(float value) { return value; }

inline float to_float(f16 value) { return static_cast<float>(value); }

inline float to_float(bf16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

inline bf16 to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};  // a NaN, made quiet
  // Half of the last kept place, less one unit if that place is even: ties go to even. A carry runs into the
  // exponent, and from the largest finite number to infinity, as it should.
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

}  // namespace
}  // namespace resnext::cpu
