#pragma once
// The functions of csrc/cuda/ptx.h, on the CPU. g = lane / 4 and t = lane % 4 below; a 32-bit register holds two 16-bit
// elements, the one of lower index in its low half. All lanes of a warp must take part in ldmatrix and mma.
#include <type_traits>

#include "simt/simt.h"

namespace resnext::simt {

enum class Format { f16, bf16, tf32 };

// In warp.cpp, with the map of each fragment.
void mma(Format format, int depth, float* d, const uint32_t* a, const uint32_t* b, const Site& site);
void ldmatrix(uint32_t* registers, const void* row, int matrices, bool transposed, const Site& site);

}  // namespace resnext::simt

namespace resnext::ptx {

// Copies `bytes` from global to shared memory, of which the first `valid_bytes` are read and the rest are zero. It
// lands when a wait of this thread covers it and not before: until then shared memory reads as NaN.
template <int bytes>
void cp_async(void* shared, const void* global, int valid_bytes = bytes) {
  static_assert(bytes == 4 || bytes == 8 || bytes == 16);
  simt::async_copy(shared, global, bytes, valid_bytes);
}

// Makes a group of this thread's copies since the last commit.
inline void cp_async_commit() { simt::async_commit(); }

// Waits for all but the newest `groups` committed groups of this thread.
template <int groups>
void cp_async_wait_group() {
  simt::async_wait(groups, false);
}

// Waits for every copy of this thread.
inline void cp_async_wait_all() { simt::async_wait(0, true); }

// Waits at barrier `id` (0 to 15; __syncthreads() is barrier 0 for the whole block) until `threads` threads, whole
// warps, wait there. All lanes of a warp call it together; warps may call it from different places.
inline void barrier_sync(int id, int threads, const simt::Site& site = simt::Site::current()) {
  simt::barrier_sync(id, threads, site);
}

// Loads 8x8 matrices of 16-bit elements. Lanes 8q to 8q + 7 give the addresses of the rows of matrix q; register q
// gets elements 2t and 2t + 1 of row g or, transposed, of column g.
template <int matrices, bool transposed = false>
void ldmatrix(uint32_t (&r)[matrices], const void* row, const simt::Site& site = simt::Site::current()) {
  static_assert(matrices == 1 || matrices == 2 || matrices == 4);
  simt::ldmatrix(r, row, matrices, transposed, site);
}

// d += a * b, with a 16 x depth, b depth x 8 and d 16 x 8.
template <class T>
void mma_m16n8k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1],
                 const simt::Site& site = simt::Site::current()) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  simt::mma(std::is_same_v<T, __half> ? simt::Format::f16 : simt::Format::bf16, 8, d, a, b, site);
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  const simt::Site& site = simt::Site::current()) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  simt::mma(std::is_same_v<T, __half> ? simt::Format::f16 : simt::Format::bf16, 16, d, a, b, site);
}

inline void mma_m16n8k4_tf32(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1],
                             const simt::Site& site = simt::Site::current()) {
  simt::mma(simt::Format::tf32, 4, d, a, b, site);
}

inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             const simt::Site& site = simt::Site::current()) {
  simt::mma(simt::Format::tf32, 8, d, a, b, site);
}

// The bits of the nearest tf32 number, ties away from zero.
uint32_t round_to_tf32(float value);

}  // namespace resnext::ptx
