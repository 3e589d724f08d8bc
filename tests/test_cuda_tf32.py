"""The tensor-core CUDA kernels of floats, emulated: by one product of TF32 numbers ("tf32") and by three ("tf32x3").

In NHWC they are the kernels of test_cuda_mma.py up to the registers, in NCHW they share units, copies and stores with
those there. tests/test_cuda_kernels.py and test_epilogue.py run "tf32x3" with all kernels that may run unasked. The
dtype "tf32" is float32 where TF32 is allowed.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_kernels import _testing_cuda
from resnext_kernels.problems import Problem, resnext50_32x4d, resnext101_32x8d
from tests import test_epilogue as epilogue
from tests import test_kernels as kernels
from tests import tolerance
from tests.test_kernels import accepting, launch, operands, shape_of

ONE, THREE = "tf32", "tf32x3"
# (pass, stride, width, products, layout) of every kernel
KERNELS = [
    (pass_name, stride, width, products, layout)
    for layout in ("NHWC", "NCHW")
    for products in (ONE, THREE)
    for pass_name in ("fprop", "dgrad")
    for stride in (1, 2)
    for width in (8, 16, 32)
    if (stride, width, products) != (2, 8, THREE)  # plain floats are at the speed of memory there
]
LAYERS = {problem.name: problem for problem in {*resnext50_32x4d, *resnext101_32x8d}}
LARGEST = float(np.finfo(np.float32).max)


def name_of(pass_name, stride, width, products, layout):
    return f"{pass_name}_mma_gw{width}_{products}_{layout.lower()}{'_s2' if stride == 2 else ''}"


def a_problem(width, stride, h, w, images=2):
    return Problem(images, 2 * width, h, w, 2 * width, groups=2, stride=(stride, stride))


def rounded(values):
    """To the nearest TF32 numbers, ties away from zero."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x1000) & 0xFFFFE000).view(np.float32).astype(float)


@pytest.fixture(autouse=True, scope="module")
def on_the_emulated_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_testing_cpu", _testing_cuda)
        yield


def run(kernel, problem, first, second, bias=None, seed=1, weight_layout="KCRS"):
    pass_name, _, _, products, layout = kernel
    dtype = "tf32" if products == ONE else "f32"
    return launch(pass_name, name_of(*kernel), problem, dtype, layout, first, second, bias, seed, weight_layout)


def check(kernel, problem, weight_layout="KCRS", seed=1):
    """Exact integers; else one product is that of rounded factors, and three are within the bound of floats."""
    pass_name, _, _, products, _ = kernel
    first, second, bias, expected = kernels.exact_case(pass_name, problem, "f32")
    stored = run(kernel, problem, first, second, bias, seed, weight_layout)
    np.testing.assert_array_equal(stored, expected)
    first, second, bias, expected, bound = kernels.rounding_case(pass_name, problem, "f32")
    stored = run(kernel, problem, first, second, bias, seed + 1, weight_layout)
    if products == ONE:
        factors = rounded(first), rounded(second)
        expected = kernels.reference(pass_name, problem, *factors, bias)
        magnitudes = [None if operand is None else abs(operand) for operand in (*factors, bias)]
        magnitude = kernels.reference(pass_name, problem, *magnitudes)
        bound = tolerance.error_bound("f32", expected, magnitude, tolerance.depth(pass_name, problem, bias is not None))
    assert (abs(stored - expected) <= bound).all()


# Tiles of one image, of two and of four, cut off and not; more than a run; one strip and two. In NCHW copies of 1, 2
# and 4 columns, several walks side by side and one after the other, and, in the last, runs of rows.
MAPS = [(1, 1), (5, 2), (3, 4), (7, 7), (4, 17), (29, 16), (15, 14), (4, 8), (5, 33), (40, 60)]


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=[pytest.mark.slow] * (i > 4)) for i, size in enumerate(MAPS)]
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_maps(kernel, size):
    _, stride, width, *_ = kernel
    for images in (1, 5) if size[1] < 5 else (2,):
        check(kernel, a_problem(width, stride, *size, images), "KCRS" if images == 1 else "KRSC", images)


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS)
def test_network_layers(layer):
    problem = LAYERS[layer]
    width, stride = problem.c // problem.groups, problem.stride[0]
    rng = np.random.default_rng(3)
    for kernel in [kernel for kernel in KERNELS if kernel[1:3] == (stride, width)]:
        first, second, bias = operands(kernel[0], problem, lambda shape: rng.integers(-2, 3, shape).astype(float))
        expected = kernels.reference(kernel[0], problem, first, second, bias)
        np.testing.assert_array_equal(run(kernel, problem, first, second, bias, 2), expected)


@pytest.mark.parametrize(
    "kernel",
    [("fprop", 1, 32, ONE, "NHWC"), *(pytest.param(k, marks=pytest.mark.slow) for k in KERNELS if k[-1] == "NHWC")],
)
def test_teams_that_walk_along_several_images(kernel):
    """As those of groups of 32 do where there are many blocks: the rows of an image are no whole turns of the ring."""
    pass_name, stride, width, *_ = kernel
    problem, rng = a_problem(width, stride, stride, 1024 * stride, images=3), np.random.default_rng(3)
    first, second, _ = operands(pass_name, problem, lambda shape: rng.integers(-2, 3, shape).astype(float))
    stored = run(kernel, problem, first, second)
    np.testing.assert_array_equal(stored, kernels.reference(pass_name, problem, first, second))


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("width", [8, 16, 32])
def test_ties_round_away_from_zero(width, layout):
    """Odd integers of 12 bits lie halfway between two TF32 numbers."""
    problem, rng = a_problem(width, 1, 4, 5), np.random.default_rng(5)
    first, second, _ = operands(
        "fprop", problem, lambda shape: rng.integers(2048, 4096, shape) * rng.choice([-1, 1], shape)
    )
    keep = rng.random(second.shape) < 4 / (9 * width)  # so that float holds the sums
    second = np.where(keep, rng.integers(-2, 3, second.shape), 0)
    expected = kernels.reference("fprop", problem, rounded(first), second)
    assert (expected != kernels.reference("fprop", problem, first, second)).any()
    np.testing.assert_array_equal(run(("fprop", 1, width, ONE, layout), problem, first, second), expected)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_subnormal_pixels_are_cut_off(layout):
    """To what mma reads of them, where normal ones are rounded."""
    problem, bits = a_problem(8, 1, 4, 5, 1), np.uint32([0x1000, 0x2FFF, 0x7FFFFF, 0x807FFFFF])
    first, second = np.zeros(problem.input_shape), np.zeros(problem.weight_shape)
    first[0, 3, 1, :4], second[:, 3, 1, 1] = bits.view(np.float32), 2.0**100
    expected = (bits & 0xFFFFE000).view(np.float32) * 2.0**100
    stored = run(("fprop", 1, 8, ONE, layout), problem, first, second)
    np.testing.assert_array_equal(stored[0, :8, 1, :4], np.tile(expected, (8, 1)))
    assert np.count_nonzero(stored) == 8 * 3


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel[3] == THREE])
def test_three_products_err_no_more_than_floats(kernel):
    """Twice as much as FFMA sums of the same problem would be allowed."""
    pass_name, stride, width, _, layout = kernel
    problem, rng = a_problem(width, stride, 13, 14), np.random.default_rng(11)
    first, second, _ = operands(pass_name, problem, lambda shape: rng.standard_normal(shape).astype(np.float32))
    first, second = first.astype(float), second.astype(float)
    expected = kernels.reference(pass_name, problem, first, second)
    plain = name_of(*kernel).replace("mma", "rows").replace("tf32x3", "f32")
    error = run(kernel, problem, first, second) - expected
    of_floats = launch(pass_name, plain, problem, "f32", layout, first, second) - expected
    assert np.sqrt((error**2).mean()) <= 2 * np.sqrt((of_floats**2).mean())
    assert abs(error).max() <= 2 * abs(of_floats).max()
    assert abs(error.mean()) <= np.sqrt((of_floats**2).mean()) / 4  # what is cut off is no bias


@pytest.mark.parametrize("kernel", KERNELS)
def test_same_bits_for_every_schedule_and_batch(kernel):
    pass_name, stride, width, *_ = kernel
    problem = a_problem(width, stride, 4, 17, 2)
    first, second, bias = operands(pass_name, problem, np.random.default_rng(4).standard_normal)
    results = [run(kernel, problem, first, second, bias, seed) for seed in (1, 2)]
    assert all(result.tobytes() == results[0].tobytes() for result in results)
    one = run(kernel, problem.with_batch(1), first[1:2], second, bias)
    assert one.tobytes() == results[0][1:2].tobytes()


# What a pixel may be, and by which of its results it is to be known: TF32 rounds the largest float to infinity.
SPECIAL = {"inf": np.inf, "-inf": -np.inf, "nan": np.nan, "largest": LARGEST}


@pytest.mark.parametrize("value", SPECIAL)
@pytest.mark.parametrize(
    "columns", [7, pytest.param(3, marks=pytest.mark.slow), pytest.param(17, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_special_pixels_reach_their_windows_and_no_other_group(kernel, columns, value):
    pass_name, stride, width, products, _ = kernel
    value, rng = SPECIAL[value], np.random.default_rng(5)
    problem = a_problem(width, stride, 4, columns, 3)
    first, second, _ = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape) / 4)
    at = (1, width + 1, first.shape[2] // 2, first.shape[3] - 1)
    source, reached = first.copy(), np.zeros_like(first)
    source[at], reached[at] = value, 1
    reached = kernels.reference(pass_name, problem, reached, np.ones_like(second)) > 0
    stored = run(kernel, problem, source, second)
    if value == LARGEST and products == THREE:
        expected = kernels.reference(pass_name, problem, source, second)
        np.testing.assert_allclose(stored, expected, rtol=1e-5)
    else:
        special = np.inf if value == LARGEST else value
        np.testing.assert_array_equal(stored[reached], np.float32(special))
        assert np.isfinite(stored[~reached]).all()


@pytest.mark.parametrize("value", [np.inf, pytest.param(LARGEST, marks=pytest.mark.slow)])
@pytest.mark.parametrize("columns", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 7, 16, 17, 33))])
@pytest.mark.parametrize("kernel", KERNELS)
def test_special_weights_never_meet_padding(kernel, columns, value):
    pass_name, stride, width, products, _ = kernel
    problem = a_problem(width, stride, 3, columns, 2)
    rng = np.random.default_rng(5)
    first, second, _ = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape) / 4)
    for r, s in np.ndindex(3, 3):
        weight, reached = second.copy(), np.zeros_like(second)
        weight[-1, 1, r, s], reached[-1, 1, r, s] = value, 1
        reached = kernels.reference(pass_name, problem, np.ones_like(first), reached) > 0
        stored = run(kernel, problem, first, weight)
        if value == LARGEST and products == THREE:
            np.testing.assert_allclose(stored, kernels.reference(pass_name, problem, first, weight), rtol=1e-5)
        else:
            assert (stored[reached] == np.inf).all()
            assert np.isfinite(stored[~reached]).all()


@pytest.mark.parametrize("weight", ["misaligned", "RSKC"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_that_cannot_be_read_16_bytes_at_a_time(kernel, weight):
    pass_name, stride, width, _, layout = kernel
    problem = a_problem(width, stride, 3, 4)
    first, second, _, _ = kernels.exact_case(pass_name, problem, "f32")
    expected = kernels.reference(pass_name, problem, first, second).transpose(kernels.order(layout))
    result = np.full(expected.size, np.nan, np.float32)
    if weight == "RSKC":
        k, c = second.shape[:2]
        stored, strides = kernels.flatten(second.transpose(2, 3, 0, 1), "f32", "KCRS"), [c, 1, 3 * k * c, k * c]
    else:
        strides = kernels.weight_strides(problem, "KCRS")
        stored = kernels.flatten(np.pad(second.ravel(), (1, 0))[:, None, None, None], "f32", "KCRS")[1:]
        assert stored.ctypes.data % 16 == 4
    source, bias = kernels.flatten(first, "f32", layout), [None] if pass_name == "fprop" else []
    arguments = shape_of(problem), "tf32", layout, source, stored, strides, *bias, result, 1, name_of(*kernel)
    assert getattr(_testing_cuda, pass_name)(*arguments) == name_of(*kernel)
    np.testing.assert_array_equal(result.reshape(expected.shape), expected)


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel[0] == "fprop" and kernel[3] == ONE])
def test_epilogue(kernel):
    """tests/test_epilogue.py has the kernels of three products."""
    _, stride, width, _, layout = kernel
    problem, rng = a_problem(width, stride, 5, 9), np.random.default_rng(7)
    first, second, _, _ = kernels.exact_case("fprop", problem, "f32")
    sums = kernels.reference("fprop", problem, first, second)
    scale, shift, residual = epilogue.channels(problem, lambda shape: rng.integers(-3, 4, shape).astype(float))
    for other, relu in ((None, True), (residual, False)):
        arguments = first, second, scale, shift, other, relu
        stored = epilogue.run("emulated", name_of(*kernel), problem, "tf32", layout, *arguments)
        np.testing.assert_array_equal(stored, epilogue.expected_of(sums, scale, shift, other, relu))


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_the_kernels_refuse(kernel):
    pass_name, stride, width, products, own = kernel
    problem, other = a_problem(width, stride, 5, 6), "NCHW" if own == "NHWC" else "NHWC"

    def reason(problem, dtype="tf32", layout=own, gpu=80):
        return dict(_testing_cuda.explain_on(gpu, pass_name, shape_of(problem), dtype, layout))[name_of(*kernel)]

    assert reason(problem) == ""
    assert reason(problem, "f32") == ("TF32 is not allowed" if products == ONE else "")
    assert reason(problem, "f16") == "float32 only"
    assert reason(problem, gpu=75) == "needs compute capability 8.0"
    assert reason(problem, layout=other) == f"{own} only"
    assert reason(Problem(**{**vars(problem), "groups": 1})) == "another group width"
    assert reason(Problem(**{**vars(problem), "stride": (3 - stride,) * 2})) == "another stride"
    long = Problem(**{**vars(problem), "w": 10000})
    assert reason(long) == ("rows too long for shared memory" if own == "NCHW" else "")


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [4, 8, 16, 32, 64])
@pytest.mark.parametrize("pass_name", ["fprop", "dgrad", "wgrad"])
def test_which_kernel_runs(pass_name, width, stride, layout):
    """One product only where TF32 is allowed; three where sums of plain floats would be slower than memory."""
    problem = a_problem(width, stride, 5, 6)

    def first(gpu, dtype):
        reasons = _testing_cuda.explain_on(gpu, pass_name, shape_of(problem), dtype, layout)
        name = next(name for name, reason in reasons if not reason)
        return name.removeprefix(f"{pass_name}_").removesuffix("_s2").replace(f"gw{width}_", "")

    plain = "generic" if width == 64 else f"rows_f32_{layout.lower()}"
    three = width in (16, 32) if pass_name == "wgrad" else (pass_name, stride, width, THREE, layout) in KERNELS
    for gpu in (75, 80, 86, 89, 90, 100, 120):
        one = gpu >= 80 and width in (8, 16, 32)
        assert first(gpu, "tf32") == (f"mma_tf32_{layout.lower()}" if one else plain)
        assert first(gpu, "f32") == (f"mma_tf32x3_{layout.lower()}" if three and gpu in (80, 90, 100) else plain)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_the_kernel_run_is_the_one_explained(layout):
    problem = a_problem(16, 1, 3, 4)
    first, second, _ = operands("fprop", problem, np.ones)
    for dtype, expected in (("tf32", "fprop_mma_gw16_tf32"), ("f32", "fprop_mma_gw16_tf32x3")):
        expected = f"{expected}_{layout.lower()}"
        assert accepting("fprop", problem, dtype, layout)[0] == expected
        result = np.empty(first.size, np.float32)
        arrays = kernels.flatten(first, dtype, layout), kernels.flatten(second, dtype, "KCRS")
        strides = kernels.weight_strides(problem, "KCRS")
        assert _testing_cuda.fprop(shape_of(problem), dtype, layout, *arrays, strides, None, result, 1) == expected


@st.composite
def tf32_problems(draw):
    kernel = draw(st.sampled_from(KERNELS))
    h, w, images, groups = (draw(st.integers(1, most)) for most in (20, 36, 5, 3))
    _, stride, width, *_ = kernel
    return kernel, Problem(images, width * groups, h, w, width * groups, groups=groups, stride=(stride, stride))


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(case=tf32_problems(), weight=st.sampled_from(["KCRS", "KRSC"]), seed=st.integers(1, 8))
def test_random_problems(case, weight, seed):
    check(*case, weight, seed)


# The kernels with planted bugs: images, rows and columns, and what each leaves out.
PROBES = {"tf32x3_16": (2, 9, 30), "nchw_tf32x3_16": (6, 10, 24)}
BUGS = [
    *(("tf32x3_16", bug) for bug in ("no_barrier_after_weights", "no_async_wait", "async_wait_too_lax")),
    *(("nchw_tf32x3_16", bug) for bug in ("no_barrier_after_weights", "no_async_wait", "async_wait_too_lax")),
    *(("nchw_tf32x3_16", bug) for bug in ("no_barrier_at_unit", "no_barrier_at_results")),
    ("tf32x3_16", "no_team_barrier"),
]
SEEDS = [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 9))]


def probe(kernel, bug, seed, largest=False):
    pixels = int(np.prod(PROBES[kernel])) * 16
    values = np.random.default_rng(6).standard_normal(pixels + 16 * 16 * 9).astype(np.float32)
    if largest:
        values[: pixels : pixels // 6] = LARGEST  # a pixel of each image
    output = np.zeros(pixels, np.float32)
    _testing_cuda.probe(f"{kernel}/{bug}", values, output, seed)
    return output


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kernel", "bug"), BUGS)
def test_missing_synchronisation_is_caught(kernel, bug, seed):
    correct = probe(kernel, "none", seed)
    assert np.isfinite(correct).all()
    np.testing.assert_array_equal(correct, probe(kernel, "none", 1))
    try:
        wrong = probe(kernel, bug, seed) != correct
    except RuntimeError:  # lanes that have read different things part ways, which the emulation calls an error
        return
    assert wrong.any()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_missing_barrier_before_mending_is_caught(seed):
    """Where some sums are not finite by three products: what a warp has stored must have arrived."""
    correct = probe("nchw_tf32x3_16", "mends", seed, largest=True)
    assert not np.isnan(correct).any()
    assert np.isnan(probe("nchw_tf32x3_16", "none", seed, largest=True)).any()
    assert (probe("nchw_tf32x3_16", "no_barrier_before_mending", seed, largest=True) != correct).any()
