// Errors, faults and asynchronous copies: what a thread does without another's help.
#include "simt/machine.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

namespace resnext::simt {
namespace {

constexpr size_t most_shared_bytes = 227 * 1024;  // of the largest architecture

// What each kernel may use; 48 KB unless it has asked for more.
std::map<const void*, size_t>& shared_limits() {
  static std::map<const void*, size_t> limits;
  return limits;
}

std::string kernel_name(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info) || !info.dli_sname) return "a kernel";
  const std::unique_ptr<char, void (*)(void*)> name(abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr),
                                                    std::free);
  const std::string full = name ? name.get() : info.dli_sname;
  return full.substr(full.starts_with("void ") ? 5 : 0);
}

// Ends the launch because of what `thread` does, from its own fiber or from the scheduler.
[[noreturn]] void fail_thread(Thread* thread, const std::string& what) {
  Machine& m = machine();
  if (!m.running) raise(thread, what);
  m.failed = true;
  m.failure = what;
  switch_to_scheduler();
  std::abort();  // a failed thread is never resumed
}

void land(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    std::memcpy(copy.shared, copy.global, copy.valid_bytes);
    std::memset(static_cast<char*>(copy.shared) + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
  }
}

}  // namespace

int gpu_architecture = newest_architecture;

cudaError_t why_no_code() {
  if (gpu_architecture < oldest_architecture) return cudaErrorNoKernelImageForDevice;
  return gpu_architecture > newest_architecture ? cudaErrorUnsupportedPtxVersion : cudaSuccess;
}

void raise(const Thread* thread, const std::string& what) {
  const Grid* grid = machine().grid;
  throw Error((grid ? kernel_name(grid->kernel) + ", block " + text(blockIdx) : "no kernel is running") +
              (thread ? ", thread " + text(thread->index) : "") + ": " + what);
}

void switch_to_scheduler() {
  Machine& m = machine();
  void* state = nullptr;
  asan::leave(&state, m.scheduler_bottom, m.scheduler_bytes);
  resnext_switch_stack(&m.running->stack, m.scheduler);
  asan::arrive(state, nullptr, nullptr);
}

void on_fault(int signal, siginfo_t* info, void*) {
  if (!machine().running) {  // not a kernel's doing
    ::signal(signal, SIG_DFL);
    return;
  }
  if (signal == SIGFPE) fail("integer division by zero");
  fail(signal == SIGILL ? "trap" : describe(info->si_addr));
}

void fail(const std::string& what) { fail_thread(machine().running, what); }

void fail_lane(int lane, const std::string& what) {
  Machine& m = machine();
  const unsigned index = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  fail_thread(&m.threads[index / warp_size * warp_size + lane], what);
}

int lane() { return machine().running->lane; }

void* dynamic_shared_memory(size_t bytes) {
  const auto& shared = machine().shared;
  const size_t given = shared ? shared->bytes() : 0;
  if (bytes > given) fail("Smem has " + std::to_string(bytes) + " bytes, the launch gives " + std::to_string(given));
  return shared ? shared->data() : nullptr;
}

void require_shared(const void* pointer, size_t bytes, size_t alignment, const char* what, int lane) {
  const auto& shared = machine().shared;
  const auto begin = shared ? reinterpret_cast<uintptr_t>(shared->data()) : 0;
  const auto at = reinterpret_cast<uintptr_t>(pointer);
  if (!shared || at < begin || at + bytes > begin + shared->bytes())
    fail_lane(lane, std::string(what) + " of an address that is not in shared memory");
  if (at % alignment) fail_lane(lane, std::string(what) + " of a misaligned address in shared memory");
}

bool may_use_shared(const void* kernel, size_t bytes) {
  const auto limit = shared_limits().find(kernel);
  return bytes <= (limit == shared_limits().end() ? 48 * 1024 : limit->second);
}

void async_copy(void* shared, const void* global, int bytes, int valid_bytes) {
  Thread& self = *machine().running;
  require_shared(shared, bytes, bytes, "cp.async", lane());
  if (reinterpret_cast<uintptr_t>(global) % bytes) fail("cp.async from a misaligned address");
  if (valid_bytes < 0 || valid_bytes > bytes) fail("cp.async of more bytes than it has");
  const auto* source = static_cast<const volatile char*>(global);
  if (valid_bytes > 0) static_cast<void>(source[0] + source[valid_bytes - 1]);  // faults here if it must
  std::memset(shared, 0xff, bytes);
  self.open.push_back({shared, global, bytes, valid_bytes});
}

void async_commit() {
  Thread& self = *machine().running;
  self.committed.push_back(std::move(self.open));
  self.open.clear();
}

void async_wait(int newest_groups_left, bool uncommitted_too) {
  Thread& self = *machine().running;
  while (self.committed.size() > static_cast<size_t>(newest_groups_left)) {
    land(self.committed.front());
    self.committed.erase(self.committed.begin());
  }
  if (uncommitted_too) {
    land(self.open);
    self.open.clear();
  }
}

}  // namespace resnext::simt

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || static_cast<size_t>(value) > resnext::simt::most_shared_bytes) return cudaErrorInvalidValue;
  resnext::simt::shared_limits()[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaFuncGetName(const char** name, const void* kernel) {
  static std::string text;
  text = resnext::simt::kernel_name(kernel);
  *name = text.c_str();
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const int number = resnext::simt::gpu_architecture;
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? number / 10 : number % 10;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t status) {
  if (status == cudaErrorNoKernelImageForDevice) return "no kernel image is available for execution on the device";
  if (status == cudaErrorUnsupportedPtxVersion) return "the provided PTX was compiled with an unsupported toolchain.";
  return status == cudaSuccess ? "no error" : "invalid argument";
}
