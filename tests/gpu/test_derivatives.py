"""Derivatives by PyTorch's own checkers, and the operators' registrations by opcheck."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from resnext_kernels import GroupedConv2d, grouped_conv2d
from tests.cases import CASES, tensors

from .operators import FORMAT, OPERATOR

FORMATS = pytest.mark.parametrize("memory_format", FORMAT.values(), ids=FORMAT)


def on(device, case, **options):
    """The tensors of a case on a device, leaves as they were, and its keyword arguments."""
    *args, kwargs = tensors(case, **options)
    move = lambda t: t if t is None else t.detach().to(device).requires_grad_(t.requires_grad)  # noqa: E731
    return [move(t) for t in args], kwargs


def pairs_of(kwargs):
    """Stride, padding and dilation as pairs."""
    values = kwargs.get("stride", 1), kwargs.get("padding", 0), kwargs.get("dilation", 1)
    return [value if isinstance(value, tuple) else (value, value) for value in values]


@FORMATS
@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case, memory_format, device):
    args, kwargs = on(device, case, memory_format=memory_format)
    function = lambda *t: grouped_conv2d(*t, **kwargs)  # noqa: E731
    assert gradcheck(function, args, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, args, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


@FORMATS
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_equal_conv2d_on_the_cpu(case, memory_format, device):
    args, kwargs = on(device, case, memory_format=memory_format)
    output = grouped_conv2d(*args, **kwargs)
    grad = torch.randn(output.shape, dtype=output.dtype)
    ours = [output, *torch.autograd.grad(output, args, grad.to(device))]
    copies = [t.detach().cpu().requires_grad_() for t in args]
    expected = F.conv2d(*copies, **kwargs)
    theirs = [expected, *torch.autograd.grad(expected, copies, grad)]
    assert output.stride() == expected.stride()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_opcheck(case, dtype, device):
    (input, weight, bias), kwargs = on(device, case, dtype=dtype)
    pairs, groups = pairs_of(kwargs), kwargs["groups"]
    ours = [
        *(op.default for op in OPERATOR.values()),
        torch.ops.resnext_kernels.grouped_conv2d_grad_weight_bias.default,
    ]
    for image in (input, input.detach().to(memory_format=torch.channels_last).requires_grad_()):
        output = ours[0](image, weight, bias, *pairs, groups).detach().requires_grad_()
        # Registration, fakes and dispatch; values and derivatives are compared elsewhere, with bounds that fit dtypes.
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        calls = (image, weight, bias), (output, weight, image.shape[2:]), *[(output, image, weight.shape[2:])] * 2
        for op, arguments in zip(ours, calls, strict=True):
            torch.library.opcheck(op, (*arguments, *pairs, groups), test_utils=tests)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@FORMATS
def test_a_module_under_autocast_trains(memory_format, dtype, device):
    if device == "cpu" and dtype == torch.float32:
        pytest.skip("the CPU's autocast knows only 16-bit types")
    conv = GroupedConv2d(32, 32, 3, padding=1, groups=8).to(device)
    image = torch.randn(2, 32, 9, 10, device=device).contiguous(memory_format=memory_format)
    with torch.autocast(device, dtype=dtype):
        output = conv(image)
    assert output.dtype == dtype
    output.float().square().mean().backward()
    assert conv.weight.grad.dtype == torch.float32
    assert all(parameter.grad.isfinite().all() for parameter in conv.parameters())


def test_torch_compile(device):
    if device == "cuda" and torch.cuda.get_device_capability() < (7, 5):
        pytest.skip("torch.compile needs a newer GPU")
    args, kwargs = on(device, "stride 1", dtype=torch.float32, requires_grad=False)
    function = lambda *t: grouped_conv2d(*t, **kwargs).relu()  # noqa: E731
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*args), function(*args))
