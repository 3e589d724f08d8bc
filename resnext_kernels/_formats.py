"""Lets convolutions of a fused graph choose their memory format, and gives the usual one back where it could be seen.

oneDNN returns channels_last where weights are packed, which it multiplies fastest. In a graph whose input is contiguous
a FusedConv2d may do so if what is done with the result is the same in either format ("indifferent" below); anything
else gets it in the format that it has without.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import _ops

# Their results follow their input's memory format, and lie in memory of their own.
_MODULES = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.LeakyReLU, nn.ELU)
_FUNCTIONS = (operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div)
_FUNCTIONS += (torch.relu, F.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid, torch.sigmoid, F.sigmoid)
_FUNCTIONS += (F.batch_norm, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, torch.cat)
_METHODS = ("add", "sub", "mul", "div", "relu", "sigmoid", "mean")
# The same in the memory of their first operand.
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv, torch.relu_, F.relu_)
_IN_PLACE += ("add_", "sub_", "mul_", "div_", "relu_")
_FUNCTIONS += _IN_PLACE
_METHODS += _IN_PLACE
# What they return is their input.
_PASSING_ON = (nn.Dropout, nn.Dropout2d)
# What they say of a tensor does not depend on its memory format.
_DESCRIPTIONS = ("size", "dim", "numel", "ndimension")
_ATTRIBUTES = ("shape", "ndim", "dtype", "device", "requires_grad")


def in_format_of(tensor: Tensor, origin: Tensor) -> Tensor:
    """The tensor made contiguous, unless the origin is channels_last."""
    if has_torch_function_variadic(tensor, origin):
        return handle_torch_function(in_format_of, (tensor, origin), tensor, origin)
    return tensor if origin.dim() == 4 and _ops.is_channels_last(origin) else tensor.contiguous()


def free_formats(graph: fx.Graph, modules: dict[str, nn.Module], fused: tuple[type, ...]) -> None:
    """Sets `free_format` of each module that has it where nothing will see which format its result has.

    Args:
        graph: changed: calls of in_format_of are put in.
        modules: those that the graph calls, by name.
        fused: classes of convolutions, none of which has a use for its input's memory format.

    """
    decides: dict[fx.Node, fx.Node | None] = {}  # the node whose format a result has; None: channels_last by itself
    chosen: list[fx.Node] = []  # those whose format may be another now
    for node in list(graph.nodes):
        module = modules[node.target] if node.op == "call_module" else None
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        origins = {decides.get(source, source) for source in sources}
        indifferent = _is_indifferent(node, module, fused) and len(origins) == 1
        pays = any(
            user.op == "output" or user.target is in_format_of or _is_indifferent(user, modules.get(user.target), fused)
            for user in node.users
        )
        chooses = indifferent and pays and hasattr(module, "free_format")
        if hasattr(module, "free_format"):
            module.free_format = chooses
        if not indifferent:
            _give_back([source for source in sources if source in chosen], node, decides)
            continue
        decides[node] = None if _has_channels_last_weight(module) else origins.pop()
        if decides[node] is not None and (chooses or any(source in chosen for source in sources)):
            chosen.append(node)


def _is_indifferent(node: fx.Node, module: nn.Module | None, fused: tuple[type, ...]) -> bool:
    """Whether what a node does with its operands is the same in either format."""
    if node.kwargs.get("out") is not None or not node.all_input_nodes:
        return False
    first = node.all_input_nodes[0]
    in_place = node.target in _IN_PLACE or node.kwargs.get("inplace") or getattr(module, "inplace", False)
    its_own = len(first.users) == 1 and node.args[:1] == (first,)
    if (in_place or isinstance(module, _PASSING_ON)) and not its_own:
        return False  # others have the memory that the result lies in
    if node.op == "call_module":
        indices = getattr(module, "return_indices", False)
        return isinstance(module, (*fused, *_PASSING_ON, *_MODULES, *_ACTIVATIONS)) and not indices
    if node.op == "call_method":
        return node.target in _METHODS
    return node.op == "call_function" and node.target in _FUNCTIONS


def _has_channels_last_weight(module: nn.Module | None) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 4 and _ops.is_channels_last(weight)


def _give_back(sources: list[fx.Node], user: fx.Node, decides: dict[fx.Node, fx.Node | None]) -> None:
    """Lets a node see the sources in the format that they have without.

    The graph's output sees a copy. What may write to its operand has to share it with all others that read it.
    """
    described = user.op == "call_method" and user.target in _DESCRIPTIONS
    described |= user.op == "call_function" and user.target is getattr and user.args[1] in _ATTRIBUTES
    for source in sources:
        if described or user.target is in_format_of:
            continue
        graph = source.graph
        with graph.inserting_before(user) if user.op == "output" else graph.inserting_after(source):
            usual = graph.call_function(in_format_of, (source, decides[source]))
        decides[usual] = decides[source]
        readers = [user] if user.op == "output" else [reader for reader in source.users if reader is not usual]
        for reader in readers:
            reader.replace_input_with(source, usual)
