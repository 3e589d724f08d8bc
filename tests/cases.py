"""What test files share: convolution problems as (input size, weight size, keyword arguments), and an operator log."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

CASES = {
    "stride 1": ((2, 8, 6, 5), (8, 2, 3, 3), {"padding": 1, "groups": 4}),
    "stride 2": ((2, 8, 7, 6), (8, 4, 3, 3), {"padding": 1, "stride": 2, "groups": 2}),
    "dilation": ((1, 4, 7, 8), (4, 2, 3, 3), {"padding": 2, "dilation": 2, "groups": 2}),
    "more outputs than inputs": ((1, 6, 5, 5), (12, 3, 3, 3), {"padding": 1, "groups": 2}),
    "fewer outputs than inputs": ((2, 12, 5, 4), (4, 6, 3, 3), {"groups": 2}),
    "uneven in height and width": ((1, 4, 6, 9), (6, 2, 3, 3), {"padding": (0, 2), "stride": (1, 3), "groups": 2}),
    "one pixel": ((3, 6, 1, 1), (6, 2, 3, 3), {"padding": 1, "groups": 3}),
}


def tensors(case, dtype=torch.float64, memory_format=torch.contiguous_format, bias=True, requires_grad=True):
    """Normal random input, weight and bias (or None) of a case, and its keyword arguments."""
    input_size, weight_size, kwargs = CASES[case]
    input = torch.randn(input_size, dtype=dtype).contiguous(memory_format=memory_format)
    weight = torch.randn(weight_size, dtype=dtype)
    bias = torch.randn(weight_size[0], dtype=dtype) if bias else None
    if requires_grad:
        for tensor in (input, weight, bias):
            if tensor is not None:
                tensor.requires_grad_()
    return input, weight, bias, kwargs


class OperatorLog(TorchDispatchMode):
    """Collects the names of the operators that reach the backends."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().removeprefix("resnext_kernels::"))
        return func(*args, **(kwargs or {}))
