"""The tensor cores' CUDA wgrad, emulated: network layers, random shapes, schedules, infinities, and planted bugs.

tests/test_cuda_kernels.py runs it on the edge cases, with all others.
"""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_kernels import _testing_cuda
from resnext_kernels.problems import Problem, resnext50_32x4d, resnext101_32x8d
from tests import test_kernels as kernels
from tests import tolerance
from tests.test_kernels import WIDTHS, accepting, check_exact, check_grad_bias, check_rounding, launch, operands

DTYPES = ("f16", "bf16")
KINDS = [(width, stride) for stride in (1, 2) for width in (4, 8, 16, 32, 64)]
LAYERS = {p.name: p for p in {*resnext50_32x4d, *resnext101_32x8d} if (p.c // p.groups, p.stride[0]) in KINDS}


def slow_but(quick, rows):
    """Rows for parametrize, for both layouts, whose rows but the `quick` ones are slow."""
    return [
        pytest.param(layout, *row, marks=[pytest.mark.slow] * (not quick(layout, *row)))
        for layout, row in itertools.product(("NHWC", "NCHW"), rows)
    ]


def name_of(width, stride, dtype, layout):
    return f"wgrad_mma_gw{width}_{dtype}_{layout.lower()}{'_s2' if stride == 2 else ''}"


def channels_of(width):
    return 48 if width < 16 else 2 * width  # in part outside the last block


def problem_of(width, stride, n, h, w):
    return Problem(
        n, channels_of(width), h, w, channels_of(width), groups=channels_of(width) // width, stride=(stride, stride)
    )


@pytest.fixture(autouse=True, scope="module")
def these_kernels_on_the_emulated_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_testing_cpu", _testing_cuda)
        patch.setattr(kernels, "accepting", lambda *problem: [name for name in accepting(*problem) if "mma" in name])
        yield


CASES = [name for name, p in WIDTHS.items() if p.c == p.k and (p.c // p.groups, p.stride[0]) in KINDS]


@pytest.mark.parametrize(
    ("layout", "case", "dtype"),
    slow_but(lambda layout, _, dtype: dtype == "f16" or layout == "NHWC", itertools.product(CASES, DTYPES)),
)
def test_widths(layout, case, dtype):
    assert kernels.accepting("wgrad", WIDTHS[case], dtype, layout)
    check_exact("wgrad", WIDTHS[case], dtype, layout, threads=3)
    check_rounding("wgrad", WIDTHS[case], dtype, layout, "KRSC")
    check_grad_bias(WIDTHS[case], dtype, layout)


@pytest.mark.parametrize(
    ("layout", "layer", "dtype"),
    slow_but(
        lambda layout, layer, dtype: layout == "NHWC" or (dtype == "f16" and "_32x4d" in layer),
        itertools.product(LAYERS, DTYPES),
    ),
)
def test_network_layers(layout, layer, dtype):
    problem = LAYERS[layer]
    rng = np.random.default_rng(3)
    first, second, _ = operands("wgrad", problem, lambda shape: rng.integers(-2, 3, shape).astype(float))
    expected = tolerance.encode(kernels.reference("wgrad", problem, first, second), dtype)
    for kernel in kernels.accepting("wgrad", problem, dtype, layout):
        bias = np.full(problem.k, 0xFFFF, np.uint16).view(tolerance.STORAGE[dtype])
        result = launch("wgrad", kernel, problem, dtype, layout, first, second, None, 2, "KRSC", grad_bias=bias)
        np.testing.assert_array_equal(result, expected, err_msg=kernel)
        np.testing.assert_array_equal(bias, tolerance.encode(first.sum((0, 2, 3)), dtype), err_msg=kernel)


# Maps of one, two and four octets and of several strips, several slices and runs, of which the last are not full.
SLICED = [(13, 16, 20), (37, 9, 7), (3, 30, 70), (17, 15, 14)]
QUICK_SLICED = {"NCHW": [((8, 1), (3, 30, 70), "f16"), ((16, 1), (37, 9, 7), "bf16"), ((16, 2), (17, 15, 14), "f16")]}
QUICK_SLICED["NHWC"] = [(kind, SLICED[i % 4], DTYPES[i == 3]) for i, kind in enumerate(KINDS)]


@pytest.mark.parametrize(
    ("layout", "kind", "size", "dtype"),
    slow_but(lambda layout, *row: row in QUICK_SLICED[layout], itertools.product(KINDS, SLICED, DTYPES)),
)
def test_same_bits_for_every_schedule(layout, kind, size, dtype):
    (width, stride), (n, h, w) = kind, size
    problem = problem_of(width, stride, n, stride * h, stride * w)
    check_exact("wgrad", problem, dtype, layout)
    first, second, _ = operands("wgrad", problem, np.random.default_rng(4).standard_normal)
    results = []
    for seed in range(1, 4):
        bias = np.zeros(problem.k, tolerance.STORAGE[dtype])
        result = launch(
            "wgrad",
            name_of(width, stride, dtype, layout),
            problem,
            dtype,
            layout,
            first,
            second,
            threads=seed,
            grad_bias=bias,
        )
        results.append((result.tobytes(), bias.tobytes()))
    assert results == results[:1] * 3


@pytest.mark.parametrize(
    ("layout", "kind", "columns"),
    slow_but(
        lambda layout, kind, columns: (
            layout == "NHWC" or (*kind, columns) in [(8, 1, 7), (4, 1, 37), (16, 1, 29), (16, 2, 29), (8, 2, 7)]
        ),
        itertools.product(KINDS, (7, 16, 29, 37)),
    ),
)
def test_infinities_reach_only_windows_that_contain_them(layout, kind, columns):
    """In either operand, at every corner and edge: padding is absent, not zero, and so are columns past the map."""
    width, stride = kind
    rng = np.random.default_rng(5)
    problem = problem_of(width, stride, 2, 4, stride * columns - (columns == 29) * (stride - 1))
    for operand, value, dtype in ((0, np.inf, "f16"), (1, np.inf, "f16"), (0, np.nan, "bf16"), (1, np.nan, "bf16")):
        pair = operands("wgrad", problem, lambda shape: rng.uniform(1, 2, shape))[:2]
        height, length = pair[operand].shape[2:]
        middle = 18 % length  # the last column of the first of two strips of 37 columns, in grad_output
        for row, column in ((0, 0), (height - 1, length - 1), (0, length - 1), (height - 1, 0), (1, middle)):
            values, reached = [array.copy() for array in pair], [np.ones_like(array) for array in pair]
            values[operand][-1, 1, row, column] = value
            reached[operand][:] = 0
            reached[operand][-1, 1, row, column] = 1
            bias = np.zeros(problem.k, tolerance.STORAGE[dtype])
            name = name_of(width, stride, dtype, layout)
            result = launch("wgrad", name, problem, dtype, layout, *values, grad_bias=bias)
            expected = kernels.reference("wgrad", problem, *reached) > 0
            np.testing.assert_array_equal(~np.isfinite(tolerance.decode(result, dtype)), expected)
            expected = (np.arange(problem.k) == 1) & (operand == 0)
            np.testing.assert_array_equal(~np.isfinite(tolerance.decode(bias, dtype)), expected)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_the_networks_have_a_kernel_of_their_own(layer, dtype, layout):
    problem = LAYERS[layer]
    assert accepting("wgrad", problem, dtype, layout)[0] == name_of(
        problem.c // problem.groups, problem.stride[0], dtype, layout
    )


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(("width", "stride"), KINDS)
def test_other_problems_are_refused(width, stride, layout):
    problem = problem_of(width, stride, 1, 5, 6)
    name = name_of(width, stride, "f16", layout)
    other = {"NHWC": "NCHW", "NCHW": "NHWC"}[layout]
    for changes, dtype, tensors, reason in (
        ({}, "bf16", layout, "float16 only"),
        ({}, "f16", other, f"{layout} only"),
        ({"groups": 1}, "f16", layout, "another group width"),
        ({"kernel_size": (3, 1)}, "f16", layout, "3x3 only"),
        ({"stride": (stride, 3)}, "f16", layout, "another stride"),
        ({"padding": (0, 1)}, "f16", layout, "padding 1 only"),
        ({"dilation": (2, 2)}, "f16", layout, "dilation 1 only"),
        *[({"w": 5000}, "f16", "NCHW", "rows too long for shared memory")] * (layout == "NCHW"),
    ):
        shape = kernels.shape_of(dataclasses.replace(problem, **changes))
        assert (name, reason) in [tuple(row) for row in _testing_cuda.explain("wgrad", shape, dtype, tensors)]


@pytest.mark.parametrize("misaligned", [0, 1])
@pytest.mark.parametrize(
    ("layout", "width", "stride"), slow_but(lambda layout, *kind: layout == "NHWC" or kind in [(8, 1), (16, 2)], KINDS)
)
def test_misaligned_tensors_run_the_generic_kernel(layout, width, stride, misaligned):
    problem, name = problem_of(width, stride, 2, 5, 6), name_of(width, stride, "f16", layout)
    *pair, _, expected = kernels.exact_case("wgrad", problem, "f16")
    arrays = [kernels.flatten(values, "f16", layout) for values in pair]
    arrays[misaligned] = np.concatenate([np.zeros(1, np.float16), arrays[misaligned], np.zeros(7, np.float16)])[1:-7]
    assert [array.ctypes.data % 16 != 0 for array in arrays] == [misaligned == 0, misaligned == 1]
    result = np.full(expected.size, np.nan, np.float16)
    common = kernels.shape_of(problem), "f16", layout, *arrays, result, kernels.weight_strides(problem, "KCRS"), None, 1
    assert _testing_cuda.wgrad(*common) == "wgrad_generic"
    np.testing.assert_array_equal(result.reshape(expected.shape), expected)
    with pytest.raises(ValueError, match="activations are not 16-byte aligned"):
        _testing_cuda.wgrad(*common, name)


@st.composite
def problems(draw):
    width, stride = draw(st.sampled_from(KINDS))
    groups = draw(st.integers(1, max(1, 40 // width)))
    n, h, w = draw(st.integers(0, 9)), draw(st.integers(1, 20)), draw(st.integers(1, 75))
    return Problem(n, width * groups, h, w, width * groups, groups=groups, stride=(stride, stride))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    problem=problems(),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(["NHWC", "NCHW"]),
    weight=st.sampled_from(["KCRS", "KRSC"]),
    seed=st.integers(1, 8),
)
def test_random_problems(problem, dtype, layout, weight, seed):
    check_exact("wgrad", problem, dtype, layout, weight, threads=seed)


BUGS = ["no_async_wait", "async_wait_too_lax", "no_barrier_before_sums", "no_barrier_after_sums"]
BUGS += ["no_barrier_before_results"]


def probe(layout, width, bug, seed):
    channels = max(width, 16)
    values = np.random.default_rng(6).standard_normal(2 * channels * 28 * 30).astype(np.float16)
    output = np.zeros(channels * (width * 9 + 1), np.float16)
    _testing_cuda.probe(f"mma_wgrad/{layout.lower()}/{width}/{bug}", values, output, seed)
    return output


SYNCHRONISATION = [
    *(("NHWC", 8, bug) for bug in BUGS),  # the lanes of a team of one warp meet at every ldmatrix anyway
    *(("NHWC", 32, bug) for bug in (*BUGS, "no_barrier_after_row")),
    *(("NCHW", width, bug) for width in (8, 32) for bug in (*BUGS, "no_barrier_at_chunk")),
]


@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize(("layout", "width", "bug"), SYNCHRONISATION)
def test_missing_synchronisation_gives_a_wrong_result(layout, width, bug, seed):
    correct = probe(layout, width, "none", seed)
    assert np.isfinite(correct).all()
    np.testing.assert_array_equal(correct, probe(layout, width, "none", 1))
    assert (probe(layout, width, bug, seed) != correct).any()
