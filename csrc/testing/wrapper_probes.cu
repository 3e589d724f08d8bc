// One block per probe, mostly of one warp: a wrapper of ptx.h or a warp intrinsic on registers read from the input, so
// that its lane maps can be compared with a model from outside.
#include "cuda/device.h"
#include "cuda/launch.h"
#include "simt_probes.h"

namespace resnext::testing::probes {

using cuda::dynamic_smem;

// Registers of all lanes, one register after the other: word[register][lane].
template <int count>
__device__ void load_registers(uint32_t (&r)[count], const uint32_t* words) {
  for (int i = 0; i < count; ++i) r[i] = words[32 * i + threadIdx.x];
}

// Input: A, B and C registers. Output: D registers.
template <class T, int depth>
__global__ void mma_probe(const uint32_t* in, float* out) {
  constexpr int a_words = depth / 4 * (sizeof(T) == 4 ? 2 : 1), b_words = a_words / 2;
  uint32_t a[a_words], b[b_words], c[4];
  load_registers(a, in);
  load_registers(b, in + 32 * a_words);
  load_registers(c, in + 32 * (a_words + b_words));
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(c[i]);
  if constexpr (sizeof(T) == 4 && depth == 4)
    ptx::mma_m16n8k4_tf32(d, a, b);
  else if constexpr (sizeof(T) == 4)
    ptx::mma_m16n8k8_tf32(d, a, b);
  else if constexpr (depth == 8)
    ptx::mma_m16n8k8<T>(d, a, b);
  else
    ptx::mma_m16n8k16<T>(d, a, b);
  for (int i = 0; i < 4; ++i) out[32 * i + threadIdx.x] = d[i];
}

struct Rows {
  alignas(16) uint16_t rows[32][8];
};

// Input: 32 rows of 8 elements, then the row that each lane names. Output: registers.
template <int matrices, bool transposed>
__global__ void ldmatrix_probe(const uint16_t* in, uint32_t* out) {
  auto& smem = dynamic_smem<Rows>();
  for (int i = 0; i < 8; ++i) smem.rows[threadIdx.x][i] = in[8 * threadIdx.x + i];
  __syncthreads();
  uint32_t r[matrices];
  ptx::ldmatrix<matrices, transposed>(r, smem.rows[in[256 + threadIdx.x]]);
  for (int i = 0; i < matrices; ++i) out[32 * i + threadIdx.x] = r[i];
}

struct Product {
  alignas(16) uint16_t a[16][16];
  alignas(16) uint16_t b[16][8];
};

// A tile product as kernels do it. Input: A 16 x 16, B 16 x 8, row by row, in fp16. Output: A * B.
__global__ void product_probe(const uint16_t* in, float* out) {
  auto& smem = dynamic_smem<Product>();
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) smem.a[i / 16][i % 16] = in[i];
  for (int i = lane; i < 128; i += 32) smem.b[i / 8][i % 8] = in[256 + i];
  __syncthreads();
  uint32_t a[4], b[2];
  ptx::ldmatrix<4>(a, &smem.a[lane % 16][8 * (lane / 16)]);
  ptx::ldmatrix<2, true>(b, smem.b[lane % 16]);
  float d[4] = {};
  ptx::mma_m16n8k16<__half>(d, a, b);
  for (int i = 0; i < 4; ++i) out[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = d[i];
}

template <int bytes>
struct Copies {
  alignas(16) unsigned char to[32][bytes];
};

// Every lane copies `bytes`, of which lane % (bytes + 1) are valid.
template <int bytes>
__global__ void cp_async_probe(const unsigned char* in, unsigned char* out) {
  auto& smem = dynamic_smem<Copies<bytes>>();
  const int lane = threadIdx.x;
  ptx::cp_async<bytes>(smem.to[lane], in + lane * bytes, lane % (bytes + 1));
  ptx::cp_async_commit();
  ptx::cp_async_wait_group<0>();
  __syncthreads();
  for (int i = 0; i < bytes; ++i) out[lane * bytes + i] = smem.to[31 - lane][i];
}

struct Ring {
  float stage[3][32];
};

// Adds up 32-element pieces that pass through a ring three deep.
__global__ void ring_probe(const float* in, float* out, int pieces) {
  auto& smem = dynamic_smem<Ring>();
  const int lane = threadIdx.x;
  for (int i = 0; i < 2; ++i) {
    if (i < pieces) ptx::cp_async<4>(&smem.stage[i][lane], in + 32 * i + lane);
    ptx::cp_async_commit();
  }
  float sum = 0;
  for (int i = 0; i < pieces; ++i) {
    ptx::cp_async_wait_group<1>();  // piece i is here, piece i + 1 may be under way
    __syncthreads();                // for all lanes; and all have read the stage that is filled next
    if (i + 2 < pieces) ptx::cp_async<4>(&smem.stage[(i + 2) % 3][lane], in + 32 * (i + 2) + lane);
    ptx::cp_async_commit();
    sum += smem.stage[i % 3][31 - lane];
  }
  ptx::cp_async_wait_all();
  out[lane] = sum;
}

struct Pairs {
  float tile[2][2][64];  // of a pair of warps, in an even or odd round
};

// Two pairs of warps, each with a barrier and a number of rounds of its own. In a round each thread gets the value of
// the thread opposite it, which belongs to the other warp of its pair, doubles it and adds its own place.
__global__ void barrier_probe(const float* in, float* out) {
  auto& smem = dynamic_smem<Pairs>();
  const int pair = threadIdx.x / 64, t = threadIdx.x % 64;
  float value = in[threadIdx.x];
  for (int round = 0; round < 2 + 3 * pair; ++round) {
    float* tile = smem.tile[pair][round % 2];
    tile[t] = value;
    ptx::barrier_sync(1 + pair, 64);  // the tile is full, and nobody is left in the round before
    value = 2 * tile[63 - t] + static_cast<float>(t);
  }
  out[threadIdx.x] = value;
}

__global__ void tf32_probe(const float* in, uint32_t* out) { out[threadIdx.x] = ptx::round_to_tf32(in[threadIdx.x]); }

// Output [what][lane]: the shuffles in segments of 32 and of 8, and votes.
__global__ void warp_probe(const double* in, double* out) {
  const unsigned all = 0xffffffffu;
  const int lane = threadIdx.x;
  const double value = in[lane];
  const float small = static_cast<float>(value);
  double results[10] = {__shfl_sync(all, value, 5),
                        __shfl_sync(all, value, lane * 7, 8),
                        __shfl_xor_sync(all, value, 13),
                        __shfl_xor_sync(all, small, 9, 8),
                        __shfl_up_sync(all, value, 3),
                        __shfl_up_sync(all, small, 3, 8),
                        __shfl_down_sync(all, value, 3),
                        __shfl_down_sync(all, small, 3, 8),
                        static_cast<double>(__ballot_sync(all, lane % 3 == 0)),
                        static_cast<double>(__any_sync(all, lane == 40) + 2 * __all_sync(all, lane < 32))};
  for (int i = 0; i < 10; ++i) out[32 * i + lane] = results[i];
}

template <class In, class Out, class... More>
void block(int threads, void (*kernel)(const In*, Out*, More...), size_t smem_bytes, const void* in, void* out,
           void* stream, More... more) {
  cuda::launch(kernel, {1}, {threads}, smem_bytes, stream, static_cast<const In*>(in), static_cast<Out*>(out), more...);
}

template <class Kernel, class... Args>
void warp(Kernel kernel, const Args&... args) {
  block(32, kernel, args...);
}

}  // namespace resnext::testing::probes

namespace resnext::testing {

bool launch_wrapper_probe(const std::string& name, const void* in, void* out, int64_t count, void* stream) {
  using namespace probes;
  if (name == "mma_m16n8k8_f16") return warp(mma_probe<__half, 8>, 0, in, out, stream), true;
  if (name == "mma_m16n8k8_bf16") return warp(mma_probe<__nv_bfloat16, 8>, 0, in, out, stream), true;
  if (name == "mma_m16n8k16_f16") return warp(mma_probe<__half, 16>, 0, in, out, stream), true;
  if (name == "mma_m16n8k16_bf16") return warp(mma_probe<__nv_bfloat16, 16>, 0, in, out, stream), true;
  if (name == "mma_m16n8k4_tf32") return warp(mma_probe<float, 4>, 0, in, out, stream), true;
  if (name == "mma_m16n8k8_tf32") return warp(mma_probe<float, 8>, 0, in, out, stream), true;
  if (name == "ldmatrix_x1") return warp(ldmatrix_probe<1, false>, sizeof(Rows), in, out, stream), true;
  if (name == "ldmatrix_x2") return warp(ldmatrix_probe<2, false>, sizeof(Rows), in, out, stream), true;
  if (name == "ldmatrix_x4") return warp(ldmatrix_probe<4, false>, sizeof(Rows), in, out, stream), true;
  if (name == "ldmatrix_x1_trans") return warp(ldmatrix_probe<1, true>, sizeof(Rows), in, out, stream), true;
  if (name == "ldmatrix_x2_trans") return warp(ldmatrix_probe<2, true>, sizeof(Rows), in, out, stream), true;
  if (name == "ldmatrix_x4_trans") return warp(ldmatrix_probe<4, true>, sizeof(Rows), in, out, stream), true;
  if (name == "product") return warp(product_probe, sizeof(Product), in, out, stream), true;
  if (name == "cp_async_4") return warp(cp_async_probe<4>, sizeof(Copies<4>), in, out, stream), true;
  if (name == "cp_async_8") return warp(cp_async_probe<8>, sizeof(Copies<8>), in, out, stream), true;
  if (name == "cp_async_16") return warp(cp_async_probe<16>, sizeof(Copies<16>), in, out, stream), true;
  if (name == "ring") return warp(ring_probe, sizeof(Ring), in, out, stream, static_cast<int>(count / 32)), true;
  if (name == "barriers") return block(128, barrier_probe, sizeof(Pairs), in, out, stream), true;
  if (name == "tf32") return warp(tf32_probe, 0, in, out, stream), true;
  if (name == "warp") return warp(warp_probe, 0, in, out, stream), true;
  return false;
}

}  // namespace resnext::testing
