"""The row-streaming CUDA wgrad, emulated: network layers, random shapes, schedules, infinities, and planted bugs.

tests/test_cuda_kernels.py runs it on the edge cases, with all others.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_kernels import _testing_cuda
from resnext_kernels.problems import Problem, resnext50_32x4d, resnext101_32x8d
from tests import test_kernels as kernels
from tests.test_kernels import (
    LAYOUTS,
    WIDTHS,
    accepting,
    check_exact,
    check_grad_bias,
    check_rounding,
    launch,
    operands,
)

LAYERS = {problem.name: problem for problem in {*resnext50_32x4d, *resnext101_32x8d}}
GROUP_WIDTHS = (4, 8, 16, 32)


def name_of(width, stride, layout):
    return f"wgrad_rows_gw{width}_f32_{layout.lower()}{'_s2' if stride == 2 else ''}"


@pytest.fixture(autouse=True, scope="module")
def these_kernels_on_the_emulated_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_testing_cpu", _testing_cuda)
        patch.setattr(kernels, "accepting", lambda *problem: [name for name in accepting(*problem) if "rows" in name])
        yield


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", [name for name, p in WIDTHS.items() if p.c == p.k and p.c // p.groups in GROUP_WIDTHS])
def test_widths(case, layout):
    assert kernels.accepting("wgrad", WIDTHS[case], "f32", layout)
    check_exact("wgrad", WIDTHS[case], "f32", layout, threads=3)
    check_rounding("wgrad", WIDTHS[case], "f32", layout, "KRSC")
    check_grad_bias(WIDTHS[case], "f32", layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_network_layers(layer, layout):
    problem, weight = LAYERS[layer], "KCRS" if layout == "NCHW" else "KRSC"
    rng = np.random.default_rng(3)
    first, second, _ = operands("wgrad", problem, lambda shape: rng.integers(-2, 3, shape).astype(float))
    expected = kernels.reference("wgrad", problem, first, second)
    for kernel in kernels.accepting("wgrad", problem, "f32", layout):
        grad_bias = np.full(problem.k, np.nan, np.float32)
        result = launch("wgrad", kernel, problem, "f32", layout, first, second, None, 2, weight, grad_bias=grad_bias)
        np.testing.assert_array_equal(result, expected, err_msg=kernel)
        np.testing.assert_array_equal(grad_bias, first.sum((0, 2, 3)), err_msg=kernel)


# Shapes of which several slices are made, each of several walks where the last is not full.
SLICED = [(13, 16, 20), (24, 7, 7), (6, 40, 58), (17, 14, 9)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("n", "h", "w"), SLICED)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", GROUP_WIDTHS)
def test_same_bits_for_every_schedule(width, stride, n, h, w, layout):
    problem = Problem(n, 32, h, w, 32, groups=32 // width, stride=(stride, stride))
    check_exact("wgrad", problem, "f32", layout)
    first, second, _ = operands("wgrad", problem, np.random.default_rng(4).standard_normal)
    kernel = name_of(width, stride, layout)
    results = []
    for seed in range(1, 4):
        bias = np.full(problem.k, np.nan, np.float32)
        result = launch("wgrad", kernel, problem, "f32", layout, first, second, threads=seed, grad_bias=bias)
        results.append((result.tobytes(), bias.tobytes()))
    assert results == results[:1] * 3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("columns", [6, 7, 14, 29])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", GROUP_WIDTHS)
def test_infinities_reach_only_windows_that_contain_them(width, stride, columns, layout):
    """In either operand, at every corner and edge: padding is absent, not zero, and so are columns past the map."""
    problem = Problem(2, 32, 8, columns, 32, groups=32 // width, stride=(stride, stride))
    rng = np.random.default_rng(5)
    kernel = name_of(width, stride, layout)
    for operand in (0, 1):
        pair = operands("wgrad", problem, lambda shape: rng.uniform(1, 2, shape))[:2]
        height, length = pair[operand].shape[2:]
        for row, column in ((0, 0), (height - 1, length - 1), (0, length - 1), (height - 1, 0), (2, length // 2)):
            for value in (np.inf, np.nan):
                values, reached = [array.copy() for array in pair], [np.ones_like(array) for array in pair]
                values[operand][-1, 1, row, column] = value
                reached[operand][:] = 0
                reached[operand][-1, 1, row, column] = 1
                bias = np.full(problem.k, np.nan, np.float32)
                result = launch("wgrad", kernel, problem, "f32", layout, *values, grad_bias=bias)
                expected = kernels.reference("wgrad", problem, *reached) > 0
                np.testing.assert_array_equal(~np.isfinite(result), expected)
                expected = (np.arange(problem.k) == 1) & (operand == 0)
                np.testing.assert_array_equal(~np.isfinite(bias), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_the_networks_have_a_kernel_of_their_own(layer, layout):
    problem = LAYERS[layer]
    width = problem.c // problem.groups
    expected = name_of(width, problem.stride[0], layout) if width in GROUP_WIDTHS else "wgrad_generic"
    assert accepting("wgrad", problem, "f32", layout)[0] == expected


@pytest.mark.parametrize("misaligned", [0, 1])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", GROUP_WIDTHS)
def test_misaligned_tensors_run_the_generic_kernel(width, stride, misaligned):
    problem = Problem(2, 32, 5, 6, 32, groups=32 // width, stride=(stride, stride))
    *pair, _, expected = kernels.exact_case("wgrad", problem, "f32")
    strides = kernels.weight_strides(problem, "KCRS")
    for layout in LAYOUTS:
        arrays = [kernels.flatten(values, "f32", layout) for values in pair]
        arrays[misaligned] = np.concatenate([np.zeros(1, np.float32), arrays[misaligned], np.zeros(3, np.float32)])[
            1:-3
        ]
        assert [array.ctypes.data % 16 != 0 for array in arrays] == [misaligned == 0, misaligned == 1]
        for seed in (1, 2):
            result = np.full(expected.size, np.nan, np.float32)
            common = kernels.shape_of(problem), "f32", layout, *arrays, result, strides, None, seed
            assert _testing_cuda.wgrad(*common) == "wgrad_generic"
            np.testing.assert_array_equal(result.reshape(expected.shape), expected)
            with pytest.raises(ValueError, match="activations are not 16-byte aligned"):
                _testing_cuda.wgrad(*common, name_of(width, stride, layout))


# Of every way in which NCHW is copied: whole images of which channels are whole vectors or not, bands of rows that
# begin in the middle of a sector or not, runs of rows, strips, and elements.
STREAMED = {
    "whole": (3, 4, 4),
    "four_channels_together": (3, 7, 7),
    "half_sectors": (2, 14, 14),
    "bands": (2, 28, 28),
    "runs": (3, 40, 56),
    "strips": (1, 9, 124),
    "elements": (2, 9, 29),
    "strips_of_elements": (1, 7, 121),
}


@pytest.mark.parametrize("case", STREAMED)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", GROUP_WIDTHS)
def test_ways_to_stream_nchw(width, stride, case):
    n, h, w = STREAMED[case]
    channels = 32 + width  # the last block is not full
    problem = Problem(n, channels, h, w, channels, groups=channels // width, stride=(stride, stride))
    check_exact("wgrad", problem, "f32", "NCHW", threads=2)
    check_grad_bias(problem, "f32", "NCHW")


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    problem=kernels.resnext_problems(),
    layout=st.sampled_from(LAYOUTS),
    weight=st.sampled_from(["KCRS", "KRSC"]),
    seed=st.integers(1, 8),
)
def test_random_problems(problem, layout, weight, seed):
    check_exact("wgrad", problem, "f32", layout, weight, threads=seed)


def probe(layout, name, seed):
    values = np.random.default_rng(6).standard_normal(2 * 32 * 9 * 28).astype(np.float32)
    output = np.zeros(32 * (8 * 9 + 1), np.float32)
    _testing_cuda.probe(f"rows_wgrad/{layout}/{name}", values, output, seed)
    return output


@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize(
    "bug",
    [
        "no_async_wait",
        "async_wait_too_lax",
        "no_barrier_after_row",
        "no_barrier_before_sums",
        "no_barrier_after_sums",
        "no_barrier_before_results",
    ],
)
def test_missing_synchronisation_gives_a_wrong_result(bug, layout, seed):
    correct = probe(layout, "none", seed)
    assert np.isfinite(correct).all()
    np.testing.assert_array_equal(correct, probe(layout, "none", 1))
    assert (probe(layout, bug, seed) != correct).any()
