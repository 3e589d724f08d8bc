#pragma once
#include "direct.h"
#include "direct_tiles.h"

// fprop and dgrad over whole tensors. NHWC is read and written in place. NCHW goes through scratch: the channels of
// one or more groups of one image are transposed to pixels in cache, summed there, and transposed back.
namespace resnext::cpu {
namespace {

// Channels that are loaded together: at least a vector, at least a group.
template <int group_width>
constexpr int unit_channels = group_width < lanes ? lanes : group_width;

// One fprop or dgrad, told as the sum in direct.h; `maps` describes image 0.
struct Sum {
  int64_t images, channels;
  Maps maps;
  Layout layout;
  Weight<const void*> weight;
  Launch launch;

  int64_t source_pixels() const { return maps.source_rows * maps.source_columns; }
  int64_t target_pixels() const { return maps.target_rows * maps.target_columns; }
};

// Prefetching costs a little where the maps lie in cache anyway.
inline bool comes_from_memory(const ConvShape& shape) {
  constexpr int64_t cached_bytes = 8 << 20;
  return shape.n * shape.c * (shape.h * shape.w + shape.p() * shape.q()) * int64_t(sizeof(float)) > cached_bytes;
}

// Stores that pass the caches by save reading the target, but leave nothing for the next layer to find there: only for
// targets that would push each other out anyway.
inline bool worth_streaming(const Sum& sum) {
  constexpr int64_t cached_bytes = 8 << 20;
  const int64_t bytes = sum.images * sum.channels * sum.target_pixels() * int64_t(sizeof(float));
  return lanes == 16 && bytes > cached_bytes && reinterpret_cast<uintptr_t>(sum.maps.target) % sizeof(Vec) == 0;
}

// The part of [0, count) that falls to the calling thread of a team.
struct Share {
  int64_t begin, end;
};

inline Share thread_share(int64_t count) {
  const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
  return {count * thread / threads, count * (thread + 1) / threads};
}

// First source channel that vector `vector` of targets needs.
template <int group_width>
int64_t source_channel(int64_t vector) {
  return vector * lanes / unit_channels<group_width> * unit_channels<group_width>;
}

inline Vec start_value(const Sum& sum, int64_t vector) {
  return sum.maps.bias ? load(sum.maps.bias + vector * lanes) : Vec{};
}

// One unit is one row of targets for a block of channels: all of them where groups are narrow, else as many as keep
// their weights in the second-level cache. Consecutive units are consecutive rows, which share source rows.
template <class Walk, int group_width>
void sum_nhwc(const Sum& sum, const float* packed) {
  const int64_t block_vectors = group_width <= 16 ? sum.channels / lanes : 256 / lanes;
  const int64_t vectors = sum.channels / lanes, blocks = (vectors + block_vectors - 1) / block_vectors;
  const int64_t rows = sum.maps.target_rows;
  const Share share = thread_share(sum.images * blocks * rows);
  const bool stream = worth_streaming(sum);
  for (int64_t unit = share.begin; unit < share.end; ++unit) {
    const int64_t row = unit % rows, block = unit / rows % blocks, image = unit / rows / blocks;
    Maps maps = sum.maps;
    maps.stream = stream;
    maps.source += image * sum.source_pixels() * sum.channels;
    maps.target += image * sum.target_pixels() * sum.channels;
    const int64_t end = std::min((block + 1) * block_vectors, vectors);
    const auto vector_place = [&](int64_t vector) {
      return VectorPlace{source_channel<group_width>(vector), packed + vector * packed_vector_size<group_width>,
                         start_value(sum, vector), vector * lanes};
    };
    sum_row<Walk, group_width>(maps, row, block * block_vectors, end, vector_place);
  }
  if (stream) _mm_sfence();  // the caller's other threads must see what was streamed
}

// One unit is one image's channels of one group, or of as many groups as fill a vector.
template <class Walk, int group_width>
void sum_nchw(const Sum& sum, const float* packed, float* scratch) {
  constexpr int width = unit_channels<group_width>;
  const int64_t units = sum.channels / width;
  const Share share = thread_share(sum.images * units);
  float* source = scratch;
  float* target = scratch + sum.source_pixels() * width;
  for (int64_t unit = share.begin; unit < share.end; ++unit) {
    const int64_t image = unit / units, channel = unit % units * width;
    const int64_t plane = image * sum.channels + channel;
    planes_to_pixels<width>(sum.maps.source + plane * sum.source_pixels(), sum.source_pixels(), sum.source_pixels(),
                            source);
    Maps maps = sum.maps;
    maps.source = source;
    maps.target = target;
    maps.prefetch = false;
    maps.source_stride = width;
    maps.target_stride = lanes;
    const float* next_source = sum.maps.source + (plane + width) * sum.source_pixels();
    for (int64_t part = 0; part < width; part += lanes) {
      const int64_t vector = (channel + part) / lanes;
      float* planes = sum.maps.target + (plane + part) * sum.target_pixels();
      const VectorPlace place{0, packed + vector * packed_vector_size<group_width>, start_value(sum, vector), 0};
      for (int64_t row = 0; row < maps.target_rows; ++row) {
        if (sum.maps.prefetch) {
          prefetch_part<true>(planes, lanes * sum.target_pixels(), row, maps.target_rows);
          if (unit + 1 < share.end)
            prefetch_part<false>(next_source, width * sum.source_pixels(), part / lanes * maps.target_rows + row,
                                 width / lanes * maps.target_rows);
        }
        sum_row<Walk, group_width>(maps, row, 0, 1, [&](int64_t) { return place; });
      }
      pixels_to_planes(target, sum.target_pixels(), sum.target_pixels(), planes);
    }
  }
}

template <int group_width>
int64_t packed_size(int64_t channels) {
  return channels / lanes * packed_vector_size<group_width>;
}

// Scratch of one thread, in floats.
template <int group_width>
int64_t sum_scratch(const Problem& problem) {
  if (problem.layout == Layout::nhwc) return 0;
  const ConvShape& shape = problem.shape;
  const int64_t inputs = shape.h * shape.w, outputs = shape.p() * shape.q();
  return unit_channels<group_width> * std::max(inputs, outputs) + lanes * std::max(inputs, outputs);
}

template <int group_width>
int64_t sum_workspace(const Problem& problem, int threads) {
  return (packed_size<group_width>(problem.shape.c) + threads * sum_scratch<group_width>(problem)) * sizeof(float);
}

template <class Walk, int group_width, bool lanes_are_inputs>
void run_sum(const Sum& sum, bool flip, int64_t scratch_size) {
  float* packed = static_cast<float*>(sum.launch.workspace);
  float* scratch = packed + packed_size<group_width>(sum.channels);
#pragma omp parallel num_threads(sum.launch.threads)
  {
    pack<group_width, lanes_are_inputs>(sum.weight, sum.channels, flip, packed);
    if (sum.layout == Layout::nhwc)
      sum_nhwc<Walk, group_width>(sum, packed);
    else
      sum_nchw<Walk, group_width>(sum, packed, scratch + omp_get_thread_num() * scratch_size);
  }
}

template <int group_width>
void run_fprop(const FpropArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const Maps maps{static_cast<const float*>(args.input),
                  static_cast<float*>(args.output),
                  static_cast<const float*>(args.bias),
                  shape.h,
                  shape.w,
                  shape.p(),
                  shape.q(),
                  shape.c,
                  shape.c,
                  comes_from_memory(shape),
                  false};
  const Sum sum{shape.n, shape.c, maps, args.problem.layout, args.weight, args.launch};
  const int64_t scratch = sum_scratch<group_width>(args.problem);
  if (shape.stride_h == 1)
    run_sum<Even, group_width, false>(sum, false, scratch);
  else
    run_sum<Narrowing, group_width, false>(sum, false, scratch);
}

template <int group_width>
void run_dgrad(const DgradArgs& args) {
  const ConvShape& shape = args.problem.shape;
  const Maps maps{static_cast<const float*>(args.grad_output),
                  static_cast<float*>(args.grad_input),
                  nullptr,
                  shape.p(),
                  shape.q(),
                  shape.h,
                  shape.w,
                  shape.c,
                  shape.c,
                  comes_from_memory(shape),
                  false};
  const Sum sum{shape.n, shape.c, maps, args.problem.layout, args.weight, args.launch};
  const int64_t scratch = sum_scratch<group_width>(args.problem);
  if (shape.stride_h == 1)
    run_sum<Even, group_width, true>(sum, true, scratch);
  else
    run_sum<Widening, group_width, true>(sum, false, scratch);
}

}  // namespace
}  // namespace resnext::cpu
