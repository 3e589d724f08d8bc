"""fuse: whole models for inference, in which convolutions have taken in what follows them."""

from __future__ import annotations

import copy
import operator

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ._formats import free_formats
from .inference import FusedConv2d, FusedGroupedConv2d
from .module import GroupedConv2d


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
