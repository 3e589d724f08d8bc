#include "simt/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "simt/asan.h"

namespace resnext::simt {
namespace {

constexpr size_t page = 4096;
constexpr size_t guard = size_t(16) << 20;  // address space, not memory; wide enough for most wrong indices
constexpr unsigned char nan_byte = 0xff;    // NaN in every float type

std::vector<const GuardedMemory*>& registry() {
  static std::vector<const GuardedMemory*> arrays;
  return arrays;
}

bool all_nan(const unsigned char* begin, const unsigned char* end) {
  return std::all_of(begin, end, [](unsigned char byte) { return byte == nan_byte; });
}

}  // namespace

GuardedMemory::GuardedMemory(std::string name, size_t bytes, size_t alignment, Flush flush, size_t offset)
    : name_(std::move(name)), bytes_(bytes), pages_(std::max<size_t>(1, (bytes + offset + page - 1) / page) * page) {
  void* mapping = mmap(nullptr, pages_ + 2 * guard, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<unsigned char*>(mapping);
  if (mprotect(mapping_ + guard, pages_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  data_ = mapping_ + guard + (flush == Flush::end ? (pages_ - bytes - offset) / alignment * alignment : 0) + offset;
  std::memset(mapping_ + guard, nan_byte, pages_);
  asan::poison(mapping_ + guard, pages_);
  asan::unpoison(data_, bytes_);
  registry().push_back(this);
}

GuardedMemory::~GuardedMemory() {
  std::erase(registry(), this);
  asan::unpoison(mapping_ + guard, pages_);
  munmap(mapping_, pages_ + 2 * guard);
}

void GuardedMemory::fill_with_nan() { std::memset(data_, nan_byte, bytes_); }

void GuardedMemory::make_read_only() { mprotect(mapping_ + guard, pages_, PROT_READ); }

bool GuardedMemory::intact() const {
  if (asan::enabled) return true;  // whoever touches what is beside the array is stopped
  return all_nan(mapping_ + guard, data_) && all_nan(data_ + bytes_, mapping_ + guard + pages_);
}

std::string GuardedMemory::describe(const void* address) const {
  const auto* at = static_cast<const unsigned char*>(address);
  if (at < mapping_ || at >= mapping_ + pages_ + 2 * guard) return "";
  const std::string array = name_ + " (" + std::to_string(bytes_) + " bytes)";
  if (at < data_) return "access " + std::to_string(data_ - at) + " bytes before the start of " + array;
  if (at >= data_ + bytes_) return "access " + std::to_string(at - data_ - bytes_) + " bytes past the end of " + array;
  return "write to " + array + ", which is read-only";
}

std::string describe(const void* address) {
  for (const GuardedMemory* array : registry())
    if (std::string text = array->describe(address); !text.empty()) return text;
  return "access outside every array";
}

}  // namespace resnext::simt
