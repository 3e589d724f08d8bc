"""The tensor-core CUDA kernels in NCHW, emulated: group widths, maps, network layers, schedules, infinities, planted bugs.

tests/test_cuda_kernels.py runs them on the edge cases, with all others.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnext_kernels import _testing_cuda
from resnext_kernels.problems import Problem, resnext50_32x4d, resnext101_32x8d
from tests import test_kernels as kernels
from tests import tolerance
from tests.test_kernels import accepting, launch, operands, shape_of

WIDTHS = (4, 8, 16, 32, 64)  # of the groups
DTYPES = ("f16", "bf16")
# (pass, stride, width) of every kernel, which has one for either dtype
KERNELS = [(pass_name, stride, width) for pass_name in ("fprop", "dgrad") for stride in (1, 2) for width in WIDTHS]
LAYERS = {problem.name: problem for problem in {*resnext50_32x4d, *resnext101_32x8d}}


def name_of(pass_name, stride, width, dtype):
    return f"{pass_name}_mma_gw{width}_{dtype}_nchw{'_s2' if stride == 2 else ''}"


def a_problem(width, stride, h, w, images=2):
    """With as many groups as leave the last block of channels half empty, if it can be."""
    groups = 3 if width == 4 else 2
    return Problem(images, width * groups, h, w, width * groups, groups=groups, stride=(stride, stride))


@pytest.fixture(autouse=True, scope="module")
def on_the_emulated_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_testing_cpu", _testing_cuda)
        yield


def check(pass_name, problem, dtype, weight_layout, seed):
    width, stride = problem.c // problem.groups, problem.stride[0]
    kernel = name_of(pass_name, stride, width, dtype)
    assert accepting(pass_name, problem, dtype, "NCHW")[0] == kernel
    first, second, bias, expected = kernels.exact_case(pass_name, problem, dtype)
    stored = launch(pass_name, kernel, problem, dtype, "NCHW", first, second, bias, seed, weight_layout)
    np.testing.assert_array_equal(tolerance.decode(stored, dtype), expected)
    first, second, bias, expected, bound = kernels.rounding_case(pass_name, problem, dtype)
    stored = launch(pass_name, kernel, problem, dtype, "NCHW", first, second, bias, seed + 1, weight_layout)
    assert (abs(tolerance.decode(stored, dtype) - expected) <= bound).all()


# Copies of 8, 4, 2 and 1 columns, one tile and several, an odd number of them; whole planes, and runs of rows.
MAPS = [(1, 1), (2, 3), (5, 2), (3, 4), (7, 7), (4, 8), (9, 14), (30, 15), (15, 16), (29, 17), (3, 56), (57, 24)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize(("pass_name", "stride", "width"), KERNELS)
def test_maps(pass_name, stride, width, size, dtype):
    for images in (1, 5):
        problem = a_problem(width, stride, *size, images)
        check(pass_name, problem, dtype, "KCRS" if images == 1 else "KRSC", seed=images)
