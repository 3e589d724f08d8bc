#pragma once
#include <cstddef>
#include <string>

namespace resnext::simt {

// An array between two inaccessible ranges, full of NaN at first. One end of it is flush with such a range, up to the
// alignment, so that one step past that end faults at once. What lies between the other end and its range is NaN for
// whoever reads it, and is checked for writes.
class GuardedMemory {
 public:
  enum class Flush { end, start };

  // Starts `offset` bytes behind a multiple of `alignment`.
  GuardedMemory(std::string name, size_t bytes, size_t alignment, Flush flush, size_t offset = 0);
  ~GuardedMemory();
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  void fill_with_nan();
  // From now on a write faults.
  void make_read_only();
  // Whether nothing was written beside the array.
  bool intact() const;
  // What is wrong with an access at `address`, if it lies in this array's pages; else an empty string.
  std::string describe(const void* address) const;

 private:
  std::string name_;
  size_t bytes_, pages_;
  unsigned char *mapping_, *data_;
};

// The same for all arrays there are.
std::string describe(const void* address);

}  // namespace resnext::simt
