// Test-only module: every entry of the CPU kernel tables; see table_module.h.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

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
      in_workspace(entry, args);
      if constexpr (std::is_same_v<Args, FpropArgs>)
        if (entry.pack) launch_packed(entry, args);
    }

   private:
    template <class Args>
    void in_workspace(const KernelEntry<Args>& entry, Args& args) {
      const Workspace workspace(entry.workspace_bytes(args.problem, threads_));
      args.launch = {workspace.data(), threads_, nullptr};
      {
        py::gil_scoped_release unlocked;
        entry.launch(args);
      }
      workspace.check();
    }

    // Once more with weights that were packed ahead, for another size of maps. The result has to be the same.
    void launch_packed(const KernelEntry<FpropArgs>& entry, FpropArgs& args) {
      const ConvShape& shape = args.problem.shape;
      const Workspace packed(entry.packed_bytes(args.problem));
      FpropArgs packing{args.problem};
      packing.problem.shape.n += 1;
      packing.problem.shape.h += 3;
      packing.problem.shape.w += 5;
      packing.weight = args.weight;
      packing.packed = args.packed = packed.data();
      entry.pack(packing);
      packed.check();
      char* output = static_cast<char*>(args.output);
      const int64_t bytes = shape.n * shape.k * shape.p() * shape.q() * element_size(args.problem.dtype);
      const std::string before(output, bytes);
      std::memset(output, 0xff, bytes);
      in_workspace(entry, args);
      packed.check();
      if (before != std::string_view(output, bytes))
        throw std::runtime_error("weights that were packed ahead give another result");
    }

    int threads_;
  };
};

}  // namespace
}  // namespace resnext::testing

PYBIND11_MODULE(_testing_cpu, module) {
  module.doc() = "The CPU kernel tables on flat numpy arrays, for tests. bf16 is passed as uint16 bit patterns.";
  resnext::testing::define<resnext::testing::Cpu>(module);
}
