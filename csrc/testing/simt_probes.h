#pragma once
#include <cstdint>
#include <string>

// Small kernels that test the emulation: `wrapper_probes.cu` calls each function of ptx.h and each warp intrinsic,
// `bug_probes.cu` and the `*_bugs.cu` break one rule per name. `count` is the number of input elements. False for an
// unknown name.
namespace resnext::testing {

bool launch_wrapper_probe(const std::string& name, const void* input, void* output, int64_t count, void* stream);
bool launch_bug_probe(const std::string& name, const void* input, void* output, int64_t count, void* stream);
bool launch_mma_wgrad_probe(const std::string& name, const void* input, void* output, int64_t count, void* stream);
bool launch_rows_probe(const std::string& name, const void* input, void* output, int64_t count, void* stream);
bool launch_mma_probe(const std::string& name, const void* input, void* output, int64_t count, void* stream);
bool launch_mma_nchw_probe(const std::string& name, const void* input, void* output, int64_t count, void* stream);
bool launch_rows_nchw_probe(const std::string& name, const void* input, void* output, int64_t count, void* stream);
bool launch_rows_wgrad_probe(const std::string& name, const void* input, void* output, int64_t count, void* stream);

inline bool launch_probe(const std::string& name, const void* input, void* output, int64_t count, void* stream) {
  return launch_wrapper_probe(name, input, output, count, stream) ||
         launch_bug_probe(name, input, output, count, stream) ||
         launch_mma_wgrad_probe(name, input, output, count, stream) ||
         launch_rows_probe(name, input, output, count, stream) ||
         launch_mma_probe(name, input, output, count, stream) ||
         launch_mma_nchw_probe(name, input, output, count, stream) ||
         launch_rows_nchw_probe(name, input, output, count, stream) ||
         launch_rows_wgrad_probe(name, input, output, count, stream);
}

}  // namespace resnext::testing
