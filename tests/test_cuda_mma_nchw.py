"""The NCHW tensor-core CUDA kernels, emulated: maps, network layers, schedules, infinities and planted bugs.

tests/test_cuda_kernels.py runs them on the edge cases, with all others.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_kernels import _testing_cuda
from resnext_kernels.problems import Problem, resnext50_32x4d, resnext101_32x8d
from tests import test_kernels as kernels
from tests import tolerance
from tests.test_kernels import accepting, launch, operands, shape_of

WIDTHS = (4, 8, 16, 32, 64)  # of the groups
DTYPES = ("f16", "bf16")
# (pass, stride, width) of every kernel, which has one for either dtype
KERNELS = [(pass_name, stride, width) for pass_name in ("fprop", "dgrad") for stride in (1, 2) for width in WIDTHS]
LAYERS = {problem.name: problem for problem in {*resnext50_32x4d, *resnext101_32x8d}}


def name_of(pass_name, stride, width, dtype):
    return f"{pass_name}_mma_gw{width}_{dtype}_nchw{'_s2' if stride == 2 else ''}"


def a_problem(width, stride, h, w, images=2):
    """With as many groups as leave the last block of channels half empty, if it can be."""
    groups = 3 if width == 4 else 2
    return Problem(images, width * groups, h, w, width * groups, groups=groups, stride=(stride, stride))


@pytest.fixture(autouse=True, scope="module")
def on_the_emulated_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_testing_cpu", _testing_cuda)
        yield


def check(pass_name, problem, dtype, weight_layout, seed):
    width, stride = problem.c // problem.groups, problem.stride[0]
    kernel = name_of(pass_name, stride, width, dtype)
    assert accepting(pass_name, problem, dtype, "NCHW")[0] == kernel
    first, second, bias, expected = kernels.exact_case(pass_name, problem, dtype)
    stored = launch(pass_name, kernel, problem, dtype, "NCHW", first, second, bias, seed, weight_layout)
    np.testing.assert_array_equal(tolerance.decode(stored, dtype), expected)
    first, second, bias, expected, bound = kernels.rounding_case(pass_name, problem, dtype)
    stored = launch(pass_name, kernel, problem, dtype, "NCHW", first, second, bias, seed + 1, weight_layout)
    assert (abs(tolerance.decode(stored, dtype) - expected) <= bound).all()


# Copies of 8, 4, 2 and 1 columns, one tile and several, an odd number of them; whole planes, and runs of rows.
MAPS = [(1, 1), (2, 3), (5, 2), (3, 4), (7, 7), (4, 8), (9, 14), (30, 15), (15, 16), (29, 17), (3, 56), (57, 24)]


# Kernels in turn have the even or the odd maps quick. bf16 differs from f16 in the type of mma only: two are.
MAPS_BY_TYPE = [
    pytest.param(*kernel, size, dtype, marks=[pytest.mark.slow] * (size not in quick[dtype]))
    for i, kernel in enumerate(KERNELS)
    for quick in [{"f16": MAPS[i % 2 :: 2], "bf16": [(7, 7), (9, 14)]}]
    for size in MAPS
    for dtype in DTYPES
]


@pytest.mark.parametrize(("pass_name", "stride", "width", "size", "dtype"), MAPS_BY_TYPE)
def test_maps(pass_name, stride, width, size, dtype):
    for images in (1, 5) if dtype == "f16" else (5,):  # bf16 differs in the type of mma only
        problem = a_problem(width, stride, *size, images)
        check(pass_name, problem, dtype, "KCRS" if images == 1 else "KRSC", seed=images)


@pytest.mark.parametrize("dtype", ["f16", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("pass_name", ["fprop", "dgrad"])
def test_network_layers(pass_name, layer, dtype):
    problem = LAYERS[layer]
    width, stride = problem.c // problem.groups, problem.stride[0]
    rng = np.random.default_rng(3)
    first, second, bias = operands(pass_name, problem, lambda shape: rng.integers(-2, 3, shape).astype(float))
    expected = tolerance.encode(kernels.reference(pass_name, problem, first, second, bias), dtype)
    kernel = name_of(pass_name, stride, width, dtype)
    assert accepting(pass_name, problem, dtype, "NCHW")[0] == kernel
    stored = launch(pass_name, kernel, problem, dtype, "NCHW", first, second, bias, 2)
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize(("pass_name", "stride", "width"), KERNELS)
def test_same_bits_for_every_schedule_and_batch(pass_name, stride, width):
    problem = a_problem(width, stride, 10, 17, 3)
    first, second, bias = operands(pass_name, problem, np.random.default_rng(4).standard_normal)
    kernel = name_of(pass_name, stride, width, "f16")
    results = [launch(pass_name, kernel, problem, "f16", "NCHW", first, second, bias, seed) for seed in range(1, 7)]
    assert all(result.tobytes() == results[0].tobytes() for result in results)
    for image in range(3):
        one = launch(pass_name, kernel, problem.with_batch(1), "f16", "NCHW", first[image : image + 1], second, bias)
        assert one.tobytes() == results[0][image : image + 1].tobytes()


@pytest.mark.parametrize("columns", [2, 7, 16, 17])
@pytest.mark.parametrize(("pass_name", "stride", "width"), KERNELS)
def test_infinite_weights_never_meet_padding(pass_name, stride, width, columns):
    problem = a_problem(width, stride, 4, columns, 3)
    rng = np.random.default_rng(5)
    first, second, _ = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape))
    kernel = name_of(pass_name, stride, width, "bf16")
    for r, s in np.ndindex(3, 3):
        weight, reached = second.copy(), np.zeros_like(second)
        weight[-1, 1, r, s], reached[-1, 1, r, s] = np.inf, 1
        expected = kernels.reference(pass_name, problem, np.ones_like(first), reached) > 0
        stored = launch(pass_name, kernel, problem, "bf16", "NCHW", first, weight)
        np.testing.assert_array_equal(~np.isfinite(tolerance.decode(stored, "bf16")), expected)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("columns", [3, 7, 17])
@pytest.mark.parametrize(("pass_name", "stride", "width"), KERNELS)
def test_infinite_pixels_reach_their_windows_and_no_other_group(pass_name, stride, width, columns, value):
    problem = a_problem(width, stride, 5, columns, 3)
    rng = np.random.default_rng(5)
    first, second, _ = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape))
    kernel = name_of(pass_name, stride, width, "f16")
    height, length = first.shape[2:]
    for channel in (1, width, first.shape[1] - 1):
        for h, w in ((0, 0), (height - 1, length - 1), (height // 2, length // 2), (1, min(8, length - 1))):
            source, reached = first.copy(), np.zeros_like(first)
            source[1, channel, h, w], reached[1, channel, h, w] = value, 1
            expected = kernels.reference(pass_name, problem, reached, np.ones_like(second)) > 0
            stored = launch(pass_name, kernel, problem, "f16", "NCHW", source, second)
            np.testing.assert_array_equal(~np.isfinite(tolerance.decode(stored, "f16")), expected)


@pytest.mark.parametrize(("pass_name", "stride", "width"), KERNELS)
def test_what_the_kernels_refuse(pass_name, stride, width):
    problem = a_problem(width, stride, 5, 6)
    for dtype in DTYPES:
        kernel = name_of(pass_name, stride, width, dtype)

        def reason(problem, dtype=dtype, layout="NCHW", gpu=80, kernel=kernel):
            return dict(_testing_cuda.explain_on(gpu, pass_name, shape_of(problem), dtype, layout))[kernel]

        assert reason(problem) == ""
        assert reason(problem, gpu=75) == "needs compute capability 8.0"
        assert reason(problem, layout="NHWC") == "NCHW only"
        assert reason(problem, "f32") == ("float16 only" if dtype == "f16" else "bfloat16 only")
        for other, why in (
            ({"groups": 1}, "another group width"),
            ({"stride": (3 - stride, 3 - stride)}, "another stride"),
            ({"padding": (0, 0)}, "padding 1 only"),
            ({"dilation": (2, 2)}, "dilation 1 only"),
            ({"kernel_size": (3, 2)}, "3x3 only"),
            ({"w": 10000}, "rows too long for shared memory"),
        ):
            assert reason(Problem(**{**vars(problem), **other})) == why


@pytest.mark.parametrize(("pass_name", "stride", "width"), KERNELS)
def test_the_longest_rows(pass_name, stride, width):
    """Rows of 96 columns fit into shared memory in any group; in long rows a unit takes more than the usual 48 KB."""
    longest = next(
        w
        for w in range(1200, 0, -1)
        if accepting(pass_name, a_problem(width, stride, 3, w, 1), "f16", "NCHW")[0] != f"{pass_name}_generic"
    )
    assert longest >= 96
    check(pass_name, a_problem(width, stride, 3, longest, 1), "f16", "KCRS", 1)


@pytest.mark.parametrize("misaligned", ["source", "result"])
@pytest.mark.parametrize("pass_name", ["fprop", "dgrad"])
def test_misaligned_tensors_run_another_kernel(pass_name, misaligned):
    problem, dtype = a_problem(8, 1, 5, 6), "f16"
    first, second, _, _ = kernels.exact_case(pass_name, problem, dtype)
    expected = kernels.reference(pass_name, problem, first, second)
    arrays = {"source": kernels.flatten(first, dtype, "NCHW"), "result": np.full(expected.size, np.nan, np.float16)}
    moved = np.zeros(arrays[misaligned].size + 16, np.float16)
    start = moved.ctypes.data % 16 // 2 + 1
    moved = moved[start : start + arrays[misaligned].size]
    moved[:] = arrays[misaligned]
    arrays[misaligned] = moved
    assert moved.ctypes.data % 16
    weight = kernels.flatten(second, dtype, "KCRS"), kernels.weight_strides(problem, "KCRS")
    bias = [None] if pass_name == "fprop" else []
    run = getattr(_testing_cuda, pass_name)
    common = shape_of(problem), dtype, "NCHW", arrays["source"], *weight, *bias, arrays["result"]
    kernel = name_of(pass_name, 1, 8, dtype)
    with pytest.raises(ValueError, match=rf"'{kernel}' cannot run this problem: activations are not 16-byte aligned"):
        run(*common, 1, kernel)
    assert run(*common, 1) == f"{pass_name}_generic"
    np.testing.assert_array_equal(arrays["result"].reshape(expected.shape), expected)


@st.composite
def problems(draw):
    pass_name, stride, width = draw(st.sampled_from(KERNELS))
    h, w, images, count = (draw(st.integers(1, most)) for most in (40, 70, 5, 3))
    return pass_name, Problem(images, width * count, h, w, width * count, groups=count, stride=(stride, stride))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(case=problems(), dtype=st.sampled_from(DTYPES), weight=st.sampled_from(["KCRS", "KRSC"]), seed=st.integers(1, 8))
def test_random_problems(case, dtype, weight, seed):
    check(*case, dtype, weight, seed)


# (kernel, group width, elements of the result for one of the source)
PROBES = {"nchw_8": (8, 1), "nchw_32": (32, 1), "nchw_16_s2": (16, 0.25), "nchw_spread_4": (4, 4)}


def probe(kernel, bug, seed):
    width, larger = PROBES[kernel]
    channels = max(width, 8)
    pixels = 6 * 10 * 24 * channels
    values = np.random.default_rng(6).standard_normal(pixels + channels * width * 9).astype(np.float16)
    output = np.zeros(int(pixels * larger), np.float16)
    _testing_cuda.probe(f"{kernel}/{bug}", values, output, seed)
    return output


BUGS = [
    "no_barrier_after_weights",
    "no_async_wait",
    "async_wait_too_lax",
    "no_barrier_at_unit",
    "no_barrier_at_results",
]


@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("kernel", PROBES)
def test_missing_synchronisation_is_caught(kernel, bug, seed):
    correct = probe(kernel, "none", seed)
    assert np.isfinite(correct).all()
    np.testing.assert_array_equal(correct, probe(kernel, "none", 1))
    try:
        wrong = probe(kernel, bug, seed) != correct
    except RuntimeError:  # threads that have read different things part ways, which the emulation calls an error
        return
    assert wrong.any()
