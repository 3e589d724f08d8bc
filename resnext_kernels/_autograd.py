"""Derivatives and vmap of the three operators, which are the partial derivatives of one trilinear form.

Let F(input, weight, output) = sum over all taps of input * weight * output. Leaving one tensor out gives its
operator: without `output` the convolution, without `input` the input's gradient, without `weight` the weight's.
F is linear in each tensor, so one rule each gives backward, forward mode and vmap of all three, at any order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ._ops import GRAD_WEIGHT_BIAS, NAMESPACE, OPERATORS
from ._private_torch import (
    SingleLevelFunction,
    apply_single_level,
    below_autograd,
    call_below_autograd,
    transformed,
    without_wrapper,
)

# The two tensors that an operator takes, in the order of its arguments.
ARGUMENTS = {"output": ("input", "weight"), "input": ("output", "weight"), "weight": ("output", "input")}


class Geometry(NamedTuple):
    """What a convolution is, besides its tensors."""

    input_hw: tuple[int, int]
    kernel_hw: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def contract(missing: str, tensors: dict[str, torch.Tensor], geometry: Geometry) -> torch.Tensor:
    """The partial derivative of the trilinear form by the missing tensor, at the two given ones."""
    input_hw, kernel_hw, *common = geometry
    extra = {"output": None, "input": input_hw, "weight": kernel_hw}[missing]
    return call_operator(OPERATORS[missing], *(tensors[name] for name in ARGUMENTS[missing]), extra, *common)


def call_operator(operator, *args, kernel_name: str = "") -> torch.Tensor:
    """The operator's result, past its kernel at the Autograd key (Python) where that has nothing to record."""
    if torch.compiler.is_dynamo_compiling() or _is_recorded(*args) or transformed():
        return operator(*args, kernel_name=kernel_name)
    with below_autograd():
        return operator(*args, kernel_name=kernel_name)


def _is_recorded(first: torch.Tensor, second: torch.Tensor, third: object, *_rest) -> bool:
    if not torch.is_grad_enabled():
        return False
    return first.requires_grad or second.requires_grad or getattr(third, "requires_grad", False)


class Rules:
    """setup_context, backward and jvp of the operator that computes `missing`.

    Its arguments: two tensors, bias (or input_hw, kernel_hw), stride, padding, dilation, groups, and for the
    operators a kernel name, which holds for that call, not for those that its derivatives make.
    """

    missing: str

    @classmethod
    def setup(cls, ctx, inputs, output) -> None:
        first, second, extra, *constants = inputs
        shapes = dict(zip(ARGUMENTS[cls.missing], (first.shape[2:], second.shape[2:]), strict=True))
        if cls.missing != "output":
            shapes[cls.missing] = extra
        ctx.set_materialize_grads(False)
        ctx.geometry = Geometry(shapes["input"], shapes["weight"], *constants[:4])
        ctx.constants = len(constants)
        ctx.output_shape = output.shape
        needs_first, needs_second, *_ = ctx.needs_input_grad
        ctx.save_for_backward(first if needs_second else None, second if needs_first else None)
        ctx.save_for_forward(first, second)

    @classmethod
    def gradients(cls, ctx, gradient):
        result = [None] * (3 + ctx.constants)
        if gradient is None:
            return tuple(result)
        names, saved = ARGUMENTS[cls.missing], ctx.saved_tensors
        needs_bias = cls.missing == "output" and ctx.needs_input_grad[2]
        for i, name in enumerate(names):
            other = 1 - i
            if ctx.needs_input_grad[i] and name == "weight" and needs_bias:
                _, kernel_hw, *common = ctx.geometry
                result[i], result[2] = call_operator(GRAD_WEIGHT_BIAS, gradient, saved[other], kernel_hw, *common)
            elif ctx.needs_input_grad[i]:
                result[i] = contract(name, {cls.missing: gradient, names[other]: saved[other]}, ctx.geometry)
        if needs_bias and result[2] is None:
            result[2] = gradient.sum((0, 2, 3))
        return tuple(result)

    @classmethod
    def tangent(cls, ctx, first, second, extra, *_constants):
        names, primals = ARGUMENTS[cls.missing], ctx.saved_for_forward
        result = None
        for i, tangent in enumerate((first, second)):
            if tangent is not None:
                other = 1 - i
                term = contract(cls.missing, {names[i]: tangent, names[other]: primals[other]}, ctx.geometry)
                result = term if result is None else result + term
        if cls.missing == "output" and extra is not None:  # the bias is added to every pixel
            bias = extra.view(1, -1, 1, 1)
            result = bias.expand(ctx.output_shape).clone() if result is None else result + bias
        return result


class ConvolutionRules(Rules):
    """The rules of the convolution itself, shared with GroupedConv2dFunction."""

    missing = "output"


class GradInputRules(Rules):
    """The rules of the input's gradient."""

    missing = "input"


class GradWeightRules(Rules):
    """The rules of the weight's gradient."""

    missing = "weight"


class GradWeightBiasRules(GradWeightRules):
    """The same with the bias's gradient, the sum of grad_output, as a second result."""

    @classmethod
    def setup(cls, ctx, inputs, output) -> None:
        super().setup(ctx, inputs, output[0])
        ctx.grad_output_shape = inputs[0].shape

    @classmethod
    def gradients(cls, ctx, gradient, bias_gradient):
        first, *others = super().gradients(ctx, gradient)
        if bias_gradient is not None and ctx.needs_input_grad[0]:
            spread = bias_gradient.view(1, -1, 1, 1).expand(ctx.grad_output_shape)
            first = spread if first is None else first + spread
        return first, *others

    @classmethod
    def tangent(cls, ctx, grad_output, input, *constants):
        weight = super().tangent(ctx, grad_output, input, *constants)
        bias = weight.new_zeros(weight.shape[0]) if grad_output is None else grad_output.sum((0, 2, 3))
        return weight, bias


def _function_of(operator, rules: type[Rules]) -> type[SingleLevelFunction]:
    """The Function that records an operator's derivative and calls the operator below autograd."""

    def forward(*args):
        *inputs, kernel_name = args
        return call_below_autograd(operator, *inputs, kernel_name=kernel_name)

    methods = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(rules.setup),
        "backward": staticmethod(rules.gradients),
        "jvp": staticmethod(rules.tangent),
    }
    name = "GroupedConv2d" + rules.__name__.removesuffix("Rules").removeprefix("Convolution")
    return type(name, (SingleLevelFunction,), methods)


def _kernel_at_autograd_key(operator, function: type[SingleLevelFunction]):
    def kernel(*args, kernel_name=""):
        if not _is_recorded(*args) and not transformed():  # without a Function, which takes as long as the dispatch
            return call_below_autograd(operator, *args, kernel_name=kernel_name)
        return apply_single_level(function, *args, kernel_name)

    return kernel


# --- vmap. The mapped axis B joins the one axis that exactly the mapped tensors share; an operator's own result
# counts as mapped. With G groups of c input and k output channels:
#
#   not mapped | B joins | input       | weight      | output
#   weight     | N       | (B N) C     | as it is    | (B N) K
#   input      | k       | as it is    | (G B k) c   | N (G B k)
#   output     | c       | N (G B c)   | K (B c)     | as it is
#   none       | G       | N (B G c)   | (B G k) c   | N (B G k)

_JOINED_AXIS = {"weight": "N", "input": "k", "output": "c", None: "G"}


def _fold(name: str, tensor: torch.Tensor, axis: str, groups: int) -> torch.Tensor:
    """(B, ...) to a 4-D tensor whose axis `axis` has absorbed B."""
    if axis == "N" or (name == "weight" and axis == "G"):  # B is outermost
        return tensor.flatten(0, 1)
    if name == "weight" and axis == "c":
        return tensor.transpose(0, 1).flatten(1, 2)
    if name == "weight":  # (B, G k, c, ...) to (G B k, c, ...)
        return tensor.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 2)
    if axis == "G":
        return tensor.transpose(0, 1).flatten(1, 2)
    return tensor.unflatten(2, (groups, -1)).movedim(0, 2).flatten(1, 3)  # (B, N, G x, ...) to (N, G B x, ...)


def _unfold(name: str, tensor: torch.Tensor, axis: str, groups: int, batch: int) -> tuple[torch.Tensor, int]:
    """The inverse of _fold, as (tensor, mapped dimension)."""
    if axis == "N" or (name == "weight" and axis == "G"):
        return tensor.unflatten(0, (batch, -1)), 0
    if axis == "G" or (name == "weight" and axis == "c"):
        return tensor.unflatten(1, (batch, -1)), 1
    if name == "weight":
        return tensor.unflatten(0, (groups, batch, -1)).movedim(1, 0).flatten(1, 2), 0
    return tensor.unflatten(1, (groups, batch, -1)).movedim(2, 0).flatten(2, 3), 0


def vmap(missing: str, info, in_dims, first, second, extra, stride, padding, dilation, groups, kernel_name=""):
    """The vmap rule of the operator that computes `missing`."""
    names = ARGUMENTS[missing]
    mapped = {name for name, dim in zip(names, in_dims, strict=False) if dim is not None} | {missing}
    bias = extra if missing == "output" else None
    if len(mapped) == 1:  # only the bias is mapped
        result, result_dim = (
            OPERATORS[missing](
                first, second, None, stride, padding, dilation, groups, kernel_name=kernel_name
            ).unsqueeze(0),
            0,
        )
    else:
        (unmapped,) = {"input", "weight", "output"} - mapped or {None}
        axis = _JOINED_AXIS[unmapped]
        folded = [
            tensor if dim is None else _fold(name, tensor.movedim(dim, 0), axis, groups)
            for name, tensor, dim in zip(names, (first, second), in_dims, strict=False)
        ]
        fused_bias = None if missing == "output" and (in_dims[2] is not None or axis != "N") else extra
        bias = None if fused_bias is extra else bias
        all_groups = groups * info.batch_size if axis == "G" else groups
        result = OPERATORS[missing](*folded, fused_bias, stride, padding, dilation, all_groups, kernel_name=kernel_name)
        result, result_dim = _unfold(missing, result, axis, groups, info.batch_size)
    if bias is not None:
        result, result_dim = result.movedim(result_dim, 0), 0
        bias = bias.unsqueeze(0) if in_dims[2] is None else bias.movedim(in_dims[2], 0)
        result = result + bias[:, None, :, None, None]
    return result, result_dim


def _vmap_rule(missing: str):
    def rule(info, in_dims, *args, **kwargs):
        return vmap(missing, info, in_dims, *args, **kwargs)

    return rule


def _vmap_grad_weight_bias(info, in_dims, grad_output, *args, kernel_name=""):
    weight, weight_dim = vmap("weight", info, in_dims, grad_output, *args, kernel_name=kernel_name)
    if in_dims[0] is None:
        return (weight, grad_output.sum((0, 2, 3))), (weight_dim, None)
    return (weight, grad_output.movedim(in_dims[0], 0).sum((1, 3, 4))), (weight_dim, 0)


_library = torch.library.Library(NAMESPACE, "IMPL")
_RULES = {"output": ConvolutionRules, "input": GradInputRules, "weight": GradWeightRules}
_FUNCTIONS = {missing: _function_of(operator, _RULES[missing]) for missing, operator in OPERATORS.items()}
for _missing, _operator in OPERATORS.items():
    _library.impl(_operator, _kernel_at_autograd_key(_operator, _FUNCTIONS[_missing]), "Autograd")
    torch.library.register_vmap(_operator, _vmap_rule(_missing))
_grad_weight_bias = _function_of(GRAD_WEIGHT_BIAS, GradWeightBiasRules)
_library.impl(GRAD_WEIGHT_BIAS, _kernel_at_autograd_key(GRAD_WEIGHT_BIAS, _grad_weight_bias), "Autograd")
torch.library.register_vmap(GRAD_WEIGHT_BIAS, _vmap_grad_weight_bias)


_OUTPUT = without_wrapper(OPERATORS["output"])


def _forward_and_setup(ctx, input, weight, bias, stride, padding, dilation, groups):
    needs_input, needs_weight, *_ = ctx.needs_input_grad
    ctx.set_materialize_grads(False)
    ctx.geometry = Geometry(input.shape[2:], weight.shape[2:], stride, padding, dilation, groups)
    ctx.constants = 4
    ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
    with below_autograd():
        return _OUTPUT(input, weight, bias, stride, padding, dilation, groups)


# A Function of the older kind, without `jvp` and without a second call for `setup_context`: that saves a third of its
# time in networks, where Python's code and objects have left the caches.
_recorded_methods = {"forward": staticmethod(_forward_and_setup), "backward": staticmethod(ConvolutionRules.gradients)}
_Recorded = type("GroupedConv2d", (SingleLevelFunction,), _recorded_methods)


def record_convolution(*args) -> torch.Tensor:
    """The convolution operator's result, recorded without its kernel at the Autograd key; no transform is active."""
    return _Recorded.apply(*args)
