"""Every private torch name this package rests on, in one place; tests/test_private_torch.py names each."""

from __future__ import annotations

import torch
from torch import Tensor, is_grad_enabled, strided
from torch._C import _are_functorch_transforms_active as functorch_active
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._C import _get_mkldnn_enabled, _is_any_autocast_enabled, _is_tracing, _len_torch_dispatch_stack
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction as SingleLevelFunction
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

__all__ = ["SingleLevelFunction", "apply_single_level", "call_below_autograd", "transformed"]
__all__ += ["onednn_conv2d", "onednn_pack", "onednn_serves", "who_looks", "without_wrapper"]


def apply_single_level(function: type[SingleLevelFunction], *args):
    """function.apply(*args) from inside a kernel at the Autograd key, under a functorch transform or not."""
    if functorch_active():
        with enable_single_level_autograd_function():
            return function.apply(*args)
    return function.apply(*args)


def call_below_autograd(operator, *args, **kwargs):
    """The operator's backend kernel; what a transform further out does to it is still recorded.

    Function.forward runs with both grad modes off; an outer functorch level needs them on.
    """
    if functorch_active():
        with torch.enable_grad(), _set_fwd_grad_enabled(True), below_autograd():
            return operator(*args, **kwargs)
    with below_autograd():
        return operator(*args, **kwargs)


def without_wrapper(operator):
    """What calls the operator in the end: a Python function less on the way."""
    return operator._op


def transformed() -> bool:
    """Whether a functorch transform or a level of forward-mode AD is active, so that tensors may have tangents."""
    return functorch_active() or forward_ad._current_level >= 0


def who_looks(*tensors: Tensor) -> str:
    """Who would miss a call of operators below autograd with these tensors, some perhaps None.

    "" if they are plain tensors on the CPU and nobody looks; "autograd" if only it does, which records the call;
    "others" if something traces, transforms, casts or watches, or if a tensor is of another kind.
    """
    if is_dynamo_compiling():  # asked first: what compiles knows not all that follows
        return "others"
    if _is_tracing() or functorch_active() or _len_torch_dispatch_stack() > 0 or _is_any_autocast_enabled():
        return "others"
    if forward_ad._current_level >= 0:
        return "others"
    recorded, looks = is_grad_enabled(), ""
    for tensor in tensors:
        if tensor is None:
            continue
        kind = type(tensor)
        if not ((kind is Tensor or kind is Parameter) and tensor.is_cpu and tensor.layout is strided):
            return "others"
        if recorded and tensor.requires_grad:
            looks = "autograd"
    return looks


def onednn_serves(input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> bool:
    """Whether onednn_conv2d takes the tensors. A sum of bfloat16 needs packed weights.

    It has no derivatives and no batching rule, and what compiles, exports or counts operators does not know it.
    """
    if who_looks(input, weight, bias, residual):
        return False
    if not (torch.backends.mkldnn.is_available() and _get_mkldnn_enabled()):
        return False
    dtype = weight.dtype
    for tensor in (input, bias, residual):
        if tensor is not None and tensor.dtype != dtype:
            return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def onednn_pack(weight: Tensor, stride, padding, dilation, groups, input_size) -> Tensor:
    """The weight in the order in which oneDNN reads it for inputs of this size; with others it is right, but slower."""
    pack = torch.ops.mkldnn._reorder_convolution_weight
    return pack(weight, padding, stride, dilation, groups, input_size)


def onednn_conv2d(input, weight, bias, stride, padding, dilation, groups, residual, activation: str) -> Tensor:
    """activation(conv2d(input) + residual) by oneDNN; activation is "relu" or "none".

    In conv2d's memory format, or in channels_last if the weight is packed.
    """
    geometry = (padding, stride, dilation, groups)
    if residual is None:
        return torch.ops.mkldnn._convolution_pointwise.default(input, weight, bias, *geometry, activation, [], "")
    relu = activation if activation == "relu" else None
    call = torch.ops.mkldnn._convolution_pointwise.binary
    return call(input, residual, weight, bias, *geometry, "add", None, relu, [], None)
