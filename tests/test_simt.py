"""The emulated CUDA device itself: planted bugs must be caught. What its instructions compute: test_wrappers.py."""

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
    "named_barriers": np.arange(64)[::-1],
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
        "named_barriers/no_named_barrier",
        "named_barriers/named_barrier_for_each_warp",
        "named_barriers/named_barrier_too_small",
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
        ("barriers/barrier_in_a_branch", r"thread \(32, .*partial barrier: .* thread \(40, 0, 0\), which has returned"),
        ("barriers/two_barriers", r"partial barrier: .* waits for thread \(40, .*which is in __syncthreads \(.*:\d+\)"),
        (
            "barriers/barrier_without_a_warp",
            r"thread \(0, .*partial barrier: .* thread \(32, 0, 0\), which has returned",
        ),
        (
            "named_barriers/named_barrier_16",
            r"thread \(\d+, 0, 0\): barrier_sync 16 of 64 threads: there are barriers 0",
        ),
        ("named_barriers/named_barrier_of_48", "barrier_sync 1 of 48 threads: not a multiple of 32"),
        ("named_barriers/named_barrier_of_96", "barrier_sync 1 of 96 threads: the block has 64"),
        (  # as the one or the other warp comes first
            "named_barriers/named_barrier_of_two_sizes",
            r"two sizes of a barrier: .* 1 of 32 .* 1 of 64 |partial barrier: .* 1 of 64 .* thread \(0, 0, 0\), which",
        ),
        (
            "named_barriers/named_barrier_in_a_branch",
            r"thread \(32, .*partial barrier: barrier_sync 1 of 64 .* thread \(40, 0, 0\), which has returned",
        ),
        (
            "named_barriers/named_barrier_without_a_warp",
            r"thread \(0, .*partial barrier: barrier_sync 1 of 64 .* thread \(32, 0, 0\), which has returned",
        ),
        (
            "named_barriers/two_named_barriers",
            r"partial barrier: barrier_sync 1 .* thread \(32, 0, 0\), which is in barrier_sync 2 of 64 threads",
        ),
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


@pytest.mark.parametrize(("gpu", "own"), [(75, "7.5"), (100, "10.0"), (121, "12.1")])
@pytest.mark.parametrize("probe", ["tiles/none", "launch/shared_memory_of_227_KB"])
def test_a_gpu_without_code_gets_one_sentence(probe, gpu, own):
    reason = "no kernel image" if gpu < 80 else "PTX was compiled with an unsupported toolchain"
    output = np.full(SIZE, np.nan, np.float32)
    with pytest.raises(RuntimeError) as raised:
        _testing_cuda.probe(probe, np.zeros(SIZE, np.float32), output, gpu=gpu)
    text = str(raised.value)
    assert text.startswith(f"resnext_kernels was built for GPUs of compute capability 8.0, 9.0, this one has {own} (")
    assert reason in text
    assert text.endswith(f"build it from source with TORCH_CUDA_ARCH_LIST={own}, or use torch.nn.functional.conv2d")
    assert np.isnan(output).all()
    np.testing.assert_array_equal(run("tiles/none"), BACK_TO_FRONT)


def test_a_launch_may_have_all_the_shared_memory_there_is():
    np.testing.assert_array_equal(run("launch/shared_memory_of_227_KB"), BACK_TO_FRONT)


def test_a_failed_launch_leaves_the_next_one_alone():
    for bug in ("memory/global_read", "barriers/barrier_in_a_branch", "shuffles/divergent_shuffle"):
        with pytest.raises(RuntimeError):
            run(bug)
        np.testing.assert_array_equal(run("tiles/none"), BACK_TO_FRONT)
    with pytest.raises(ValueError, match="there is no probe 'tiles/unknown'"):
        run("tiles/unknown")
