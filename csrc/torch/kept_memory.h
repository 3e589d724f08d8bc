#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <vector>

namespace resnext::binding {

// Keeps the memory of large outputs that were freed for the next ones. glibc's malloc returns every block over 32 MB to
// the system at once, smaller ones by chance, and to write fresh memory, which the system zeroes first, takes twice as
// long. It is asked for in huge pages: a fault for each 2 MB instead of one for each 4 KB.
class KeptMemory {
 public:
  static constexpr size_t kLeast = 4 << 20, kMost = 512 << 20;  // bytes of a block, of all that are kept

  // Of the process, and never destroyed, as a tensor may outlive it.
  static KeptMemory& instance() {
    static KeptMemory& memory = *new KeptMemory;
    return memory;
  }

  // So many bytes, aligned to a huge page; null if there is no memory.
  void* take(size_t bytes) {
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock) {
      const auto block = std::find_if(free_.rbegin(), free_.rend(), [&](const Block& b) { return b.bytes == bytes; });
      if (block != free_.rend()) {
        void* data = block->data;
        free_.erase(std::next(block).base());
        free_bytes_ -= bytes;
        return data;
      }
    }
    void* data;
    if (posix_memalign(&data, kHugePage, bytes) != 0) return nullptr;
    madvise(data, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
    return data;
  }

  // Takes back what `take` gave for so many bytes.
  void give_back(void* data, size_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || bytes > kMost) return std::free(data);
    free_.push_back({data, bytes});
    for (free_bytes_ += bytes; free_bytes_ > kMost; free_.erase(free_.begin())) {
      free_bytes_ -= free_.front().bytes;
      std::free(free_.front().data);
    }
  }

 private:
  static constexpr size_t kHugePage = 2 << 20;

  struct Block {
    void* data;
    size_t bytes;
  };

  std::mutex mutex_;         // only ever tried: in the child of a fork a thread that is no more may hold it
  std::vector<Block> free_;  // the oldest first
  size_t free_bytes_ = 0;
};

}  // namespace resnext::binding
