"""Independent references and error bounds for the three passes. numpy only; no fudge factors."""

import numpy as np

UNIT_ROUNDOFF = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
SMALLEST = {"f64": 2.0**-1074, "f32": 2.0**-149, "f16": 2.0**-24, "bf16": 2.0**-133}  # positive subnormals
STORAGE = {"f64": np.float64, "f32": np.float32, "tf32": np.float32, "f16": np.float16, "bf16": np.uint16}


def encode(values, dtype):
    """Round float64 values to ``dtype`` (nearest even) and return them as stored; bf16 as uint16 bit patterns."""
    if dtype != "bf16":
        return np.asarray(values).astype(STORAGE[dtype])
    bits = np.asarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def decode(stored, dtype):
    """The float64 values of an array as stored."""
    if dtype != "bf16":
        return stored.astype(np.float64)
    return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _windows(padded, problem, r, s):
    """The padded input's pixels that tap (r, s) reads, (N, groups, C / groups, P, Q): a view."""
    top, left = r * problem.dilation[0], s * problem.dilation[1]
    rows = slice(top, top + (problem.p - 1) * problem.stride[0] + 1, problem.stride[0])
    columns = slice(left, left + (problem.q - 1) * problem.stride[1] + 1, problem.stride[1])
    return padded[..., rows, columns]


def _by_group(array, groups, axis):
    shape = array.shape
    return array.reshape(*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :])


def _pad(input_, problem):
    (top, left), grouped = problem.padding, _by_group(input_, problem.groups, 1)
    return np.pad(grouped, [(0, 0)] * 3 + [(top, top), (left, left)])


def fprop(problem, input_, weight, bias=None):
    """Output (N, K, P, Q) in float64: one matrix product per tap."""
    padded, taps = _pad(input_, problem), _by_group(weight, problem.groups, 0)
    output = np.zeros(problem.output_shape)
    for r, s in np.ndindex(*problem.kernel_size):
        product = np.einsum("ngcpq,gkc->ngkpq", _windows(padded, problem, r, s), taps[..., r, s], optimize=True)
        output += product.reshape(output.shape)
    return output if bias is None else output + bias[None, :, None, None]


def dgrad(problem, grad_output, weight):
    """Gradient of the input (N, C, H, W) in float64."""
    grads, taps = _by_group(grad_output, problem.groups, 1), _by_group(weight, problem.groups, 0)
    padded = _pad(np.zeros(problem.input_shape), problem)
    for r, s in np.ndindex(*problem.kernel_size):
        product = np.einsum("ngkpq,gkc->ngcpq", grads, taps[..., r, s], optimize=True)
        _windows(padded, problem, r, s)[...] += product
    (top, left), (_, _, height, width) = problem.padding, problem.input_shape
    return padded[..., top : top + height, left : left + width].reshape(problem.input_shape)


def wgrad(problem, grad_output, input_):
    """Gradient of the weight (K, C / groups, R, S) in float64."""
    grads, padded = _by_group(grad_output, problem.groups, 1), _pad(input_, problem)
    grad_weight = np.zeros(problem.weight_shape)
    for r, s in np.ndindex(*problem.kernel_size):
        product = np.einsum("ngkpq,ngcpq->gkc", grads, _windows(padded, problem, r, s), optimize=True)
        grad_weight[..., r, s] = product.reshape(problem.k, -1)
    return grad_weight


def depth(pass_name, problem, has_bias=False):
    """The number of products (and the bias) summed into one element, at most."""
    taps = problem.kernel_size[0] * problem.kernel_size[1]
    return {
        "fprop": taps * (problem.c // problem.groups) + has_bias,
        "dgrad": taps * (problem.k // problem.groups),
        "wgrad": problem.n * problem.p * problem.q,
    }[pass_name]


def gamma(terms, unit):
    """Higham's bound on the relative error of a sum of ``terms`` products, whatever the order of the sum."""
    return terms * unit / (1 - terms * unit)


def error_bound(dtype, reference, magnitude, terms):
    """The largest error that a correct kernel may make, per element.

    ``magnitude`` is the same sum over absolute values. Sums are kept in float, or double for f64, and rounded once to
    a 16-bit type. The float64 reference has a rounding error of its own.
    """
    summed = gamma(terms, UNIT_ROUNDOFF["f64" if dtype == "f64" else "f32"]) * magnitude
    of_reference = gamma(terms, UNIT_ROUNDOFF["f64"]) * magnitude
    if dtype not in ("f16", "bf16"):
        return summed + of_reference
    return summed + of_reference + UNIT_ROUNDOFF[dtype] * (np.abs(reference) + summed) + SMALLEST[dtype] / 2
