"""What is particular to the kernels by Winograd's minimal filtering: how they round, and what they leave to others."""

import numpy as np
import pytest

from resnext_kernels.problems import Problem
from tests.passes import LAYOUTS, PASSES, operands, rounding_case
from tests.test_kernels import accepting, launch


def kernels(pass_name, problem, layout):
    names = [name for name in accepting(pass_name, problem, "f32", layout) if "_winograd_" in name]
    return names or pytest.skip("this CPU has no AVX2")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "problem",
    [
        Problem(1, 64, 5, 5, 64, groups=4),
        Problem(2, 64, 14, 14, 64, groups=4),
        Problem(2, 96, 7, 30, 48, groups=2),
        Problem(1, 128, 13, 9, 128, groups=2),
    ],
    ids=str,
)
@pytest.mark.parametrize("pass_name", PASSES)
def test_rounding_is_that_of_plain_sums(pass_name, problem, layout):
    """Less, as root mean square and at worst; in wgrad, whose sums may be short, twice at most."""
    first, second, bias, expected, _ = rounding_case(pass_name, problem, "f32")

    def errors(kernel):
        error = launch(pass_name, kernel, problem, "f32", layout, first, second, bias).astype(np.float64) - expected
        return np.array([np.sqrt((error**2).mean()), abs(error).max()])

    for kernel in kernels(pass_name, problem, layout):
        plain = errors(kernel.replace("winograd", "direct_wide"))
        assert (errors(kernel) <= (1 if pass_name != "wgrad" else 2) * plain).all(), (kernel, errors(kernel) / plain)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.inf, np.nan, 2e38])
@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("pass_name", PASSES)
def test_what_is_not_finite_is_left_to_the_direct_kernel(pass_name, operand, value, layout):
    """Transforms make inf - inf of an infinity, and infinities of large numbers: all is computed again without them."""
    problem = Problem(2, 96, 7, 10, 96, groups=2)
    values = [array.copy() for array in operands(pass_name, problem, np.random.default_rng(6).standard_normal)[:2]]
    row, column = ([0, 2], 1) if values[operand].shape[2:] == (3, 3) else (1, [2, 3])
    values[operand][-1, 1, row, column] = value
    if np.isfinite(value):  # neighbours, of whose products the sums are finite
        values[1 - operand] *= 1e-3
    for kernel in kernels(pass_name, problem, layout):
        direct = kernel.replace("winograd", "direct_wide")
        results = [launch(pass_name, name, problem, "f32", layout, *values, threads=2) for name in (kernel, direct)]
        assert results[0].tobytes() == results[1].tobytes(), kernel
        assert np.isfinite(results[0]).all() == np.isfinite(value), kernel
