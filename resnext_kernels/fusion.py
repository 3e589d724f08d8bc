"""Inference with what follows a convolution fused into it: grouped_conv2d_act, and fuse for whole models."""

from __future__ import annotations

import copy
import functools
import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _ops, _private_torch
from ._formats import free_formats
from ._packed import PackedWeight
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
    packed = packed_weight and _packed_form(packed_weight, input, weight, *geometry)
    output = _ops.ACT(input, weight, scale, shift, residual, *geometry, activation, kernel_name=kernel, packed=packed)
    return output.squeeze(0) if unbatched else output


def _packed_form(packed_weight: PackedWeight, input, weight, stride, padding, dilation, groups) -> Tensor | None:
    """The weight as the kernel of this problem reads it; None where it packs it in each call."""
    fewest = 8192  # are packed in the time that it takes to see whether they are those of the last call
    if weight.numel() < fewest or not input.is_cpu or _private_torch.watched():
        return None

    def pack() -> Tensor:
        problem = [*input.shape, *weight.shape, groups, *stride, *padding, *dilation]
        return _ops.PACK(weight, problem, _ops.is_channels_last(input) or _ops.is_channels_last(weight))

    packed = packed_weight.form(weight, (input.shape, input.stride(), input.dtype), pack)
    return None if packed is None or packed.numel() == 0 else packed


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
        sums = torch.float64 if input.dtype == torch.float64 else torch.float32  # the model may have been cast
        scale, shift = self.scale.to(sums), self.shift.to(sums)
        arguments = (input, self.weight, scale, shift, residual, self.activation, *self.geometry)
        return _grouped_conv2d_act(*arguments, "", self._packed)

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
        if self._is_one_call(input, residual):
            weight = self._best_weight(input)
            if weight is not self.weight or input.dtype == torch.float32:
                call = (input, weight, self.bias, *self.geometry, residual, self.activation)
                return _private_torch.onednn_conv2d(*call)
        output = F.conv2d(input, self.weight, self.bias, *self.geometry)
        output = output if residual is None else output + residual
        return output.relu_() if self.activation == "relu" else output

    def _best_weight(self, input: Tensor) -> Tensor:
        """The weight, packed where the result will be, or may be, channels_last."""
        weight = self.weight
        if not (self.free_format or _ops.is_channels_last(input) or _ops.is_channels_last(weight)):
            return weight
        pack = lambda: _private_torch.onednn_pack(weight, *self.geometry, list(input.shape))  # noqa: E731
        packed = self._packed.form(weight, None, pack)
        return weight if packed is None else packed

    def _is_one_call(self, input, residual) -> bool:
        """Whether oneDNN takes these tensors, and nothing has to see the single steps."""
        given = (input,) if residual is None else (input, residual)
        if any(type(tensor) is not Tensor for tensor in given):
            return False
        recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*given, self.weight))
        if recorded or input.dim() != 4 or not _private_torch.onednn_serves(self.weight, *given):
            return False
        size = _output_size(input.shape, self.weight.shape, *self.geometry)
        return size is not None and (residual is None or residual.shape == size)

    def extra_repr(self) -> str:
        """The weight's size, geometry and activation."""
        return _fused_repr(self)


@functools.lru_cache(1024)
def _output_size(input, weight, stride, padding, dilation, groups) -> tuple[int, ...] | None:
    """The output's size, from sizes; None if there is none, or nothing in it."""
    if isinstance(padding, str) or input[1] != weight[1] * groups or 0 in input:
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


class _Proxy(fx.Proxy):
    """Writes `x += y` down as what it is, not as an addition into fresh memory."""

    def __iadd__(self, other):
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other):
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other):
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other):
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Leaves this package's convolutions whole, as nn.Conv2d is."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        ours = isinstance(module, (GroupedConv2d, FusedGroupedConv2d, FusedConv2d))
        return ours or super().is_leaf_module(module, name)


_ADDITIONS = (operator.add, torch.add, "add")
_ADDITIONS_IN_PLACE = (operator.iadd, "add_")  # into the first operand
# Modules that leave their input as it is and return memory of their own.
_PURE = (nn.Conv2d, GroupedConv2d, FusedGroupedConv2d, FusedConv2d, nn.BatchNorm2d, nn.AvgPool2d, nn.MaxPool2d)
_RELUS = (torch.relu, torch.relu_, nn.functional.relu, nn.functional.relu_, "relu", "relu_")


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def fuse(model: nn.Module) -> fx.GraphModule:
    """A copy of a model in eval mode, in which convolutions have taken in what follows them.

    A grouped convolution of this package (GroupedConv2d, see `convert`) takes in a batch norm and a ReLU and becomes a
    FusedGroupedConv2d. The weights of any other nn.Conv2d take in its batch norm; with an addition (the end of a
    residual block) and a ReLU behind it, if there are any, it becomes a FusedConv2d. Where a result is used otherwise
    as well, nothing is fused. Outputs agree to rounding and have the memory format that they have without; between
    convolutions, a model in contiguous computes in channels_last where that makes no difference.

    Weights are packed for the CPU when they are first used, which doubles their memory, and again when they have
    changed. A change is told by the tensor's version, as autograd tells it: what is written through `.data`, numpy or
    another process is not seen.

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
        if type(conv) in (nn.Conv2d, GroupedConv2d) and calls.count(node.target) == 1:
            model.set_submodule(node.target, _take_in(node, conv, modules))
    free_formats(graph, dict(model.named_modules()), (FusedConv2d, FusedGroupedConv2d))
    fused = fx.GraphModule(model, graph)
    fused.delete_all_unused_submodules()
    return fused.eval()


def _take_in(node: fx.Node, conv: nn.Conv2d, modules: dict[str, nn.Module]) -> nn.Module:
    """Takes what follows the call of a convolution out of the graph; returns the module that does all of it."""
    zeros = conv.padding_mode == "zeros"
    grouped = zeros and isinstance(conv, GroupedConv2d)
    taken, place, norm, residual, activation = [node], node, None, None, "none"
    after = _only_user(node)
    if after is not None and after.op == "call_module" and _is_norm(modules[after.target], after.target):
        norm = modules[after.target]
        taken.append(after)
        after = _only_user(after)
    if zeros and not grouped and after is not None and (residual := _residual(taken, after, modules)) is not None:
        place = after  # where both operands exist, and neither has been changed since
        taken.append(after)
        after = _only_user(after)
    if zeros and after is not None and _is_relu(after, modules):
        activation = "relu"
        taken.append(after)
    if len(taken) == 1 and (grouped or not zeros):
        return conv
    with node.graph.inserting_before(place):
        kwargs = node.kwargs if residual is None else {**node.kwargs, "residual": residual}
        call = node.graph.call_module(node.target, node.args, kwargs)
    taken[-1].replace_all_uses_with(call)
    for each in reversed(taken):
        node.graph.erase_node(each)
    if grouped:
        return FusedGroupedConv2d(conv, norm, activation)
    folded = conv if norm is None else fuse_conv_bn_eval(conv, norm)
    return FusedConv2d(folded, activation) if zeros else folded


def _residual(taken: list[fx.Node], addition: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """What an addition adds to the last of the nodes; None if it is none that the first of them could do."""
    if addition.op not in ("call_function", "call_method") or addition.kwargs or len(addition.args) != 2:
        return None
    in_place = addition.target in _ADDITIONS_IN_PLACE and addition.args[0] is taken[-1]
    others = [operand for operand in addition.args if operand is not taken[-1]]
    if not (in_place or addition.target in _ADDITIONS) or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    node = taken[0].next
    while node is not addition:  # the convolution moves behind all of these, which must not change its input
        if node.op != "call_module" or not isinstance(modules[node.target], _PURE):
            return None
        node = node.next
    return others[0]


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
