"""The row-streaming CUDA kernels in NCHW, emulated: network layers, random shapes, schedules, and planted bugs.

tests/test_cuda_kernels.py runs them on the edge cases, with all others.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_kernels import _testing_cuda
from resnext_kernels.problems import Problem, resnext50_32x4d, resnext101_32x8d
from tests import test_kernels as kernels
from tests.test_kernels import WIDTHS, accepting, check_exact, check_rounding, launch, operands

PASSES = ("fprop", "dgrad")
LAYERS = {problem.name: problem for problem in {*resnext50_32x4d, *resnext101_32x8d}}
# (pass, stride, suffix of the kernels' names)
KINDS = [("fprop", 1, ""), ("dgrad", 1, ""), ("fprop", 2, "_s2"), ("dgrad", 2, "_s2")]
# Rows that are whole vectors or not, whole tiles or not; whole planes; small maps several to a warp; runs; strips.
MAPS = [
    (1, 1),
    (1, 7),
    (7, 7),
    (14, 14),
    (5, 14),
    (16, 14),
    (21, 7),
    (8, 8),
    (13, 9),
    (28, 28),
    (30, 20),
    (3, 130),
    (2, 243),
]


@pytest.fixture(autouse=True, scope="module")
def on_the_emulated_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_testing_cpu", _testing_cuda)
        yield


def check_rows(pass_name, kernel, problem, seed=2):
    """One kernel returns exactly the integers expected."""
    rng = np.random.default_rng(3)
    first, second, bias = operands(pass_name, problem, lambda shape: rng.integers(-2, 3, shape).astype(float))
    result = launch(pass_name, kernel, problem, "f32", "NCHW", first, second, bias, seed)
    np.testing.assert_array_equal(result, kernels.reference(pass_name, problem, first, second, bias))


@pytest.mark.parametrize("case", WIDTHS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_widths(pass_name, case):
    check_exact(pass_name, WIDTHS[case], "f32", "NCHW", threads=3)
    check_rounding(pass_name, WIDTHS[case], "f32", "NCHW", "KRSC")


@pytest.mark.parametrize("width", [4, 8, 16, 32])
@pytest.mark.parametrize("size", MAPS, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(("pass_name", "stride", "suffix"), KINDS)
def test_maps(pass_name, stride, suffix, size, width):
    for images in (1, 11) if np.prod(size) < 100 else (2,):
        problem = Problem(images, 2 * width, *size, 2 * width, groups=2, stride=(stride, stride))
        check_rows(pass_name, f"{pass_name}_rows_gw{width}_f32_nchw{suffix}", problem, images)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_network_layers_run_their_own_kernel(pass_name, layer):
    problem = LAYERS[layer]
    width, stride = problem.c // problem.groups, problem.stride[0]
    without_tensor_cores = [name for name in accepting(pass_name, problem, "f32", "NCHW") if "mma" not in name]
    kernel = without_tensor_cores[0]  # which kernels go before it, and where, is for test_cuda_tf32.py
    if width > 32:
        assert "rows" not in kernel
        return
    assert (pass_name, stride, kernel.removeprefix(f"{pass_name}_rows_gw{width}_f32_nchw")) in KINDS
    check_rows(pass_name, kernel, problem)


@pytest.mark.parametrize("width", [4, 8, 16, 32])
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (10, 17), (20, 28)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize(("pass_name", "stride", "suffix"), KINDS)
def test_same_bits_for_every_schedule_and_batch(pass_name, stride, suffix, size, width):
    """Images share a block or not, depending on how many there are."""
    problem = Problem(5, 64, *size, 64, groups=64 // width, stride=(stride, stride))
    first, second, bias = operands(pass_name, problem, np.random.default_rng(4).standard_normal)

    def run(problem, first, seed):
        kernel = f"{pass_name}_rows_gw{width}_f32_nchw{suffix}"
        return launch(pass_name, kernel, problem, "f32", "NCHW", first, second, bias, seed)

    result = run(problem, first, 1)
    for seed in (2, 3):
        assert run(problem, first, seed).tobytes() == result.tobytes()
    assert run(problem.with_batch(1), first[2:3], 1).tobytes() == result[2:3].tobytes()


@pytest.mark.parametrize("width", [4, 8, 16, 32])
@pytest.mark.parametrize("columns", [6, 7, 13, 14, 28, 29])
@pytest.mark.parametrize(("pass_name", "stride", "suffix"), KINDS)
def test_infinite_weights_never_meet_padding(pass_name, stride, suffix, columns, width):
    problem = Problem(2, 32, 8 - stride % 2, columns, 32, groups=32 // width, stride=(stride, stride))
    rng = np.random.default_rng(5)
    first, second, _ = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape))
    kernel = f"{pass_name}_rows_gw{width}_f32_nchw{suffix}"
    for r, s in np.ndindex(3, 3):
        weight, reached = second.copy(), np.zeros_like(second)
        weight[-1, 1, r, s], reached[-1, 1, r, s] = np.inf, 1
        expected = kernels.reference(pass_name, problem, np.ones_like(first), reached) > 0
        result = launch(pass_name, kernel, problem, "f32", "NCHW", first, weight)
        np.testing.assert_array_equal(~np.isfinite(result), expected)


@pytest.mark.parametrize("width", [4, 8, 16, 32])
@pytest.mark.parametrize(("pass_name", "stride", "suffix"), KINDS)
def test_infinite_pixels_stay_where_they_belong(pass_name, stride, suffix, width):
    """A zero weight makes a NaN of one, so only pixels outside of a tile's reach are without effect."""
    kernel, rng = f"{pass_name}_rows_gw{width}_f32_nchw{suffix}", np.random.default_rng(6)
    for size in ((7, 7), (14, 14), (9, 20), (28, 28)):
        problem = Problem(2, 32, *size, 32, groups=32 // width, stride=(stride, stride))
        first, second, _ = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape))
        second[:] = 0
        for place in ((0, 0, 0), (1, -1, -1), (0, -1, 0), (1, 2, -1)):
            source, reached = first.copy(), np.zeros_like(first)
            source[place[0], 5, place[1], place[2]], reached[place[0], 5, place[1], place[2]] = np.inf, 1
            expected = kernels.reference(pass_name, problem, reached, np.ones_like(second)) > 0
            result = launch(pass_name, kernel, problem, "f32", "NCHW", source, second)
            np.testing.assert_array_equal(np.isnan(result), expected)


@pytest.mark.parametrize("width", [4, 8, 16, 32])
@pytest.mark.parametrize(("pass_name", "stride", "suffix"), KINDS)
def test_misaligned_tensors_are_refused(pass_name, stride, suffix, width):
    problem = Problem(1, 32, 5, 6, 32, groups=32 // width, stride=(stride, stride))
    first, second, _, expected = kernels.exact_case(pass_name, problem, "f32")
    source = np.full(first.size + 4, np.nan, np.float32)[1:-3]
    source[:] = kernels.flatten(first, "f32", "NCHW")
    assert source.ctypes.data % 16
    result = np.full(expected.size, np.nan, np.float32)
    weight = kernels.flatten(second, "f32", "KCRS"), kernels.weight_strides(problem, "KCRS")
    bias = [None] if pass_name == "fprop" else []
    arguments = kernels.shape_of(problem), "f32", "NCHW", source, *weight, *bias, result, 1
    kernel = f"{pass_name}_rows_gw{width}_f32_nchw{suffix}"
    with pytest.raises(ValueError, match=rf"'{kernel}' cannot run this problem: activations are not 16-byte aligned"):
        getattr(_testing_cuda, pass_name)(*arguments, kernel)
    assert np.isnan(result).all()
    assert getattr(_testing_cuda, pass_name)(*arguments) == f"{pass_name}_generic"


@pytest.mark.parametrize(("height", "columns", "fits"), [(1 << 14, (1 << 14) - 1, True), (1 << 14, 1 << 14, False)])
def test_larger_maps_than_offsets_allow_are_refused(height, columns, fits):
    problem = Problem(1, 32, height, columns, 32, groups=4)
    reasons = dict(_testing_cuda.explain("fprop", kernels.shape_of(problem), "f32", "NCHW"))
    assert reasons["fprop_rows_gw8_f32_nchw"] == ("" if fits else "the map has 2^28 pixels")


@pytest.mark.parametrize("pass_name", PASSES)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(problem=kernels.resnext_problems(), weight=st.sampled_from(["KCRS", "KRSC"]), seed=st.integers(1, 8))
def test_random_problems(pass_name, problem, weight, seed):
    check_exact(pass_name, problem, "f32", "NCHW", weight, threads=seed)


def probe(name, source, result, seed):
    values = np.random.default_rng(6).standard_normal(32 * (source + 16 * 9)).astype(np.float32)
    output = np.zeros(32 * result, np.float32)
    _testing_cuda.probe(f"rows_nchw/{name}", values, output, seed)
    return output


@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize(
    "bug",
    ["no_async_wait", "async_wait_too_lax", "no_barrier_at_stage", "no_barrier_before_results", "no_syncwarp"],
)
@pytest.mark.parametrize(("kind", "pixels"), [("fprop", (30 * 56, 15 * 28)), ("dgrad", (15 * 28, 30 * 56))])
def test_missing_synchronisation_gives_a_wrong_result(kind, pixels, bug, seed):
    correct = probe(f"{kind}/none", *pixels, seed)
    assert np.isfinite(correct).all()
    np.testing.assert_array_equal(correct, probe(f"{kind}/none", *pixels, 1))
    assert (probe(f"{kind}/{bug}", *pixels, seed) != correct).any()
