// The wrapper probes as a plain C library for a GPU: tests/gpu/test_wrappers.py builds and calls it.
#include <cstdio>
#include <exception>

#include "simt_probes.h"

// Arrays on the GPU, a stream of the caller's. 0: launched, 1: no such probe, 2: failed, and `error` says why.
extern "C" int resnext_wrapper_probe(const char* name, const void* input, void* output, int64_t count, void* stream,
                                     char* error, int64_t error_size) {
  try {
    return resnext::testing::launch_wrapper_probe(name, input, output, count, stream) ? 0 : 1;
  } catch (const std::exception& failure) {
    std::snprintf(error, static_cast<size_t>(error_size), "%s", failure.what());
    return 2;
  }
}
