"""Proofs that kernels with shared memory are free of races and that all threads reach their barriers; needs no GPU.

sentryward runs every thread of one small launch of the compiled PTX symbolically, so a verdict covers all values that
the tensors may hold, for that launch. `make` installs it; where that fails the tests are skipped. It does not see
addresses out of bounds, misalignment, or reads of shared memory that nobody wrote: the emulation does.
"""

import json
import re
from functools import cache

import pytest

from benchmarks import cubins
from tests import race_planes
from tests.launches import (
    STRUCTS,
    lines_kernels,
    lines_launch,
    mma_wgrad_kernels,
    padded_kernels,
    rows_kernels,
    rows_launch,
    struct_fields,
    tf32_kernels,
    tiles_kernels,
    tiles_launch,
    told,
    wgrad_kernels,
    wgrad_launch,
)
from tests.proofs import prove

pytest.importorskip("sentryward", reason="no sentryward: `make .venv/.verify` installs it")
if WHY_NOT := cubins.why_not():
    pytest.skip(f"CUDA kernels cannot be compiled here: {WHY_NOT}", allow_module_level=True)

TESTING = cubins.ROOT / "csrc/testing"


# Source, kernel, threads, bytes of dynamic shared memory, integers among the parameters: by index or, if the parameter
# is a struct, by the field's name. Every kernel that uses shared memory has a row here, or a reason in NOT_VERIFIED.
CORRECT = [
    ("bug_probes", "tiles<none>", 64, 288, {}),
    ("bug_probes", "async_tiles<none>", 64, 512, {}),
    ("bug_probes", "neighbours<none>", 64, 288, {}),
    ("wrapper_probes", "product_probe", 32, 768, {}),
    ("wrapper_probes", "ring_probe", 32, 384, {2: 5}),
    *rows_kernels(),
    *tiles_kernels(),
    *wgrad_kernels(),
    *mma_wgrad_kernels(),
    *lines_kernels(),
    *padded_kernels(),
    *tf32_kernels(),
    *race_planes.correct(told),
    *race_planes.correct_padded(told),
    *race_planes.correct_tf32(told),
]
# The test of the test: the same kernels with one fault each.
FAULTY_ROWS = {
    "Gw<8, 1>": rows_launch(8, (4, 30), (4, 30), tiles=4, images=1),
    "Spread<8>": rows_launch(8, (4, 30), (8, 60), tiles=4, images=1),
}
ROWS_FAULTS = ("NoBarrierAfterWeights", "NoSyncwarp", "NoAsyncWait", "AsyncWaitTooLax")
FAULTY_WGRAD = {f"Tf32<{layout}, 1>": wgrad_launch(8, 1, f"tf32_{layout}", 1, 4, 28) for layout in ("Nhwc", "Nchw")}
FAULTY_WGRAD |= {f"8, 1, {layout}": wgrad_launch(8, 1, layout, 1, 4, 28) for layout in ("Nhwc", "Nchw")}
FAULTY_LINES = {
    "Gather<8, 1>": (128, lines_launch("Gather<8, 1>", 2, 5, 9)),
    "Gather<4, 1>": (128, lines_launch("Gather<4, 1>", 2, 5, 17)),
    "Gather<32, 1>": (512, lines_launch("Gather<32, 1>", 2, 5, 9)),
}
# The barrier after the weights is for test_cuda_mma.py.
LINES_FAULTS = ("NoTeamBarrier", "NoAsyncWait", "AsyncWaitTooLax")
WGRAD_FAULTS = ("NoAsyncWait", "AsyncWaitTooLax", "NoBarrierAfterRow", "NoBarrierBeforeSums", "NoBarrierAfterSums")
WGRAD_FAULTS += ("NoBarrierBeforeResults",)
# A team of one warp has its lanes meet at every ldmatrix and mma, so there the checker does not miss the barrier.
MMA_WGRAD_FAULTS = [("wgrad_mma", "32, 1" if fault == "NoBarrierAfterRow" else "8, 1", fault) for fault in WGRAD_FAULTS]
MMA_WGRAD_FAULTS += [
    ("wgrad_mma_nchw", "8, 1", fault.replace("NoBarrierAfterRow", "NoBarrierAtChunk")) for fault in WGRAD_FAULTS
]
TILES_FAULTS = ("NoAsyncWait", "AsyncWaitTooLax", "NoBarrierAtStage", "NoBarrierBeforeResults", "NoSyncwarp")
FAULTS = [
    ("bug_probes", "tiles<no_barrier_before_reading>", "potential_race"),
    ("bug_probes", "tiles<no_barrier_before_overwriting>", "potential_race"),
    ("bug_probes", "async_tiles<no_async_wait>", "potential_race"),
    ("bug_probes", "async_tiles<async_wait_without_barrier>", "potential_race"),
    ("bug_probes", "async_tiles<async_wait_too_lax>", "potential_race"),
    ("bug_probes", "neighbours<no_syncwarp>", "potential_race"),
    ("bug_probes", "barriers<barrier_in_a_branch>", "not_wellsynced"),
    *(
        ("rows_wgrad_bugs", f"wgrad_rows<8, 1, {layout}, {fault}>", "potential_race")
        for layout in ("Nhwc", "Nchw", "Tf32<Nhwc, 1>", "Tf32<Nchw, 1>")
        for fault in WGRAD_FAULTS
    ),
    *(
        ("mma_wgrad_bugs", f"{kernel}<f16, {kind}, {fault}>", "potential_race")
        for kernel, kind, fault in MMA_WGRAD_FAULTS
    ),
    *(
        ("mma_bugs", f"stream_lines<f16, {kind}, {fault}>", "potential_race")
        for kind in FAULTY_LINES
        for fault in LINES_FAULTS
        if (kind, fault) != ("Gather<4, 1>", "NoTeamBarrier")  # not decided; the emulation catches it
    ),
    *race_planes.faulty(),
    *(("rows_nchw_bugs", f"stream_tiles<Gw<16, 2>, {fault}>", "potential_race") for fault in TILES_FAULTS),
    *(
        ("rows_bugs", f"stream_rows<{kind}, Wide, {fault}>", "potential_race")
        for kind in FAULTY_ROWS
        for fault in ROWS_FAULTS
    ),
]
WITHOUT_FAULT = dict.fromkeys(
    (source, re.sub(r"\w+>$", "None>", name)) for source, name, _ in FAULTS if "probes" not in source
)


@cache
def entries(source):
    """{short name: (PTX file, symbol, parameters' types)} of the kernels of a file of csrc/testing or csrc/cuda."""
    folder = TESTING if (TESTING / f"{source}.cu").exists() else cubins.ROOT / "csrc/cuda"
    cubins.build((), sources=[folder / f"{source}.cu"])
    path = cubins.OUTPUT / f"{source}.{cubins.PTX}.ptx"
    parameter = r"\.param \.(?:align \d+ \.)?(\w+)(?: \.ptr \.align \d+)? \w+(\[\d+\])?"
    parameters = {
        symbol: [kind + size for kind, size in re.findall(parameter, text)]
        for symbol, text in re.findall(r"\.entry (\w+)\((.*?)\)", path.read_text(), re.S)
    }
    bugs = re.search(r"enum Bug \{(.*?)\}", (TESTING / "bug_probes.cu").read_text(), re.S)[1]
    bugs = [name.strip() for name in bugs.split(",")]
    found = {}
    for symbol, name in cubins.short_names(list(parameters)).items():
        if source == "bug_probes":
            name = re.sub(r"<(\d+)>", lambda number: f"<{bugs[int(number[1])]}>", name)
        found[name] = path, symbol, parameters[symbol]
    return found


def places(entry):
    """{index of a parameter, or name of a field if there is one struct: (where that is, its type)}."""
    _, symbol, types = entry
    for struct in STRUCTS:
        fields, size = struct_fields(struct)
        if types == [f"b8[{size}]"] and f"{len(struct)}{struct}E" in symbol:
            place = {"parameter": f"{symbol}_param_0"}
            return {name: ({**place, "offset": at}, kind) for name, (at, kind) in fields.items()}
    return {i: ({"parameter": f"{symbol}_param_{i}"}, kind) for i, kind in enumerate(types)}


def verify(entry, tmp_path, threads, shared, integers):
    """The checker's whole answer for one block of a kernel whose other parameters are pointers."""
    path, symbol, _ = entry
    kernel = {
        "schema": "spverify.kernel-input/v1",
        "entry": symbol,
        "launch": {"grid_dim": [1, 1, 1], "block_dim": [threads, 1, 1], "dynamic_shared_bytes": shared},
        "declarations": [
            {**place, "type": "pointer", "space": "global", "object": f"tensor_{key}"}
            for key, (place, _) in places(entry).items()
            if key not in integers
        ],
        "arguments": [
            {**place, "type": kind.replace("pointer", "u64"), "value": integers[key]}
            for key, (place, kind) in places(entry).items()
            if key in integers
        ],
    }
    return answers(path, kernel, tmp_path)


def answers(path, kernel, tmp_path):
    """The checker's answers: one, or one for each way of every branch that the tensors' values decide."""
    (tmp_path / "input.json").write_text(json.dumps(kernel))
    answer = prove(path, 600, input=str(tmp_path / "input.json"), reference=None)
    decided = kernel.get("branch_decisions", [])
    undecided = [d["details"]["location"] for d in answer["diagnostics"] if d["code"] == "control_predicate_not_static"]
    if not undecided or undecided[0]["line"] in [decision["line"] for decision in decided]:
        return [answer]
    ways = [{"line": undecided[0]["line"], "taken": taken} for taken in (True, False)]
    return [a for way in ways for a in answers(path, {**kernel, "branch_decisions": [*decided, way]}, tmp_path)]


def first_only(rows):
    """Rows for parametrize: all but the first of each source are slow, if it is not one of small probes."""
    params, seen = [], {}
    for row in rows:
        slow = seen.setdefault(row[0], False)
        params.append(pytest.param(*row, marks=[pytest.mark.slow] * slow, id="-".join(row[:2])))
        seen[row[0]] = "probes" not in row[0]
    return params


@pytest.mark.parametrize(
    ("source", "name", "threads", "shared", "integers"),
    [pytest.param(*row, marks=[pytest.mark.slow] * ("probes" not in row[0]), id="-".join(row[:2])) for row in CORRECT],
)
def test_no_races(tmp_path, source, name, threads, shared, integers):
    for answer in verify(entries(source)[name], tmp_path, threads, shared, integers):
        assert answer["result"] == "race_free", answer["diagnostics"]  # "unsupported" is not verified either


def launch_with_faults(source, name):
    """Threads, bytes of shared memory and integers of a kernel of csrc/testing."""
    if source == "rows_bugs":
        return 128, 65536, next(rows for kind, rows in FAULTY_ROWS.items() if kind in name)
    if source == "rows_nchw_bugs":
        return 128, 65536, tiles_launch("Gw<16, 2>", 1, 4, 28)
    if source == "mma_nchw_bugs":
        return 256, 65536, race_planes.launch(told, "Gather<8, 1>", 6, 10, 24)
    if source == "mma_bugs":
        threads, integers = next(lines for kind, lines in FAULTY_LINES.items() if kind in name)
        return threads, 80896, integers
    if source == "rows_wgrad_bugs":
        threads, integers = next(v for k, v in FAULTY_WGRAD.items() if k in name)
        return threads, 65536, integers
    if source == "mma_wgrad_bugs":
        kind = re.search(r"f16, (\d+, 1)", name)[1]
        layout = "nchw" if "nchw" in name else "nhwc"
        columns = 7 if layout == "nhwc" else 8  # of an odd number there are no asynchronous copies in NCHW
        integers = told("MmaWgrad", f"mma_wgrad/{layout}/plan/{kind}", 1, 7 if kind == "32, 1" else 28, columns)
        return 256 if kind == "32, 1" else 128, 65536, integers
    return 64, 512, {}


@pytest.mark.parametrize(("source", "name", "verdict"), first_only(FAULTS))
def test_faults_are_found(tmp_path, source, name, verdict):
    for answer in verify(entries(source)[name], tmp_path, *launch_with_faults(source, name)):
        assert answer["result"] == verdict, answer["diagnostics"]


@pytest.mark.parametrize(("source", "name"), first_only(WITHOUT_FAULT))
def test_the_same_kernels_without_a_fault_pass(tmp_path, source, name):
    """The kernels of csrc/cuda, by a short compilation."""
    for answer in verify(entries(source)[name], tmp_path, *launch_with_faults(source, name)):
        assert answer["result"] == "race_free", answer["diagnostics"]


# kernel: why the checker cannot take it
NOT_VERIFIED = {
    f"stream_tiles<{kind}, Sync>": "the code of the other widths, in too many threads and channels to be run in time"
    for kind in ("Gw<32, 1>", "Gw<32, 2>", "Spread<32>")
}
NOT_VERIFIED |= {
    f"stream_lines<{dtype}, Fused<Gather<{width}, {stride}> >, Sync>": "Gather but for what a lane makes of its sums"
    for dtype in ("f16", "bf16")
    for width in (4, 8, 16, 24, 32, 40, 48, 56, 64)
    for stride in (1, 2)
}
NOT_VERIFIED |= dict.fromkeys(
    (f"stream_lines<f16, Gather<{width}, 2>, Sync>" for width in (8, 16)),
    "the checker takes no pointer that a parameter moves backwards: 'pointer offset outside unsigned range'",
)
LINES_KINDS = {
    width: (f"Gather<{width}, 1>", f"Gather<{width}, 2>", f"Spread<{width}>")
    for width in (4, 8, 16, 24, 32, 40, 48, 56, 64)
}
NOT_VERIFIED |= {
    f"stream_lines<bf16, {kind}, Sync>": "the code of f16 but for mma's type"
    for kinds in LINES_KINDS.values()
    for kind in kinds
}
NOT_VERIFIED |= {
    f"stream_lines<f16, {kind}, Sync>": "the code of widths 8 and 16 but for the size of teams, and minutes each"
    for width in (24, 32, 40, 48, 56, 64)
    for kind in LINES_KINDS[width]
}
NOT_VERIFIED |= {
    f"stream_lines<{dtype}, PaddedGroups<{kind}>, Sync>": "the code of the others but for sizes; one is verified"
    for dtype in ("f16", "bf16")
    for width in (16, 32, 64)
    for kind in (f"Fused<Gather<{width}, 1> > ", f"Fused<Gather<{width}, 2> > ", f"Spread<{width}> ")
    if (dtype, width, kind) != ("f16", 16, "Fused<Gather<16, 1> > ")
}
NOT_VERIFIED |= {
    f"stream_lines<f32, {kind}, Sync>": "the code of f16, but for mma, or of the tf32 kernels that are verified"
    for products in (1, 3)
    for width in (16, 32, 64)
    for bytes_of in (f"Gather<{width}, 1>", f"Gather<{width}, 2>", f"Spread<{width}>")
    for kind in (f"Tf32<{bytes_of}, {products}>", f"Fused<Tf32<{bytes_of}, {products}> >")
}
NOT_VERIFIED |= {
    f"wgrad_rows<{width}, {stride}, Tf32<{layout}, 3>, Sync>": "the code of groups of 16 at stride 1 or of one product"
    for width, stride in ((32, 1), (16, 2), (32, 2))
    for layout in ("Nhwc", "Nchw")
}
NOT_VERIFIED |= {
    f"{kernel}<{dtype}, {width}, {stride}, Sync>": "the code of f16, in groups of 8 or of 32, but for where results go"
    for kernel in ("wgrad_mma", "wgrad_mma_nchw")
    for stride in (1, 2)
    for dtype, width in (("f16", 4), ("f16", 64), *(("bf16", width) for width in (4, 8, 16, 32, 64)))
}
NOT_VERIFIED |= dict(race_planes.not_verified([name for _, name, *_ in CORRECT]))


def uses_shared_memory(entry):
    """By what the compiled code says."""
    path, symbol, _ = entry
    body = path.read_text().split(f".entry {symbol}(", 1)[1].split("\n}", 1)[0]
    return bool(re.search(r"\.shared\b|resnext_dynamic_smem", body))


@pytest.mark.slow
def test_every_kernel_with_shared_memory_is_listed():
    assert uses_shared_memory(entries("bug_probes")["tiles<none>"])
    known = {name for _, name, *_ in CORRECT} | set(NOT_VERIFIED)
    ours = {name: e for path in (cubins.ROOT / "csrc/cuda").glob("*.cu") for name, e in entries(path.stem).items()}
    assert ours
    assert {name for name, entry in ours.items() if uses_shared_memory(entry)} <= known
