"""Float32 where PyTorch allows TF32, its default: every entry, forced by name."""

import numpy as np
import pytest
import torch

from resnext_kernels.problems import Problem
from tests import tolerance
from tests.passes import LAYOUTS, PASSES, exact_case, operands, reference

from .operators import accepting, run


@pytest.fixture(autouse=True)
def _tf32_allowed(_float32_in_full):
    with torch.backends.cudnn.flags(allow_tf32=True):
        yield


def tf32(values):
    """Floats of which TF32 holds all bits, so that rounding to it changes nothing."""
    return (np.asarray(values, np.float32).view(np.uint32) & 0xFFFFE000).view(np.float32).astype(float)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(7, 14), (5, 29), (12, 34)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [8, 16, 32])
@pytest.mark.parametrize("pass_name", PASSES)
def test_exact_and_within_the_bound_of_floats(pass_name, width, stride, size, layout, device):
    problem = Problem(2, 2 * width, *size, 2 * width, groups=2, stride=(stride, stride))
    kernels = accepting(pass_name, problem, "f32", layout, device)
    if device == "cuda" and torch.cuda.get_device_capability() >= (8, 0):
        assert any("_tf32_" in kernel for kernel in kernels), kernels
    *exact, exact_result = exact_case(pass_name, problem, "f32")
    rng = np.random.default_rng(6)
    arrays = operands(pass_name, problem, lambda shape: tf32(rng.standard_normal(shape)))
    magnitude = reference(pass_name, problem, *(None if array is None else abs(array) for array in arrays))
    expected = reference(pass_name, problem, *arrays)
    terms = tolerance.depth(pass_name, problem, has_bias=arrays[2] is not None)
    bound = tolerance.error_bound("f32", expected, magnitude, terms)
    for kernel in kernels:
        result = run(pass_name, kernel, problem, "f32", layout, device, *exact)
        np.testing.assert_array_equal(result, exact_result, err_msg=kernel)
        error = abs(run(pass_name, kernel, problem, "f32", layout, device, *arrays) - expected)
        assert (error <= bound).all(), f"{kernel}: {np.nanmax(error / np.maximum(bound, 1e-300)):.2f} of the bound"
