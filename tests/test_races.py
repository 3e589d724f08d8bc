"""Proofs that kernels with shared memory are free of races and that all threads reach their barriers; needs no GPU.

sentryward runs every thread of one small launch of the compiled PTX symbolically, so a verdict covers all values that
the tensors may hold, for that launch. `make verify` installs it; without it the tests are skipped. It does not see
addresses out of bounds, misalignment, or reads of shared memory that nobody wrote: the emulation does.
"""

import json
import re

import numpy as np
import pytest

from benchmarks import cubins
from resnext_kernels import _testing_cuda

sentryward = pytest.importorskip("sentryward", reason="no sentryward: `make verify` installs it")
if WHY_NOT := cubins.why_not():
    pytest.skip(f"CUDA kernels cannot be compiled here: {WHY_NOT}", allow_module_level=True)

TESTING = cubins.ROOT / "csrc/testing"


def rows_launch(width, source, result, tiles, images):
    """What launch_map of rows_nhwc.h gives its kernel for 32 channels, by the maps' sizes and a segment's tiles."""
    rows, columns = (min(a, b) for a, b in zip(source, result, strict=True))
    runs, strips = -(-rows // 7), -(-columns // (7 * tiles))
    return {
        **{
            "bias": 0,
            "turned": 0,
            "scale": 0,
            "relu": 0,
            "channels": 32,
            "channel_blocks": 1,
            "runs": runs,
            "strips": strips,
        },
        **{"weight_s": 1, "weight_r": 3, "weight_source": 9, "weight_result": 9 * width, "weight_group": 9 * width**2},
        **{"segments": images * strips * runs, "run_rows": -(-rows // runs)},
        **{"rows": source[0], "columns": source[1], "result_rows": result[0], "result_columns": result[1]},
    }


def rows_kernels():
    """Rows for CORRECT: two warps at least with work, a border, a tile cut off, more rows than the ring has stages."""
    for width in (4, 8, 16, 32):
        threads = {f"Gw<{width}, 1>": 128, f"Gw<{width}, 2>": 64 if width < 32 else 128}
        threads[f"Spread<{width}>"] = 128 if width < 16 else 96
        for kind, count in threads.items():
            for name, tiles, images in (("Wide", 4, 1), ("Medium", 2, 2), ("Narrow", 1, 3)):
                small = (4 if width < 16 else 2, 9 * tiles)
                large = tuple(2 * size for size in small)
                source, result = (large if ", 2>" in kind else small), (large if "Spread" in kind else small)
                integers = rows_launch(width, source, result, tiles, images)
                yield "rows_nhwc", f"stream_rows<{kind}, {name}, Sync>", count, 65536, integers


def fields_of(struct, text, kinds):
    """The names and types of a struct of numbers."""
    body = re.search(rf"struct {struct} \{{\n(.*?)\n\}};", text, re.S)[1]
    for kind, names in re.findall(r"^  (\w+)\b([^;]*);", body, re.M):
        yield from ((name.strip(), kinds[kind]) for name in names.split(","))


def struct_fields(struct):
    """{field: (offset, type)} of a struct that is a kernel's only parameter, and its size."""
    text = (cubins.ROOT / "csrc/cuda" / STRUCTS[struct]).read_text()
    body = re.search(rf"struct {struct} \{{\n(.*?)\n\}};", text, re.S)[1]
    kinds = {
        "float": ("pointer", "u8"),
        "void": ("pointer", "u8"),
        "int64_t": ("u64", "u8"),
        "int": ("u32", "u4"),
        "bool": ("u8", "u1"),
    }
    found = {}
    for kind, names in re.findall(r"^  (?:const )?(\w+)\b([^;]*);", body, re.M):
        for name in (name.strip(" *") for name in names.split(",")):
            if kind == "Stream":
                found |= {f"{name}.{field}": type_ for field, type_ in fields_of("Stream", text, kinds)}
                continue
            parts = (f"{name}.value", f"{name}.inverse") if kind == "Divisor" else (name,)
            found |= {part: kinds["int" if kind == "Divisor" else kind] for part in parts}
    layout = np.dtype([(name, size) for name, (_, size) in found.items()], align=True)
    return {name: (layout.fields[name][1], kind) for name, (kind, _) in found.items()}, layout.itemsize


# The structs that kernels take, and where they stand.
STRUCTS = {"Rows": "rows_nhwc_load.h", "Plan": "rows_nchw_plan.h", "Wgrad": "rows_wgrad_load.h"}
STRUCTS |= {"MmaWgrad": "mma_wgrad_load.h"}
STRUCTS["Lines"] = "mma_nhwc_load.h"


def told(struct, probe, *sizes):
    """The integers that a probe says its kernel is told, by the struct's fields."""
    fields, size = struct_fields(struct)
    told = np.zeros(size, np.uint8)
    _testing_cuda.probe(probe, np.array(sizes, np.float32), told)
    types = {"u64": np.uint64, "u32": np.uint32, "u8": np.uint8}
    return {
        name: int(told[at : at + types[kind]().itemsize].view(types[kind])[0])
        for name, (at, kind) in fields.items()
        if kind != "pointer"
    }


def tiles_launch(kind, images, rows, columns):
    """What launch_tiles of rows_nchw.h gives its kernel for one group, by the source's size."""
    values = told("Plan", f"rows_nchw/plan/{kind}", images, rows, columns)
    assert values["groups"] == values["image_blocks"] == values["strips"] == values["runs"] == 1  # one block
    return {**values, "bias": 0, "scale": 0}


def tiles_kernels():
    """Rows for CORRECT: whole planes of several images, and lines of whole vectors or of single elements."""
    for width, maps in ((4, ((2, 3, 7), (1, 3, 28), (1, 3, 9))), (8, ((2, 3, 7), (1, 3, 28))), (16, ((2, 3, 7),))):
        for kind in (f"Gw<{width}, 1>", f"Gw<{width}, 2>", f"Spread<{width}>"):
            count = {"Gw<4, 2>": 64, "Gw<8, 2>": 64, "Spread<16>": 256}.get(kind, 128)
            for images, rows, columns in maps:
                integers = tiles_launch(kind, images, rows, columns * (2 if ", 2>" in kind else 1))
                yield "rows_nchw", f"stream_tiles<{kind}, Sync>", count, 65536, integers


def wgrad_launch(width, stride, layout, images, rows, columns):
    """The threads of a block of wgrad_rows, and what launch_wgrad gives it for one block, by the input's size."""
    fields, size = struct_fields("Wgrad")
    told = np.zeros(8 + size, np.uint8)
    sizes = np.array([images, rows, columns], np.float32)
    _testing_cuda.probe(f"rows_wgrad/plan/{layout.lower()}/{stride}/{width}", sizes, told)
    types = {"u64": np.uint64, "u32": np.uint32, "u8": np.uint8}
    values = {
        name: int(told[8 + at : 8 + at + types[kind]().itemsize].view(types[kind])[0])
        for name, (at, kind) in fields.items()
        if kind != "pointer"
    }
    assert values["channel_blocks"] == values["slices"] == 1
    return int(told[:8].view(np.int64)[0]), values


def wgrad_kernels():
    """Rows for CORRECT: borders on all sides, a tile cut off, and more steps than the ring has stages."""
    for width in (4, 8, 16, 32):
        for stride in (1, 2):
            for layout in ("Nhwc", "Nchw"):
                threads, integers = wgrad_launch(
                    width, stride, layout, 2 if layout == "Nhwc" else 4, 2 * stride, 8 * stride
                )
                yield (
                    f"rows_wgrad_{layout.lower()}",
                    f"wgrad_rows<{width}, {stride}, {layout}, Sync>",
                    threads,
                    65536,
                    integers,
                )


def mma_wgrad_kernels():
    """Rows for CORRECT: two images of three rows, borders on all sides, in one segment each or side by side."""
    for kind in ("8, 1", "16, 1", "8, 2", "16, 2", "32, 1", "32, 2"):
        for columns in (7, 18) if "16" in kind else (7,):
            threads = 256 if "32" in kind else 128
            integers = told("MmaWgrad", f"mma_wgrad/plan/{kind}", 2, 3, columns)
            yield "mma_wgrad_f16", f"wgrad_mma<f16, {kind}, Sync>", threads, 65536, integers


def lines_launch(kind, images, rows, columns):
    """What launch_lines of mma_nhwc.h gives its kernel for one block of channels, by the source's size."""
    values = told("Lines", f"mma_nhwc/plan/{kind}", images, rows, columns)
    assert values["channel_blocks"] == values["runs"] == 1
    return {**values, "bias": 0, "scale": 0}


def lines_kernels():
    """Rows for CORRECT: two teams with work, borders, more rows than the ring has stages; a map that fills no tile."""
    for width in (4, 8, 16):
        for kind in (f"Gather<{width}, 1>", f"Gather<{width}, 2>", f"Spread<{width}>"):
            wide = (2, 3, 17) if width == 4 and "Gather" in kind else (2, 3, 9)  # a tile of one image
            for images, *small in (wide, (3, 5, 7)):
                integers = lines_launch(kind, images, *(2 * size if ", 2>" in kind else size for size in small))
                yield "mma_nhwc", f"stream_lines<f16, {kind}, Sync>", 128, 80896, integers


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
]
# The test of the test: the same kernels with one fault each.
FAULTY_ROWS = {
    "Gw<8, 1>": rows_launch(8, (4, 30), (4, 30), tiles=4, images=1),
    "Spread<8>": rows_launch(8, (4, 30), (8, 60), tiles=4, images=1),
}
ROWS_FAULTS = ("NoBarrierAfterWeights", "NoSyncwarp", "NoAsyncWait", "AsyncWaitTooLax")
FAULTY_WGRAD = {layout: wgrad_launch(8, 1, layout, 1, 4, 28) for layout in ("Nhwc", "Nchw")}
FAULTY_LINES = {
    "Gather<4, 1>": (128, lines_launch("Gather<4, 1>", 2, 5, 17)),
    "Gather<8, 1>": (128, lines_launch("Gather<8, 1>", 2, 5, 9)),
    "Gather<32, 1>": (512, lines_launch("Gather<32, 1>", 2, 5, 9)),
}
# The barrier after the weights is for test_cuda_mma.py.
LINES_FAULTS = ("NoTeamBarrier", "NoAsyncWait", "AsyncWaitTooLax")
WGRAD_FAULTS = ("NoAsyncWait", "AsyncWaitTooLax", "NoBarrierAfterRow", "NoBarrierBeforeSums", "NoBarrierAfterSums")
WGRAD_FAULTS += ("NoBarrierBeforeResults",)
# A team of one warp has its lanes meet at every ldmatrix and mma, so there the checker does not miss the barrier.
MMA_WGRAD_FAULTS = [("32, 1" if fault == "NoBarrierAfterRow" else "8, 1", fault) for fault in WGRAD_FAULTS]
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
        for layout in FAULTY_WGRAD
        for fault in WGRAD_FAULTS
    ),
    *(("mma_wgrad_bugs", f"wgrad_mma<f16, {kind}, {fault}>", "potential_race") for kind, fault in MMA_WGRAD_FAULTS),
    *(
        ("mma_bugs", f"stream_lines<f16, {kind}, {fault}>", "potential_race")
        for kind in FAULTY_LINES
        for fault in LINES_FAULTS
    ),
    *(("rows_nchw_bugs", f"stream_tiles<Gw<16, 2>, {fault}>", "potential_race") for fault in TILES_FAULTS),
    *(
        ("rows_bugs", f"stream_rows<{kind}, Wide, {fault}>", "potential_race")
        for kind in FAULTY_ROWS
        for fault in ROWS_FAULTS
    ),
]


@pytest.fixture(scope="module")
def entries():
    """{(source, short name): (PTX file, symbol, parameters' types)} of all kernels under csrc/testing and csrc/cuda."""
    bugs = re.search(r"enum Bug \{(.*?)\}", (TESTING / "bug_probes.cu").read_text(), re.S)[1]
    bugs = [name.strip() for name in bugs.split(",")]
    sources = [*TESTING.glob("*.cu"), *(cubins.ROOT / "csrc/cuda").glob("*.cu")]
    cubins.build((), sources=sources)
    parameter = r"\.param \.(?:align \d+ \.)?(\w+)(?: \.ptr \.align \d+)? \w+(\[\d+\])?"
    found = {}
    for source in sources:
        path = cubins.OUTPUT / f"{source.stem}.{cubins.PTX}.ptx"
        parameters = {
            symbol: [kind + size for kind, size in re.findall(parameter, text)]
            for symbol, text in re.findall(r"\.entry (\w+)\((.*?)\)", path.read_text(), re.S)
        }
        for symbol, name in cubins.short_names(list(parameters)).items():
            if source.stem == "bug_probes":
                name = re.sub(r"<(\d+)>", lambda number: f"<{bugs[int(number[1])]}>", name)
            found[source.stem, name] = path, symbol, parameters[symbol]
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
    options = {"timeout_seconds": 120, "memory_limit_mib": 4096}
    answer = sentryward.verify(str(path), input=str(tmp_path / "input.json"), reference=None, **options)
    decided = kernel.get("branch_decisions", [])
    undecided = [d["details"]["location"] for d in answer["diagnostics"] if d["code"] == "control_predicate_not_static"]
    if not undecided or undecided[0]["line"] in [decision["line"] for decision in decided]:
        return [answer]
    ways = [{"line": undecided[0]["line"], "taken": taken} for taken in (True, False)]
    return [a for way in ways for a in answers(path, {**kernel, "branch_decisions": [*decided, way]}, tmp_path)]


@pytest.mark.parametrize(("source", "name", "threads", "shared", "integers"), CORRECT, ids=lambda v: str(v))
def test_no_races(entries, tmp_path, source, name, threads, shared, integers):
    for answer in verify(entries[source, name], tmp_path, threads, shared, integers):
        assert answer["result"] == "race_free", answer["diagnostics"]  # "unsupported" is not verified either


@pytest.mark.parametrize(("source", "name", "verdict"), FAULTS, ids=lambda v: str(v))
def test_faults_are_found(entries, tmp_path, source, name, verdict):
    threads, shared, integers = 64, 512, {}
    if source == "rows_bugs":
        threads, shared, integers = 128, 65536, next(rows for kind, rows in FAULTY_ROWS.items() if kind in name)
    elif source == "rows_nchw_bugs":
        threads, shared, integers = 128, 65536, tiles_launch("Gw<16, 2>", 1, 4, 28)
    elif source == "mma_bugs":
        (threads, integers), shared = next(lines for kind, lines in FAULTY_LINES.items() if kind in name), 80896
    elif source == "rows_wgrad_bugs":
        (threads, integers), shared = next(v for k, v in FAULTY_WGRAD.items() if k in name), 65536
    elif source == "mma_wgrad_bugs":
        kind = re.search(r"f16, (\d+, 1)", name)[1]
        threads, shared = 256 if kind == "32, 1" else 128, 65536
        integers = told("MmaWgrad", f"mma_wgrad/plan/{kind}", 1, 7 if kind == "32, 1" else 28, 7)
    for answer in verify(entries[source, name], tmp_path, threads, shared, integers):
        assert answer["result"] == verdict, answer["diagnostics"]


# kernel: why the checker cannot take it
NOT_VERIFIED = {
    f"stream_tiles<{kind}, Sync>": "the code of the other widths, in too many threads and channels to be run in time"
    for kind in ("Gw<32, 1>", "Gw<32, 2>", "Spread<32>")
}
LINES_KINDS = {
    width: (f"Gather<{width}, 1>", f"Gather<{width}, 2>", f"Spread<{width}>") for width in (4, 8, 16, 32, 64)
}
NOT_VERIFIED |= {
    f"stream_lines<bf16, {kind}, Sync>": "the code of f16 but for mma's type"
    for kinds in LINES_KINDS.values()
    for kind in kinds
}
NOT_VERIFIED |= {
    f"stream_lines<f16, {kind}, Sync>": "the code of widths 8 and 16 but for the size of teams, and minutes each"
    for width in (32, 64)
    for kind in LINES_KINDS[width]
}
NOT_VERIFIED |= {
    f"wgrad_mma<{dtype}, {width}, {stride}, Sync>": "the code of f16, in groups of 8 or of 32, but for where results go"
    for stride in (1, 2)
    for dtype, width in (("f16", 4), ("f16", 64), *(("bf16", width) for width in (4, 8, 16, 32, 64)))
}


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
