"""PyTorch's settings that kernels on a GPU obey."""

import contextlib

import pytest
import torch

from resnext_kernels import _ops

SHAPE = [2, 64, 14, 14, 64, 16, 3, 3, 4, 1, 1, 1, 1, 1, 1]


@contextlib.contextmanager
def conv_fp32_precision(value):
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = value
    try:
        yield
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_tf32_is_allowed_as_for_cudnn():
    assert torch.ops.resnext_kernels._allow_tf32()  # PyTorch's default
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert not torch.ops.resnext_kernels._allow_tf32()
    with conv_fp32_precision("ieee"):  # only for convolutions, which torch.backends.cudnn.allow_tf32 cannot tell
        assert not torch.ops.resnext_kernels._allow_tf32()
    assert torch.ops.resnext_kernels._allow_tf32()


@pytest.mark.skipif(bool(_ops.why_no_cuda), reason=_ops.why_no_cuda)
@pytest.mark.parametrize("pass_name", ["fprop", "dgrad"])
def test_the_cuda_table_sees_the_setting(pass_name):
    def chosen(dtype):
        return next(name for name, why in _ops.explain_lines("cuda", pass_name, SHAPE, dtype, True) if not why)

    assert "_tf32_" in chosen(torch.float32)
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert "_tf32_" not in chosen(torch.float32)
        assert "_f16_" in chosen(torch.float16)
