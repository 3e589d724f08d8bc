#pragma once
// Element types, the type in which their sums are kept, and the two conversions.
#include <type_traits>

#include "device.h"

namespace resnext::cuda {

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
__device__ __forceinline__ Acc<T> to_acc(T value) {
  if constexpr (std::is_same_v<T, __half>)
    return __half2float(value);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __bfloat162float(value);
  else
    return value;
}

template <class T>
__device__ __forceinline__ T from_acc(Acc<T> value) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(value);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(value);
  else
    return value;
}

template <class T>
__device__ __forceinline__ bool is_finite(T value) {
  return to_acc(value) - to_acc(value) == 0;
}

}  // namespace resnext::cuda
