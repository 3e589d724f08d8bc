// Test-only module: every entry of the CPU kernel tables; see table_module.h.
#include <cstdlib>
#include <cstring>
#include <memory>

#include "table_module.h"

namespace resnext::testing {
namespace {

// Memory full of NaN between two guards.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(bytes) {
    require(bytes >= 0 && bytes < (int64_t(1) << 40), "workspace_bytes is out of range");
    const int64_t total = (bytes + 2 * guard + 63) / 64 * 64;
    memory_.reset(static_cast<unsigned char*>(std::aligned_alloc(64, total)));
    if (!memory_) throw std::bad_alloc();
    std::memset(memory_.get(), guard_byte, bytes + 2 * guard);
    std::memset(data(), 0xff, bytes);  // a NaN in every float type
  }

  void* data() const { return memory_.get() + guard; }

  void check() const {
    for (int64_t i = 0; i < guard; ++i)
      if (memory_.get()[i] != guard_byte || memory_.get()[guard + bytes_ + i] != guard_byte)
        throw std::runtime_error("the kernel wrote outside its workspace");
  }

 private:
  static constexpr int64_t guard = 4096;
  static constexpr unsigned char guard_byte = 0xa5;
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  int64_t bytes_;
  std::unique_ptr<unsigned char, Free> memory_;
};

struct Cpu {
  static const auto& table(const FpropArgs*) { return cpu::fprop_table(); }
  static const auto& table(const DgradArgs*) { return cpu::dgrad_table(); }
  static const auto& table(const WgradArgs*) { return cpu::wgrad_table(); }
  static int architecture() { return 0; }
  static constexpr const char* number = "threads";

  class Session {
   public:
    using DeviceType = Cpu;

    explicit Session(int threads) : threads_(threads) {
      require(threads >= 1 && threads <= 256, "expected 1 to 256 threads");
    }

    void* array(const char*, void* host, size_t, bool) { return host; }

    template <class Args>
    void launch(const KernelEntry<Args>& entry, Args& args) {
      const Workspace workspace(entry.workspace_bytes(args.problem, threads_));
      args.launch = {workspace.data(), threads_, nullptr};
      {
        py::gil_scoped_release unlocked;
        entry.launch(args);
      }
      workspace.check();
    }

   private:
    int threads_;
  };
};

}  // namespace
}  // namespace resnext::testing

PYBIND11_MODULE(_testing_cpu, module) {
  module.doc() = "The CPU kernel tables on flat numpy arrays, for tests. bf16 is passed as uint16 bit patterns.";
  resnext::testing::define<resnext::testing::Cpu>(module);
}
