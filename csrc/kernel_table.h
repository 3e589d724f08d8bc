#pragma once
#include <string>
#include <vector>

#include "conv_shape.h"

namespace resnext {

enum class DType : uint8_t { f64, f32, f16, bf16 };

constexpr int64_t bytes_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// Memory order of the two activation tensors of a problem (input and output, or their gradients); both
// are dense. NHWC is PyTorch's channels_last.
enum class Layout : uint8_t { nchw, nhwc };

struct Problem {
  ConvShape shape;
  DType dtype;
  Layout layout;
  int alignment = 16;  // of all activations, in bytes: the largest power of two up to 16 that divides their addresses
  bool fused = false;  // fprop with an Epilogue
  bool allow_tf32 = false;  // whether the factors of floats may be rounded to TF32, as PyTorch's setting says
  int architecture = 0;     // of the GPU, such as 80 for compute capability 8.0; 0 on the CPU
};

// One row of a kernel table. `Args` is the argument record of the pass (FpropArgs, DgradArgs, WgradArgs).
template <class Args>
struct KernelEntry {
  const char* name;
  // Null if the kernel computes this problem, else the reason why not, as a short phrase.
  const char* (*why_not)(const Problem&);
  int64_t (*workspace_bytes)(const Problem&, int threads);
  void (*launch)(const Args&);
  bool fuses = false;                        // it computes problems that are fused, too
  bool (*yields)(const Problem&) = nullptr;  // whether it lets entries behind it go first; null: never
  // Weights packed ahead of the launches that read them: how many bytes, and what writes them to args.packed from
  // args.weight. They depend on the weight's size alone, not on the maps. Null: none.
  int64_t (*packed_bytes)(const Problem&) = nullptr;
  void (*pack)(const Args&) = nullptr;
};

// Null if the kernel computes this problem, else the reason why not.
template <class Args>
const char* reason_against(const KernelEntry<Args>& entry, const Problem& problem) {
  const char* reason = entry.why_not(problem);
  return !reason && problem.fused && !entry.fuses ? "it fuses nothing" : reason;
}

template <class Args>
using KernelTable = std::vector<KernelEntry<Args>>;

// The first entry, in the order in which they are tried, of which `wanted` is true, or null.
template <class Args, class Wanted>
const KernelEntry<Args>* first(const KernelTable<Args>& table, const Problem& problem, const Wanted& wanted) {
  for (const bool last : {false, true})
    for (const auto& entry : table)
      if ((entry.yields && entry.yields(problem)) == last && wanted(entry)) return &entry;
  return nullptr;
}

// The first entry that accepts the problem or, with a name, the entry so called. Null if there is none;
// then `error` says why.
template <class Args>
const KernelEntry<Args>* select(const KernelTable<Args>& table, const Problem& problem, const std::string& name,
                                std::string& error) {
  if (name.empty()) {
    const auto* entry = first(table, problem, [&](const auto& each) { return !reason_against(each, problem); });
    if (!entry) error = "no kernel for this problem";
    return entry;
  }
  if (const auto* entry = first(table, problem, [&](const auto& each) { return name == each.name; })) {
    const char* reason = reason_against(*entry, problem);
    if (!reason) return entry;
    error = "kernel '" + name + "' cannot run this problem: " + reason;
    return nullptr;
  }
  std::string names;
  for (const auto& each : table) names += std::string(names.empty() ? "" : ", ") + each.name;
  error = "expected kernel to be one of [" + names + "], got '" + name + "'";
  return nullptr;
}

// One line per entry, "name<tab>reason" with an empty reason for an entry that accepts the problem.
template <class Args>
std::string explain(const KernelTable<Args>& table, const Problem& problem) {
  std::string lines;
  first(table, problem, [&](const auto& entry) {
    const char* reason = reason_against(entry, problem);
    lines += std::string(entry.name) + '\t' + (reason ? reason : "") + '\n';
    return false;
  });
  return lines;
}

}  // namespace resnext
