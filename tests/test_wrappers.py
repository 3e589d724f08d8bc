"""Each wrapper of csrc/cuda/ptx.h and each warp intrinsic against a model in numpy, on the emulated device.

tests/gpu/test_wrappers.py runs the same tests on a GPU, with a `probe` of its own: so hardware and emulation are held
to one model, which the tests spell out.
"""

import numpy as np
import pytest

SEEDS = range(1, 9)


@pytest.fixture
def probe():
    """Runs a kernel of csrc/testing/wrapper_probes.cu by name: (name, input, output, seed of the schedule)."""
    from resnext_kernels import _testing_cuda

    return _testing_cuda.probe


# Each map gives (row, column) of element i of the lanes; G = lane / 4 and T = lane % 4, as in PTX.

G, T = np.arange(32) // 4, np.arange(32) % 4
A_MAPS = {
    ("f16", 8): lambda i: (G + 8 * (i >> 1), 2 * T + (i & 1)),
    ("f16", 16): lambda i: (G + 8 * ((i >> 1) & 1), 2 * T + (i & 1) + 8 * (i >> 2)),
    ("tf32", 4): lambda i: (G + 8 * i, T),
    ("tf32", 8): lambda i: (G + 8 * (i & 1), T + 4 * (i >> 1)),
}
B_MAPS = {
    ("f16", 8): lambda i: (2 * T + i, G),
    ("f16", 16): lambda i: (2 * T + (i & 1) + 8 * (i >> 1), G),
    ("tf32", 4): lambda i: (T, G),
    ("tf32", 8): lambda i: (T + 4 * i, G),
}


def bits_of(values, dtype):
    """Small integers as the bits of a type, which hold them exactly."""
    if dtype == "f16":
        return values.astype(np.float16).view(np.uint16).astype(np.uint32)
    bits = values.astype(np.float32).view(np.uint32)
    return bits >> 16 if dtype == "bf16" else bits


def registers(matrix, lane_map, count, dtype):
    """The words [register][lane] of a fragment; a register holds two 16-bit elements, the first in its low half."""
    elements = [bits_of(matrix[lane_map(i)], dtype) for i in range(count)]
    if dtype == "tf32":
        return np.stack(elements)
    return np.stack([low | high << 16 for low, high in zip(elements[::2], elements[1::2], strict=True)])


@pytest.mark.parametrize(
    ("dtype", "depth"),
    [("f16", 8), ("bf16", 8), ("f16", 16), ("bf16", 16), ("tf32", 4), ("tf32", 8)],
    ids=lambda v: str(v),
)
def test_mma(dtype, depth, probe):
    rng = np.random.default_rng(1)
    a, b, c = (rng.integers(-8, 9, shape).astype(float) for shape in ((16, depth), (depth, 8), (16, 8)))
    key = ("tf32" if dtype == "tf32" else "f16", depth)
    words = [registers(a, A_MAPS[key], depth // 2, dtype), registers(b, B_MAPS[key], depth // 4, dtype)]
    accumulator = [(G + 8 * (i >> 1), 2 * T + (i & 1)) for i in range(4)]
    words.append(np.stack([bits_of(c[at], "f32") for at in accumulator]))
    output = np.zeros(128, np.float32)
    probe(f"mma_m16n8k{depth}_{dtype}", np.concatenate(words).ravel().astype(np.uint32), output)
    expected = a @ b + c
    np.testing.assert_array_equal(output.reshape(4, 32), np.stack([expected[at] for at in accumulator]))


def test_mma_reads_only_the_19_bits_of_tf32(probe):
    one_and_a_bit = np.full((16, 8), 1 + 2.0**-11)
    words = [
        registers(one_and_a_bit, A_MAPS["tf32", 8], 4, "tf32"),
        registers(np.ones((8, 8)), B_MAPS["tf32", 8], 2, "tf32"),
    ]
    output = np.zeros(128, np.float32)
    probe("mma_m16n8k8_tf32", np.concatenate([*words, np.zeros((4, 32), np.uint32)]).ravel(), output)
    assert (output == 8).all()


@pytest.mark.parametrize("matrices", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(matrices, transposed, probe):
    rng = np.random.default_rng(2)
    rows, order = rng.integers(0, 2**16, (32, 8)), rng.permutation(32)
    output = np.zeros(32 * matrices, np.uint32)
    name = f"ldmatrix_x{matrices}" + "_trans" * transposed
    probe(name, np.concatenate([rows.ravel(), order]).astype(np.uint16), output)
    for q, register in enumerate(output.reshape(matrices, 32)):
        matrix = rows[order[8 * q : 8 * q + 8]]
        matrix = matrix.T if transposed else matrix
        np.testing.assert_array_equal(register, matrix[G, 2 * T] | matrix[G, 2 * T + 1] << 16)


def test_a_product_by_ldmatrix_and_mma(probe):
    rng = np.random.default_rng(3)
    a, b = rng.integers(-8, 9, (16, 16)).astype(np.float16), rng.integers(-8, 9, (16, 8)).astype(np.float16)
    output = np.zeros(128, np.float32)
    probe("product", np.concatenate([a.ravel(), b.ravel()]).view(np.uint16), output)
    np.testing.assert_array_equal(output.reshape(16, 8), a.astype(float) @ b.astype(float))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async_fills_with_zeros(size, probe):
    source = np.random.default_rng(4).integers(1, 256, (32, size)).astype(np.uint8)
    output = np.zeros(32 * size, np.uint8)
    probe(f"cp_async_{size}", source.ravel(), output)
    valid = np.arange(size) < (np.arange(32) % (size + 1))[:, None]
    np.testing.assert_array_equal(output.reshape(32, size), np.where(valid, source, 0)[::-1])


@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
def test_cp_async_ring(pieces, probe):
    source = np.arange(32 * pieces, dtype=np.float32)
    output = np.zeros(32, np.float32)
    for seed in SEEDS:
        probe("ring", source, output, seed)
        np.testing.assert_array_equal(output, source.reshape(pieces, 32)[:, ::-1].sum(0))


def test_named_barriers(probe):
    source, output, t = np.arange(128, dtype=np.float32) ** 2, np.zeros(128, np.float32), np.arange(64)
    expected = source.reshape(2, 64).copy()
    for pair, rounds in enumerate((2, 5)):
        for _ in range(rounds):
            expected[pair] = 2 * expected[pair, ::-1] + t
    for seed in SEEDS:
        probe("barriers", source, output, seed)
        np.testing.assert_array_equal(output, expected.ravel())


def test_round_to_tf32(probe):
    ulp = 2.0**-10
    values = [0.0, -0.0, 1 + ulp / 2, -1 - ulp / 2, 1 + ulp / 2 - 2.0**-23, 1 + 1.5 * ulp, 2 - 2.0**-23, np.inf]
    expected = [0.0, -0.0, 1 + ulp, -1 - ulp, 1, 1 + 2 * ulp, 2, np.inf]  # ties away from zero
    source, output = np.resize(np.float32(values), 32), np.zeros(32, np.uint32)
    probe("tf32", source, output)
    np.testing.assert_array_equal(output, np.resize(np.float32(expected), 32).view(np.uint32))


def test_shuffles_and_votes(probe):
    lane, source, output = np.arange(32), np.random.default_rng(5).standard_normal(32), np.zeros(320)
    probe("warp", source, output)
    small, segment, within = source.astype(np.float32), lane & ~7, lane & 7
    expected = [
        np.full(32, source[5]),
        source[segment | (lane * 7 & 7)],
        source[lane ^ 13],
        small[np.where((lane ^ 9) & ~7 > segment, lane, lane ^ 9)],
        source[np.where(lane < 3, lane, lane - 3)],
        small[np.where(within < 3, lane, lane - 3)],
        source[np.where(lane > 28, lane, lane + 3).clip(max=31)],
        small[np.where(within > 4, lane, lane + 3).clip(max=31)],
        np.full(32, sum(1 << i for i in range(0, 32, 3))),
        np.full(32, 2),
    ]
    np.testing.assert_array_equal(output.reshape(10, 32), expected)
