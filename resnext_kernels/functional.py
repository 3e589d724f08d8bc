"""The function behind the module: grouped_conv2d, its autograd Function, and explain."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _autograd, _ops, _private_torch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_OUTPUT = _private_torch.without_wrapper(_ops.OPERATORS["output"])
OPS = ("fprop", "fprop_act", "dgrad", "wgrad")


class GroupedConv2dFunction(torch.autograd.Function):
    """Grouped 2-D convolution as an autograd Function.

    `GroupedConv2dFunction.apply(input, weight, bias, stride, padding, dilation, groups)` takes a 4-D input, a
    bias or None, and pairs for stride, padding and dilation; `grouped_conv2d` is the convenient front. Backward
    honours `needs_input_grad`; double backward, forward-mode AD (`jvp`), `vmap` and torch.func transforms work
    at any order.
    """

    @staticmethod
    def forward(input, weight, bias, stride, padding, dilation, groups):
        return _ops.OPERATORS["output"](input, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _autograd.ConvolutionRules.setup(ctx, inputs, output)

    @staticmethod
    def backward(ctx, grad_output):
        return _autograd.ConvolutionRules.gradients(ctx, grad_output)

    @staticmethod
    def jvp(ctx, *tangents):
        return _autograd.ConvolutionRules.tangent(ctx, *tangents)

    @staticmethod
    def vmap(info, in_dims, *inputs):
        return _autograd.vmap("output", info, in_dims, *inputs)


torch.compiler.allow_in_graph(GroupedConv2dFunction)


def grouped_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    kernel: str = "",
) -> Tensor:
    """Grouped 2-D convolution with the arguments and results of `torch.nn.functional.conv2d`.

    A grouped 3x3 convolution (groups > 1, more than one channel per group) runs on this package's kernels, unless
    PyTorch's are faster: on the CPU those for float64, other paddings than 1, other strides than 1 and 2, dilation, and
    on CPUs with AMX most of bfloat16. That, and anything else, goes to PyTorch's own convolution; `explain` says why.

    Args:
        input: (N, C, H, W) or (C, H, W); float32, float64, bfloat16 or float16; contiguous or channels_last
            (others are made dense first, as PyTorch does).
        weight: (K, C / groups, R, S), of the same dtype and device as the input, any strides.
        bias: (K,) or None.
        stride: step of the window, in pixels; one number or (height, width).
        padding: rows and columns of zeros added on both sides, or "same" (stride 1 only), or "valid".
        dilation: distance between the taps of the window, in pixels.
        groups: number of channel groups; divides C and K.
        kernel: name of the kernel to use for this forward pass (see `explain`); "" picks the best one.

    Returns:
        (N, K, P, Q) or (K, P, Q), in the input's dtype; channels_last if the input or the weight is. On the CPU, from
        4 MiB on, in memory that an output had before, of which 512 MiB are kept: `resize_` cannot make it larger.

    Raises:
        RuntimeError: what conv2d raises, with its text; also if `kernel` is unknown (lists the known ones) or
            cannot run this problem (says why).
        NotImplementedError: the tensors are on a device for which this installation has no kernels.

    """
    if has_torch_function_variadic(input, weight, bias):
        arguments = (input, weight, bias, stride, padding, dilation, groups)
        return handle_torch_function(grouped_conv2d, (input, weight, bias), *arguments, kernel=kernel)
    plain = not kernel and input is not None and weight is not None
    looks = _private_torch.who_looks(input, weight, bias) if plain else "others"
    if looks != "others" and (geometry := _geometry_as_it_is(input, weight, bias, stride, padding, dilation, groups)):
        if looks == "autograd":
            return _autograd.record_convolution(input, weight, bias, *geometry)
        if torch.is_inference_mode_enabled():  # is below autograd
            return _OUTPUT(input, weight, bias, *geometry)
        with _private_torch.below_autograd():
            return _OUTPUT(input, weight, bias, *geometry)
    traced = torch.compiler.is_exporting() or torch.jit.is_tracing()
    if traced and not kernel and torch.onnx.is_in_onnx_export():  # asked last, it is slow
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if cast := autocast_operands(input, weight, bias):
        with torch.autocast(input.device.type, enabled=False):
            return grouped_conv2d(*cast, stride, padding, dilation, groups, kernel=kernel)
    if why_pytorch(input, weight, bias, stride, padding, dilation, groups, kernel):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)

    input, stride, padding, dilation = as_numbers(input, weight, stride, padding, dilation)
    unbatched = input.dim() == 3
    image = input.unsqueeze(0) if unbatched else input
    arguments = (image, weight, bias, stride, padding, dilation, groups)
    output = _autograd.call_operator(_ops.OPERATORS["output"], *arguments, kernel_name=kernel)
    return output.squeeze(0) if unbatched else output


def _geometry_as_it_is(input, weight, bias, stride, padding, dilation, groups) -> tuple | None:
    """Stride, padding, dilation and groups as the operator takes them, if it takes these plain tensors as they are.

    In a network the caches have lost this package's code and data from layer to layer; there all that `grouped_conv2d`
    asks about other calls would take a third of a layer's time for one image.
    """
    dtype = input.dtype
    if weight.dtype is not dtype or (bias is not None and bias.dtype is not dtype):
        return None
    stride = (stride, stride) if type(stride) is int else stride
    padding = (padding, padding) if type(padding) is int else padding
    dilation = (dilation, dilation) if type(dilation) is int else dilation
    if not (type(stride) is type(padding) is type(dilation) is tuple) or not _ops.has_direct_kernels:
        return None
    for number in (groups, *stride, *padding, *dilation):
        if type(number) is not int:  # 1.0 and True are 1
            return None
    if dtype is torch.bfloat16 and _ops.has_amx:
        return None
    geometry = stride, padding, dilation, groups
    return geometry if _takes(input.shape, weight.shape, dtype, *geometry) else None


@functools.lru_cache(4096)
def _takes(input_size, weight_size, dtype, stride, padding, dilation, groups) -> bool:
    """Whether tensors of these sizes go to the operator, whatever their strides, unless there is a matrix unit."""
    if not len(input_size) == len(weight_size) == 4 or not len(stride) == len(padding) == len(dilation) == 2:
        return False
    input, weight = (torch.empty(size, dtype=dtype, device="meta") for size in (input_size, weight_size))
    reason = _why_not_an_operand(input, weight, None, stride, padding, dilation, groups)
    return not (reason or _why_not_served(weight, groups) or _why_plain_loops(input, stride, padding, dilation))


def autocast_operands(input, *others):
    """The tensors as autocast wants them, where it is enabled for the input's device; else None."""
    if not isinstance(input, Tensor) or not (input.is_cpu or input.is_cuda):
        return None
    device = "cpu" if input.is_cpu else "cuda"
    if not torch.is_autocast_enabled(device):
        return None
    dtype = torch.get_autocast_dtype(device)
    return tuple(_autocast(tensor, device, dtype) for tensor in (input, *others))


def _autocast(tensor, device: str, dtype: torch.dtype):
    eligible = isinstance(tensor, Tensor) and tensor.device.type == device and tensor.is_floating_point()
    return tensor.to(dtype) if eligible and tensor.dtype != torch.float64 else tensor


def as_numbers(input: Tensor, weight: Tensor, stride, padding, dilation):
    """The input, padded if padding="same" asks for more on one side, and the three settings as pairs."""
    stride, dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        input, padding = _pad_for(padding, input, weight, dilation)
    return input, stride, _pair(padding), dilation


def _pair(value) -> tuple[int, ...]:
    if type(value) is tuple and len(value) == 2:
        return value
    values = tuple(value) if isinstance(value, Iterable) else (value, value)
    return values * 2 if len(values) == 1 else values


def _pad_for(padding: str, input: Tensor, weight: Tensor, dilation) -> tuple[Tensor, tuple[int, int]]:
    """Padding "same" or "valid" as numbers; an odd total puts its extra row or column at the bottom or right."""
    if padding == "valid":
        return input, (0, 0)
    totals = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if totals[0] % 2 or totals[1] % 2:
        input = F.pad(input, (0, totals[1] % 2, 0, totals[0] % 2))
    return input, (totals[0] // 2, totals[1] // 2)


def why_pytorch(input, weight, bias, stride, padding, dilation, groups, kernel: str) -> str:
    """Why PyTorch's own convolution runs, which is an error if a kernel is named. "" if the operator does."""
    reason = _why_not_an_operand(input, weight, bias, stride, padding, dilation, groups)
    if not kernel:
        faster = (input, weight, stride, padding, dilation, groups)
        return reason or _why_not_served(weight, groups) or _why_pytorch_is_faster(*faster)
    if reason:
        raise RuntimeError(f"expected a problem for kernel={kernel!r}, got one for PyTorch's own convolution: {reason}")
    return ""


def _why_not_an_operand(input, weight, bias, stride, padding, dilation, groups) -> str:
    """Why the operator cannot take these arguments: PyTorch computes them, or raises its own error. "" if it can."""
    tensors = (input, weight) if bias is None else (input, weight, bias)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            return "an argument is not a tensor"
    dtype, device = input.dtype, input.device
    if dtype not in _DTYPES:
        return f"dtype {dtype}"
    if not (input.is_cpu or input.is_cuda or input.is_meta):
        return f"device {device}"
    for tensor in tensors:
        if tensor.dtype != dtype:
            return "tensors of different dtypes"
        if tensor.device != device:
            return "tensors on different devices"
        if tensor.layout != torch.strided:
            return "a tensor that is not strided"
    if input.dim() not in (3, 4) or weight.dim() != 4:
        return f"input of rank {input.dim()}, weight of rank {weight.dim()}"
    if 0 in input.shape[-3:] or 0 in weight.shape:
        return "an empty image, channel or window dimension"
    if not (_are_ints(stride) and _are_ints(dilation) and (isinstance(padding, str) or _are_ints(padding))):
        return "a stride, padding or dilation that is not of whole numbers"
    if not _are_ints((groups,)) or groups <= 0 or weight.shape[0] % groups:
        return "groups that do not divide the output channels"
    if isinstance(padding, str) and (
        padding not in ("same", "valid") or (padding == "same" and set(_pair(stride)) != {1})
    ):
        return f"padding={padding!r} with stride {stride}"
    return ""


def _are_ints(value) -> bool:
    """Whether it is a number, or numbers, as the operators take them. True and False are not."""
    for each in value if isinstance(value, (tuple, list)) else (value,):
        if type(each) is not int and not isinstance(each, torch.SymInt):
            return False
    return True


def _why_not_served(weight: Tensor, groups: int) -> str:
    """Why a problem that the operator could take is none for this package. "" if it is one."""
    if weight.shape[2:] != (3, 3):
        return f"a {weight.shape[2]}x{weight.shape[3]} kernel: this package serves 3x3"
    if groups == 1:
        return "groups=1: a dense convolution"
    if weight.shape[1] == 1:
        return "one channel per group: a depthwise convolution"
    return ""


def _why_pytorch_is_faster(input: Tensor, weight: Tensor, stride, padding, dilation, groups: int) -> str:
    """Why PyTorch runs a problem unless a kernel is named: on the CPU it may be faster. "" if it does not."""
    if not input.is_cpu:
        return ""
    return _why_plain_loops(input, stride, padding, dilation) or _why_amx(input, weight, stride, groups)


def _why_plain_loops(input: Tensor, stride, padding, dilation) -> str:
    """Why this package has nothing but plain loops for a 3x3 on this CPU. "" if it has more."""
    if not _ops.has_direct_kernels:
        return "a CPU without AVX2: plain loops would be slower"
    if input.dtype == torch.float64:
        return "float64: plain loops would be slower"
    if _pair(dilation) != (1, 1):
        return f"dilation={dilation}: plain loops would be slower"
    if padding != "same" and (isinstance(padding, str) or _pair(padding) != (1, 1)):
        return f"padding={padding!r}: plain loops would be slower"
    if _pair(stride) not in ((1, 1), (2, 2)):
        return f"stride={stride}: plain loops would be slower"
    return ""


def _why_amx(input: Tensor, weight: Tensor, stride, groups: int) -> str:
    """Why PyTorch's bfloat16 kernels, which use the CPU's matrix unit, are faster (docs/performance.md). "" if not."""
    if input.dtype != torch.bfloat16 or not _ops.has_amx:
        return ""
    width, even = max(weight.shape[1], weight.shape[0] // groups), _pair(stride) == (1, 1)
    channels_last = any(t.dim() == 4 and _ops.is_channels_last(t) for t in (input, weight))
    slower = width > (4 if even else 7) if channels_last else width > 16 and even
    return f"bfloat16 with groups of {width} channels: PyTorch's kernel uses the CPU's matrix unit" if slower else ""


@dataclass(frozen=True)
class Explanation:
    """What would run for a problem, and why; `str()` gives it as text.

    Attributes:
        kernel: name of the kernel that runs, or None if PyTorch's own convolution (or nothing) does.
        reason: why PyTorch's own convolution runs, or why nothing can; "" if a kernel runs.
        entries: (name, reason against it or "") for each kernel, in the order in which they are tried; those without a
            reason can be named even where PyTorch's own convolution runs because it is faster.
        copies: tensors that are made dense in the output's memory format first.

    """

    kernel: str | None
    reason: str
    entries: tuple[tuple[str, str], ...] = ()
    copies: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"runs: {self.kernel}" if self.kernel else f"runs: PyTorch's own convolution ({self.reason})"]
        lines += [f"copied first: {', '.join(self.copies)}"] if self.copies else []
        lines += [f"  {'no ' if why else 'yes'} {name}{': ' + why if why else ''}" for name, why in self.entries]
        return "\n".join(lines)


def explain(
    op: str, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride=1, padding=0, dilation=1, groups=1
):
    """Which kernel runs a problem, and the reason for or against every other one.

    Args:
        op: "fprop" (the output), "fprop_act" (the output of `grouped_conv2d_act`), "dgrad" (the input's gradient) or
            "wgrad" (the weight's gradient).
        input: as for `grouped_conv2d`, as are all that follow; only shapes, strides, dtypes and devices are read.
        weight: see above.
        bias: see above.
        stride: see above.
        padding: see above.
        dilation: see above.
        groups: see above.

    Returns:
        An Explanation; print it.

    Raises:
        RuntimeError: as `grouped_conv2d` for an impossible problem.

    """
    if op not in OPS:
        raise ValueError(f"expected op to be one of {OPS}, got {op!r}")
    reason = _why_not_an_operand(input, weight, bias, stride, padding, dilation, groups)
    if reason := reason or _why_not_served(weight, groups):
        return Explanation(None, reason)
    faster = _why_pytorch_is_faster(input, weight, stride, padding, dilation, groups)
    stride, dilation = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        input, padding = _pad_for(padding, input, weight, dilation)
    image = input if input.dim() == 4 else input.unsqueeze(0)
    channels_last = _ops.is_channels_last(image) or _ops.is_channels_last(weight)
    shape = [*image.shape, *weight.shape, groups, *stride, *_pair(padding), *dilation]
    entries = tuple(_ops.explain_lines(image.device.type, op, shape, image.dtype, channels_last))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    copies = () if image.is_contiguous(memory_format=memory_format) else ("input",)
    chosen = next((name for name, why in entries if not why), None)
    if faster:
        return Explanation(None, faster, entries)
    missing = "" if chosen else f"nothing: no kernel for tensors on {image.device}"
    return Explanation(chosen, missing, entries, copies)
