"""Loads the compiled libraries and completes their operators: fake kernels, FLOP counts, missing-device errors."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

NAMESPACE = "resnext_kernels"
Size = tuple[int, ...]


class ResNeXtKernelsWarning(UserWarning):
    """Something about this installation is not as it should be; the text says what."""


CPU_LIBRARY, CUDA_LIBRARY = (Path(__file__).parent / f"{name}.abi3.so" for name in ("_C", "_C_cuda"))


def _load(path: Path) -> None:
    if not path.exists():
        raise ImportError(f"resnext_kernels is not built ({path.name} is missing): pip install --no-build-isolation .")
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"resnext_kernels: {path.name}, built for torch >= 2.11, cannot be loaded with torch {torch.__version__} "
            f"(CUDA {torch.version.cuda}): {error}"
        ) from error


def _load_cuda() -> str:
    """Loads the CUDA library if torch can use it; returns why not, or nothing."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not CUDA_LIBRARY.exists():
        return "this installation was built without its CUDA library"
    try:
        _load(CUDA_LIBRARY)
    except ImportError as error:
        warnings.warn(str(error), ResNeXtKernelsWarning, stacklevel=2)
        return "this installation's CUDA library cannot be loaded with this torch"
    return ""


_load(CPU_LIBRARY)
why_no_cuda = _load_cuda()

# The three operators, by the tensor of the trilinear form sum(input * weight * output) that each one computes.
OPERATORS = {
    "output": torch.ops.resnext_kernels.grouped_conv2d.default,
    "input": torch.ops.resnext_kernels.grouped_conv2d_grad_input.default,
    "weight": torch.ops.resnext_kernels.grouped_conv2d_grad_weight.default,
}
# The weight's gradient and the bias's, which is the sum of grad_output, by one pass over grad_output.
GRAD_WEIGHT_BIAS = torch.ops.resnext_kernels.grouped_conv2d_grad_weight_bias.default
# The output with scale, shift, residual and activation, for inference.
ACT = torch.ops.resnext_kernels.grouped_conv2d_act.default
# The weight as the kernel of such a problem reads it on the CPU, for ACT; empty if that kernel packs none ahead.
PACK = torch.ops.resnext_kernels._pack_weight.default


def explain_lines(device_type: str, pass_name: str, problem_shape: list[int], dtype: torch.dtype, channels_last: bool):
    """(entry name, reason against it or "") for every kernel of a pass, in the order in which they are tried."""
    if device_type == "cuda" and why_no_cuda:
        return []
    explain = (
        torch.ops.resnext_kernels._explain_cuda if device_type == "cuda" else torch.ops.resnext_kernels._explain_cpu
    )
    lines = explain(pass_name, problem_shape, dtype, channels_last).splitlines()
    return [tuple(line.split("\t")) for line in lines]


# Whether this CPU has anything but plain loops, and a matrix unit for bfloat16, which PyTorch's kernels use.
has_direct_kernels = any(
    not why and not name.endswith("reference")
    for name, why in explain_lines("cpu", "fprop", [1, 8, 3, 3, 8, 4, 3, 3, 2, 1, 1, 1, 1, 1, 1], torch.float32, False)
)
has_amx = getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16", False) and torch.backends.mkldnn.is_available()


# --- fake kernels: the shape checks of csrc/torch/operator.cpp in the same words, and outputs of the same strides


def is_channels_last(tensor: torch.Tensor) -> bool:
    """c10's is_channels_last_strides_2d, as in csrc/torch/operator.cpp."""
    sizes, strides = tensor.shape, tensor.stride()
    if strides[1] == 0:
        return False
    least = 0
    for axis in (1, 3, 2, 0):
        if sizes[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * (sizes[axis] if sizes[axis] > 1 else 1)
    return True


def _check(condition, message: str) -> None:
    torch._check(condition, lambda: message)


def _check_pair(values, argument: str) -> None:
    _check(
        len(values) == 2,
        f"expected {argument} to be a single integer value or a list of 2 values to match the convolution dimensions, "
        f"but got {argument}={list(values)}",
    )


def _output_hw(input: Size, weight: Size, stride, padding, dilation, groups) -> list[int]:
    """Checks a problem and returns its output height and width."""
    for argument, values in (("stride", stride), ("padding", padding), ("dilation", dilation)):
        _check_pair(values, argument)
    _check(groups > 0, "non-positive groups is not supported")
    _check(min(padding) >= 0, "negative padding is not supported")
    _check(min(stride) > 0, "non-positive stride is not supported")
    _check(
        min(dilation) > 0,
        "non-positive dilation is not supported: dilation should be greater than zero, but got " + str(list(dilation)),
    )
    sizes = f"input of size {list(input)} and weight of size {list(weight)}"
    _check(len(input) == 4 and len(weight) == 4, f"expected 4-dimensional input and weight, got {sizes}")
    given, but = f"Given groups={groups}, ", "at dimension 0, but got weight of size"
    _check(weight[0] >= groups, f"{given}expected weight to be at least {groups} {but} {list(weight)} instead")
    _check(
        weight[0] % groups == 0, f"{given}expected weight to be divisible by {groups} {but} [{list(weight)}] instead"
    )
    _check(
        input[1] == weight[1] * groups,
        f"{given}weight of size {list(weight)}, expected input{list(input)} to have {weight[1] * groups} channels, "
        f"but got {input[1]} channels instead",
    )
    window = [d * (k - 1) + 1 for d, k in zip(dilation, weight[2:], strict=True)]
    padded = [x + 2 * p for x, p in zip(input[2:], padding, strict=True)]
    _check(
        all(x >= k for x, k in zip(padded, window, strict=True)),
        f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). "
        f"Kernel size: ({window[0]} x {window[1]}). Kernel size can't be greater than actual input size",
    )
    return [(x - k) // s + 1 for x, k, s in zip(padded, window, stride, strict=True)]


def _check_operand(tensor, argument: str, first, first_argument: str) -> None:
    both = f"expected {first_argument} and {argument}"
    _check(tensor.device == first.device, f"{both} on one device, got {first.device} and {tensor.device}")
    _check(tensor.dtype == first.dtype, f"{both} of one dtype, got {first.dtype} and {tensor.dtype}")


def _check_size(tensor, argument: str, expected) -> None:
    same = len(tensor.shape) == len(expected) and all(a == b for a, b in zip(tensor.shape, expected, strict=True))
    _check(same, f"expected {argument} of size {list(expected)}, got {list(tensor.shape)}")


def _empty(size, like: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    channels_last = is_channels_last(like) or is_channels_last(other)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format)


@torch.library.register_fake(f"{NAMESPACE}::grouped_conv2d")
def _fake(input, weight, bias, stride, padding, dilation, groups, *, kernel_name=""):
    hw = _output_hw(input.shape, weight.shape, stride, padding, dilation, groups)
    _check_operand(weight, "weight", input, "input")
    if bias is not None:
        _check(
            bias.dim() == 1 and bias.shape[0] == weight.shape[0],
            f"Given weight of size {list(weight.shape)}, expected bias to be 1-dimensional with {weight.shape[0]} "
            f"elements, but got bias of size {list(bias.shape)} instead",
        )
        _check_operand(bias, "bias", input, "input")
    return _empty([input.shape[0], weight.shape[0], *hw], input, weight)


@torch.library.register_fake(f"{NAMESPACE}::grouped_conv2d_act")
def _fake_act(input, weight, scale, shift, residual, stride, padding, dilation, groups, activation, **rest):
    output = _fake(input, weight, None, stride, padding, dilation, groups)
    sums = torch.float64 if input.dtype == torch.float64 else torch.float32
    for argument, tensor in (("scale", scale), ("shift", shift)):
        same = tensor.device == input.device
        _check(same, f"expected input and {argument} on one device, got {input.device} and {tensor.device}")
        _check(
            tensor.dtype == sums,
            f"expected {argument} of dtype {sums} for an input of {input.dtype}, got {tensor.dtype}",
        )
        _check_size(tensor, argument, [weight.shape[0]])
    if residual is not None:
        _check_operand(residual, "residual", input, "input")
        _check_size(residual, "residual", output.shape)
    _check(activation in ("relu", "none"), f"expected activation to be 'relu' or 'none', got '{activation}'")
    return output


@torch.library.register_fake(f"{NAMESPACE}::grouped_conv2d_grad_input")
def _fake_grad_input(grad_output, weight, input_hw, stride, padding, dilation, groups, *, kernel_name=""):
    _check_pair(input_hw, "input_hw")
    size = [grad_output.shape[0], weight.shape[1] * groups, *input_hw]
    hw = _output_hw(size, weight.shape, stride, padding, dilation, groups)
    _check_size(grad_output, "grad_output", [size[0], weight.shape[0], *hw])
    _check_operand(weight, "weight", grad_output, "grad_output")
    return _empty(size, grad_output, weight)


@torch.library.register_fake(f"{NAMESPACE}::grouped_conv2d_grad_weight")
def _fake_grad_weight(grad_output, input, kernel_hw, stride, padding, dilation, groups, *, kernel_name=""):
    _check_pair(kernel_hw, "kernel_hw")
    _check(groups > 0, "non-positive groups is not supported")
    size = [grad_output.shape[1], input.shape[1] // groups, *kernel_hw]
    hw = _output_hw(input.shape, size, stride, padding, dilation, groups)
    _check_size(grad_output, "grad_output", [input.shape[0], size[0], *hw])
    _check_operand(input, "input", grad_output, "grad_output")
    return _empty(size, grad_output, input)


@torch.library.register_fake(f"{NAMESPACE}::grouped_conv2d_grad_weight_bias")
def _fake_grad_weight_bias(grad_output, input, *args, kernel_name=""):
    return _fake_grad_weight(grad_output, input, *args), grad_output.new_empty(grad_output.shape[1])


# --- FLOPs, as torch.utils.flop_counter counts them for aten.convolution: the three passes cost the same


@register_flop_formula(torch.ops.resnext_kernels.grouped_conv2d)
def _flops(input, weight, *args, out_shape=None, **kwargs) -> int:
    return conv_flop_count(input, weight, out_shape)


@register_flop_formula(torch.ops.resnext_kernels.grouped_conv2d_act)
def _flops_act(input, weight, *args, out_shape=None, **kwargs) -> int:
    return conv_flop_count(input, weight, out_shape)


@register_flop_formula(torch.ops.resnext_kernels.grouped_conv2d_grad_input)
def _flops_grad_input(grad_output, weight, *args, out_shape=None, **kwargs) -> int:
    return conv_flop_count(out_shape, weight, grad_output)


@register_flop_formula(torch.ops.resnext_kernels.grouped_conv2d_grad_weight_bias)
def _flops_grad_weight_bias(grad_output, input, *args, out_shape=None, **kwargs) -> int:
    return conv_flop_count(input, out_shape[0], grad_output)


@register_flop_formula(torch.ops.resnext_kernels.grouped_conv2d_grad_weight)
def _flops_grad_weight(grad_output, input, *args, out_shape=None, **kwargs) -> int:
    return conv_flop_count(input, out_shape, grad_output)


# --- PyTorch's settings, for the libraries, which cannot read them


def _allow_tf32() -> bool:
    """Whether PyTorch lets float32 convolutions on a GPU round their operands to TF32, as cuDNN's do by default."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"


# --- devices without kernels: one sentence instead of the dispatcher's list of backends


def _no_kernel(*args, **rest):
    devices = [argument.device for argument in args if isinstance(argument, torch.Tensor)]
    device = next((device for device in devices if device.type != "cpu"), devices[0])
    why = f": {why_no_cuda}" if device.type == "cuda" and why_no_cuda else ""
    raise NotImplementedError(
        f"resnext_kernels has no kernel for tensors on {device}{why}. Found torch {torch.__version__} with CUDA "
        f"{torch.version.cuda}. Build with RESNEXT_KERNELS_CUDA=1 for CUDA, or use torch.nn.functional.conv2d."
    )


_library = torch.library.Library(NAMESPACE, "IMPL")
for _operator in (*OPERATORS.values(), GRAD_WEIGHT_BIAS, ACT):
    _library.impl(_operator, _no_kernel, "CompositeExplicitAutograd")
_library.impl("_allow_tf32", _allow_tf32, "CompositeExplicitAutograd")
