"""The three passes for tests on numpy arrays, whatever runs them: operands, exact cases and rounding cases."""

import functools

import numpy as np

from tests import tolerance

PASSES = ("fprop", "dgrad", "wgrad")
DTYPES = ("f64", "f32", "f16", "bf16")
LAYOUTS = ("NCHW", "NHWC")


def operands(pass_name, problem, draw):
    """The two operands of a pass and, for fprop, a bias; ``draw(shape)`` makes the values."""
    shapes = {
        "fprop": (problem.input_shape, problem.weight_shape),
        "dgrad": (problem.output_shape, problem.weight_shape),
        "wgrad": (problem.output_shape, problem.input_shape),
    }[pass_name]
    first, second = (draw(shape) for shape in shapes)
    return first, second, draw((problem.k,)) if pass_name == "fprop" else None


def reference(pass_name, problem, first, second, bias=None):
    """The float64 result."""
    return getattr(tolerance, pass_name)(problem, first, second, *([bias] if pass_name == "fprop" else []))


@functools.cache
def _exact_case(pass_name, problem, limit):
    rng = np.random.default_rng(1)
    # Values -1, 0, 1, more of them zero where sums are long, keep even a type of 8 significant bits exact.
    rate = min(1.0, limit / 2 / max(1, tolerance.depth(pass_name, problem)))
    wide = 4 if limit >= 2**24 else 2

    def draw(shape):
        return rng.integers(1 - wide, wide, shape).astype(float) * (rng.random(shape) < max(rate, 0.05))

    first, second, bias = operands(pass_name, problem, draw)
    magnitude = reference(pass_name, problem, abs(first), abs(second), None if bias is None else abs(bias))
    assert magnitude.max(initial=0) <= limit, "the case is not exact: make the operands sparser"
    return first, second, bias, reference(pass_name, problem, first, second, bias)


def exact_case(pass_name, problem, dtype):
    """Small integers, all of whose partial sums `dtype` represents, and the exact result."""
    return _exact_case(pass_name, problem, {"f16": 2048, "bf16": 256}.get(dtype, 2**24))


@functools.lru_cache(maxsize=4)
def rounding_case(pass_name, problem, dtype):
    """Normal operands as `dtype` holds them, the float64 result, and the largest error that rounding allows."""
    rng = np.random.default_rng(2)

    def draw(shape):
        return tolerance.decode(tolerance.encode(rng.standard_normal(shape), dtype), dtype)

    first, second, bias = operands(pass_name, problem, draw)
    expected = reference(pass_name, problem, first, second, bias)
    magnitude = reference(pass_name, problem, abs(first), abs(second), None if bias is None else abs(bias))
    terms = tolerance.depth(pass_name, problem, has_bias=bias is not None)
    return first, second, bias, expected, tolerance.error_bound(dtype, expected, magnitude, terms)
