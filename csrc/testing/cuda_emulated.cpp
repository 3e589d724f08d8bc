// Test-only module: every entry of the CUDA kernel tables, run by the emulation of csrc/simt; see table_module.h.
// Kernels get copies of the arrays, aligned as these are, between inaccessible pages, inputs write-protected, and
// results are copied back.
#include <sys/mman.h>

#include <cstring>
#include <deque>

#include "simt/memory.h"
#include "simt/simt.h"
#include "simt_probes.h"
#include "table_module.h"

namespace resnext::testing {
namespace {

struct Tables {
  static const auto& table(const FpropArgs*) { return cuda::fprop_table(); }
  static const auto& table(const DgradArgs*) { return cuda::dgrad_table(); }
  static const auto& table(const WgradArgs*) { return cuda::wgrad_table(); }
  static int architecture() { return cuda::gpu_architecture(-1); }
};

struct Cuda : Tables {
  static constexpr const char* number = "seed";  // of the schedule; an even one puts arrays flush with a page's start

  class Session {
   public:
    using DeviceType = Cuda;

    explicit Session(int seed)
        : flush_(seed % 2 ? simt::GuardedMemory::Flush::end : simt::GuardedMemory::Flush::start) {}

    void* array(const char* what, void* host, size_t bytes, bool written) {
      auto& [memory, original] = arrays_.emplace_back(what, host, bytes, flush_, written);
      std::memcpy(memory.data(), host, bytes);
      if (!written) memory.make_read_only();
      return memory.data();
    }

    template <class Args>
    void launch(const KernelEntry<Args>& entry, Args& args) {
      simt::GuardedMemory workspace("workspace", entry.workspace_bytes(args.problem, 0), 64, flush_);
      args.launch = {workspace.data(), 0, &stream_};
      entry.launch(args);
      finish();
      if (!workspace.intact()) throw std::runtime_error("the kernel wrote outside its workspace");
    }

    // Copies what was written back and checks that nothing beside it was.
    void finish() {
      for (auto& [memory, original] : arrays_) {
        if (!memory.intact()) throw std::runtime_error("the kernel wrote outside an array");
        if (original) std::memcpy(original, memory.data(), memory.bytes());
      }
    }

    simt::Stream* stream() { return &stream_; }

   private:
    struct Array {
      Array(const char* what, void* host, size_t bytes, simt::GuardedMemory::Flush flush, bool written)
          : memory(what, bytes, 16, flush, reinterpret_cast<uintptr_t>(host) % 16),
            original(written ? host : nullptr) {}
      simt::GuardedMemory memory;
      void* original;  // where to copy it back, or null
    };
    simt::Stream stream_;
    simt::GuardedMemory::Flush flush_;
    std::deque<Array> arrays_;
  };
};

// For arrays of more bytes than there is memory, of which few are used: kernels work on the caller's own, without any
// check of bounds, and only the last blocks of the grid that does the work run. The workspace is zero.
struct FarCuda : Tables {
  static constexpr const char* number = "last_blocks";

  class Session {
   public:
    using DeviceType = FarCuda;

    explicit Session(int last_blocks) : last_blocks_(static_cast<uint64_t>(last_blocks)) {}

    void* array(const char*, void* host, size_t, bool) { return host; }

    template <class Args>
    void launch(const KernelEntry<Args>& entry, Args& args) {
      // An fprop or dgrad may prepare its weights before, in a small grid; a wgrad finishes its sums afterwards.
      stream_.last_blocks = [&](uint64_t all) {
        const bool whole = std::is_same_v<Args, WgradArgs> ? stream_.launches > 1 : all <= 1024;
        return whole ? all : std::min(all, last_blocks_);
      };
      const size_t bytes = entry.workspace_bytes(args.problem, 0) + 1;
      const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
      void* workspace = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
      require(workspace != MAP_FAILED, "no address space for the workspace");
      args.launch = {workspace, 0, &stream_};
      entry.launch(args);
      munmap(workspace, bytes);
    }

   private:
    uint64_t last_blocks_;
    simt::Stream stream_;
  };
};

// Another GPU than usual, for as long as this lives.
struct Gpu {
  explicit Gpu(int architecture) { simt::gpu_architecture = architecture; }
  ~Gpu() { simt::gpu_architecture = simt::newest_architecture; }
};

std::vector<std::pair<std::string, std::string>> explain_on(int gpu, const std::string& pass,
                                                            const std::array<int64_t, 14>& shape,
                                                            const std::string& dtype, const std::string& layout) {
  const Gpu other(gpu);
  return explain_entries<Cuda>(pass, shape, dtype, layout);
}

// Runs a probe (simt_probes.h) on an input and an output array, both flat.
void run_probe(const std::string& name, py::array input, py::array output, int seed, int gpu) {
  require(input.ndim() == 1 && output.ndim() == 1 && output.writeable(), "expected flat arrays");
  Cuda::Session session(seed);
  const void* in = session.array("input", const_cast<void*>(input.data()), input.nbytes(), false);
  void* out = session.array("output", output.mutable_data(), output.nbytes(), true);
  const Gpu other(gpu);
  require(launch_probe(name, in, out, input.size(), session.stream()), "there is no probe '", name, "'");
  session.finish();
}

}  // namespace
}  // namespace resnext::testing

PYBIND11_MODULE(_testing_cuda, module) {
  using namespace pybind11::literals;
  module.doc() =
      "The CUDA kernel tables, emulated, on flat numpy arrays, for tests. bf16 is passed as uint16 bit patterns.";
  resnext::testing::define<resnext::testing::Cuda>(module);
  auto far = module.def_submodule("far", "The same for arrays of more bytes than there is memory; no checks.");
  resnext::testing::define<resnext::testing::FarCuda>(far);
  module.def("explain_on", &resnext::testing::explain_on, "gpu"_a, "pass_name"_a, "shape"_a, "dtype"_a, "layout"_a,
             "explain, as on a GPU of that architecture, such as 75.");
  module.def("probe", &resnext::testing::run_probe, "name"_a, "input"_a, "output"_a, "seed"_a = 1,
             "gpu"_a = resnext::simt::newest_architecture, "Run a small kernel that tests the emulation itself.");
}
