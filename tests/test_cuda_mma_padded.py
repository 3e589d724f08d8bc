"""The 16-bit tensor-core CUDA kernels of groups that are padded, emulated: C/groups and K/groups up to 64.

tests/test_cuda_mma.py has the kernels of groups of one width, of whose code these are.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_kernels import _testing_cuda
from resnext_kernels.problems import Problem
from tests import test_kernels as kernels
from tests import tolerance
from tests.test_cuda_mma import check_values, one_element_off
from tests.test_epilogue import accepting as accepting_fused
from tests.test_epilogue import expected_of
from tests.test_epilogue import run as run_fused
from tests.test_kernels import accepting, launch, operands, shape_of

DTYPES = ("f16", "bf16")
# C/groups and K/groups: more, fewer, and as many where there is no kernel of that width. In NHWC vectors of 8 channels
# that are there, that are not and that are half there, in one step of 16 channels or in several, of which some are not.
WIDTHS = {
    "NHWC": [
        *((8, 16), (16, 8), (4, 8), (12, 4), (12, 12), (16, 32), (32, 16), (20, 28)),
        (64, 32),
        (24, 64),
        (4, 60),
        (52, 40),
    ],
    "NCHW": [(8, 16), (16, 8), (5, 7), (12, 12), (16, 32), (24, 24), (29, 4), (64, 32), (7, 61), (48, 48)],
}
PASSES = [(pass_name, stride) for pass_name in ("fprop", "dgrad") for stride in (1, 2)]
KERNELS = [(layout, *which, *widths) for layout in WIDTHS for which in PASSES for widths in WIDTHS[layout]]
# One of each kernel, which has it for one source width that is whole vectors and one that is not.
FEW = [(layout, *which, *widths) for layout in WIDTHS for which in PASSES for widths in ((8, 12), (16, 24), (40, 20))]
FEW_FPROPS = [(layout, *which) for layout, pass_name, *which in FEW if pass_name == "fprop"]


def name_of(layout, pass_name, stride, c, k, dtype):
    width = next(width for width in (16, 32, 64) if max(c, k) <= width)
    return f"{pass_name}_mma_padded{width}_{dtype}_{layout.lower()}{'_s2' if stride == 2 else ''}"


def a_problem(stride, c, k, h, w, images=2, groups=3):
    return Problem(images, c * groups, h, w, k * groups, groups=groups, stride=(stride, stride))


@pytest.fixture(autouse=True, scope="module")
def on_the_emulated_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_testing_cpu", _testing_cuda)
        yield


def check(layout, pass_name, problem, dtype, weight_layout, seed):
    widths = problem.c // problem.groups, problem.k // problem.groups
    kernel = name_of(layout, pass_name, problem.stride[0], *widths, dtype)
    assert accepting(pass_name, problem, dtype, layout) == [kernel, f"{pass_name}_generic"]
    check_values(kernel, layout, pass_name, problem, dtype, weight_layout, seed)


# Tiles of one image, of two and of four, cut off and not; one row and more than a run; one strip and two.
MAPS = [(1, 1), (3, 3), (7, 7), (4, 8), (9, 14), (30, 15), (15, 16), (3, 33)]


def quick_maps(i, c, k):
    """Kernels in turn have one of the maps quick, large ones only in small groups; bf16 differs in the type of mma."""
    return MAPS[i % 8] if max(c, k) <= 16 else MAPS[i % 5]


@pytest.mark.parametrize(
    ("layout", "pass_name", "stride", "c", "k", "size", "dtype"),
    [
        pytest.param(
            *kernel, size, dtype, marks=[pytest.mark.slow] * (size != quick or (i % 4 > 0 and dtype == "bf16"))
        )
        for i, kernel in enumerate(KERNELS)
        for quick in [quick_maps(i, *kernel[3:])]
        for size in MAPS
        for dtype in DTYPES
    ],
)
def test_maps(layout, pass_name, stride, c, k, size, dtype):
    for images in (1, 5):
        problem = a_problem(stride, c, k, *size, images)
        check(layout, pass_name, problem, dtype, "KCRS" if images == 1 else "KRSC", seed=images)


@pytest.mark.parametrize(("layout", "stride", "c", "k"), FEW_FPROPS)
def test_fused(layout, stride, c, k):
    problem, rng = a_problem(stride, c, k, 5, 9), np.random.default_rng(7)
    first, second, _, _ = kernels.exact_case("fprop", problem, "f16")
    sums = tolerance.fprop(problem, first, second)
    scale, shift, residual = (
        rng.integers(-3, 4, shape).astype(float) for shape in ((problem.k,), (problem.k,), problem.output_shape)
    )
    kernel = name_of(layout, "fprop", stride, c, k, "f16")
    assert accepting_fused("emulated", problem, "f16", layout)[0] == kernel
    for other in (None, residual):
        for relu in (True, False):
            stored = run_fused(
                "emulated", kernel, problem, "f16", layout, first, second, scale, shift, other, relu, order="KRSC"
            )
            expected = expected_of(sums, scale, shift, other, relu)
            np.testing.assert_array_equal(tolerance.decode(stored, "f16"), expected)


@pytest.mark.parametrize(
    ("layout", "pass_name", "stride", "c", "k"),
    [kernel for kernel in FEW if kernel[0] == "NHWC" and max(kernel[3:]) > 32],
)
def test_walks_along_several_images(layout, pass_name, stride, c, k):
    """Of one column, four side by side; in blocks enough, and of images a number that the walks do not divide."""
    problem = a_problem(stride, c, k, 2, 1, images=70, groups=32)
    first, second, bias, expected = kernels.exact_case(pass_name, problem, "f16")
    kernel = name_of(layout, pass_name, stride, c, k, "f16")
    stored = launch(pass_name, kernel, problem, "f16", layout, first, second, bias, 1)
    np.testing.assert_array_equal(tolerance.decode(stored, "f16"), expected)


@pytest.mark.parametrize(("layout", "pass_name", "stride", "c", "k"), FEW)
def test_same_bits_for_every_schedule_and_batch(layout, pass_name, stride, c, k):
    problem = a_problem(stride, c, k, 10, 17, 3)
    first, second, bias = operands(pass_name, problem, np.random.default_rng(4).standard_normal)
    kernel = name_of(layout, pass_name, stride, c, k, "bf16")
    results = [launch(pass_name, kernel, problem, "bf16", layout, first, second, bias, seed) for seed in (1, 2, 3)]
    assert all(result.tobytes() == results[0].tobytes() for result in results)
    for image in (0, 2):
        one = launch(pass_name, kernel, problem.with_batch(1), "bf16", layout, first[image : image + 1], second, bias)
        assert one.tobytes() == results[0][image : image + 1].tobytes()


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(("layout", "pass_name", "stride", "c", "k"), KERNELS)
def test_infinite_pixels_reach_their_windows_and_no_other_group(layout, pass_name, stride, c, k, value):
    """One of the last channel of the group in the middle; then all of its neighbours."""
    problem = a_problem(stride, c, k, 4, 7)
    rng = np.random.default_rng(5)
    first, second, _ = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape))
    kernel = name_of(layout, pass_name, stride, c, k, "f16")
    width = first.shape[1] // 3
    one, neighbours = np.zeros_like(first), np.zeros_like(first)
    one[1, 2 * width - 1, 1, 2] = 1
    neighbours[:, :width] = neighbours[:, 2 * width :] = 1
    for reached in (one, neighbours):
        source = np.where(reached > 0, value, first)
        expected = kernels.reference(pass_name, problem, reached, np.ones_like(second)) > 0
        assert not expected.all()
        stored = launch(pass_name, kernel, problem, "f16", layout, source, second)
        np.testing.assert_array_equal(~np.isfinite(tolerance.decode(stored, "f16")), expected)


@pytest.mark.parametrize("columns", [3, 17])
@pytest.mark.parametrize(("layout", "pass_name", "stride", "c", "k"), FEW)
def test_infinite_weights_never_meet_padding(layout, pass_name, stride, c, k, columns):
    """Neither that of the map nor that of the group."""
    problem = a_problem(stride, c, k, 3, columns)
    rng = np.random.default_rng(5)
    first, second, bias = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape))
    kernel = name_of(layout, pass_name, stride, c, k, "bf16")
    # The last source channel of the group in the middle by every tap, and by a tap at a corner one that is where the
    # next step, if there is one, may have no channel.
    width = c if pass_name == "fprop" else k
    for r, s, source in [(*tap, width - 1) for tap in np.ndindex(3, 3)] + [(0, 0, max(width - 9, 0))]:
        place = (k, source, r, s) if pass_name == "fprop" else (k + source, c - 1, r, s)
        weight, reached = second.copy(), np.zeros_like(second)
        weight[place], reached[place] = np.inf, 1
        expected = kernels.reference(pass_name, problem, np.ones_like(first), reached) > 0
        stored = tolerance.decode(launch(pass_name, kernel, problem, "bf16", layout, first, weight, bias), "bf16")
        np.testing.assert_array_equal(np.isinf(stored), expected)  # NaN would be a zero that it has met
        assert not np.isnan(stored).any()
        sums = kernels.reference(pass_name, problem, first, np.where(np.isinf(weight), 0, weight), bias)
        assert (abs(stored - sums)[~expected] <= 0.01 * sums[~expected]).all()


@pytest.mark.parametrize(("layout", "stride", "c", "k"), FEW_FPROPS)
def test_infinite_weights_never_meet_padding_where_it_is_fused(layout, stride, c, k):
    problem = a_problem(stride, c, k, 3, 7)
    rng = np.random.default_rng(5)
    first, second, scale, shift, residual = (
        rng.uniform(1, 2, shape)
        for shape in (problem.input_shape, problem.weight_shape, problem.k, problem.k, problem.output_shape)
    )
    reached = np.zeros_like(second)
    second[k, 1, 0, 0], reached[k, 1, 0, 0] = np.inf, 1
    expected = tolerance.fprop(problem, np.ones_like(first), reached) > 0
    kernel = name_of(layout, "fprop", stride, c, k, "bf16")
    stored = run_fused("emulated", kernel, problem, "bf16", layout, first, second, scale, shift, residual, True)
    stored = tolerance.decode(stored, "bf16")
    np.testing.assert_array_equal(~np.isfinite(stored), expected)
    sums = tolerance.fprop(problem, first, np.where(np.isinf(second), 0, second))
    values = expected_of(sums, scale, shift, residual, True)
    assert (abs(stored - values)[~expected] <= 0.01 * values[~expected]).all()


@pytest.mark.parametrize("misaligned", ["source", "weight", "RSKC"])
@pytest.mark.parametrize(("layout", "pass_name", "stride", "c", "k"), FEW)
def test_tensors_that_cannot_be_read_16_bytes_at_a_time(layout, pass_name, stride, c, k, misaligned):
    problem, dtype = a_problem(stride, c, k, 5, 6), "f16"
    first, second, _, _ = kernels.exact_case(pass_name, problem, dtype)
    expected = kernels.flatten(kernels.reference(pass_name, problem, first, second), dtype, layout)
    source, result = kernels.flatten(first, dtype, layout), np.zeros_like(expected)
    stored, strides = kernels.flatten(second, dtype, "KCRS"), kernels.weight_strides(problem, "KCRS")
    if misaligned == "source":
        source = one_element_off(source)
    elif misaligned == "weight":
        stored = one_element_off(stored)
    else:
        results, sources = second.shape[:2]
        stored = kernels.flatten(second.transpose(2, 3, 0, 1), dtype, "KCRS")
        strides = [sources, 1, 3 * results * sources, results * sources]
    arrays = source, stored, strides, *([None] if pass_name == "fprop" else []), result
    kernel = f"{pass_name}_generic" if misaligned == "source" else name_of(layout, pass_name, stride, c, k, dtype)
    assert getattr(_testing_cuda, pass_name)(shape_of(problem), dtype, layout, *arrays, 1) == kernel
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("layout", "pass_name", "stride", "c", "k"), FEW)
def test_what_the_kernels_refuse(layout, pass_name, stride, c, k, dtype):
    problem, kernel = a_problem(stride, c, k, 5, 6), name_of(layout, pass_name, stride, c, k, dtype)

    def reason(dtype=dtype, layout=layout, gpu=80, **changes):
        shape = shape_of(Problem(**{**vars(problem), **changes}))
        return dict(_testing_cuda.explain_on(gpu, pass_name, shape, dtype, layout))[kernel]

    def widths(c, k):
        return reason(c=3 * c, k=3 * k)

    assert reason() == ""
    assert reason(gpu=75) == "needs compute capability 8.0"
    assert reason(layout="NCHW" if layout == "NHWC" else "NHWC") == f"{layout} only"
    assert reason("f32") == ("float16 only" if dtype == "f16" else "bfloat16 only")
    assert reason(stride=(3 - stride, 3 - stride)) == "another stride"
    assert reason(padding=(0, 0)) == "padding 1 only"
    assert reason(dilation=(2, 2)) == "dilation 1 only"
    assert reason(kernel_size=(3, 2)) == "3x3 only"
    if layout == "NHWC":
        assert widths(6, 8) == widths(8, 6) == "group widths that are no multiples of 4"
    else:
        assert widths(3, k) == widths(c, 3) == "groups of less than 4 channels"
        assert reason(w=10000) == "rows too long for shared memory"
    assert widths(c, 68) == widths(68, k) == "other group widths"
    width = next(width for width in (16, 32, 64) if max(c, k) <= width)
    assert widths(width, width) == "groups of this width have a kernel of their own"
    assert widths(width - 4, width - 4) == ""
    assert widths(width + 4, 4) == "other group widths"
    assert widths(4, width // 2) == ("" if width == 16 else "other group widths")


OWN = {"NHWC": (8, 16, 24, 32, 40, 48, 56, 64), "NCHW": (4, 8, 16, 32, 64)}  # widths that have a kernel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", WIDTHS)
@pytest.mark.parametrize(("pass_name", "stride"), PASSES)
def test_which_kernel_runs(pass_name, stride, layout, dtype):
    """One of the group's own width if there is one, one that pads if it can, else the generic one."""
    for c in range(2, 72, 2):
        for k in (c, 3, 4, 8, 14, 32, 64, 66):
            problem = a_problem(stride, c, k, 4, 4)
            pads = min(c, k) >= 4 and max(c, k) <= 64 and (layout == "NCHW" or c % 4 == k % 4 == 0)
            expected = name_of(layout, pass_name, stride, c, k, dtype) if pads else f"{pass_name}_generic"
            if c == k and c in OWN[layout]:
                expected = f"{pass_name}_mma_gw{c}_{dtype}_{layout.lower()}{'_s2' if stride == 2 else ''}"
            assert accepting(pass_name, problem, dtype, layout)[0] == expected
    # Groups of 4 have a kernel in NHWC where pixels are whole vectors.
    assert accepting(pass_name, a_problem(stride, 4, 4, 4, 4, groups=4), dtype, layout)[0].startswith(
        f"{pass_name}_mma_gw4"
    )


@st.composite
def padded_problems(draw):
    layout, (pass_name, stride) = draw(st.sampled_from(list(WIDTHS))), draw(st.sampled_from(PASSES))
    unit = 4 if layout == "NHWC" else 1
    c, k = (unit * draw(st.integers(4 // unit, 64 // unit)) for _ in range(2))
    c -= 4 if c == k and (c % 8 == 0 or c in OWN[layout]) and c > 4 else 0
    k += 8 if c == k == 4 else 0
    h, w, images, groups = (draw(st.integers(1, most)) for most in (20, 40, 5, 3))
    return layout, pass_name, a_problem(stride, c, k, h, w, images, groups)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(case=padded_problems(), dtype=st.sampled_from(DTYPES), weight=st.sampled_from(["KCRS", "KRSC"]))
def test_random_problems(case, dtype, weight):
    check(*case, dtype, weight, 3)
