"""Every entry of the CPU kernel tables, without torch: exact, rounding, thread, memory and table checks."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_kernels import _testing_cpu
from resnext_kernels.problems import Problem, edge_cases, resnext50_32x4d, resnext101_32x8d, resnext101_64x4d
from tests import tolerance
from tests.passes import DTYPES, LAYOUTS, PASSES, exact_case, operands, reference, rounding_case

GUARD = 64  # elements before and behind each array
LAYERS = {p.name: p for p in (*resnext50_32x4d, *resnext101_32x8d, *resnext101_64x4d)}
# Maps too large for caches, which kernels prefetch and may store past them, or cut into tiles.
LARGE = {
    p.name: p
    for p in (
        resnext50_32x4d[0].with_batch(6),
        resnext50_32x4d[1].with_batch(3),
        Problem(3, 72, 100, 100, 72, groups=3),
        Problem(3, 32, 101, 100, 64, groups=8, stride=(2, 2)),
        Problem(3, 64, 107, 106, 64, groups=4),
    )
}


def _width(width, h, w, stride, outputs=None, groups=None):
    name = (
        f"width_{width}{f'_to_{outputs}' if outputs else ''}{f'_x{groups}' if groups else ''}_{h}x{w}_stride_{stride}"
    )
    groups = groups or max(2 * width, 32) // width
    return name, Problem(2, width * groups, h, w, (outputs or width) * groups, groups=groups, stride=(stride, stride))


# Widths of groups that fill vectors, at sizes that leave every kind of tail; and widths that leave some lanes empty.
WIDTHS = dict(
    [
        _width(width, h, w, stride)
        for width in (4, 8, 16, 32, 64)
        for stride in (1, 2)
        for h, w in ((3, 3), (7, 14), (5, 29), (4, 30), (9, 12), (6, 20))
    ]
    # rows of several vectors of pixels, the last one full and not
    + [_width(width, 3, w, stride) for width in (4, 12) for stride in (1, 2) for w in (31, 33, 47, 64, 65)]
    + [
        _width(width, h, w, stride, outputs, groups)
        for width, outputs, groups in (
            *((width, None, 5) for width in (1, 2, 3, 5, 6, 7, 12, 14)),
            *((width, None, 2) for width in (24, 40, 48, 56, 65)),
            *((width, None, 3) for width in (24, 40)),
            *((1, 4, 3), (4, 2, 6), (3, 8, 3), (8, 3, 3), (4, 12, 3), (12, 4, 3), (18, 5, 2), (5, 18, 2), (24, 40, 2)),
        )
        for stride, h, w in ((1, 4, 19), (2, 5, 13))
    ]
)
# Groups that lie across vectors: as many as fill one, and some more; rows that are shorter and longer than a block.
ACROSS = dict(
    _width(width, 3, w, stride, outputs, 17)
    for width, outputs in (*((width, None) for width in range(1, 13)), (3, 2), (2, 5))
    for stride, w in ((1, 16), (2, 5))
)
# One image that meets more weights than a cache holds, in more and in fewer blocks than there are threads; and pixels
# that share places of the cache, in a row that is longer than a block.
FAR = {
    "weights_of_one_image": Problem(1, 512, 3, 4, 512, groups=8),
    "pixels_4_kb_apart": Problem(1, 1024, 2, 29, 1024, groups=32, stride=(2, 2)),
    "pairs_2_kb_apart": Problem(1, 1024, 2, 33, 1024, groups=64, stride=(2, 2)),
}
CASES = {**edge_cases, **WIDTHS, **ACROSS, **FAR}
# The plain loops need small problems only, and take long for others.
REFERENCE_FLOPS = 1e6
# No direct kernel computes in double.
TYPED_CASES = [(case, dtype) for dtype in DTYPES for case in CASES if dtype != "f64" or case in edge_cases]


def shape_of(problem):
    """The fourteen numbers of ConvShape."""
    n, c, h, w, k, kernel_size, groups, stride, padding, dilation = astuple(problem)
    return [n, c, h, w, k, *kernel_size, groups, *stride, *padding, *dilation]


def accepting(pass_name, problem, dtype, layout):
    """The names of the kernels that accept a problem."""
    reasons = _testing_cpu.explain(pass_name, shape_of(problem), dtype, layout)
    return [name for name, reason in reasons if not reason]


def under_test(pass_name, problem, dtype, layout):
    """The accepting kernels, without the reference if the problem is large."""
    names = accepting(pass_name, problem, dtype, layout)
    small = problem.flops <= REFERENCE_FLOPS
    return [name for name in names if small or len(names) == 1 or "reference" not in name]


def fenced(size, dtype):
    """An array of NaN that starts at a cache line, and a view of its middle part, which does too."""
    length = (size + 2 * GUARD) * tolerance.STORAGE[dtype]().itemsize
    raw = np.full(length + 64, 0xFF, np.uint8)
    start = -raw.ctypes.data % 64
    whole = raw[start : start + length].view(tolerance.STORAGE[dtype])
    return whole, whole[GUARD : GUARD + size]


def order(layout):
    """The axes of an NCHW (or KCRS) array in memory order."""
    return (0, 1, 2, 3) if layout in ("NCHW", "KCRS") else (0, 2, 3, 1)


def flatten(values, dtype, layout):
    """Values (four axes) as stored, flat and between NaN."""
    _, middle = fenced(values.size, dtype)
    middle[:] = tolerance.encode(values.transpose(order(layout)), dtype).ravel()
    return middle


def weight_strides(problem, weight_layout):
    """Strides of k, c, r, s for a dense weight in memory order KCRS or KRSC."""
    axes = order(weight_layout)
    strides, step = [0] * 4, 1
    for axis in reversed(axes):
        strides[axis], step = step, step * problem.weight_shape[axis]
    return strides


def launch(
    pass_name, kernel, problem, dtype, layout, first, second, bias=None, threads=1, weight_layout="KCRS", grad_bias=None
):
    """Run one kernel; returns the result's stored bits in logical axis order, having checked the fences.

    ``first`` and ``second`` are the pass's operands: input and weight, grad_output and weight, grad_output and input.
    ``grad_bias`` is an array for wgrad to fill.
    """
    result_shape = {"fprop": problem.output_shape, "dgrad": problem.input_shape, "wgrad": problem.weight_shape}[
        pass_name
    ]
    result_layout = weight_layout if pass_name == "wgrad" else layout
    whole, result = fenced(int(np.prod(result_shape)), dtype)
    operands = [
        flatten(first, dtype, layout),
        flatten(second, dtype, layout if pass_name == "wgrad" else weight_layout),
    ]
    strides = weight_strides(problem, weight_layout)
    common = (shape_of(problem), dtype, layout, *operands)
    if pass_name == "fprop":
        flat_bias = None if bias is None else tolerance.encode(bias, dtype)
        ran = _testing_cpu.fprop(*common, strides, flat_bias, result, threads, kernel)
    elif pass_name == "dgrad":
        ran = _testing_cpu.dgrad(*common, strides, result, threads, kernel)
    else:
        ran = _testing_cpu.wgrad(*common, result, strides, grad_bias, threads, kernel)
    assert ran == kernel
    for fence in (whole[:GUARD], whole[GUARD + result.size :]):
        assert (fence.view(np.uint8) == 0xFF).all(), "the kernel wrote outside its output"
    axes = order(result_layout)
    return result.reshape([result_shape[axis] for axis in axes]).transpose(np.argsort(axes))


def check_exact(pass_name, problem, dtype, layout, weight_layout="KCRS", threads=1):
    """Every accepting kernel returns exactly the integers expected. bf16 and f16 sums are kept in float."""
    first, second, bias, expected = exact_case(pass_name, problem, dtype)
    for kernel in under_test(pass_name, problem, dtype, layout):
        stored = launch(pass_name, kernel, problem, dtype, layout, first, second, bias, threads, weight_layout)
        np.testing.assert_array_equal(tolerance.decode(stored, dtype), expected, err_msg=kernel)


def check_rounding(pass_name, problem, dtype, layout, weight_layout="KCRS"):
    """Every accepting kernel stays within the bound that rounding allows."""
    first, second, bias, expected, bound = rounding_case(pass_name, problem, dtype)
    for kernel in under_test(pass_name, problem, dtype, layout):
        stored = launch(pass_name, kernel, problem, dtype, layout, first, second, bias, 2, weight_layout)
        error = abs(tolerance.decode(stored, dtype) - expected)
        assert (error <= bound).all(), (
            f"{kernel}: error {np.nanmax(error / np.maximum(bound, 1e-300)):.2f} of the bound"
        )


def check_grad_bias(problem, dtype, layout):
    """Every accepting wgrad kernel also sums grad_output, in the same pass and with the same promises."""
    for case, exact in ((exact_case, True), (rounding_case, False)):
        first, second, *_ = case("wgrad", problem, dtype)
        expected, magnitude = first.sum((0, 2, 3)), abs(first).sum((0, 2, 3))
        bound = tolerance.error_bound(dtype, expected, magnitude, tolerance.depth("wgrad", problem))
        for kernel in accepting("wgrad", problem, dtype, layout):
            stored = []
            for threads in (1, 2, 3):
                whole, grad_bias = fenced(problem.k, dtype)
                weight = launch(
                    "wgrad", kernel, problem, dtype, layout, first, second, threads=threads, grad_bias=grad_bias
                )
                for fence in (whole[:GUARD], whole[GUARD + problem.k :]):
                    assert (fence.view(np.uint8) == 0xFF).all(), "the kernel wrote outside grad_bias"
                stored.append((weight.tobytes(), grad_bias.tobytes()))
            alone = launch("wgrad", kernel, problem, dtype, layout, first, second)
            assert stored == [(alone.tobytes(), stored[0][1])] * 3, kernel
            if exact:
                np.testing.assert_array_equal(grad_bias, tolerance.encode(expected, dtype), err_msg=kernel)
            assert (abs(tolerance.decode(grad_bias, dtype) - expected) <= bound).all(), kernel


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("case", "dtype"), TYPED_CASES)
@pytest.mark.parametrize("pass_name", PASSES)
def test_exact(pass_name, case, dtype, layout):
    check_exact(pass_name, CASES[case], dtype, layout)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pass_name", PASSES)
def test_exact_with_weight_in_krsc_order(pass_name, case, dtype):
    check_exact(pass_name, CASES[case], dtype, "NHWC", "KRSC", threads=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("case", "dtype"), TYPED_CASES)
@pytest.mark.parametrize("pass_name", PASSES)
def test_rounding(pass_name, case, dtype, layout):
    check_rounding(pass_name, CASES[case], dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("case", "dtype"), TYPED_CASES)
def test_grad_bias(case, dtype, layout):
    check_grad_bias(CASES[case], dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("layer", [*LAYERS, *LARGE])
def test_network_layers(layer, pass_name, layout):
    problem = {**LAYERS, **LARGE}[layer]
    rng = np.random.default_rng(3)
    first, second, bias = operands(pass_name, problem, lambda shape: rng.integers(-2, 3, shape).astype(float))
    expected = reference(pass_name, problem, first, second, bias)
    for dtype in ("f32", "bf16", "f16"):  # all sums are exact in float, so 16-bit results are rounded once
        rounded = tolerance.encode(expected, dtype)
        for kernel in under_test(pass_name, problem, dtype, layout):
            stored = launch(pass_name, kernel, problem, dtype, layout, first, second, bias, 2)
            np.testing.assert_array_equal(stored, rounded, err_msg=kernel)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pass_name", PASSES)
def test_same_bits_for_every_thread_count_and_run(pass_name, case, layout):
    problem = CASES[case]
    rng = np.random.default_rng(4)
    first, second, bias = operands(pass_name, problem, rng.standard_normal)
    for dtype in ("f32", "bf16", "f16"):
        for kernel in under_test(pass_name, problem, dtype, layout):
            results = [
                launch(pass_name, kernel, problem, dtype, layout, first, second, bias, threads)
                for threads in (1, 2, 3, 1, 3)
            ]
            assert all(result.tobytes() == results[0].tobytes() for result in results), kernel


def test_16_bit_results_round_to_nearest_even():
    """A 1x1 kernel of weight one and a bias: sums that lie halfway between two bf16 or f16 numbers."""
    problem = Problem(1, 1, 1, 1, 1, kernel_size=(1, 1), padding=(0, 0))
    for dtype, bits in (("bf16", 8), ("f16", 11)):
        ulp, one = 2.0 ** (1 - bits), np.ones((1, 1, 1, 1))
        for value, addend, expected in (
            (1.0, ulp / 2, 1.0),
            (1.0 + ulp, ulp / 2, 1.0 + 2 * ulp),
            (1.0, ulp / 2 + ulp / 64, 1.0 + ulp),
            (-1.0 - ulp, -ulp / 2, -1.0 - 2 * ulp),
        ):
            stored = launch("fprop", "fprop_reference", problem, dtype, "NCHW", value * one, one, np.array([addend]))
            assert tolerance.decode(stored, dtype).item() == expected


@pytest.mark.parametrize("pass_name", PASSES)
def test_tables(pass_name):
    names = _testing_cpu.entries(pass_name)
    assert names[-1] == f"{pass_name}_reference"
    assert len(set(names)) == len(names)
    assert all(name.startswith(f"{pass_name}_") for name in names)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_every_entry_of_this_machine_is_tested(pass_name, layout):
    shape = shape_of(WIDTHS["width_4_3x3_stride_1"])
    reasons = [reason for dtype in DTYPES for reason in _testing_cpu.explain(pass_name, shape, dtype, layout)]
    lacking = {name.rsplit("_", 1)[1] for name, reason in reasons if reason.startswith("this CPU has no")}
    names = {name for name in _testing_cpu.entries(pass_name) if name.rsplit("_", 1)[1] not in lacking}
    if layout == "NHWC":
        names = {name for name in names if "_planes_" not in name}
    assert names == {name for case, dtype in TYPED_CASES for name in accepting(pass_name, CASES[case], dtype, layout)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pass_name", PASSES)
def test_every_problem_has_a_kernel(pass_name, dtype, layout):
    for problem in (*CASES.values(), *LAYERS.values()):
        assert accepting(pass_name, problem, dtype, layout)[-1] == f"{pass_name}_reference"


@pytest.mark.parametrize("pass_name", PASSES)
def test_refused_kernels_say_why(pass_name):
    problem = edge_cases["dilation_2"]
    first, second, bias = operands(pass_name, problem, np.zeros)
    for name, reason in _testing_cpu.explain(pass_name, shape_of(problem), "f32", "NHWC"):
        if reason:
            with pytest.raises(ValueError, match=f"kernel '{name}' cannot run this problem: {reason}"):
                launch(pass_name, name, problem, "f32", "NHWC", first, second, bias)


@pytest.mark.parametrize("pass_name", PASSES)
def test_unknown_kernel_lists_the_known(pass_name):
    problem = edge_cases["odd_map"]
    with pytest.raises(ValueError, match=rf"expected kernel to be one of \[.*{pass_name}_reference\], got 'fastest'"):
        launch(pass_name, "fastest", problem, "f32", "NCHW", *operands(pass_name, problem, np.zeros))


def test_bad_arguments_raise():
    problem = edge_cases["odd_map"]
    good = shape_of(problem)
    with pytest.raises(ValueError, match="groups must divide"):
        _testing_cpu.explain("fprop", [*good[:7], 5, *good[8:]], "f32", "NCHW")
    with pytest.raises(ValueError, match="kernel is larger"):
        _testing_cpu.explain("fprop", [*good[:5], 99, *good[6:]], "f32", "NCHW")
    with pytest.raises(ValueError, match="expected dtype"):
        _testing_cpu.explain("fprop", good, "f8", "NCHW")
    with pytest.raises(ValueError, match="expected layout"):
        _testing_cpu.explain("fprop", good, "f32", "CHWN")
    with pytest.raises(ValueError, match="expected pass"):
        _testing_cpu.explain("backward", good, "f32", "NCHW")
    first, second, _ = operands("dgrad", problem, np.zeros)
    with pytest.raises(ValueError, match="grad_output must have"):
        launch("dgrad", "dgrad_reference", problem, "f32", "NCHW", first[:1], second)
    with pytest.raises(ValueError, match="weight is too small"):
        launch("dgrad", "dgrad_reference", problem, "f32", "NCHW", first, second[:1])


@st.composite
def problems(draw):
    """Any small problem."""
    groups = draw(st.sampled_from([1, 2, 3, 4, 8]))
    kernel_size = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    h, w = (draw(st.integers(max(1, dilation[i] * (kernel_size[i] - 1) + 1 - 2 * padding[i]), 17)) for i in range(2))
    c, k = (groups * draw(st.integers(1, 5)) for _ in range(2))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return Problem(draw(st.integers(1, 3)), c, h, w, k, kernel_size, groups, stride, padding, dilation)


@st.composite
def resnext_problems(draw):
    """Problems for the direct kernels."""
    width = draw(st.one_of(st.sampled_from([4, 8, 16, 32, 64]), st.integers(1, 70)))
    outputs = draw(st.one_of(st.just(width), st.integers(1, 40)))
    groups, stride = draw(st.integers(1, 4)) * max(1, 16 // width), draw(st.integers(1, 2))
    h, w = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    return Problem(
        draw(st.integers(1, 2)), width * groups, h, w, outputs * groups, groups=groups, stride=(stride, stride)
    )


@pytest.mark.parametrize("pass_name", PASSES)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(problem=problems(), dtype=st.sampled_from(DTYPES), layout=st.sampled_from(LAYOUTS))
def test_random_problems(pass_name, problem, dtype, layout):
    check_rounding(pass_name, problem, dtype, layout)


@pytest.mark.parametrize("pass_name", PASSES)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    problem=resnext_problems(),
    dtype=st.sampled_from(["f32", "bf16", "f16"]),
    layout=st.sampled_from(LAYOUTS),
    weight=st.sampled_from(["KCRS", "KRSC"]),
)
def test_random_resnext_problems(pass_name, problem, dtype, layout, weight):
    check_rounding(pass_name, problem, dtype, layout, weight)
