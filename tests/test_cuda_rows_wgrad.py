"""The row-streaming CUDA wgrad, emulated: network layers, random shapes, schedules, infinities, and planted bugs.

By plain floats ("f32") and tensor cores in three products ("tf32x3"), which tests/test_cuda_kernels.py runs on the edge
cases, with all others, and in one ("tf32", float32 where TF32 is allowed).
"""

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_kernels import _testing_cuda
from resnext_kernels.problems import Problem, resnext50_32x4d, resnext101_32x8d
from tests import test_kernels as kernels
from tests import tolerance
from tests.test_cuda_tf32 import LARGEST, rounded
from tests.test_kernels import LAYOUTS, WIDTHS, accepting, check_exact, check_grad_bias, launch, operands

LAYERS = {problem.name: problem for problem in {*resnext50_32x4d, *resnext101_32x8d}}
GROUP_WIDTHS = (4, 8, 16, 32)
KINDS = [("f32", width) for width in GROUP_WIDTHS]
KINDS += [(kind, width) for kind in ("tf32", "tf32x3") for width in (8, 16, 32) if (kind, width) != ("tf32x3", 8)]


def name_of(kind, width, stride, layout):
    method = "rows" if kind == "f32" else "mma"
    return f"wgrad_{method}_gw{width}_{kind}_{layout.lower()}{'_s2' if stride == 2 else ''}"


def rows_of(quick, *others):
    """Rows for parametrize, of every kind with everything else: of tensor cores all but the `quick` ones are slow."""
    return [
        pytest.param(*kind, *rest, marks=[pytest.mark.slow] * (kind[0] != "f32" and (kind[1], *rest) not in quick))
        for kind in KINDS
        for rest in itertools.product(*others)
    ]


@contextlib.contextmanager
def only(kind):
    """The checks of tests/test_kernels.py for the kernels of one kind. Gives the dtype that they take."""

    def of_kind(*problem):
        return [name for name in accepting(*problem) if f"_{kind}_" in name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "accepting", of_kind)
        yield "tf32" if kind == "tf32" else "f32"


def check_rounding(problem, kind, layout, weight_layout="KCRS"):
    """TF32 is that of rounded factors, in sums of floats."""
    first, second, _, expected, bound = kernels.rounding_case("wgrad", problem, "f32")
    if kind == "tf32":
        expected = kernels.reference("wgrad", problem, rounded(first), rounded(second))
        magnitude = kernels.reference("wgrad", problem, abs(rounded(first)), abs(rounded(second)))
        bound = tolerance.error_bound("f32", expected, magnitude, tolerance.depth("wgrad", problem))
    with only(kind) as dtype:
        for kernel in kernels.accepting("wgrad", problem, dtype, layout):
            stored = launch("wgrad", kernel, problem, dtype, layout, first, second, None, 2, weight_layout)
            assert (abs(stored - expected) <= bound).all(), kernel


@pytest.fixture(autouse=True, scope="module")
def on_the_emulated_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_testing_cpu", _testing_cuda)
        yield


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("case", "kind"),
    [
        pytest.param(name, kind, marks=[pytest.mark.slow] * (kind == "tf32x3"))
        for kind, width in KINDS
        for name, p in WIDTHS.items()
        if p.c == p.k and p.c // p.groups == width and (kind != "tf32x3" or p.n * p.p * p.q >= 16)
    ],
)
def test_widths(case, kind, layout):
    with only(kind) as dtype:
        assert kernels.accepting("wgrad", WIDTHS[case], dtype, layout)
        check_exact("wgrad", WIDTHS[case], dtype, layout, threads=3)
        check_rounding(WIDTHS[case], kind, layout, "KRSC")
        check_grad_bias(WIDTHS[case], dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        pytest.param(name, kind, marks=[pytest.mark.slow] * (kind != "f32"))
        for kind in ("f32", "tf32", "tf32x3")
        for name, p in LAYERS.items()
        if kind == "f32" or (kind, p.c // p.groups) in KINDS
    ],
)
def test_network_layers(layer, kind, layout):
    problem, weight = LAYERS[layer], "KCRS" if layout == "NCHW" else "KRSC"
    rng = np.random.default_rng(3)
    first, second, _ = operands("wgrad", problem, lambda shape: rng.integers(-2, 3, shape).astype(float))
    expected = kernels.reference("wgrad", problem, first, second)
    with only(kind) as dtype:
        for kernel in kernels.accepting("wgrad", problem, dtype, layout):
            bias = np.full(problem.k, np.nan, np.float32)
            result = launch("wgrad", kernel, problem, dtype, layout, first, second, None, 2, weight, grad_bias=bias)
            np.testing.assert_array_equal(result, expected, err_msg=kernel)
            np.testing.assert_array_equal(bias, first.sum((0, 2, 3)), err_msg=kernel)


# Shapes of which several slices are made, each of several walks where the last is not full.
SLICED = [(13, 16, 20), (24, 7, 7), (6, 40, 58), (17, 14, 9)]


QUICK_SLICED = [(8, 1, (13, 16, 20), "NHWC"), (16, 2, (17, 14, 9), "NCHW"), (32, 1, (24, 7, 7), "NCHW")]


@pytest.mark.parametrize(("kind", "width", "stride", "size", "layout"), rows_of(QUICK_SLICED, [1, 2], SLICED, LAYOUTS))
def test_same_bits_for_every_schedule(kind, width, stride, size, layout):
    n, h, w = size
    problem = Problem(n, 32, h, w, 32, groups=32 // width, stride=(stride, stride))
    with only(kind) as dtype:
        check_exact("wgrad", problem, dtype, layout)
    first, second, _ = operands("wgrad", problem, np.random.default_rng(4).standard_normal)
    kernel = name_of(kind, width, stride, layout)
    results = []
    for seed in range(1, 4):
        bias = np.full(problem.k, np.nan, np.float32)
        result = launch("wgrad", kernel, problem, dtype, layout, first, second, threads=seed, grad_bias=bias)
        results.append((result.tobytes(), bias.tobytes()))
    assert results == results[:1] * 3


QUICK_INFINITIES = [(8, 1, 7, "NHWC"), (16, 1, 14, "NCHW"), (16, 2, 29, "NHWC"), (32, 2, 6, "NCHW")]


@pytest.mark.parametrize(
    ("kind", "width", "stride", "columns", "layout"), rows_of(QUICK_INFINITIES, [1, 2], [6, 7, 14, 29], LAYOUTS)
)
def test_infinities_reach_only_windows_that_contain_them(kind, width, stride, columns, layout):
    """In either operand, at every corner and edge: padding is absent, not zero, and so are columns past the map.

    One product rounds the largest float to infinity; the bias is a sum of floats.
    """
    problem = Problem(2, 32, 8, columns, 32, groups=32 // width, stride=(stride, stride))
    rng = np.random.default_rng(5)
    kernel, dtype = name_of(kind, width, stride, layout), "tf32" if kind == "tf32" else "f32"
    for operand in (0, 1):
        pair = operands("wgrad", problem, lambda shape: rng.uniform(1, 2, shape) / 4)[:2]
        height, length = pair[operand].shape[2:]
        for row, column in ((0, 0), (height - 1, length - 1), (0, length - 1), (height - 1, 0), (2, length // 2)):
            for value in (np.inf, np.nan, *[LARGEST] * (kind != "f32")):
                values, reached = [array.copy() for array in pair], [np.ones_like(array) for array in pair]
                values[operand][-1, 1, row, column] = value
                reached[operand][:] = 0
                reached[operand][-1, 1, row, column] = 1
                bias = np.full(problem.k, np.nan, np.float32)
                result = launch("wgrad", kernel, problem, dtype, layout, *values, grad_bias=bias)
                expected = kernels.reference("wgrad", problem, *reached) > 0
                if value == LARGEST and kind == "tf32x3":
                    np.testing.assert_allclose(result, kernels.reference("wgrad", problem, *values), rtol=1e-5)
                else:
                    np.testing.assert_array_equal(~np.isfinite(result), expected)
                    np.testing.assert_array_equal(result[expected], np.nan if np.isnan(value) else np.inf)
                expected = (np.arange(problem.k) == 1) & (operand == 0) & (value != LARGEST)
                np.testing.assert_array_equal(~np.isfinite(bias), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_the_networks_have_a_kernel_of_their_own(layer, layout):
    problem = LAYERS[layer]
    width = problem.c // problem.groups
    for kind in ("f32", "tf32"):
        method = kind if (kind, width) in KINDS else "f32"
        expected = name_of(method, width, problem.stride[0], layout) if width in GROUP_WIDTHS else "wgrad_generic"
        assert next(name for name in accepting("wgrad", problem, kind, layout) if "x3" not in name) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kind", "width"), [kind for kind in KINDS if kind[0] != "f32"])
def test_what_tensor_cores_refuse(kind, width, stride, layout):
    problem = Problem(2, 64, 5, 6, 64, groups=64 // width, stride=(stride, stride))
    name = name_of(kind, width, stride, layout)

    def reason(problem, dtype="tf32", layout=layout, gpu=80):
        return dict(_testing_cuda.explain_on(gpu, "wgrad", kernels.shape_of(problem), dtype, layout))[name]

    assert reason(problem) == reason(problem, gpu=120) == ""
    assert reason(problem, "f32") == ("TF32 is not allowed" if kind == "tf32" else "")
    assert reason(problem, "f16") == "float32 only"
    few = Problem(**{**vars(problem), "n": 1, "h": 3 * stride, "w": 5 * stride})
    assert reason(few) == ("fewer than 16 output pixels" if kind == "tf32x3" else "")
    assert reason(problem, gpu=75) == "needs compute capability 8.0"
    assert reason(problem, layout="NCHW" if layout == "NHWC" else "NHWC") == f"{layout} only"
    assert reason(Problem(**{**vars(problem), "groups": 1})) == "another group width"
    assert reason(Problem(**{**vars(problem), "stride": (3 - stride,) * 2})) == "another stride"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [8, 16, 32])
def test_ties_round_away_from_zero(width, layout):
    """Odd integers of 12 bits lie halfway between two TF32 numbers; the bias is the sum of what is not rounded."""
    problem, rng = Problem(1, 32, 4, 5, 32, groups=32 // width), np.random.default_rng(5)
    first, second, _ = operands("wgrad", problem, lambda shape: rng.integers(2048, 4096, shape))
    first *= rng.choice([-1, 1], first.shape)
    second = rng.integers(-2, 3, second.shape).astype(float)
    expected, bias = kernels.reference("wgrad", problem, rounded(first), second), np.zeros(32, np.float32)
    assert (expected != kernels.reference("wgrad", problem, first, second)).any()
    stored = launch("wgrad", name_of("tf32", width, 1, layout), problem, "tf32", layout, first, second, grad_bias=bias)
    np.testing.assert_array_equal(stored, expected)
    np.testing.assert_array_equal(bias, first.sum((0, 2, 3)))


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
                _testing_cuda.wgrad(*common, name_of("f32", width, stride, layout))


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


QUICK_STREAMED = [(8, 2, "strips"), (16, 1, "half_sectors"), (16, 1, "elements"), (32, 1, "four_channels_together")]


@pytest.mark.parametrize(("kind", "width", "stride", "case"), rows_of(QUICK_STREAMED, [1, 2], STREAMED))
def test_ways_to_stream_nchw(kind, width, stride, case):
    n, h, w = STREAMED[case]
    channels = 32 + width  # the last block is not full
    problem = Problem(n, channels, h, w, channels, groups=channels // width, stride=(stride, stride))
    with only(kind) as dtype:
        check_exact("wgrad", problem, dtype, "NCHW", threads=2)
        check_grad_bias(problem, dtype, "NCHW")


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    problem=kernels.resnext_problems(),
    kind=st.sampled_from(["f32", "tf32", "tf32x3"]),
    layout=st.sampled_from(LAYOUTS),
    weight=st.sampled_from(["KCRS", "KRSC"]),
    seed=st.integers(1, 8),
)
def test_random_problems(problem, kind, layout, weight, seed):
    with only(kind) as dtype:
        check_exact("wgrad", problem, dtype, layout, weight, threads=seed)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [16, 32])
def test_three_products_err_no_more_than_floats(width, stride, layout):
    """Twice as much as plain floats, where products have either sign and where all are positive."""
    problem, rng = Problem(2, 32, 13, 15, 32, groups=32 // width, stride=(stride, stride)), np.random.default_rng(11)
    for draw in (rng.standard_normal, lambda shape: rng.uniform(1, 2, shape)):
        pair = [values.astype(np.float32).astype(float) for values in operands("wgrad", problem, draw)[:2]]
        expected = kernels.reference("wgrad", problem, *pair)
        error, of_floats = (
            launch("wgrad", name_of(kind, width, stride, layout), problem, "f32", layout, *pair) - expected
            for kind in ("tf32x3", "f32")
        )
        assert np.sqrt((error**2).mean()) <= 2 * np.sqrt((of_floats**2).mean())
        assert abs(error).max() <= 2 * abs(of_floats).max()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(2, 9, 31), (40, 7, 7)])  # strips; several slices
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [16, 32])
def test_special_values_do_to_three_products_what_they_do_to_floats(width, stride, size, layout):
    """Sums that are not finite: infinities of either sign that meet one another or zeros, the largest float, NaN."""
    n, h, w = size
    problem, rng = Problem(n, 32, h, w, 32, groups=32 // width, stride=(stride, stride)), np.random.default_rng(9)
    pair = operands("wgrad", problem, lambda shape: rng.uniform(-1, 1, shape) / 64)[:2]
    for operand in (0, 1):
        channels = pair[operand].shape[1]
        for channel in range(0, channels, 3):  # others have finite sums
            image, row, column = (rng.integers(size) for size in np.delete(pair[operand].shape, 1))
            pair[operand][image, channel, row, column] = (np.inf, -np.inf, LARGEST, np.nan)[rng.integers(4)]
        pair[operand][:, 1] = 0
    result, of_floats = (
        launch("wgrad", name_of(kind, width, stride, layout), problem, "f32", layout, *pair)
        for kind in ("tf32x3", "f32")
    )
    assert np.isnan(of_floats).any()
    assert (of_floats == np.inf).any()
    assert (of_floats == -np.inf).any()
    assert (abs(of_floats[np.isfinite(of_floats)]) > LARGEST / 1e4).any()
    finite = np.isfinite(of_floats)
    np.testing.assert_array_equal(result[~finite], of_floats[~finite])
    np.testing.assert_allclose(result[finite], of_floats[finite], rtol=1e-3, atol=1e-5)


def probe(layout, name, seed):
    values = np.random.default_rng(6).standard_normal(2 * 32 * 9 * 28).astype(np.float32)
    output = np.zeros(32 * (8 * 9 + 1), np.float32)
    _testing_cuda.probe(f"rows_wgrad/{layout}/{name}", values, output, seed)
    return output


@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize("layout", ["nhwc", "nchw", "tf32_nhwc", "tf32_nchw"])
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
