"""Inference with what follows a convolution fused into it: grouped_conv2d_act, and modules with packed weights."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _ops, _private_torch
from ._packed import PackedWeight
from .functional import as_numbers, autocast_operands, grouped_conv2d, why_pytorch
from .module import GroupedConv2d

ACTIVATIONS = ("relu", "none")
# Fewer weights are packed in no time; more come from memory in any case, which packing asks for in good time.
FEWEST_PACKED, MOST_PACKED = 8192, 1 << 19


def grouped_conv2d_act(
    input: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str = "relu",
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    kernel: str = "",
) -> Tensor:
    """activation(grouped_conv2d(input, weight) * scale + shift + residual), in one pass over memory.

    scale and shift stand for a batch norm in eval mode, and a bias. The sums, and all that is done to them, are in
    float (double for float64) and are rounded once. For inference: where a gradient is to be recorded, and for what
    goes to PyTorch's own convolution (see `grouped_conv2d`), the same is computed step by step.

    Args:
        input: (N, C, H, W) or (C, H, W), as for `grouped_conv2d`.
        weight: (K, C / groups, R, S), as for `grouped_conv2d`.
        scale: (K,), float32, or float64 if the input is; factor of each output channel.
        shift: (K,), of the same dtype; added to each output channel.
        residual: of the output's size and dtype, or None; added before the activation.
        activation: "relu" or "none".
        stride: as for `grouped_conv2d`, as are all that follow.
        padding: see above.
        dilation: see above.
        groups: see above.
        kernel: see above; `explain("fprop_act", ...)` names them.

    Returns:
        (N, K, P, Q) or (K, P, Q), in the input's dtype; channels_last if the input or the weight is.

    Raises:
        RuntimeError: as `grouped_conv2d`; scale, shift or residual are of another size, dtype or device.
        ValueError: unknown activation.

    """
    arguments = (input, weight, scale, shift, residual, activation, stride, padding, dilation, groups)
    return _grouped_conv2d_act(*arguments, kernel, None)


def _grouped_conv2d_act(
    input, weight, scale, shift, residual, activation, stride, padding, dilation, groups, kernel, packed_weight
) -> Tensor:
    """grouped_conv2d_act, with a PackedWeight for the packed forms of the weight, or None."""
    tensors = (input, weight, scale, shift, residual)
    arguments = (*tensors, activation, stride, padding, dilation, groups)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(grouped_conv2d_act, tensors, *arguments, kernel=kernel)
    if activation not in ACTIVATIONS:
        raise ValueError(f"expected activation to be 'relu' or 'none', got {activation!r}")
    if cast := autocast_operands(input, weight, residual):
        input, weight, residual = cast
        with torch.autocast(input.device.type, enabled=False):
            arguments = (input, weight, scale, shift, residual, *arguments[5:])
            return grouped_conv2d_act(*arguments, kernel=kernel)
    derived = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    by_steps = derived or torch.compiler.is_exporting()
    if by_steps or why_pytorch(input, weight, None, stride, padding, dilation, groups, kernel):
        return _step_by_step(*arguments, kernel)
    input, stride, padding, dilation = as_numbers(input, weight, stride, padding, dilation)
    unbatched = input.dim() == 3
    if unbatched:
        input, residual = input.unsqueeze(0), None if residual is None else residual.unsqueeze(0)
    geometry = (stride, padding, dilation, groups)
    if packed_weight is not None and not (unbatched or _private_torch.who_looks(*tensors)):
        _pack(packed_weight, input, weight, *geometry)
    output = _ops.ACT(input, weight, scale, shift, residual, *geometry, activation, kernel_name=kernel)
    return output.squeeze(0) if unbatched else output


def _problem_of(input: Tensor) -> tuple:
    """All that tells one problem of a module from another."""
    return input.shape, input.stride(), input.dtype


def _pack(packed_weight: PackedWeight, input, weight, stride, padding, dilation, groups) -> None:
    """Packs the weight for the next call with such an input; as nothing where the kernel may as well pack it itself."""

    def pack() -> Tensor:
        if not FEWEST_PACKED <= weight.numel() <= MOST_PACKED:
            return torch.empty(0, dtype=torch.uint8)
        problem = [*input.shape, *weight.shape, groups, *stride, *padding, *dilation]
        return _ops.PACK(weight, problem, _ops.is_channels_last(input) or _ops.is_channels_last(weight))

    packed_weight.form(weight, _problem_of(input), pack)


def _step_by_step(input, weight, scale, shift, residual, activation, *arguments) -> Tensor:
    *geometry, kernel = arguments
    sums = grouped_conv2d(input, weight, None, *geometry, kernel=kernel).to(scale.dtype)
    output = sums * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    if residual is not None:
        output = output + residual
    return (output.relu() if activation == "relu" else output).to(input.dtype)


class FusedGroupedConv2d(nn.Module):
    """A grouped convolution in eval mode with the batch norm and the ReLU that follow it, as `fuse` makes it.

    On the CPU it keeps its weight packed, see `fuse`.

    Args:
        conv: the convolution; its weight is shared, not copied.
        norm: batch norm with running statistics, or None.
        activation: "relu" or "none".

    Shape:
        input (N, C, H, W) or (C, H, W), output (N, K, P, Q) or (K, P, Q), as the convolution's.
    """

    def __init__(self, conv: GroupedConv2d, norm: nn.BatchNorm2d | None, activation: str) -> None:
        super().__init__()
        self.geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.activation = activation
        self.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
        scale, shift = _scale_and_shift(conv, norm)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self._packed = PackedWeight()

    def _apply(self, fn, recurse: bool = True):
        self._packed.clear()
        return super()._apply(fn, recurse)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(norm(conv(input)) + residual)."""
        weight, scale, shift = self.weight, self.scale, self.shift
        tensors = (input, weight, scale, shift, residual)
        if not _private_torch.who_looks(*tensors) and scale.dtype is torch.float32:
            packed = self._packed.known(weight, _problem_of(input))
            if packed is not None:  # this problem has gone to the operator before
                packed = packed if packed.numel() else None
                return _ops.ACT(*tensors, *self.geometry, self.activation, packed=packed)
        sums = torch.float64 if input.dtype == torch.float64 else torch.float32  # the model may have been cast
        arguments = (input, weight, scale.to(sums), shift.to(sums), residual, self.activation, *self.geometry)
        return _grouped_conv2d_act(*arguments, "", None if isinstance(self.geometry[1], str) else self._packed)

    def extra_repr(self) -> str:
        """The weight's size, geometry and activation."""
        return _fused_repr(self)


class FusedConv2d(nn.Module):
    """Any other convolution with the addition and the ReLU that follow it, as `fuse` makes it.

    float32 on the CPU is one call of oneDNN, and so is bfloat16 where the CPU has it, with a weight that is kept packed
    (see `fuse`). Other types, other devices, and what has to be differentiated or compiled, are computed step by step.

    Args:
        conv: the convolution, with zero padding; its weight and bias are shared, not copied.
        activation: "relu" or "none".

    Attributes:
        free_format: whether the output may be channels_last even if input and weight are not, which is faster.

    Shape:
        input (N, C, H, W) or (C, H, W), output (N, K, P, Q) or (K, P, Q), as the convolution's.
    """

    def __init__(self, conv: nn.Conv2d, activation: str) -> None:
        super().__init__()
        self.geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.activation = activation
        self.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
        bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)
        self.register_parameter("bias", bias)
        self.free_format = False
        self._packed = PackedWeight()

    def _apply(self, fn, recurse: bool = True):
        self._packed.clear()
        return super()._apply(fn, recurse)

    def forward(self, input: Tensor, residual: Tensor | float | None = None) -> Tensor:
        """activation(conv(input) + residual)."""
        weight = self.weight
        if _private_torch.onednn_serves(input, weight, self.bias, residual):
            problem = (input.shape, input.stride(), input.dtype, None if residual is None else residual.shape)
            packed = self._packed.known(weight, problem)
            if packed is None and self._is_one_call(input, residual):
                packed = self._best_weight(input, problem)
            if packed is not None and (packed is not weight or input.dtype == torch.float32):
                call = (input, packed, self.bias, *self.geometry, residual, self.activation)
                return _private_torch.onednn_conv2d(*call)
        output = F.conv2d(input, weight, self.bias, *self.geometry)
        output = output if residual is None else output + residual
        return output.relu_() if self.activation == "relu" else output

    def _best_weight(self, input: Tensor, problem: tuple) -> Tensor:
        """The weight, packed where the result will be, or may be, channels_last."""
        weight = self.weight
        if not (self.free_format or _ops.is_channels_last(input) or _ops.is_channels_last(weight)):
            return weight
        pack = lambda: _private_torch.onednn_pack(weight, *self.geometry, list(input.shape))  # noqa: E731
        packed = self._packed.form(weight, None, pack)
        if packed is None:
            return weight
        return self._packed.form(weight, problem, lambda: packed)

    def _is_one_call(self, input: Tensor, residual: Tensor | None) -> bool:
        """Whether oneDNN computes these sizes."""
        size = _output_size(input.shape, self.weight.shape, *self.geometry)
        return size is not None and (residual is None or residual.shape == size)

    def extra_repr(self) -> str:
        """The weight's size, geometry and activation."""
        return _fused_repr(self)


@functools.lru_cache(1024)
def _output_size(input, weight, stride, padding, dilation, groups) -> tuple[int, ...] | None:
    """The output's size, from sizes; None if there is none, or nothing in it."""
    if len(input) != 4 or isinstance(padding, str) or input[1] != weight[1] * groups or 0 in input:
        return None
    window = [d * (k - 1) + 1 for d, k in zip(dilation, weight[2:], strict=True)]
    spare = [x + 2 * p - k for x, p, k in zip(input[2:], padding, window, strict=True)]
    if min(spare) < 0:
        return None
    return (input[0], weight[0], *(x // s + 1 for x, s in zip(spare, stride, strict=True)))


def _fused_repr(module: FusedGroupedConv2d | FusedConv2d) -> str:
    stride, padding, dilation, groups = module.geometry
    size = tuple(module.weight.shape)
    return f"{size}, {stride=}, {padding=}, {dilation=}, {groups=}, activation={module.activation!r}"


def _scale_and_shift(conv: GroupedConv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """What a bias and a batch norm in eval mode do to each channel's sums, computed in double."""
    scale = torch.ones(conv.out_channels, dtype=torch.float64, device=conv.weight.device)
    shift = torch.zeros_like(scale) if conv.bias is None else conv.bias.detach().double()
    if norm is not None:
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight.detach().double()
        shift = (shift - norm.running_mean.double()) * scale
        if norm.affine:
            shift = shift + norm.bias.detach().double()
    kept = torch.float64 if conv.weight.dtype == torch.float64 else torch.float32
    return scale.to(kept), shift.to(kept)
