"""The bias's gradient from every wgrad entry of the device, forced by name: exact integers and rounding bounds."""

import numpy as np
import pytest
import torch

from tests import tolerance
from tests.passes import DTYPES, LAYOUTS, exact_case, rounding_case

from .operators import accepting, array, tensor
from .test_values import CASES

OPERATORS = torch.ops.resnext_kernels


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_grad_bias(case, dtype, layout, device):
    problem = CASES[case]
    geometry = problem.kernel_size, problem.stride, problem.padding, problem.dilation, problem.groups
    for operands, exact in ((exact_case, True), (rounding_case, False)):
        first, second, *_ = operands("wgrad", problem, dtype)
        grad_output, image = (tensor(values, dtype, layout, device) for values in (first, second))
        expected = first.sum((0, 2, 3))
        terms = tolerance.depth("wgrad", problem)
        bound = tolerance.error_bound(dtype, expected, abs(first).sum((0, 2, 3)), terms)
        for kernel in accepting("wgrad", problem, dtype, layout, device) if problem.n else [""]:
            arguments = (grad_output, image, *geometry)
            weight, bias = OPERATORS.grouped_conv2d_grad_weight_bias(*arguments, kernel_name=kernel)
            alone = OPERATORS.grouped_conv2d_grad_weight(*arguments, kernel_name=kernel)
            assert torch.equal(weight, alone), kernel
            if exact:
                np.testing.assert_array_equal(array(bias), expected, err_msg=kernel)
            assert (abs(array(bias) - expected) <= bound).all(), kernel
