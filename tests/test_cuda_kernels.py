"""Every entry of the CUDA kernel tables, emulated on the CPU: exact, rounding, schedule, memory and table checks.

The helpers are those of test_kernels.py, with the emulated device's module in place of the CPU's. What that one calls
the number of threads is the seed of the schedule here; results must depend on neither.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_kernels import _testing_cuda
from resnext_kernels.problems import Problem, edge_cases, resnext50_32x4d
from tests import test_infinities as infinities
from tests import test_kernels as kernels
from tests import tolerance
from tests.gpu.test_values import CASES as on_a_gpu
from tests.test_kernels import (
    DTYPES,
    LAYOUTS,
    PASSES,
    accepting,
    check_exact,
    check_grad_bias,
    check_rounding,
    launch,
    operands,
)

CASES = {
    **edge_cases,
    "several_slices": Problem(3, 4, 30, 31, 4, groups=2),  # wgrad adds up more than one slice
    "many_taps": Problem(1, 6, 9, 9, 4, kernel_size=(4, 5), groups=2, padding=(2, 2)),  # more than a unit of wgrad
    "five_channels": Problem(1, 10, 5, 6, 10, groups=2),  # the generic kernels own four channels or columns at a time
}


@pytest.fixture(autouse=True, scope="module")
def on_the_emulated_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_testing_cpu", _testing_cuda)
        yield


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pass_name", PASSES)
def test_exact(pass_name, case, dtype, layout):
    check_exact(pass_name, CASES[case], dtype, layout)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pass_name", PASSES)
def test_exact_with_weight_in_krsc_order_and_arrays_flush_with_their_start(pass_name, case):
    check_exact(pass_name, CASES[case], "f32", "NHWC", "KRSC", threads=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pass_name", PASSES)
def test_rounding(pass_name, case, dtype, layout):
    check_rounding(pass_name, CASES[case], dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_grad_bias(case, dtype, layout):
    check_grad_bias(CASES[case], dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_a_network_layer(pass_name, layout):
    check_exact(pass_name, resnext50_32x4d[-1], "f32", layout)  # 1024 channels, 7 x 7, groups of 32


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["odd_map_stride_2", "more_outputs", "several_slices", "many_taps"])
@pytest.mark.parametrize("pass_name", PASSES)
def test_same_bits_for_every_schedule(pass_name, case, layout):
    problem, rng = CASES[case], np.random.default_rng(4)
    first, second, bias = operands(pass_name, problem, rng.standard_normal)
    for dtype in ("f32", "bf16"):
        for kernel in accepting(pass_name, problem, dtype, layout):
            results = [
                launch(pass_name, kernel, problem, dtype, layout, first, second, bias, seed) for seed in (1, 2, 3, 4, 1)
            ]
            assert all(result.tobytes() == results[0].tobytes() for result in results), kernel


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["4", "8", "16", "32", "3", "2 to 5", "8 to 12", "20"])
@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("pass_name", PASSES)
def test_infinities_stay_where_they_belong(pass_name, operand, case, layout):
    infinities.test_infinities_stay_where_they_belong(pass_name, operand, case, layout)


def test_16_bit_results_round_to_nearest_even():
    """A 1x1 kernel of weight one and a bias: sums that lie halfway between two bf16 or f16 numbers."""
    problem = Problem(1, 1, 1, 1, 1, kernel_size=(1, 1), padding=(0, 0))
    for dtype, bits in (("bf16", 8), ("f16", 11)):
        ulp, one = 2.0 ** (1 - bits), np.ones((1, 1, 1, 1))
        for value, addend, expected in ((1, ulp / 2, 1), (1 + ulp, ulp / 2, 1 + 2 * ulp), (1, ulp * 0.53125, 1 + ulp)):
            stored = launch("fprop", "fprop_generic", problem, dtype, "NCHW", value * one, one, np.array([addend]))
            assert tolerance.decode(stored, dtype).item() == expected


def test_every_16_bit_number_is_read_exactly():
    """A 1x1 kernel of weight one returns them all: the emulation converts them itself."""
    problem, bits = Problem(1, 1, 256, 256, 1, kernel_size=(1, 1), padding=(0, 0)), np.arange(1 << 16, dtype=np.uint16)
    for dtype in ("f16", "bf16"):
        with np.errstate(invalid="ignore"):  # of signalling NaN
            values = tolerance.decode(bits.view(tolerance.STORAGE[dtype]), dtype).reshape(problem.input_shape)
            stored = launch("fprop", "fprop_generic", problem, dtype, "NCHW", values, np.ones((1, 1, 1, 1)))
        np.testing.assert_array_equal(tolerance.decode(stored, dtype), values)


@pytest.mark.parametrize("pass_name", PASSES)
def test_tables(pass_name):
    names = _testing_cuda.entries(pass_name)
    assert names[-1] == f"{pass_name}_generic"
    assert len(set(names)) == len(names)
    assert all(name.startswith(f"{pass_name}_") for name in names)
    for case in CASES.values():
        for dtype in DTYPES:
            for layout in LAYOUTS:
                assert accepting(pass_name, case, dtype, layout)[-1] == f"{pass_name}_generic"


@pytest.mark.parametrize("pass_name", PASSES)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(problem=kernels.problems(), dtype=st.sampled_from(DTYPES), layout=st.sampled_from(LAYOUTS))
def test_random_problems(pass_name, problem, dtype, layout):
    check_rounding(pass_name, problem, dtype, layout)


@pytest.mark.parametrize("pass_name", PASSES)
def test_tables_by_gpu(pass_name):
    """Every GPU has a kernel for everything, and a newer one refuses nothing that an older one takes."""
    for case in CASES.values():
        for dtype in DTYPES:
            for layout in LAYOUTS:
                shape = kernels.shape_of(case)
                by_gpu = [_testing_cuda.explain_on(gpu, pass_name, shape, dtype, layout) for gpu in (75, 80, 90, 120)]
                assert by_gpu[2] == _testing_cuda.explain(pass_name, shape, dtype, layout)
                taken = [{name for name, reason in entries if not reason} for entries in by_gpu]
                assert f"{pass_name}_generic" in taken[0]
                assert taken[0] <= taken[1] <= taken[2] <= taken[3]


@pytest.mark.parametrize("pass_name", PASSES)
def test_the_tests_on_a_gpu_reach_every_entry(pass_name):
    reached = {
        name
        for problem in on_a_gpu.values()
        for dtype in DTYPES
        for layout in LAYOUTS
        for name, reason in _testing_cuda.explain_on(90, pass_name, kernels.shape_of(problem), dtype, layout)
        if not reason
    }
    one_product = {name for name in _testing_cuda.entries(pass_name) if "_tf32_" in name}  # tests/gpu/test_tf32.py
    assert reached | one_product == set(_testing_cuda.entries(pass_name))
