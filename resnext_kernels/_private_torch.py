"""Every private torch name this package rests on, in one place; tests/test_private_torch.py names each."""

from __future__ import annotations

import contextlib

import torch
from torch._C import _are_functorch_transforms_active as functorch_active
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction as SingleLevelFunction

__all__ = ["SingleLevelFunction", "apply_single_level", "call_below_autograd"]


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
    outer = contextlib.ExitStack()
    with outer:
        if functorch_active():
            outer.enter_context(torch.enable_grad())
            outer.enter_context(_set_fwd_grad_enabled(True))
        outer.enter_context(below_autograd())
        return operator(*args, **kwargs)
