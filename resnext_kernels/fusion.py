"""Inference with what follows a grouped convolution fused into it: grouped_conv2d_act, and fuse for whole models."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _ops
from .functional import as_numbers, autocast_operands, grouped_conv2d, why_pytorch
from .module import GroupedConv2d

ACTIVATIONS = ("relu", "none")


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
    output = _ops.ACT(input, weight, scale, shift, residual, *geometry, activation, kernel_name=kernel)
    return output.squeeze(0) if unbatched else output


def _step_by_step(input, weight, scale, shift, residual, activation, *arguments) -> Tensor:
    *geometry, kernel = arguments
    sums = grouped_conv2d(input, weight, None, *geometry, kernel=kernel).to(scale.dtype)
    output = sums * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    if residual is not None:
        output = output + residual
    return (output.relu() if activation == "relu" else output).to(input.dtype)


class FusedGroupedConv2d(nn.Module):
    """A grouped convolution in eval mode with the batch norm and the ReLU that follow it, as `fuse` makes it.

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

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(norm(conv(input)) + residual)."""
        sums = torch.float64 if input.dtype == torch.float64 else torch.float32  # the model may have been cast
        scale, shift = self.scale.to(sums), self.shift.to(sums)
        return grouped_conv2d_act(input, self.weight, scale, shift, residual, self.activation, *self.geometry)

    def extra_repr(self) -> str:
        """The weight's size, geometry and activation."""
        stride, padding, dilation, groups = self.geometry
        size = tuple(self.weight.shape)
        return f"{size}, {stride=}, {padding=}, {dilation=}, {groups=}, activation={self.activation!r}"


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


class _Tracer(fx.Tracer):
    """Leaves GroupedConv2d whole, as nn.Conv2d is."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, GroupedConv2d) or super().is_leaf_module(module, name)


_RELUS = (torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_, "relu", "relu_")


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def fuse(model: nn.Module) -> fx.GraphModule:
    """A copy of a model in eval mode, in which convolutions have taken in what follows them.

    A grouped convolution of this package (GroupedConv2d, see `convert`) takes in a batch norm and a ReLU and becomes a
    FusedGroupedConv2d; the weights of any other nn.Conv2d take in its batch norm. Where a result is used otherwise as
    well, nothing is fused. Outputs agree to rounding.

    Args:
        model: a module in eval mode that torch.fx can trace.

    Returns:
        A GraphModule for inference. The model itself is left as it was.

    Raises:
        TypeError: `model` is not an nn.Module.
        ValueError: the model, or a batch norm that would be taken in, is in training mode.
        torch.fx.proxy.TraceError: the model's forward depends on values or types of tensors.

    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError("expected model to be in eval mode (model.eval()), got one in training mode")
    model = copy.deepcopy(model)
    graph = _Tracer().trace(model)
    modules = dict(model.named_modules())
    for node in graph.nodes:
        if node.op == "call_module" and type(modules[node.target]) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in list(graph.nodes):
        conv = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or calls.count(node.target) > 1:
            continue
        after, norm = _only_user(node), None
        if after is not None and after.op == "call_module" and _is_norm(modules[after.target], after.target):
            norm = modules[after.target]
        if isinstance(conv, GroupedConv2d) and conv.padding_mode == "zeros":
            taken = [after] if norm is not None else []
            relu = _only_user(taken[-1]) if taken else after
            if relu is not None and _is_relu(relu, modules):
                taken.append(relu)
            fused = FusedGroupedConv2d(conv, norm, "relu" if relu in taken else "none") if taken else conv
        else:
            taken, fused = ([after], fuse_conv_bn_eval(conv, norm)) if norm is not None else ([], conv)
        model.set_submodule(node.target, fused)
        for other in taken:
            other.replace_all_uses_with(node)
            graph.erase_node(other)
    fused = fx.GraphModule(model, graph)
    fused.delete_all_unused_submodules()
    return fused.eval()


def _is_norm(module: nn.Module, name: str) -> bool:
    """Whether it is a batch norm that can be taken in."""
    if type(module) is not nn.BatchNorm2d or not module.track_running_stats:
        return False
    if module.training:
        raise ValueError(f"expected {name} to be in eval mode, got it in training mode")
    return True


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules[node.target]) is nn.ReLU
    return node.op in ("call_function", "call_method") and node.target in _RELUS
