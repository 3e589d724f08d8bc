#pragma once
// What AddressSanitizer must be told where it cannot see for itself: nothing, unless it is built in.
#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace resnext::simt::asan {

#ifdef __SANITIZE_ADDRESS__

constexpr bool enabled = true;

inline void poison(const void* begin, size_t bytes) { __asan_poison_memory_region(begin, bytes); }
inline void unpoison(const void* begin, size_t bytes) { __asan_unpoison_memory_region(begin, bytes); }

// Around a switch to the stack [bottom, bottom + bytes): before it, and as the first thing on the other stack, where
// `left` and `left_bytes`, if not null, get the stack that was left.
inline void leave(void** state, const void* bottom, size_t bytes) {
  __sanitizer_start_switch_fiber(state, bottom, bytes);
}
inline void arrive(void* state, const void** left, size_t* left_bytes) {
  __sanitizer_finish_switch_fiber(state, left, left_bytes);
}

#else

constexpr bool enabled = false;

inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
inline void leave(void**, const void*, size_t) {}
inline void arrive(void*, const void**, size_t*) {}

#endif

}  // namespace resnext::simt::asan
