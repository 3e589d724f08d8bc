#pragma once
// The entries of the tensor cores' wgrad: what they accept, and the launches.
#include "launch.h"
#include "mma_wgrad.h"
#include "mma_wgrad_cut.h"
#include "mma_wgrad_store.h"
#include "padded_3x3.h"

namespace resnext::cuda::mma_wgrad {

// How a layout cuts a problem and launches its kernel: mma_wgrad_plan.h, mma_wgrad_nchw_plan.h.
template <class Gw, Layout layout>
struct Form;

template <class Gw>
Extent blocks_of(const MmaWgrad& g) {
  return {int64_t(g.channel_blocks) * Gw::parts * g.slices};
}

template <class Gw, Layout layout, class Sync = Sync>
void launch_wgrad(const MmaWgrad& g, void* stream) {
  Form<Gw, layout>::template launch<Sync>(g, stream);
  if (g.slices > 1)
    launch(wgrad_mma_finish<typename Gw::T, Gw::width>, {blocks_for(slice_size<Gw::width>(g), finish_threads)},
           {finish_threads}, 0, stream, g);
}

template <class T>
constexpr DType dtype_of = std::is_same_v<T, __half> ? DType::f16 : DType::bf16;

}  // namespace resnext::cuda::mma_wgrad

namespace resnext::cuda {

template <class T, int width, int stride, Layout layout>
const char* mma_wgrad_why_not(const Problem& problem) {
  const ConvShape& s = problem.shape;
  const DType dtype = mma_wgrad::dtype_of<T>;
  if (const char* reason = padded_3x3_mma_why_not(problem, dtype, layout, width, stride)) return reason;
  if (layout == Layout::nhwc && s.c % 8 != 0) return "channels are no multiple of 8";
  if (s.c >= 1 << 26 || s.h >= 1 << 26 || s.w >= 1 << 26) return "an axis has 2^26 elements";
  if (s.n * s.p() >= (int64_t(1) << 30) / s.q()) return "there are 2^30 output pixels";
  using Form = mma_wgrad::Form<mma_wgrad::Gw<T, width, stride>, layout>;
  if (!Form::fits(Form::cut(s))) return "rows too long for shared memory";
  return nullptr;
}

template <class T, int width, int stride, Layout layout>
int64_t mma_wgrad_workspace(const Problem& problem, int) {
  const mma_wgrad::MmaWgrad g = mma_wgrad::Form<mma_wgrad::Gw<T, width, stride>, layout>::cut(problem.shape);
  return g.slices > 1 ? g.slices * mma_wgrad::slice_size<width>(g) * int64_t(sizeof(float)) : 0;
}

template <class T, int width, int stride, Layout layout>
void mma_wgrad_run(const WgradArgs& args) {
  using Gw = mma_wgrad::Gw<T, width, stride>;
  mma_wgrad::MmaWgrad g = mma_wgrad::Form<Gw, layout>::cut(args.problem.shape);
  g.input = args.input;
  g.grad_output = args.grad_output;
  const auto& w = args.grad_weight;
  g.grad_weight = w.data;
  g.weight_k = w.stride_k;
  g.weight_c = w.stride_c;
  g.weight_r = w.stride_r;
  g.weight_s = w.stride_s;
  g.channels_closer = w.stride_c < w.stride_s;
  g.grad_bias = args.grad_bias;
  g.workspace = static_cast<float*>(args.launch.workspace);
  mma_wgrad::launch_wgrad<Gw, layout>(g, args.launch.stream);
}

template <class T, int width, int stride, Layout layout>
KernelEntry<WgradArgs> mma_wgrad_entry(const char* name) {
  return {name, mma_wgrad_why_not<T, width, stride, layout>, mma_wgrad_workspace<T, width, stride, layout>,
          mma_wgrad_run<T, width, stride, layout>};
}

}  // namespace resnext::cuda
