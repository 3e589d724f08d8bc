// Test-only program: every CPU kernel that this machine can run, on problems with all kinds of tails, with every array
// against a page that no one may touch, at its end or at its start. Masked loads and stores are checked by the page,
// all others, the workspace and the stack by the sanitizers that the program is compiled with (tests/test_asan.py).
//
//   cpu_guarded              runs all and prints how many
//   cpu_guarded full TEXT    those whose names end in it
//   cpu_guarded short [TEXT] outputs are an element too small, which has to be noticed
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>

#include "grouped_conv.h"

namespace resnext {
namespace {

// `bytes` of memory that end at a forbidden page, or begin right behind one.
class Guarded {
 public:
  Guarded(int64_t bytes, bool at_end) {
    const int64_t page = sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    size_ = room + 2 * page;
    memory_ = static_cast<char*>(mmap(nullptr, size_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory_ == MAP_FAILED || mprotect(memory_ + page, room, PROT_READ | PROT_WRITE)) std::abort();
    data_ = memory_ + page + (at_end ? room - bytes : 0);
    for (int64_t i = 0; i < bytes; i += 2) data_[i] = 0x3c, data_[i + 1] = 0x3d;  // about 0.05 in every type
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() { munmap(memory_, size_); }

  void* data() const { return data_; }

 private:
  char *memory_, *data_;
  int64_t size_;
};

// The arrays of one run.
struct Arrays {
  Guarded input, weight, output, bias;

  Arrays(const Problem& p, bool at_end, int64_t missing)
      : input(bytes_of(p.dtype) * p.shape.n * p.shape.c * p.shape.h * p.shape.w, at_end),
        weight(bytes_of(p.dtype) * p.shape.k * p.shape.c_per_group() * 9, at_end),
        output(bytes_of(p.dtype) * (p.shape.n * p.shape.k * p.shape.p() * p.shape.q() - missing), at_end),
        bias(bytes_of(p.dtype) * p.shape.k, at_end) {}
};

template <class Pointer>
Weight<Pointer> weight_of(const Problem& problem, void* data, bool krsc) {
  const int64_t c = problem.shape.c_per_group();
  if (krsc) return {data, 9 * c, 1, 3 * c, c};
  return {data, 9 * c, 9, 3, 1};
}

void set(FpropArgs& args, const Arrays& arrays, bool krsc) {
  args.input = arrays.input.data();
  args.weight = weight_of<const void*>(args.problem, arrays.weight.data(), krsc);
  args.bias = arrays.bias.data();
  args.output = arrays.output.data();
}

void set(DgradArgs& args, const Arrays& arrays, bool krsc) {
  args.grad_output = arrays.output.data();
  args.weight = weight_of<const void*>(args.problem, arrays.weight.data(), krsc);
  args.grad_input = arrays.input.data();
}

void set(WgradArgs& args, const Arrays& arrays, bool krsc) {
  args.grad_output = arrays.output.data();
  args.input = arrays.input.data();
  args.grad_weight = weight_of<void*>(args.problem, arrays.weight.data(), krsc);
  args.grad_bias = arrays.bias.data();
}

// What to run.
struct Choice {
  int64_t missing;  // elements of the output
  std::string_view suffix;
};

// Runs every entry that is chosen and accepts the problem; returns how many did.
template <class Args>
int run(const KernelTable<Args>& table, const Problem& problem, bool at_end, const Choice& choice) {
  int runs = 0;
  for (const auto& entry : table) {
    if (!std::string_view(entry.name).ends_with(choice.suffix) || entry.why_not(problem)) continue;
    const int threads = at_end ? 2 : 1;
    const Arrays arrays(problem, at_end, choice.missing);
    Args args{};
    args.problem = problem;
    set(args, arrays, at_end);
    args.problem.alignment = alignment_of(args);
    const int64_t bytes = (entry.workspace_bytes(problem, threads) + 63) / 64 * 64;
    const std::unique_ptr<void, decltype(&std::free)> workspace(std::aligned_alloc(64, bytes), std::free);
    std::memset(workspace.get(), 0xff, bytes);
    args.launch = {workspace.get(), threads, nullptr};
    entry.launch(args);
    ++runs;
    if constexpr (std::is_same_v<Args, FpropArgs>)
      if (entry.pack) {  // and with weights that were packed ahead
        const Guarded packed(entry.packed_bytes(problem), at_end);
        args.packed = packed.data();
        entry.pack(args);
        entry.launch(args);
        ++runs;
      }
  }
  return runs;
}

int run_all(const Choice& choice) {
  struct Width {
    int64_t inputs, outputs, groups;
  };
  constexpr Width widths[] = {{4, 4, 9},   {4, 4, 8},   {3, 3, 5},  {8, 8, 3},   {8, 8, 4},  {7, 7, 5},
                              {16, 16, 2}, {32, 32, 2}, {20, 5, 2}, {24, 24, 3}, {6, 6, 16}, {3, 2, 17}};
  constexpr int64_t maps[][2] = {{1, 1}, {3, 2}, {2, 15}, {3, 19}, {4, 33}};
  int runs = 0;
  for (const Width& width : widths)
    for (const auto& map : maps)
      for (int64_t stride = 1; stride <= 2; ++stride)
        for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
          for (const Layout layout : {Layout::nchw, Layout::nhwc})
            for (const bool at_end : {false, true}) {
              const ConvShape shape{2,
                                    width.inputs * width.groups,
                                    map[0],
                                    map[1],
                                    width.outputs * width.groups,
                                    3,
                                    3,
                                    width.groups,
                                    stride,
                                    stride,
                                    1,
                                    1,
                                    1,
                                    1};
              const Problem problem{shape, dtype, layout};
              runs += run(cpu::fprop_table(), problem, at_end, choice);
              runs += run(cpu::dgrad_table(), problem, at_end, choice);
              runs += run(cpu::wgrad_table(), problem, at_end, choice);
            }
  return runs;
}

}  // namespace
}  // namespace resnext

int main(int count, char** arguments) {
  const bool is_short = count > 1 && std::strcmp(arguments[1], "short") == 0;
  std::printf("%d runs\n", resnext::run_all({is_short, count > 2 ? arguments[2] : ""}));
}
