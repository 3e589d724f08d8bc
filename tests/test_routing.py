"""Which problems PyTorch's own convolution computes because it is faster, and that they can still be had from ours."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from resnext_kernels import GroupedConv2d, _ops, explain, grouped_conv2d

from .cases import OperatorLog

SLOW = {
    "float64": ({}, torch.float64),
    "dilation": ({"padding": 2, "dilation": 2}, torch.float32),
    "no padding": ({"padding": 0}, torch.float16),
    "padding by name": ({"padding": "valid"}, torch.float32),
    "stride 3": ({"stride": 3}, torch.bfloat16),
    "uneven stride": ({"stride": (1, 2)}, torch.float32),
}
FAST = {
    "stride 1": {},
    "stride 2": {"stride": 2},
    "padding by name": {"padding": "same"},
    "pairs": {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)},
}


def problem(dtype=torch.float32, width=2, groups=4, channels_last=False, **options):
    """Input, weight and keyword arguments."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    input = torch.randn(2, width * groups, 7, 8).to(dtype).contiguous(memory_format=memory_format)
    weight = torch.randn(width * groups, width, 3, 3).to(dtype)
    return (input.requires_grad_(), weight.requires_grad_()), {"padding": 1, "groups": groups, **options}


def operators(call):
    """Which of this package's operators a call runs, forward and backward."""
    with OperatorLog() as log:
        call().sum().backward()
    return [name for name in log.names if name.startswith("grouped")]


@pytest.mark.parametrize(("options", "dtype"), SLOW.values(), ids=SLOW)
def test_plain_loops_run_only_if_named(options, dtype):
    args, options = problem(dtype, **options)
    assert operators(lambda: grouped_conv2d(*args, **options)) == []
    assert torch.equal(grouped_conv2d(*args, **options), F.conv2d(*args, **options))
    explanation = explain("fprop", *args, **options)
    assert explanation.kernel is None
    assert "plain loops would be slower" in str(explanation)
    assert [name for name, why in explanation.entries if not why] == ["fprop_reference"]
    named = operators(lambda: grouped_conv2d(*args, **options, kernel="fprop_reference"))
    assert named == ["grouped_conv2d", "grouped_conv2d_grad_input", "grouped_conv2d_grad_weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("options", FAST.values(), ids=FAST)
def test_direct_kernels_run_unasked(options, dtype):
    args, options = problem(dtype, **options)
    assert len(operators(lambda: grouped_conv2d(*args, **options))) == 3
    assert "_direct_" in explain("fprop", *args, **options).kernel


@pytest.mark.parametrize(
    ("width", "groups", "channels_last", "kernel"),
    [
        (6, 32, True, "across"),
        (6, 32, False, "across"),
        (2, 16, True, "across"),
        (12, 16, True, "across"),
        (6, 4, True, "direct_gw8"),  # a quarter of the lanes
        (8, 32, True, "direct_gw8"),  # full vectors as they lie in memory
    ],
)
def test_narrow_groups_lie_across_vectors_where_that_fills_more_lanes(width, groups, channels_last, kernel):
    args, options = problem(width=width, groups=groups, channels_last=channels_last)
    explanation = explain("fprop", *args, **options)
    if any("no AVX-512" in reason for _, reason in explanation.entries):
        pytest.skip("this CPU has no AVX-512")
    for pass_name in ("fprop", "dgrad", "wgrad"):
        assert explain(pass_name, *args, **options).kernel == f"{pass_name}_{kernel}_f32_avx512"


def test_a_cpu_without_direct_kernels_takes_pytorch(monkeypatch):
    monkeypatch.setattr(_ops, "has_direct_kernels", False)
    args, options = problem()
    assert operators(lambda: grouped_conv2d(*args, **options)) == []


@pytest.mark.parametrize(
    ("width", "stride", "channels_last", "pytorch"),
    [
        *(
            (4, 1, True, False),
            (4, 2, True, False),
            (8, 1, True, True),
            (7, 2, True, False),
            (8, 2, True, True),
            (16, 2, True, True),
        ),
        *((8, 1, False, False), (16, 1, False, False), (32, 1, False, True), (32, 2, False, False)),
    ],
)
def test_bfloat16_on_a_cpu_with_a_matrix_unit(monkeypatch, width, stride, channels_last, pytorch):
    args, options = problem(torch.bfloat16, width, 2, channels_last, stride=stride)
    for has_amx in (False, True):
        monkeypatch.setattr(_ops, "has_amx", has_amx)
        assert (operators(lambda: grouped_conv2d(*args, **options)) == []) == (pytorch and has_amx)
        reason = explain("wgrad", *args, **options).reason
        assert reason == (f"bfloat16 with groups of {width} channels: PyTorch's kernel uses the CPU's matrix unit") * (
            pytorch and has_amx
        )


def test_a_module_in_double_is_no_slower_than_pytorch():
    module = GroupedConv2d(8, 8, 3, padding=1, groups=4, dtype=torch.float64)
    assert operators(lambda: module(torch.randn(1, 8, 5, 5, dtype=torch.float64))) == []


def test_the_choice_works_inside_vmap(monkeypatch):
    monkeypatch.setattr(_ops, "has_amx", True)
    args, options = problem(torch.bfloat16)
    images = torch.randn(3, 2, 8, 7, 8).bfloat16()
    each = torch.vmap(lambda image: grouped_conv2d(image, args[1], **options))(images)
    together = grouped_conv2d(images.flatten(0, 1), args[1], **options)
    torch.testing.assert_close(each.flatten(0, 1), together)


def test_plain_calls_go_to_the_operator_at_once(monkeypatch):
    """Or to the Function that records them, where nothing else looks on; all other calls are asked about in detail."""
    module = GroupedConv2d(8, 8, 3, padding=1, groups=2, bias=True)
    x, arguments = torch.randn(2, 8, 5, 6), (1, 1, 1, 2)
    pairs = ((1, 1), (1, 1), (1, 1), 2)
    expected = F.conv2d(x, module.weight, module.bias, *arguments)
    asked = []

    def ask(*problem):
        asked.append(problem)
        return "somebody looks on"

    monkeypatch.setattr("resnext_kernels.functional.why_pytorch", ask)
    monkeypatch.setattr("resnext_kernels._ops.has_amx", False)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(grouped_conv2d(x, module.weight, module.bias, *pairs), expected)
    plain = torch.randn(8, 4, 3, 3)
    grouped_conv2d(x, plain, None, *pairs)
    grouped_conv2d(x.bfloat16(), plain.bfloat16(), None, *pairs)
    with torch.autocast("cpu", torch.bfloat16):
        assert grouped_conv2d(x, plain, None, *pairs).dtype == torch.bfloat16
    grouped_conv2d(x, plain, None, *arguments)
    image = x.clone().requires_grad_()
    leaves = (image, module.weight, module.bias)
    ours, theirs = (
        torch.autograd.grad(convolution(*leaves, *arguments).square().sum(), leaves)
        for convolution in (grouped_conv2d, F.conv2d)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert asked == []
    grouped_conv2d(x.double(), plain.double(), None, *pairs)
    grouped_conv2d(x[0], plain, None, *pairs)
    grouped_conv2d(x, plain, None, (1, 1), (1, 1), (2, 2), 2)
    grouped_conv2d(x, torch.randn(8, 8, 3, 3), None, (1, 1), (1, 1), (1, 1), 1)
    grouped_conv2d(x.to("meta"), plain.to("meta"), None, *pairs)
    grouped_conv2d(x, plain.as_subclass(type("Sub", (torch.Tensor,), {})), None, *pairs)
    torch.func.vmap(lambda image: grouped_conv2d(image, plain, None, *pairs))(x.unsqueeze(0))
    for operands in ((None, plain), (x, None), (3, plain)):
        with pytest.raises(TypeError, match="conv2d"):
            F.conv2d(*operands, None, *pairs)
        with pytest.raises(TypeError, match="conv2d"):
            grouped_conv2d(*operands, None, *pairs)
    for odd in (1.0, True):
        for stride in (odd, (odd, odd)):
            with pytest.raises((TypeError, RuntimeError)):
                F.conv2d(x, plain, None, stride, (1, 1), (1, 1), 2)
            with pytest.raises((TypeError, RuntimeError)):
                grouped_conv2d(x, plain, None, stride, (1, 1), (1, 1), 2)
    monkeypatch.setattr("resnext_kernels._ops.has_amx", True)
    grouped_conv2d(x.bfloat16(), plain.bfloat16(), None, *pairs)
    assert len(asked) == 15


@pytest.mark.parametrize(
    ("width", "side", "images", "stride", "dtype", "kernel"),
    [
        (16, 14, 1, 1, torch.float32, "winograd_f32_avx512"),
        (16, 8, 1, 1, torch.float32, "winograd_f32_avx512"),
        (16, 7, 1, 1, torch.float32, "direct_wide_f32_avx512"),
        (32, 7, 1, 1, torch.float32, "winograd_f32_avx512"),
        (32, 5, 1, 1, torch.float32, "direct_wide_f32_avx512"),
        (64, 7, 16, 1, torch.float32, "winograd_f32_avx512"),
        (24, 14, 4, 1, torch.float32, "winograd_f32_avx2"),  # vectors of eight lanes, which it fills
        (64, 7, 1, 1, torch.float32, "direct_wide_f32_avx512"),  # fewer pixels than weights to transform
        (32, 28, 16, 2, torch.float32, "direct_wide_f32_avx512"),
        (32, 28, 16, 1, torch.float16, "direct_wide_f16_avx512"),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_wide_groups_are_computed_by_winograd_where_that_takes_less(
    width, side, images, stride, dtype, kernel, channels_last
):
    if width == 24 and "GenuineIntel" in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU multiplies twice as many floats in a cycle with AVX-512")
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    input = torch.empty(images, 4 * width, side, side, dtype=dtype).contiguous(memory_format=memory_format)
    weight = torch.empty(4 * width, width, 3, 3, dtype=dtype)
    for pass_name in ("fprop", "dgrad", "wgrad"):
        explanation = explain(pass_name, input, weight, stride=stride, padding=1, groups=4)
        if any("no AVX-512" in reason for _, reason in explanation.entries):
            pytest.skip("this CPU has no AVX-512")
        assert explanation.kernel == f"{pass_name}_{kernel}"
