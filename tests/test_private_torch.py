"""The private torch names this package rests on: a release that moves one fails here, by name."""

import importlib

import pytest
import torch

PRIVATE = [
    ("torch.autograd.function", "_SingleLevelFunction"),
    ("torch._functorch.utils", "enable_single_level_autograd_function"),
    ("torch._C", "_AutoDispatchBelowAutograd"),
    ("torch._C", "_are_functorch_transforms_active"),
    ("torch.autograd.forward_ad", "_set_fwd_grad_enabled"),
    ("torch.autograd.forward_ad", "_current_level"),
    ("torch._C", "_get_mkldnn_enabled"),
    ("torch._C", "_is_any_autocast_enabled"),
    ("torch._C", "_is_tracing"),
    ("torch._C", "_len_torch_dispatch_stack"),
]


@pytest.mark.parametrize(("module", "name"), PRIVATE)
def test_private_name_exists(module, name):
    assert hasattr(importlib.import_module(module), name), f"this torch has no {module}.{name}"


def test_operators_have_what_calls_them():
    assert callable(torch.ops.aten.add.Tensor._op), "this torch's operators have no _op"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_private_operators_exist():
    assert {"default", "binary"} <= set(torch.ops.mkldnn._convolution_pointwise.overloads())
    for name in ("_reorder_convolution_weight", "_is_mkldnn_bf16_supported"):
        assert getattr(torch.ops.mkldnn, name).overloads() == ["default"]
