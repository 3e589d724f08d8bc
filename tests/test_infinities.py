"""The CPU kernels leave absent pixels and lanes out, instead of multiplying by zero: infinities stay where they are."""

import numpy as np
import pytest

from resnext_kernels.problems import Problem
from tests import tolerance
from tests.passes import DTYPES, LAYOUTS, PASSES, operands, reference
from tests.test_kernels import accepting, launch


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ["4", "3", "7", "12", "24", "32", "2 to 5", "9 to 3"])
@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("pass_name", PASSES)
def test_infinities_stay_where_they_belong(pass_name, operand, case, layout):
    """Padding of maps and of vectors is absent, not zero: nothing infinite reaches more than it should through it."""
    inputs, *outputs = map(int, case.split(" to "))
    problem = Problem(1, 3 * inputs, 6, 15, 3 * (outputs or [inputs])[0], groups=3)
    rng = np.random.default_rng(5)
    values = operands(pass_name, problem, lambda shape: rng.uniform(1, 2, shape))
    reached = [np.ones_like(values[0]), np.ones_like(values[1])]
    reached[operand][...] = 0
    reached[operand][-1, 1, 0, 0] = 1
    expected = reference(pass_name, problem, *reached) > 0
    for value in (np.inf, -np.inf, np.nan):
        values[operand][-1, 1, 0, 0] = value
        for dtype in DTYPES:
            for kernel in accepting(pass_name, problem, dtype, layout):
                stored = launch(pass_name, kernel, problem, dtype, layout, *values)
                np.testing.assert_array_equal(~np.isfinite(tolerance.decode(stored, dtype)), expected, err_msg=kernel)


def check_where_infinities_go(pass_name, problem, layout, dtype, operand, place):
    """One infinite element, and the results that it should reach, by every kernel."""
    values = [array.copy() for array in operands(pass_name, problem, np.ones)[:2]]
    reached = [array.copy() for array in values]
    reached[operand][...] = 0
    reached[operand][place], values[operand][place] = 1, np.inf
    expected = reference(pass_name, problem, *reached) > 0
    for kernel in accepting(pass_name, problem, dtype, layout):
        stored = launch(pass_name, kernel, problem, dtype, layout, *values)
        np.testing.assert_array_equal(~np.isfinite(tolerance.decode(stored, dtype)), expected, err_msg=kernel)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 33])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pass_name", ["fprop", "dgrad"])
def test_infinities_in_every_column_and_tap(pass_name, stride, columns, layout):
    """Where pixels lie in the lanes, a lane's own may lie outside the row, and meets nothing."""
    problem = Problem(1, 12, 3, columns, 12, groups=2, stride=(stride, stride))
    for r, s in np.ndindex(3, 3):
        check_where_infinities_go(pass_name, problem, layout, "f32", 1, (-1, 1, r, s))
    for column in range(columns if pass_name == "fprop" else problem.output_shape[3]):
        check_where_infinities_go(pass_name, problem, layout, "f32", 0, (0, 1, -1, column))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [4, 7, 24])
@pytest.mark.parametrize("operand", [0, 1])
def test_infinities_in_every_column_of_wgrad(operand, width, stride, layout):
    """Where pixels are multiplied two at a time, half a pair may lie outside a row, and meets nothing either."""
    for columns in (1, 2, 3, 4, 5, 6, 9):
        problem = Problem(1, 2 * width, 3, columns, 2 * width, groups=2, stride=(stride, stride))
        for column in range(problem.output_shape[3] if operand == 0 else columns):
            check_where_infinities_go("wgrad", problem, layout, "bf16", operand, (0, 1, -1, column))
