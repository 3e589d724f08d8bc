"""Scale, shift, residual and ReLU, fused into fprop: every kernel that does it, on the CPU and the emulated device."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_kernels import _testing_cpu, _testing_cuda
from resnext_kernels.problems import Problem, edge_cases, resnext50_32x4d
from tests import test_kernels as kernels
from tests import tolerance
from tests.passes import DTYPES, LAYOUTS, exact_case, rounding_case

DEVICES = {"cpu": _testing_cpu, "emulated": _testing_cuda}
# Widths that fill vectors and widths that do not, with tails; and shapes for the generic kernels alone.
CASES = {
    **{
        f"width_{w}_stride_{s}": Problem(2, 4 * w, 6, 17, 4 * w, groups=4, stride=(s, s))
        for w in (4, 8)
        for s in (1, 2)
    },
    **{f"width_{w}": Problem(2, 2 * w, 5, 14, 2 * w, groups=2) for w in (3, 12, 16, 24, 32)},
    "odd_groups": Problem(2, 24, 5, 9, 24, groups=3),  # a warp's 16 channels do not all exist
    "outputs": Problem(1, 12, 5, 9, 24, groups=3, stride=(2, 2)),
    "whole_lines": Problem(1, 8, 5, 28, 8, groups=2),
    "whole_planes": Problem(5, 16, 7, 7, 16, groups=2),
    "one_pixel": Problem(1, 8, 1, 1, 8, groups=2),
    **{name: edge_cases[name] for name in ("odd_map_stride_2", "more_outputs")},
}


def sums_of(dtype):
    return np.float64 if dtype == "f64" else np.float32


def run(device, kernel, problem, dtype, layout, first, second, scale, shift, residual, relu, number=1, order="KCRS"):
    """The stored bits in NCHW order."""
    whole, output = kernels.fenced(int(np.prod(problem.output_shape)), dtype)
    ran = DEVICES[device].fprop_act(
        kernels.shape_of(problem),
        dtype,
        layout,
        kernels.flatten(first, dtype, layout),
        kernels.flatten(second, dtype, order),
        kernels.weight_strides(problem, order),
        scale.astype(sums_of(dtype)),
        shift.astype(sums_of(dtype)),
        None if residual is None else kernels.flatten(residual, dtype, layout),
        relu,
        output,
        number,
        kernel,
    )
    assert ran == kernel
    for fence in (whole[: kernels.GUARD], whole[kernels.GUARD + output.size :]):
        assert (fence.view(np.uint8) == 0xFF).all(), "the kernel wrote outside its output"
    axes = kernels.order(layout)
    return output.reshape([problem.output_shape[axis] for axis in axes]).transpose(np.argsort(axes))


def accepting(device, problem, dtype, layout):
    reasons = DEVICES[device].explain("fprop_act", kernels.shape_of(problem), dtype, layout)
    return [name for name, reason in reasons if not reason]


def expected_of(sums, scale, shift, residual, relu):
    values = sums * scale[:, None, None] + shift[:, None, None] + (0 if residual is None else residual)
    return np.maximum(values, 0) if relu else values


def channels(problem, draw):
    """scale, shift and residual."""
    return draw((problem.k,)), draw((problem.k,)), draw(problem.output_shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_exact(device, case, dtype, layout):
    """On integers, whose sums float holds exactly: so results are the exact ones, rounded once."""
    problem, rng = CASES[case], np.random.default_rng(7)
    first, second, _, _ = exact_case("fprop", problem, dtype)
    sums = tolerance.fprop(problem, first, second)
    scale, shift, residual = channels(problem, lambda shape: rng.integers(-3, 4, shape).astype(float))
    names = accepting(device, problem, dtype, layout)
    assert names
    for kernel in names:
        for other in (None, residual):
            for relu in (True, False):
                stored = run(device, kernel, problem, dtype, layout, first, second, scale, shift, other, relu)
                expected = tolerance.encode(expected_of(sums, scale, shift, other, relu), dtype)
                np.testing.assert_array_equal(
                    tolerance.decode(stored, dtype), tolerance.decode(expected, dtype), err_msg=kernel
                )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("device", DEVICES)
def test_rounding_and_schedules(device, case, dtype, layout):
    problem, rng = CASES[case], np.random.default_rng(8)
    first, second, *_ = rounding_case("fprop", problem, dtype)
    scale, shift, residual = channels(problem, rng.standard_normal)
    scale, shift = (values.astype(np.float32).astype(float) for values in (scale, shift))
    residual = tolerance.decode(tolerance.encode(residual, dtype), dtype)
    sums = tolerance.fprop(problem, first, second)
    magnitude = expected_of(tolerance.fprop(problem, abs(first), abs(second)), abs(scale), abs(shift), abs(residual), 0)
    expected = expected_of(sums, scale, shift, residual, True)
    bound = tolerance.error_bound(dtype, expected, magnitude, tolerance.depth("fprop", problem) + 3)
    for kernel in accepting(device, problem, dtype, layout):
        results = [
            run(device, kernel, problem, dtype, layout, first, second, scale, shift, residual, True, number, "KRSC")
            for number in (1, 2, 3)
        ]
        assert all(result.tobytes() == results[0].tobytes() for result in results), kernel
        assert (abs(tolerance.decode(results[0], dtype) - expected) <= bound).all(), kernel


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("device", DEVICES)
def test_nan_and_infinities_pass_relu_as_in_pytorch(device, layout):
    problem = CASES["width_8_stride_1"]
    rng = np.random.default_rng(9)
    first, second = rng.uniform(1, 2, problem.input_shape), rng.uniform(1, 2, problem.weight_shape)
    ones, zeros = np.ones(problem.k), np.zeros(problem.k)
    for dtype in DTYPES:
        for kernel in accepting(device, problem, dtype, layout):
            for value, reached in ((np.nan, np.nan), (np.inf, np.inf), (-np.inf, 0)):
                residual = np.zeros(problem.output_shape)
                residual[1, 9, 3, 11] = value
                stored = run(device, kernel, problem, dtype, layout, first, second, ones, zeros, residual, True)
                values = tolerance.decode(stored, dtype)
                np.testing.assert_equal(values[1, 9, 3, 11], reached)
                values[1, 9, 3, 11] = 1
                assert np.isfinite(values).all()
                assert (values > 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", resnext50_32x4d, ids=lambda layer: layer.name)
def test_network_layers_on_the_cpu(layer, layout):
    rng = np.random.default_rng(3)
    first, second, scale, shift, residual = (
        rng.integers(-2, 3, shape).astype(float)
        for shape in (layer.input_shape, layer.weight_shape, (layer.k,), (layer.k,), layer.output_shape)
    )
    expected = expected_of(tolerance.fprop(layer, first, second), scale, shift, residual, True)
    for dtype in ("f32", "bf16"):
        for kernel in accepting("cpu", layer, dtype, layout):
            if "reference" not in kernel:
                stored = run("cpu", kernel, layer, dtype, layout, first, second, scale, shift, residual, True, 2)
                np.testing.assert_array_equal(
                    tolerance.decode(stored, dtype), tolerance.decode(tolerance.encode(expected, dtype), dtype)
                )


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(problem=kernels.problems(), dtype=st.sampled_from(DTYPES), layout=st.sampled_from(LAYOUTS))
def test_random_problems(device, problem, dtype, layout):
    rng = np.random.default_rng(7)
    first, second, _, _ = exact_case("fprop", problem, dtype)
    scale, shift, residual = channels(problem, lambda shape: rng.integers(-3, 4, shape).astype(float))
    expected = expected_of(tolerance.fprop(problem, first, second), scale, shift, residual, True)
    for kernel in accepting(device, problem, dtype, layout):
        stored = run(device, kernel, problem, dtype, layout, first, second, scale, shift, residual, True)
        np.testing.assert_array_equal(
            tolerance.decode(stored, dtype), tolerance.decode(tolerance.encode(expected, dtype), dtype)
        )


@pytest.mark.parametrize("device", DEVICES)
def test_every_kernel_fuses(device):
    """What fprop has a kernel for, the fused one runs on the same: nothing falls back to a slower kernel."""
    for problem in (*CASES.values(), *resnext50_32x4d):
        for dtype in DTYPES:
            for layout in LAYOUTS:
                reasons = DEVICES[device].explain("fprop", kernels.shape_of(problem), dtype, layout)
                assert accepting(device, problem, dtype, layout) == [name for name, reason in reasons if not reason]
