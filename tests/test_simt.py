"""The emulated CUDA device itself: planted bugs must be caught, wrappers must agree with a model in numpy."""

import numpy as np
import pytest

from resnext_kernels import _testing_cuda

SEEDS = range(1, 9)
SIZE = 128  # two tiles of 64


def run(name, seed=1, size=SIZE):
    """Run a probe on 1, 2, 3, ...; returns its output, NaN where nothing was written."""
    output = np.full(size, np.nan, np.float32)
    _testing_cuda.probe(name, np.arange(1, size + 1, dtype=np.float32), output, seed)
    return output


BACK_TO_FRONT = np.arange(1, SIZE + 1).reshape(2, 64)[:, ::-1].ravel()
CORRECT = {
    "tiles": BACK_TO_FRONT,
    "async_tiles": BACK_TO_FRONT,
    "async_reuse": BACK_TO_FRONT,
    "neighbours": np.arange(64) ^ 1,
    "memory": np.arange(64),
    "uninitialised": np.arange(64),
    "barriers": np.arange(64),
    "alignment": np.arange(64),
    "shuffles": np.arange(64) ^ 1,
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", CORRECT)
def test_correct_kernels_pass(kernel, seed):
    output, expected = run(f"{kernel}/none", seed), CORRECT[kernel]
    np.testing.assert_array_equal(output[: len(expected)], expected + (len(expected) == 64))


# Races do not stop a launch: they show as NaN or stale values in the result, whatever the seed.
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "bug",
    [
        "tiles/no_barrier_before_reading",
        "tiles/no_barrier_before_overwriting",
        "async_tiles/no_async_wait",
        "async_tiles/async_wait_without_barrier",
        "async_tiles/async_wait_too_lax",
        "async_reuse/async_into_what_is_read",
        "neighbours/no_syncwarp",
        "uninitialised/uninitialised_shared",
    ],
)
def test_missing_synchronisation_gives_a_wrong_result(bug, seed):
    output, correct = run(bug, seed), run(bug.split("/")[0] + "/none", seed)
    assert (output != correct)[~np.isnan(correct)].any()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("bug", "message"),
    [
        ("tiles/smem_too_small", "Smem has 288 bytes, the launch gives 284"),
        ("memory/shared_index", r"thread \(63, 0, 0\): index 64 outside 'float \[64\]' \(.*bug_probes.cu:\d+\)"),
        ("memory/shared_overrun", "write outside the block's shared memory"),
        ("memory/shared_overrun_far", r"access \d+ bytes past the end of shared memory \(288 bytes\)"),
        ("memory/input_written", r"write to input \(512 bytes\), which is read-only"),
        ("memory/division_by_zero", r"block \(\d, 0, 0\), thread \(\d+, 0, 0\): integer division by zero"),
        ("barriers/barrier_after_return", r"partial barrier: .* waits for thread \(40, 0, 0\), which has returned"),
        ("barriers/barrier_in_a_branch", r"thread \(0, .*partial barrier: .* thread \(40, 0, 0\), which has returned"),
        ("barriers/two_barriers", r"partial barrier: .* waits for thread \(40, .*which is in __syncthreads \(.*:\d+\)"),
        ("alignment/float4_misaligned_in_global", "misaligned access to .*float4.*8 bytes past a multiple of 16"),
        ("alignment/float2_misaligned_in_shared", "misaligned access to .*float2.*4 bytes past a multiple of 8"),
        ("alignment/async_misaligned", "cp.async of a misaligned address in shared memory"),
        ("alignment/async_to_global", "cp.async of an address that is not in shared memory"),
        ("alignment/ldmatrix_misaligned", "ldmatrix of a misaligned address"),
        ("alignment/ldmatrix_of_global", "ldmatrix of an address that is not in shared memory"),
        ("shuffles/divergent_shuffle", r"divergent collective: .* waits for lane 16, which has returned"),
        (
            "shuffles/shuffle_outside_own_mask",
            r"thread \((0|32), 0, 0\): __shfl_xor_sync by a lane that its mask leaves",
        ),
        ("shuffles/shuffle_from_outside_the_mask", r"thread \((15|47), .*shuffle from lane 16, which its mask leaves"),
        ("shuffles/shuffle_after_return", r"divergent collective: .* waits for lane 7, which has returned"),
    ],
)
def test_misuse_is_reported(bug, message, seed):
    with pytest.raises(RuntimeError, match=message) as raised:
        run(bug, seed)
    assert f"bugs::{bug.split('/')[0]}<" in str(raised.value), "the kernel is named"
    assert "block (" in str(raised.value)


# An array has an inaccessible page right behind its end (odd seeds) or right before its start (even seeds).
def test_global_bounds():
    with pytest.raises(RuntimeError, match=r"access \d+ bytes past the end of input \(512 bytes\)"):
        run("memory/global_read", seed=1)
    with pytest.raises(RuntimeError, match=r"access \d+ bytes past the end of output \(512 bytes\)"):
        run("memory/global_write", seed=1)
    with pytest.raises(RuntimeError, match=r"access \d+ bytes before the start of input"):
        run("memory/global_read_before", seed=2)
    for seed in (1, 2):  # 513 bytes leave a gap before the page: writes there are found afterwards
        with pytest.raises(RuntimeError, match=r"past the end of output|wrote outside an array"):
            run("memory/global_write_near", seed, size=129)


def test_reads_beyond_an_array_within_a_page_give_nan():
    assert np.isnan(run("memory/global_read", seed=2)[:63]).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("launch/shared_memory_of_228_KB", r"launch of .*bugs::tiles<.* failed: invalid argument"),
        ("launch/grid_of_none", r"a grid of \(0, 1, 1\) exceeds the limit \(2147483647, 65535, 65535\)"),
        ("launch/grid_too_high", r"a grid of \(1, 65536, 1\) exceeds the limit"),
        ("launch/block_too_large", r"a block of \(64, 32, 1\) has over 1024 threads"),
    ],
)
def test_impossible_launches_are_refused(name, message):
    with pytest.raises(RuntimeError, match=message):
        run(name)


def test_a_launch_may_have_all_the_shared_memory_there_is():
    np.testing.assert_array_equal(run("launch/shared_memory_of_227_KB"), BACK_TO_FRONT)


def test_a_failed_launch_leaves_the_next_one_alone():
    for bug in ("memory/global_read", "barriers/barrier_in_a_branch", "shuffles/divergent_shuffle"):
        with pytest.raises(RuntimeError):
            run(bug)
        np.testing.assert_array_equal(run("tiles/none"), BACK_TO_FRONT)
    with pytest.raises(ValueError, match="there is no probe 'tiles/unknown'"):
        run("tiles/unknown")


# --- Fragments. Each map gives (row, column) of element i of the lanes; G = lane / 4 and T = lane % 4, as in PTX.

G, T = np.arange(32) // 4, np.arange(32) % 4
A_MAPS = {
    ("f16", 8): lambda i: (G + 8 * (i >> 1), 2 * T + (i & 1)),
    ("f16", 16): lambda i: (G + 8 * ((i >> 1) & 1), 2 * T + (i & 1) + 8 * (i >> 2)),
    ("tf32", 8): lambda i: (G + 8 * (i & 1), T + 4 * (i >> 1)),
}
B_MAPS = {
    ("f16", 8): lambda i: (2 * T + i, G),
    ("f16", 16): lambda i: (2 * T + (i & 1) + 8 * (i >> 1), G),
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
    ("dtype", "depth"), [("f16", 8), ("bf16", 8), ("f16", 16), ("bf16", 16), ("tf32", 8)], ids=lambda v: str(v)
)
def test_mma(dtype, depth):
    rng = np.random.default_rng(1)
    a, b, c = (rng.integers(-8, 9, shape).astype(float) for shape in ((16, depth), (depth, 8), (16, 8)))
    key = ("tf32" if dtype == "tf32" else "f16", depth)
    words = [registers(a, A_MAPS[key], depth // 2, dtype), registers(b, B_MAPS[key], depth // 4, dtype)]
    accumulator = [(G + 8 * (i >> 1), 2 * T + (i & 1)) for i in range(4)]
    words.append(np.stack([bits_of(c[at], "f32") for at in accumulator]))
    output = np.zeros(128, np.float32)
    _testing_cuda.probe(f"mma_m16n8k{depth}_{dtype}", np.concatenate(words).ravel().astype(np.uint32), output)
    expected = a @ b + c
    np.testing.assert_array_equal(output.reshape(4, 32), np.stack([expected[at] for at in accumulator]))


def test_mma_reads_only_the_19_bits_of_tf32():
    one_and_a_bit = np.full((16, 8), 1 + 2.0**-11)
    words = [
        registers(one_and_a_bit, A_MAPS["tf32", 8], 4, "tf32"),
        registers(np.ones((8, 8)), B_MAPS["tf32", 8], 2, "tf32"),
    ]
    output = np.zeros(128, np.float32)
    _testing_cuda.probe("mma_m16n8k8_tf32", np.concatenate([*words, np.zeros((4, 32), np.uint32)]).ravel(), output)
    assert (output == 8).all()


@pytest.mark.parametrize("matrices", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(matrices, transposed):
    rng = np.random.default_rng(2)
    rows, order = rng.integers(0, 2**16, (32, 8)), rng.permutation(32)
    output = np.zeros(32 * matrices, np.uint32)
    name = f"ldmatrix_x{matrices}" + "_trans" * transposed
    _testing_cuda.probe(name, np.concatenate([rows.ravel(), order]).astype(np.uint16), output)
    for q, register in enumerate(output.reshape(matrices, 32)):
        matrix = rows[order[8 * q : 8 * q + 8]]
        matrix = matrix.T if transposed else matrix
        np.testing.assert_array_equal(register, matrix[G, 2 * T] | matrix[G, 2 * T + 1] << 16)


def test_a_product_by_ldmatrix_and_mma():
    rng = np.random.default_rng(3)
    a, b = rng.integers(-8, 9, (16, 16)).astype(np.float16), rng.integers(-8, 9, (16, 8)).astype(np.float16)
    output = np.zeros(128, np.float32)
    _testing_cuda.probe("product", np.concatenate([a.ravel(), b.ravel()]).view(np.uint16), output)
    np.testing.assert_array_equal(output.reshape(16, 8), a.astype(float) @ b.astype(float))


@pytest.mark.parametrize("size", [4, 8, 16])
def test_cp_async_fills_with_zeros(size):
    source = np.random.default_rng(4).integers(1, 256, (32, size)).astype(np.uint8)
    output = np.zeros(32 * size, np.uint8)
    _testing_cuda.probe(f"cp_async_{size}", source.ravel(), output)
    valid = np.arange(size) < (np.arange(32) % (size + 1))[:, None]
    np.testing.assert_array_equal(output.reshape(32, size), np.where(valid, source, 0)[::-1])


@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
def test_cp_async_ring(pieces):
    source = np.arange(32 * pieces, dtype=np.float32)
    output = np.zeros(32, np.float32)
    for seed in SEEDS:
        _testing_cuda.probe("ring", source, output, seed)
        np.testing.assert_array_equal(output, source.reshape(pieces, 32)[:, ::-1].sum(0))


def test_round_to_tf32():
    ulp = 2.0**-10
    values = [0.0, -0.0, 1 + ulp / 2, -1 - ulp / 2, 1 + ulp / 2 - 2.0**-23, 1 + 1.5 * ulp, 2 - 2.0**-23, np.inf]
    expected = [0.0, -0.0, 1 + ulp, -1 - ulp, 1, 1 + 2 * ulp, 2, np.inf]  # ties away from zero
    source, output = np.resize(np.float32(values), 32), np.zeros(32, np.uint32)
    _testing_cuda.probe("tf32", source, output)
    np.testing.assert_array_equal(output, np.resize(np.float32(expected), 32).view(np.uint32))


def test_shuffles_and_votes():
    lane, source, output = np.arange(32), np.random.default_rng(5).standard_normal(32), np.zeros(320)
    _testing_cuda.probe("warp", source, output)
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
