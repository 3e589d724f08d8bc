"""Every private torch name this package rests on, in one place; tests/test_private_torch.py names each."""

from __future__ import annotations

import torch
from torch._C import _are_functorch_transforms_active as functorch_active
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction as SingleLevelFunction

__all__ = ["SingleLevelFunction", "apply_single_level", "call_below_autograd", "transformed"]


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
