"""Offsets beyond 32 bits in every entry of the CUDA kernel tables, emulated, in arrays that hardly take memory.

Tensors of more than 2^31 elements, zero (and so without pages of memory) but for their last two images. Only the last
blocks of each grid run, and what they write is compared with the result for those two images alone.
"""

import math
import mmap

import numpy as np
import pytest

from resnext_kernels import _testing_cuda
from resnext_kernels.problems import Problem
from tests.passes import LAYOUTS, PASSES, operands, reference
from tests.test_kernels import order, shape_of, weight_strides

BLOCKS = {"fprop": 8, "dgrad": 8, "wgrad": 1}
CASES = {  # the last two images
    "width_3": Problem(2, 24, 13, 11, 24, groups=8),
    "width_4": Problem(2, 32, 16, 16, 32, groups=8),
    "width_16_stride_2": Problem(2, 64, 16, 16, 64, groups=4, stride=(2, 2)),
}


def zeros_up_to(size, values=()):
    """A flat float array that ends in `values`; the zeros before them take memory only when they are written."""
    no_reserve = 0x4000  # mmap.MAP_NORESERVE, which older Pythons do not name
    pages = mmap.mmap(-1, 4 * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    array = np.frombuffer(pages, np.float32)
    array[size - len(values) :] = values
    return array


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pass_name", PASSES)
def test_more_than_2_to_the_31_elements(pass_name, case, layout):
    tail, rng = CASES[case], np.random.default_rng(1)
    image = min(math.prod(shape) // tail.n for shape in (tail.input_shape, tail.output_shape))
    problem = tail.with_batch(2**31 // image + 1 + tail.n)
    first, second, bias = operands(pass_name, tail, lambda shape: rng.integers(1, 4, shape).astype(float))
    expected = reference(pass_name, tail, first, second, bias)
    assert (expected > 0).all(), "zero means not written"

    weights = weight_strides(problem, "KCRS")
    sizes = [math.prod(shape) for shape in operands(pass_name, problem, tuple)[:2]]
    flat = [
        zeros_up_to(size, v.transpose(order(layout)).ravel()) for size, v in zip(sizes, (first, second), strict=True)
    ]
    if pass_name != "wgrad":
        flat[1] = second.astype(np.float32).ravel()  # the weight
    for kernel, reason in _testing_cuda.explain(pass_name, shape_of(problem), "f32", layout):
        if reason:
            continue
        sizes = {"fprop": problem.output_shape, "dgrad": problem.input_shape, "wgrad": problem.weight_shape}
        result = zeros_up_to(math.prod(sizes[pass_name]))
        rest = {
            "fprop": (weights, None if bias is None else bias.astype(np.float32), result),
            "dgrad": (weights, result),
            "wgrad": (result, weights, None),
        }[pass_name]
        run = getattr(_testing_cuda.far, pass_name)
        run(shape_of(problem), "f32", layout, *flat, *rest, last_blocks=BLOCKS[pass_name], kernel=kernel)
        axes = (0, 1, 2, 3) if pass_name == "wgrad" else order(layout)
        ours, right = result[-expected.size :], expected.transpose(axes).ravel()
        written = ours != 0
        assert written[-1], f"{kernel}: the last element is not written"
        np.testing.assert_array_equal(ours[written], right[written], err_msg=kernel)
