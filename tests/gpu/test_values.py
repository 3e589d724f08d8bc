"""Every entry of the device's kernel tables, forced by name: exact integers, rounding bounds, repeatability."""

import numpy as np
import pytest
import torch

from resnext_kernels.problems import Problem, edge_cases, resnext50_32x4d, resnext101_64x4d
from tests.passes import DTYPES, LAYOUTS, PASSES, exact_case, operands, reference, rounding_case

from .operators import accepting, array, bits, call, run, tensor

CASES = {
    **edge_cases,
    "several_slices": Problem(3, 4, 30, 31, 4, groups=2),  # wgrad adds up more than one slice
    "many_taps": Problem(1, 6, 9, 9, 4, kernel_size=(4, 5), groups=2, padding=(2, 2)),
    "five_channels": Problem(1, 10, 5, 6, 10, groups=2),
    **{
        f"width_{width}_{h}x{w}_stride_{stride}": Problem(2, c, h, w, c, groups=c // width, stride=(stride, stride))
        for width in (4, 8, 16, 32, 64)
        for c in (max(2 * width, 32),)
        for stride in (1, 2)
        for h, w in ((7, 14), (5, 29), (12, 34))
    },
    **{
        f"width_{c}_to_{k}_stride_{stride}": Problem(2, 2 * c, 5, 20, 2 * k, groups=2, stride=(stride, stride))
        for c, k in ((24, 24), (40, 40), (48, 48), (56, 56), (12, 12), (8, 16), (20, 32), (64, 24))
        for stride in (1, 2)
    },
}
LAYERS = {problem.name: problem for problem in (*resnext50_32x4d, resnext101_64x4d[0])}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", CASES)
def test_exact(case, pass_name, dtype, layout, device):
    problem = CASES[case]
    first, second, bias, expected = exact_case(pass_name, problem, dtype)
    kernels = accepting(pass_name, problem, dtype, layout, device)
    assert kernels
    for kernel in kernels if problem.n else kernels[-1:]:
        result = run(pass_name, kernel, problem, dtype, layout, device, first, second, bias)
        np.testing.assert_array_equal(result, expected, err_msg=kernel)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", CASES)
def test_rounding(case, pass_name, dtype, layout, device):
    problem = CASES[case]
    first, second, bias, expected, bound = rounding_case(pass_name, problem, dtype)
    for kernel in accepting(pass_name, problem, dtype, layout, device):
        error = abs(run(pass_name, kernel, problem, dtype, layout, device, first, second, bias) - expected)
        assert (error <= bound).all(), f"{kernel}: {np.nanmax(error / np.maximum(bound, 1e-300)):.2f} of the bound"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("layer", LAYERS)
def test_network_layers(layer, pass_name, layout, device):
    problem, rng = LAYERS[layer], np.random.default_rng(3)
    first, second, bias = operands(pass_name, problem, lambda shape: rng.integers(-2, 3, shape).astype(float))
    expected = reference(pass_name, problem, first, second, bias)
    kernels = accepting(pass_name, problem, "f32", layout, device)
    for kernel in kernels if device == "cuda" else kernels[:1]:
        result = run(pass_name, kernel, problem, "f32", layout, device, first, second, bias)
        np.testing.assert_array_equal(result, expected, err_msg=kernel)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("case", ["odd_map_stride_2", "more_outputs", "several_slices", "batch_of_3"])
def test_same_bits_in_every_run(case, pass_name, layout, device):
    problem, rng = CASES[case], np.random.default_rng(4)
    arrays = operands(pass_name, problem, rng.standard_normal)
    for dtype in ("f32", "bf16"):
        tensors = [None if a is None else tensor(a, dtype, layout, device) for a in arrays]
        for kernel in accepting(pass_name, problem, dtype, layout, device):
            results = [bits(call(pass_name, problem, *tensors, kernel=kernel)) for _ in range(5)]
            assert set(results) == {results[0]}, kernel


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("pass_name", PASSES)
def test_infinities_stay_where_they_belong(pass_name, value, layout, device):
    """Padding is absent, not zero: an infinite weight or pixel never meets it. What it does reach is not finite."""
    problem, rng = Problem(1, 32, 6, 15, 32, groups=8), np.random.default_rng(5)
    first, second, bias = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape))
    reached = np.zeros_like(second)
    second[-1, 1, 0, 0] = value
    reached[-1, 1, 0, 0] = 1
    expected = reference(pass_name, problem, np.ones_like(first), reached) > 0
    for dtype in DTYPES:
        for kernel in accepting(pass_name, problem, dtype, layout, device):
            result = run(pass_name, kernel, problem, dtype, layout, device, first, second, bias)
            np.testing.assert_array_equal(~np.isfinite(result), expected, err_msg=kernel)


@pytest.mark.parametrize("pass_name", PASSES)
def test_any_weight_strides(pass_name, device):
    """Weights in KCRS, KRSC and transposed order, as operand and (by the layout of the others) as result."""
    problem = CASES["more_outputs"]
    first, second, bias, expected = exact_case(pass_name, problem, "f32")
    for layout in LAYOUTS:
        for kernel in accepting(pass_name, problem, "f32", layout, device):
            a, b = tensor(first, "f32", layout, device), tensor(second, "f32", "NHWC", device)
            c = None if bias is None else tensor(bias, "f32", layout, device)
            views = [b] if pass_name == "wgrad" else [b, b.transpose(0, 3).contiguous().transpose(0, 3)]
            for view in views:
                result = call(pass_name, problem, a, view, c)  # the layout may change with b's: no kernel is forced
                assert torch.equal(result.double().cpu(), torch.from_numpy(expected)), kernel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_misaligned_tensors(pass_name, layout, dtype, device):
    """A view that starts one element off: a kernel computes it or refuses it by that reason, and the default runs."""
    problem = CASES["width_8_7x14_stride_1"]
    first, second, _, expected = exact_case(pass_name, problem, dtype)
    if pass_name == "fprop":
        expected = reference(pass_name, problem, first, second)
    aligned, other = tensor(first, dtype, layout, device), tensor(second, dtype, layout, device)
    view = aligned.new_empty(aligned.numel() + 1)[1:].as_strided(aligned.shape, aligned.stride())
    view.copy_(aligned)
    assert view.data_ptr() % 16
    for kernel in ["", *accepting(pass_name, problem, dtype, layout, device)]:
        try:
            result = call(pass_name, problem, view, other, kernel=kernel)
        except RuntimeError as error:
            reason = str(error)
            assert kernel, reason
            assert "not 16-byte aligned" in reason
        else:
            np.testing.assert_array_equal(array(result), expected, err_msg=kernel)
