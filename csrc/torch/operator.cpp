#include "operator.h"

#include <cstring>

namespace resnext::binding {

std::string text(const Ints& values) {
  std::string out = "[";
  for (size_t i = 0; i < values.size(); ++i) out += (i ? ", " : "") + std::to_string(values[i]);
  return out + "]";
}

Ints sizes(const Tensor& tensor) {
  const auto view = tensor.sizes();
  return Ints(view.begin(), view.end());
}

DType dtype_of(ScalarType type, const char* argument) {
  switch (type) {
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::BFloat16:
      return DType::bf16;
    default:
      STD_TORCH_CHECK(false, "expected ", argument, " of dtype float64, float32, float16 or bfloat16, got ",
                      torch::headeronly::toString(type));
  }
}

bool is_channels_last(const Tensor& tensor) {
  if (tensor.stride(1) == 0) return false;
  int64_t least = 0;
  for (const int axis : {1, 3, 2, 0}) {
    const int64_t size = tensor.size(axis), stride = tensor.stride(axis);
    if (size == 0 || stride < least) return false;
    if (axis == 0 && least == tensor.stride(1)) return false;  // N111 and the like: contiguous
    least = stride * (size > 1 ? size : 1);
  }
  return true;
}

void check_pair(const Ints& values, const char* argument) {
  STD_TORCH_CHECK(values.size() == 2, "expected ", argument,
                  " to be a single integer value or a list of 2 values to match the convolution dimensions, but got ",
                  argument, "=", text(values));
}

ConvShape checked_shape(const Ints& input, const Ints& weight, const Geometry& geometry) {
  const auto& [stride, padding, dilation, groups] = geometry;
  check_pair(stride, "stride");
  check_pair(padding, "padding");
  check_pair(dilation, "dilation");
  STD_TORCH_CHECK(groups > 0, "non-positive groups is not supported");
  STD_TORCH_CHECK(padding[0] >= 0 && padding[1] >= 0, "negative padding is not supported");
  STD_TORCH_CHECK(stride[0] > 0 && stride[1] > 0, "non-positive stride is not supported");
  STD_TORCH_CHECK(dilation[0] > 0 && dilation[1] > 0,
                  "non-positive dilation is not supported: dilation should be greater than zero, but got ",
                  text(dilation));
  STD_TORCH_CHECK(weight.size() == 4 && input.size() == 4,
                  "expected 4-dimensional input and weight, got input of size ", text(input), " and weight of size ",
                  text(weight));
  STD_TORCH_CHECK(weight[0] >= groups, "Given groups=", groups, ", expected weight to be at least ", groups,
                  " at dimension 0, but got weight of size ", text(weight), " instead");
  STD_TORCH_CHECK(weight[0] % groups == 0, "Given groups=", groups, ", expected weight to be divisible by ", groups,
                  " at dimension 0, but got weight of size [", text(weight), "] instead");
  STD_TORCH_CHECK(input[1] == weight[1] * groups, "Given groups=", groups, ", weight of size ", text(weight),
                  ", expected input", text(input), " to have ", weight[1] * groups, " channels, but got ", input[1],
                  " channels instead");
  STD_TORCH_CHECK(weight[1] > 0 && weight[2] > 0 && weight[3] > 0,
                  "expected a weight without empty dimensions, got weight of size ", text(weight));
  const int64_t span_h = dilation[0] * (weight[2] - 1) + 1, span_w = dilation[1] * (weight[3] - 1) + 1;
  const int64_t padded_h = input[2] + 2 * padding[0], padded_w = input[3] + 2 * padding[1];
  STD_TORCH_CHECK(padded_h >= span_h && padded_w >= span_w, "Calculated padded input size per channel: (", padded_h,
                  " x ", padded_w, "). Kernel size: (", span_h, " x ", span_w,
                  "). Kernel size can't be greater than actual input size");
  return {input[0], input[1],  input[2],  input[3],   weight[0],  weight[2],   weight[3],
          groups,   stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1]};
}

void check_operand(const Tensor& tensor, const char* argument, const Tensor& first, const char* first_argument) {
  STD_TORCH_CHECK(tensor.device() == first.device(), "expected ", first_argument, " and ", argument,
                  " on one device, got different devices");
  STD_TORCH_CHECK(tensor.scalar_type() == first.scalar_type(), "expected ", first_argument, " and ", argument,
                  " of one dtype, got ", torch::headeronly::toString(first.scalar_type()), " and ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

void check_size(const Tensor& tensor, const char* argument, const Ints& expected) {
  STD_TORCH_CHECK(sizes(tensor) == expected, "expected ", argument, " of size ", text(expected), ", got ",
                  text(sizes(tensor)));
}

// One number a channel, in the type in which sums are kept.
void check_per_channel(const Tensor& tensor, const char* argument, const Tensor& input, int64_t channels) {
  STD_TORCH_CHECK(tensor.device() == input.device(), "expected input and ", argument,
                  " on one device, got different devices");
  const ScalarType expected = input.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(tensor.scalar_type() == expected, "expected ", argument, " of dtype ",
                  torch::headeronly::toString(expected), " for an input of ",
                  torch::headeronly::toString(input.scalar_type()), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
  check_size(tensor, argument, {channels});
}

void* checked_packed(const Tensor& packed, const PackedLabel& expected, int64_t bytes) {
  PackedLabel label;
  const int64_t size = int64_t(sizeof(label)) + bytes;
  STD_TORCH_CHECK(packed.is_cpu() && packed.scalar_type() == ScalarType::Byte && packed.is_contiguous(),
                  "expected packed to be contiguous bytes on the CPU");
  if (packed.numel() >= int64_t(sizeof(label))) std::memcpy(&label, packed.const_data_ptr(), sizeof(label));
  const auto same = packed.numel() == size && !std::memcmp(&label, &expected, sizeof(label));
  const auto name = [](const PackedLabel& of) { return std::string(of.kernel, strnlen(of.kernel, sizeof(of.kernel))); };
  const auto whose = [&](const PackedLabel& of) {
    return "'" + name(of) + "', weight " + text({of.k, of.c_per_group}) + ", groups=" + std::to_string(of.groups);
  };
  STD_TORCH_CHECK(same, "expected packed to be of kernel ", whose(expected), ", got ", whose(label), ", ",
                  packed.numel(), " bytes");
  char* weights = static_cast<char*>(packed.mutable_data_ptr()) + sizeof(label);
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(weights) % 64 == 0, "expected packed to begin at a multiple of 64 bytes");
  return weights;
}

Problem numbered_problem(const Ints& numbers, ScalarType dtype, bool channels_last) {
  STD_TORCH_CHECK(numbers.size() == 15, "expected 15 numbers in problem_shape, got ", numbers.size());
  const auto* v = numbers.data();
  const ConvShape shape = checked_shape({v[0], v[1], v[2], v[3]}, {v[4], v[5], v[6], v[7]},
                                        {{v[9], v[10]}, {v[11], v[12]}, {v[13], v[14]}, v[8]});
  return {shape, dtype_of(dtype, "dtype"), channels_last ? Layout::nhwc : Layout::nchw};
}

std::string device_name(const Tensor& tensor) {
  return tensor.is_cpu() ? "cpu" : tensor.is_cuda() ? "cuda" : "another kind of device";
}

namespace {

constexpr int kOrders[2][4] = {{3, 2, 1, 0}, {1, 3, 2, 0}};  // of the axes in NCHW and NHWC, innermost first

// As PyTorch's is_contiguous, for four axes.
bool is_dense(const Tensor& tensor, Layout layout) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t expected = 1;
  for (const int axis : kOrders[layout == Layout::nhwc]) {
    if (sizes[axis] != 1 && strides[axis] != expected) return false;
    expected *= sizes[axis];
  }
  return true;
}

MemoryFormat memory_format(Layout layout) {
  return layout == Layout::nhwc ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

}  // namespace

// Both ask PyTorch's operator, which takes microseconds to find, only where something has to be copied.
Tensor dense(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor); }

Tensor dense(const Tensor& tensor, Layout layout) {
  return is_dense(tensor, layout) ? tensor : torch::stable::contiguous(tensor, memory_format(layout));
}

Tensor new_output(const Tensor& like, const Ints& size, Layout layout) {
  int64_t strides[4], stride = 1;
  bool possible = true;
  for (const int axis : kOrders[layout == Layout::nhwc]) {
    strides[axis] = stride;
    possible = possible && size[axis] > 0 && !__builtin_mul_overflow(stride, size[axis], &stride);
  }
  int32_t dtype, type, index;
  AtenTensorHandle handle;
  if (possible && aoti_torch_get_dtype(like.get(), &dtype) == AOTI_TORCH_SUCCESS &&
      aoti_torch_get_device_type(like.get(), &type) == AOTI_TORCH_SUCCESS &&
      aoti_torch_get_device_index(like.get(), &index) == AOTI_TORCH_SUCCESS &&
      aoti_torch_empty_strided(4, size.data(), strides, dtype, type, index, &handle) == AOTI_TORCH_SUCCESS)
    return Tensor(handle);
  // Empty, or an error, whose words this operator has.
  return torch::stable::empty(size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              memory_format(layout));
}

}  // namespace resnext::binding
