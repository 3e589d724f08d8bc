"""Every private torch name this package rests on, in one place; tests/test_private_torch.py names each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as functorch_active
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._C import _len_torch_dispatch_stack
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction as SingleLevelFunction

__all__ = ["SingleLevelFunction", "apply_single_level", "call_below_autograd", "transformed"]
__all__ += ["onednn_conv2d", "onednn_pack", "onednn_serves", "watched"]


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


def transformed() -> bool:
    """Whether a functorch transform or a level of forward-mode AD is active, so that tensors may have tangents."""
    return functorch_active() or forward_ad._current_level >= 0


def watched() -> bool:
    """Whether something compiles, traces, transforms, counts or replaces the operators that are called now."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # asked first: what compiles knows not all that follows
        return True
    return transformed() or _len_torch_dispatch_stack() > 0


def onednn_serves(*tensors: Tensor) -> bool:
    """Whether onednn_conv2d takes the tensors, and nothing has to see the operators that it stands for.

    It has no derivatives and no batching rule, and what compiles, exports or counts operators does not know it. A sum
    of bfloat16 needs packed weights.
    """
    if watched() or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    dtype = tensors[0].dtype
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.dtype != dtype or tensor.layout != torch.strided:
            return False
    if torch.is_autocast_enabled("cpu"):
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
        return torch.ops.mkldnn._convolution_pointwise(input, weight, bias, *geometry, activation, [], "")
    relu = activation if activation == "relu" else None
    call = torch.ops.mkldnn._convolution_pointwise.binary
    return call(input, residual, weight, bias, *geometry, "add", None, relu, [], None)
