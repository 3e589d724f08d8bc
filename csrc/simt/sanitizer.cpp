// The other half of g++'s -fsanitize=alignment,bounds: the compiler calls these where a kernel is about to break a
// rule, and they end the launch with file and line. Nothing of the sanitizers' own library is linked.
#include <cstdint>
#include <string>

#include "simt/simt.h"

namespace {

struct Location {
  const char* file;
  uint32_t line, column;
};

struct Type {
  uint16_t kind, info;
  char name[1];
};

struct TypeMismatch {
  Location location;
  const Type* type;
  unsigned char log_alignment, kind;
};

struct OutOfBounds {
  Location location;
  const Type *array, *index;
};

std::string text(const Location& location) {
  return std::string(" (") + location.file + ":" + std::to_string(location.line) + ")";
}

}  // namespace

extern "C" {

__attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(const TypeMismatch* what,
                                                                           uintptr_t pointer) {
  resnext::simt::fail(std::string("misaligned access to ") + what->type->name + ": the address is " +
                      std::to_string(pointer % (1u << what->log_alignment)) + " bytes past a multiple of " +
                      std::to_string(1u << what->log_alignment) + text(what->location));
}

__attribute__((visibility("hidden"))) void __ubsan_handle_out_of_bounds(const OutOfBounds* what, uintptr_t index) {
  resnext::simt::fail("index " + std::to_string(static_cast<intptr_t>(index)) + " outside " + what->array->name +
                      text(what->location));
}
}
