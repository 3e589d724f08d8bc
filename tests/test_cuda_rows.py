"""The row-streaming CUDA kernels, emulated: network layers, random shapes, schedules, and planted bugs.

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


@pytest.fixture(autouse=True, scope="module")
def on_the_emulated_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_testing_cpu", _testing_cuda)
        patch.setattr(kernels, "accepting", lambda *problem: [n for n in accepting(*problem) if "mma" not in n])
        yield


@pytest.mark.parametrize("case", WIDTHS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_widths(pass_name, case):
    check_exact(pass_name, WIDTHS[case], "f32", "NHWC", threads=3)
    check_rounding(pass_name, WIDTHS[case], "f32", "NHWC", "KRSC")


@pytest.mark.parametrize("width", [4, 32])
@pytest.mark.parametrize("size", [(15, 57), (16, 58), (30, 15), (29, 29)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pass_name", PASSES)
def test_several_runs_and_strips(pass_name, stride, size, width):
    problem = Problem(2, 32, *size, 32, groups=32 // width, stride=(stride, stride))
    check_exact(pass_name, problem, "f32", "NHWC", threads=4)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_network_layers(pass_name, layer):
    problem = LAYERS[layer]
    rng = np.random.default_rng(3)
    first, second, bias = operands(pass_name, problem, lambda shape: rng.integers(-2, 3, shape).astype(float))
    expected = kernels.reference(pass_name, problem, first, second, bias)
    for kernel in accepting(pass_name, problem, "f32", "NHWC"):
        if "rows" in kernel:
            result = launch(pass_name, kernel, problem, "f32", "NHWC", first, second, bias, 2)
            np.testing.assert_array_equal(result, expected, err_msg=kernel)


@pytest.mark.parametrize("width", [4, 8, 16, 32])
@pytest.mark.parametrize(("pass_name", "stride", "suffix"), KINDS)
def test_same_bits_for_every_schedule(pass_name, stride, suffix, width):
    problem = Problem(3, 64, 10, 17, 64, groups=64 // width, stride=(stride, stride))
    first, second, bias = operands(pass_name, problem, np.random.default_rng(4).standard_normal)
    kernel = f"{pass_name}_rows_gw{width}_f32_nhwc{suffix}"
    results = [launch(pass_name, kernel, problem, "f32", "NHWC", first, second, bias, seed) for seed in range(1, 7)]
    assert all(result.tobytes() == results[0].tobytes() for result in results)


@pytest.mark.parametrize("width", [4, 8, 16, 32])
@pytest.mark.parametrize("columns", [6, 7, 13, 14, 28, 29, 57])
@pytest.mark.parametrize(("pass_name", "stride", "suffix"), KINDS)
def test_infinite_weights_never_meet_padding(pass_name, stride, suffix, columns, width):
    problem = Problem(2, 32, 8, columns, 32, groups=32 // width, stride=(stride, stride))
    rng = np.random.default_rng(5)
    first, second, _ = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape))
    kernel = f"{pass_name}_rows_gw{width}_f32_nhwc{suffix}"
    for r, s in np.ndindex(3, 3):
        weight, reached = second.copy(), np.zeros_like(second)
        weight[-1, 1, r, s], reached[-1, 1, r, s] = np.inf, 1
        expected = kernels.reference(pass_name, problem, np.ones_like(first), reached) > 0
        result = launch(pass_name, kernel, problem, "f32", "NHWC", first, weight)
        np.testing.assert_array_equal(~np.isfinite(result), expected)


@pytest.mark.parametrize("width", [4, 8, 16, 32])
@pytest.mark.parametrize("misaligned", ["source", "result"])
@pytest.mark.parametrize(("pass_name", "stride", "suffix"), KINDS)
def test_misaligned_tensors_run_the_generic_kernel(pass_name, stride, suffix, misaligned, width):
    """Vectors of four channels cannot be read or written there, and nothing may copy the tensor."""
    problem = Problem(2, 32, 5, 6, 32, groups=32 // width, stride=(stride, stride))
    first, second, _, expected = kernels.exact_case(pass_name, problem, "f32")
    if pass_name == "fprop":
        expected = kernels.reference(pass_name, problem, first, second)
    source = kernels.flatten(first, "f32", "NHWC")
    result = np.full(expected.size, np.nan, np.float32)
    off = {
        name: np.full(array.size + 4, np.nan, np.float32)[1:-3]
        for name, array in (("source", source), ("result", result))
    }
    off["source"][:] = source
    arrays = {"source": source, "result": result, misaligned: off[misaligned]}
    assert [name for name, array in arrays.items() if array.ctypes.data % 16] == [misaligned]
    weight = kernels.flatten(second, "f32", "KCRS"), kernels.weight_strides(problem, "KCRS")
    bias = [None] if pass_name == "fprop" else []
    run = getattr(_testing_cuda, pass_name)
    common = kernels.shape_of(problem), "f32", "NHWC", arrays["source"], *weight, *bias, arrays["result"]
    kernel = f"{pass_name}_rows_gw{width}_f32_nhwc{suffix}"
    with pytest.raises(ValueError, match=rf"'{kernel}' cannot run this problem: activations are not 16-byte aligned"):
        run(*common, 1, kernel)
    assert np.isnan(arrays["result"]).all()
    for seed in (1, 2):
        assert run(*common, seed) == f"{pass_name}_generic"
        np.testing.assert_array_equal(
            arrays["result"].reshape(expected.transpose(0, 2, 3, 1).shape), expected.transpose(0, 2, 3, 1)
        )


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_the_networks_have_a_kernel_of_their_own(layer):
    problem = LAYERS[layer]
    width, stride = problem.c // problem.groups, problem.stride[0]
    names = [kernels.accepting(pass_name, problem, "f32", "NHWC")[0] for pass_name in PASSES]
    expected = [f"{kind[0]}_rows_gw{width}_f32_nhwc{kind[2]}" for kind in KINDS if kind[1] == stride and width <= 32]
    assert [name for name in names if "rows" in name] == expected


@pytest.mark.parametrize("pass_name", PASSES)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(problem=kernels.resnext_problems(), weight=st.sampled_from(["KCRS", "KRSC"]), seed=st.integers(1, 8))
def test_random_problems(pass_name, problem, weight, seed):
    check_exact(pass_name, problem, "f32", "NHWC", weight, threads=seed)


def probe(name, seed):
    values = np.random.default_rng(6).standard_normal(32 * (9 * 30 + 8 * 9)).astype(np.float32)
    output = np.zeros(32 * 9 * 30 * (4 if name.startswith("spread") else 1), np.float32)
    _testing_cuda.probe(name, values, output, seed)
    return output


@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize("bug", ["no_barrier_after_weights", "no_syncwarp", "no_async_wait", "async_wait_too_lax"])
@pytest.mark.parametrize("kind", ["rows", "spread"])
def test_missing_synchronisation_gives_a_wrong_result(kind, bug, seed):
    correct = probe(f"{kind}/none", seed)
    assert np.isfinite(correct).all()
    np.testing.assert_array_equal(correct, probe(f"{kind}/none", 1))
    assert (probe(f"{kind}/{bug}", seed) != correct).any()
