"""Proofs that kernels with shared memory are free of races and that all threads reach their barriers; needs no GPU.

sentryward runs every thread of one small launch of the compiled PTX symbolically, so a verdict covers all values that
the tensors may hold, for that launch. `make verify` installs it; without it the tests are skipped. It does not see
addresses out of bounds, misalignment, or reads of shared memory that nobody wrote: the emulation does.
"""

import json
import re

import pytest

from benchmarks import cubins

sentryward = pytest.importorskip("sentryward", reason="no sentryward: `make verify` installs it")
if WHY_NOT := cubins.why_not():
    pytest.skip(f"CUDA kernels cannot be compiled here: {WHY_NOT}", allow_module_level=True)

TESTING = cubins.ROOT / "csrc/testing"
# Source, kernel, threads, bytes of dynamic shared memory, integers among the parameters (index: value). Every kernel
# that uses shared memory has a row here, or a reason in NOT_VERIFIED.
CORRECT = [
    ("bug_probes", "tiles<none>", 64, 288, {}),
    ("bug_probes", "async_tiles<none>", 64, 512, {}),
    ("bug_probes", "neighbours<none>", 64, 288, {}),
    ("wrapper_probes", "product_probe", 32, 768, {}),
    ("wrapper_probes", "ring_probe", 32, 384, {2: 5}),
]
# The test of the test: the same kernels with one fault each.
FAULTS = [
    ("bug_probes", "tiles<no_barrier_before_reading>", "potential_race"),
    ("bug_probes", "tiles<no_barrier_before_overwriting>", "potential_race"),
    ("bug_probes", "async_tiles<no_async_wait>", "potential_race"),
    ("bug_probes", "async_tiles<async_wait_without_barrier>", "potential_race"),
    ("bug_probes", "async_tiles<async_wait_too_lax>", "potential_race"),
    ("bug_probes", "neighbours<no_syncwarp>", "potential_race"),
    ("bug_probes", "barriers<barrier_in_a_branch>", "not_wellsynced"),
]


@pytest.fixture(scope="module")
def entries():
    """{(source, short name): (PTX file, symbol, parameters' types)} of all kernels under csrc/testing and csrc/cuda."""
    bugs = re.search(r"enum Bug \{(.*?)\}", (TESTING / "bug_probes.cu").read_text(), re.S)[1]
    bugs = [name.strip() for name in bugs.split(",")]
    sources = [*TESTING.glob("*.cu"), *(cubins.ROOT / "csrc/cuda").glob("*.cu")]
    cubins.build((), sources=sources)
    found = {}
    for source in sources:
        path = cubins.OUTPUT / f"{source.stem}.{cubins.PTX}.ptx"
        parameters = {
            symbol: re.findall(r"\.param \.(?:align \d+ \.)?(\w+)", text)
            for symbol, text in re.findall(r"\.entry (\w+)\((.*?)\)", path.read_text(), re.S)
        }
        for symbol, name in cubins.short_names(list(parameters)).items():
            if source.stem == "bug_probes":
                name = re.sub(r"<(\d+)>", lambda number: f"<{bugs[int(number[1])]}>", name)
            found[source.stem, name] = path, symbol, parameters[symbol]
    return found


def verify(entry, tmp_path, threads, shared, integers):
    """The checker's whole answer for one block of a kernel whose other parameters are pointers."""
    path, symbol, types = entry
    parameter = lambda i: f"{symbol}_param_{i}"  # noqa: E731
    pointers = [i for i in range(len(types)) if i not in integers]
    kernel = {
        "schema": "spverify.kernel-input/v1",
        "entry": symbol,
        "launch": {"grid_dim": [1, 1, 1], "block_dim": [threads, 1, 1], "dynamic_shared_bytes": shared},
        "declarations": [
            {"parameter": parameter(i), "type": "pointer", "space": "global", "object": f"tensor{i}"} for i in pointers
        ],
        "arguments": [{"parameter": parameter(i), "type": types[i], "value": value} for i, value in integers.items()],
    }
    (tmp_path / "input.json").write_text(json.dumps(kernel))
    options = {"timeout_seconds": 120, "memory_limit_mib": 4096}
    return sentryward.verify(str(path), input=str(tmp_path / "input.json"), reference=None, **options)


@pytest.mark.parametrize(("source", "name", "threads", "shared", "integers"), CORRECT, ids=lambda v: str(v))
def test_no_races(entries, tmp_path, source, name, threads, shared, integers):
    answer = verify(entries[source, name], tmp_path, threads, shared, integers)
    assert answer["result"] == "race_free", answer["diagnostics"]  # "unsupported" is not verified either


@pytest.mark.parametrize(("source", "name", "verdict"), FAULTS, ids=lambda v: str(v))
def test_faults_are_found(entries, tmp_path, source, name, verdict):
    answer = verify(entries[source, name], tmp_path, 64, 512, {})
    assert answer["result"] == verdict, answer["diagnostics"]


NOT_VERIFIED: dict[str, str] = {}  # kernel: why the checker cannot take it


def uses_shared_memory(entry):
    """By what the compiled code says."""
    path, symbol, _ = entry
    body = path.read_text().split(f".entry {symbol}(", 1)[1].split("\n}", 1)[0]
    return bool(re.search(r"\.shared\b|resnext_dynamic_smem", body))


def test_every_kernel_with_shared_memory_is_listed(entries):
    assert uses_shared_memory(entries["bug_probes", "tiles<none>"])
    known = {name for _, name, *_ in CORRECT} | set(NOT_VERIFIED)
    ours = {name: entry for (source, name), entry in entries.items() if (TESTING.parent / f"cuda/{source}.cu").exists()}
    assert ours
    assert {name for name, entry in ours.items() if uses_shared_memory(entry)} <= known
