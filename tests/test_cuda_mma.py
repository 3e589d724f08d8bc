"""The 16-bit tensor-core CUDA kernels, emulated: maps, network layers, schedules, infinities and planted bugs.

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

WIDTHS = {"NHWC": (4, 8, 16, 24, 32, 40, 48, 56, 64), "NCHW": (4, 8, 16, 32, 64)}  # of the groups
REGNET = (24, 40, 48, 56)  # differ from the others in sizes only, so of their tests a part is slow
DTYPES = ("f16", "bf16")
# (layout, pass, stride, width) of every kernel, which has one for either dtype
KERNELS = [
    (layout, pass_name, stride, width)
    for layout, widths in WIDTHS.items()
    for pass_name in ("fprop", "dgrad")
    for stride in (1, 2)
    for width in widths
]
LAYERS = {problem.name: problem for problem in {*resnext50_32x4d, *resnext101_32x8d}}


def with_kernels(nhwc, nchw, usual=()):
    """Rows (*kernel, value) with the layout's values; RegNet's widths are slow but for a usual (width, value)."""
    return [
        pytest.param(
            *kernel, value, marks=[pytest.mark.slow] * (kernel[3] in REGNET and (kernel[3], value) not in usual)
        )
        for kernel in KERNELS
        for value in (nhwc if kernel[0] == "NHWC" else nchw)
    ]


def name_of(layout, pass_name, stride, width, dtype):
    return f"{pass_name}_mma_gw{width}_{dtype}_{layout.lower()}{'_s2' if stride == 2 else ''}"


def a_problem(layout, stride, width, h, w, images=2):
    """With as many groups as leave the last block of channels half empty, if it can be."""
    groups = 3 if width == 4 or (layout == "NHWC" and width % 16 == 8) else 2
    groups *= 2 if layout == "NHWC" and width == 4 else 1  # a pixel is whole vectors of 8 channels
    return Problem(images, width * groups, h, w, width * groups, groups=groups, stride=(stride, stride))


@pytest.fixture(autouse=True, scope="module")
def on_the_emulated_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_testing_cpu", _testing_cuda)
        yield


def check_values(kernel, layout, pass_name, problem, dtype, weight_layout, seed):
    """Exact integers, and the bound of rounding."""
    first, second, bias, expected = kernels.exact_case(pass_name, problem, dtype)
    stored = launch(pass_name, kernel, problem, dtype, layout, first, second, bias, seed, weight_layout)
    np.testing.assert_array_equal(tolerance.decode(stored, dtype), expected)
    first, second, bias, expected, bound = kernels.rounding_case(pass_name, problem, dtype)
    stored = launch(pass_name, kernel, problem, dtype, layout, first, second, bias, seed + 1, weight_layout)
    assert (abs(tolerance.decode(stored, dtype) - expected) <= bound).all()


def check(layout, pass_name, problem, dtype, weight_layout, seed):
    kernel = name_of(layout, pass_name, problem.stride[0], problem.c // problem.groups, dtype)
    assert accepting(pass_name, problem, dtype, layout)[0] == kernel
    check_values(kernel, layout, pass_name, problem, dtype, weight_layout, seed)


MAPS = {
    # Tiles of one image, of two and of four, cut off and not; one row and more than a run; one strip and two.
    "NHWC": [(1, 1), (2, 3), (5, 2), (3, 4), (7, 7), (4, 8), (9, 14), (30, 15), (15, 16), (29, 17), (3, 31), (5, 33)],
    # Copies of 8, 4, 2 and 1 columns, one tile and several, an odd number of them; whole planes, and runs of rows.
    "NCHW": [(1, 1), (2, 3), (5, 2), (3, 4), (7, 7), (4, 8), (9, 14), (30, 15), (15, 16), (29, 17), (3, 56), (57, 24)],
}


def quick_maps(i, layout, width):
    """Kernels in turn have the even or the odd maps quick. bf16 differs from f16 in the type of mma only: two are."""
    if width in REGNET:
        return {"f16": [(9, 14) if width == 24 else (4, 8)], "bf16": []}
    return {"f16": MAPS[layout][i % 2 :: 2], "bf16": [(2, 3) if layout == "NHWC" else (7, 7), (9, 14)]}


MAPS_BY_TYPE = [
    pytest.param(
        *kernel, size, dtype, marks=[pytest.mark.slow] * (size not in quick_maps(i, kernel[0], kernel[3])[dtype])
    )
    for i, kernel in enumerate(KERNELS)
    for size in MAPS[kernel[0]]
    for dtype in DTYPES
]


@pytest.mark.parametrize(("layout", "pass_name", "stride", "width", "size", "dtype"), MAPS_BY_TYPE)
def test_maps(layout, pass_name, stride, width, size, dtype):
    for images in (1, 5):
        problem = a_problem(layout, stride, width, *size, images)
        check(layout, pass_name, problem, dtype, "KCRS" if images == 1 else "KRSC", seed=images)


WALKS = [
    pytest.param(*kernel, rows, marks=[pytest.mark.slow] * ((*kernel, rows) != ("NHWC", "fprop", 1, 64, 2)))
    for kernel in KERNELS
    for rows in (2, 4)
    if kernel[0] == "NHWC" and kernel[3] in (40, 56, 64)
]


@pytest.mark.parametrize(("layout", "pass_name", "stride", "width", "rows"), WALKS)
def test_walks_along_several_images(layout, pass_name, stride, width, rows):
    """Of one column, four side by side; in blocks enough, and of images a number that the walks do not divide."""
    count = 64 if width == 56 else 32
    problem = Problem(70, width * count, rows, 1, width * count, groups=count, stride=(stride, stride))
    first, second, bias, expected = kernels.exact_case(pass_name, problem, "f16")
    kernel = name_of(layout, pass_name, stride, width, "f16")
    stored = launch(pass_name, kernel, problem, "f16", layout, first, second, bias, 1)
    np.testing.assert_array_equal(tolerance.decode(stored, "f16"), expected)


@pytest.mark.parametrize("dtype", ["f16", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("pass_name", ["fprop", "dgrad"])
@pytest.mark.parametrize("layout", WIDTHS)
def test_network_layers(layout, pass_name, layer, dtype):
    problem = LAYERS[layer]
    width, stride = problem.c // problem.groups, problem.stride[0]
    rng = np.random.default_rng(3)
    first, second, bias = operands(pass_name, problem, lambda shape: rng.integers(-2, 3, shape).astype(float))
    expected = tolerance.encode(kernels.reference(pass_name, problem, first, second, bias), dtype)
    kernel = name_of(layout, pass_name, stride, width, dtype)
    assert accepting(pass_name, problem, dtype, layout)[0] == kernel
    stored = launch(pass_name, kernel, problem, dtype, layout, first, second, bias, 2)
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.slow  # test_cuda_tf32.py has the quick one
@pytest.mark.parametrize(("pass_name", "stride"), [("fprop", 1), ("fprop", 2), ("dgrad", 1), ("dgrad", 2)])
def test_teams_that_walk_along_several_images(pass_name, stride):
    """As those of groups of 64 do where there are many blocks: the rows of an image are no whole turns of the ring."""
    problem = a_problem("NHWC", stride, 64, 2 * stride, 512 * stride, images=7)
    rng = np.random.default_rng(3)
    first, second, _ = operands(pass_name, problem, lambda shape: rng.integers(-1, 2, shape).astype(float))
    expected = tolerance.encode(kernels.reference(pass_name, problem, first, second), "f16")
    stored = launch(pass_name, name_of("NHWC", pass_name, stride, 64, "f16"), problem, "f16", "NHWC", first, second)
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize(("layout", "pass_name", "stride", "width", "dtype"), with_kernels(DTYPES, ["f16"]))
def test_same_bits_for_every_schedule_and_batch(layout, pass_name, stride, width, dtype):
    problem = a_problem(layout, stride, width, 10, 17, 3)
    first, second, bias = operands(pass_name, problem, np.random.default_rng(4).standard_normal)
    kernel = name_of(layout, pass_name, stride, width, dtype)
    results = [launch(pass_name, kernel, problem, dtype, layout, first, second, bias, seed) for seed in range(1, 7)]
    assert all(result.tobytes() == results[0].tobytes() for result in results)
    for image in range(3):
        one = launch(pass_name, kernel, problem.with_batch(1), dtype, layout, first[image : image + 1], second, bias)
        assert one.tobytes() == results[0][image : image + 1].tobytes()


@pytest.mark.parametrize(
    ("layout", "pass_name", "stride", "width", "columns"),
    with_kernels([2, 3, 6, 7, 16, 17, 33], [2, 7, 16, 17], usual=[(24, 3)]),
)
def test_infinite_weights_never_meet_padding(layout, pass_name, stride, width, columns):
    problem = a_problem(layout, stride, width, 4, columns, 3)
    rng = np.random.default_rng(5)
    first, second, _ = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape))
    kernel = name_of(layout, pass_name, stride, width, "bf16")
    for r, s in np.ndindex(3, 3):
        weight, reached = second.copy(), np.zeros_like(second)
        weight[-1, 1, r, s], reached[-1, 1, r, s] = np.inf, 1
        expected = kernels.reference(pass_name, problem, np.ones_like(first), reached) > 0
        stored = launch(pass_name, kernel, problem, "bf16", layout, first, weight)
        np.testing.assert_array_equal(~np.isfinite(tolerance.decode(stored, "bf16")), expected)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(
    ("layout", "pass_name", "stride", "width", "columns"), with_kernels([3, 7, 17], [3, 7, 17], usual=[(24, 3)])
)
def test_infinite_pixels_reach_their_windows_and_no_other_group(layout, pass_name, stride, width, columns, value):
    problem = a_problem(layout, stride, width, 4, columns, 3)
    rng = np.random.default_rng(5)
    first, second, _ = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape))
    kernel = name_of(layout, pass_name, stride, width, "f16")
    height, length = first.shape[2:]
    places = [(0, 0), (height - 1, length - 1), (height // 2, length // 2)]
    places += [(1, min(8, length - 1))] if layout == "NCHW" else []  # where the second copy of a row begins
    for channel in (1, width, first.shape[1] - 1):
        for h, w in places:
            source, reached = first.copy(), np.zeros_like(first)
            source[1, channel, h, w], reached[1, channel, h, w] = value, 1
            expected = kernels.reference(pass_name, problem, reached, np.ones_like(second)) > 0
            stored = launch(pass_name, kernel, problem, "f16", layout, source, second)
            np.testing.assert_array_equal(~np.isfinite(tolerance.decode(stored, "f16")), expected)


@pytest.mark.parametrize(("layout", "pass_name", "stride", "width"), KERNELS)
def test_what_the_kernels_refuse(layout, pass_name, stride, width):
    problem = a_problem(layout, stride, width, 5, 6)
    for dtype in DTYPES:
        kernel = name_of(layout, pass_name, stride, width, dtype)

        def reason(problem, dtype=dtype, layout=layout, gpu=80, kernel=kernel):
            return dict(_testing_cuda.explain_on(gpu, pass_name, shape_of(problem), dtype, layout))[kernel]

        def other(kernel=kernel, **changes):
            return reason(Problem(**{**vars(problem), **changes}), kernel=kernel)

        assert reason(problem) == ""
        too_large = (pass_name, stride) == ("fprop", 2) and width in (32, 48)  # for 64 KB of shared memory
        if layout == "NCHW" or (too_large and dtype == "f16"):
            assert reason(problem, gpu=75) == "needs compute capability 8.0"
        else:
            assert reason(problem, gpu=75) == ("bfloat16 needs compute capability 8.0" if dtype == "bf16" else "")
        assert reason(problem, layout="NCHW" if layout == "NHWC" else "NHWC") == f"{layout} only"
        assert reason(problem, "f32") == ("float16 only" if dtype == "f16" else "bfloat16 only")
        assert other(groups=1) == "another group width"
        assert other(stride=(3 - stride, 3 - stride)) == "another stride"
        assert other(padding=(0, 0)) == "padding 1 only"
        assert other(dilation=(2, 2)) == "dilation 1 only"
        assert other(kernel_size=(3, 2)) == "3x3 only"
        if layout == "NCHW":
            assert other(w=10000) == "rows too long for shared memory"
        elif width == 4:
            assert other(c=12, k=12, groups=3) == "the channels of a pixel are no multiple of 16 bytes"


@pytest.mark.parametrize(
    ("layout", "pass_name", "stride", "width"), [kernel for kernel in KERNELS if kernel[0] == "NCHW"]
)
def test_the_longest_rows(layout, pass_name, stride, width):
    """Rows of 96 columns fit into shared memory in any group; in long rows a unit takes more than the usual 48 KB."""
    problems = (a_problem(layout, stride, width, 3, columns, 1) for columns in range(1200, 0, -1))
    longest = next(
        problem for problem in problems if accepting(pass_name, problem, "f16", layout)[0] != f"{pass_name}_generic"
    )
    assert longest.w >= 96
    check(layout, pass_name, longest, "f16", "KCRS", 1)


def one_element_off(array):
    """A copy that does not begin at a multiple of 16 bytes."""
    room = np.zeros(array.size + 16, array.dtype)
    start = room.ctypes.data % 16 // room.itemsize + 1
    moved = room[start : start + array.size]
    moved[:] = array
    assert moved.ctypes.data % 16
    return moved


@pytest.mark.parametrize(
    ("layout", "pass_name", "stride", "width", "misaligned"), with_kernels(["source", "result"], ["source", "result"])
)
def test_misaligned_tensors_run_another_kernel(layout, pass_name, stride, width, misaligned):
    problem, dtype = a_problem(layout, stride, width, 5, 6), "f16"
    first, second, _, _ = kernels.exact_case(pass_name, problem, dtype)
    expected = kernels.flatten(kernels.reference(pass_name, problem, first, second), dtype, layout)
    arrays = {"source": kernels.flatten(first, dtype, layout), "result": np.full(expected.size, np.nan, np.float16)}
    arrays[misaligned] = one_element_off(arrays[misaligned])
    weight = kernels.flatten(second, dtype, "KCRS"), kernels.weight_strides(problem, "KCRS")
    bias = [None] if pass_name == "fprop" else []
    run = getattr(_testing_cuda, pass_name)
    common = shape_of(problem), dtype, layout, arrays["source"], *weight, *bias, arrays["result"]
    kernel = name_of(layout, pass_name, stride, width, dtype)
    with pytest.raises(ValueError, match=rf"'{kernel}' cannot run this problem: activations are not 16-byte aligned"):
        run(*common, 1, kernel)
    assert run(*common, 1) == f"{pass_name}_generic"
    np.testing.assert_array_equal(arrays["result"], expected)


@pytest.mark.parametrize(
    ("layout", "pass_name", "stride", "width", "weight"),
    with_kernels(["misaligned", "RSKC"], ["misaligned", "RSKC"], usual=[(24, "RSKC"), (48, "misaligned")]),
)
def test_weights_that_cannot_be_read_16_bytes_at_a_time(layout, pass_name, stride, width, weight):
    problem, dtype = a_problem(layout, stride, width, 5, 6), "f16"
    first, second, _, _ = kernels.exact_case(pass_name, problem, dtype)
    expected = kernels.flatten(kernels.reference(pass_name, problem, first, second), dtype, layout)
    result = np.zeros_like(expected)
    if weight == "RSKC":
        k, c = second.shape[:2]
        stored, strides = kernels.flatten(second.transpose(2, 3, 0, 1), dtype, "KCRS"), [c, 1, 3 * k * c, k * c]
    else:
        strides = kernels.weight_strides(problem, "KCRS")
        stored = one_element_off(kernels.flatten(second, dtype, "KCRS"))
    source, bias = kernels.flatten(first, dtype, layout), [None] if pass_name == "fprop" else []
    kernel = name_of(layout, pass_name, stride, width, dtype)
    arrays = source, stored, strides, *bias, result
    assert getattr(_testing_cuda, pass_name)(shape_of(problem), dtype, layout, *arrays, 1) == kernel
    np.testing.assert_array_equal(result, expected)


@st.composite
def mma_problems(draw):
    layout, pass_name, stride, width = draw(st.sampled_from(KERNELS))
    h, w, images, count = (draw(st.integers(1, most)) for most in (40, 70 if layout == "NCHW" else 40, 5, 3))
    count *= 2 if layout == "NHWC" and width == 4 else 1  # a pixel is whole vectors of 8 channels
    problem = Problem(images, width * count, h, w, width * count, groups=count, stride=(stride, stride))
    return layout, pass_name, problem


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(
    case=mma_problems(), dtype=st.sampled_from(DTYPES), weight=st.sampled_from(["KCRS", "KRSC"]), seed=st.integers(1, 8)
)
def test_random_problems(case, dtype, weight, seed):
    check(*case, dtype, weight, seed)


# (pixels, channels of a block, width, elements of the result for one of the source)
PROBES = {
    "mma_8": (540, 16, 8, 1),
    "mma_24": (540, 48, 24, 1),
    "mma_32": (540, 32, 32, 1),
    "mma_32_s2": (540, 32, 32, 1),
    "spread_32": (540, 32, 32, 4),
    "padded_32": (540, 24, 32, 32 / 24),
    "mma_4": (540, 16, 4, 1),
    "mma_4_s2": (540, 16, 4, 1),
    "spread_4": (540, 16, 4, 4),
    "nchw_8": (1440, 8, 8, 1),
    "nchw_32": (1440, 32, 32, 1),
    "nchw_16_s2": (1440, 16, 16, 0.25),
    "nchw_spread_4": (1440, 8, 4, 4),
    "nchw_padded_16": (1440, 8, 16, 2),
}


def probe(kernel, bug, seed):
    pixels, channels, width, larger = PROBES[kernel]
    source = pixels * channels
    values = np.random.default_rng(6).standard_normal(source + channels * width * 9).astype(np.float16)
    output = np.zeros(int(source * larger), np.float16)
    _testing_cuda.probe(f"{kernel}/{bug}", values, output, seed)
    return output


BUGS = ["no_barrier_after_weights", "no_async_wait", "async_wait_too_lax"]
BUGS_OF_LAYOUT = {"nchw": [*BUGS, "no_barrier_at_unit", "no_barrier_at_results"], "nhwc": [*BUGS, "no_team_barrier"]}
CAUGHT = [
    pytest.param(kernel, bug, marks=[pytest.mark.slow] * (kernel == "mma_24"))
    for kernel in PROBES
    for bug in BUGS_OF_LAYOUT["nchw" if kernel.startswith("nchw") else "nhwc"]
    # ldmatrix brings the lanes of a warp together: the missing barrier of a team of one is for test_races.py to find
    if (kernel, bug) != ("mma_8", "no_team_barrier")
]


@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize(("kernel", "bug"), CAUGHT)
def test_missing_synchronisation_is_caught(kernel, bug, seed):
    correct = probe(kernel, "none", seed)
    assert np.isfinite(correct).all()
    np.testing.assert_array_equal(correct, probe(kernel, "none", 1))
    try:
        wrong = probe(kernel, bug, seed) != correct
    except RuntimeError:  # threads that have read different things part ways, which the emulation calls an error
        return
    assert wrong.any()
