"""The launches that tests/test_races.py proves: kernels and what the host gives them for small problems."""

import re

import numpy as np

from benchmarks import cubins
from resnext_kernels import _testing_cuda


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
    stream = dict(fields_of("Stream", text, kinds)) if "struct Stream" in text else {}
    kinds["Stream"] = None, np.dtype([(field, size) for field, (_, size) in stream.items()], align=True)
    found = {}
    for kind, names in re.findall(r"^  (?:const )?(\w+)\b([^;]*);", body, re.M):
        for name in (name.strip(" *") for name in names.split(",")):
            parts = (f"{name}.value", f"{name}.inverse") if kind == "Divisor" else (name,)
            found |= {part: kinds["int" if kind == "Divisor" else kind] for part in parts}
    layout = np.dtype([(name, size) for name, (_, size) in found.items()], align=True)
    places = {name: (layout.fields[name][1], kind) for name, (kind, _) in found.items() if kind}
    for name in found.keys() - places.keys():
        at, (_, size) = layout.fields[name][1], kinds["Stream"]
        places |= {f"{name}.{field}": (at + size.fields[field][1], kind) for field, (kind, _) in stream.items()}
    return places, layout.itemsize


# The structs that kernels take, and where they stand.
STRUCTS = {"Rows": "rows_nhwc_load.h", "Plan": "rows_nchw_plan.h", "Wgrad": "rows_wgrad_load.h"}
STRUCTS |= {"MmaWgrad": "mma_wgrad_load.h", "Planes": "mma_nchw_plan.h"}
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
                kinds = [("", "", layout)]
                kinds += [("tf32_", "tf32_", f"Tf32<{layout}, 1>")] * (width > 4)
                kinds += [("tf32_", "tf32x3_", f"Tf32<{layout}, 3>")] * ((width, stride) == (16, 1))
                for source, kind, form in kinds:
                    images = 2 if layout == "Nhwc" else 4
                    threads, integers = wgrad_launch(width, stride, kind + layout, images, 2 * stride, 8 * stride)
                    name = f"wgrad_rows<{width}, {stride}, {form}, Sync>"
                    yield f"rows_wgrad_{source}{layout.lower()}", name, threads, 65536, integers


def mma_wgrad_kernels():
    """Rows for CORRECT: two images of three rows, borders on all sides, in one segment or pair each or side by side."""
    for layout, kernel in (("nhwc", "wgrad_mma"), ("nchw", "wgrad_mma_nchw")):
        for kind in ("8, 1", "16, 1", "8, 2", "16, 2", "32, 1", "32, 2"):
            for columns in (7, 18) if "16" in kind else (7 if layout == "nhwc" else 8,):
                threads = 256 if "32" in kind else 128
                integers = told("MmaWgrad", f"mma_wgrad/{layout}/plan/{kind}", 2, 3, columns)
                source = "mma_wgrad_f16" if layout == "nhwc" else "mma_wgrad_nchw_f16"
                yield source, f"{kernel}<f16, {kind}, Sync>", threads, 98304, integers


def lines_launch(kind, images, rows, columns):
    """What launch_lines of mma_nhwc.h gives its kernel for one block of channels, by the source's size."""
    values = told("Lines", f"mma_nhwc/plan/{kind}", images, rows, columns)
    assert values["channel_blocks"] == values["runs"] == 1
    return {**values, "bias": 0, "scale": 0}


def lines_kernels():
    """Rows for CORRECT: two teams with work, borders, more rows than the ring has stages; a map that fills no tile."""
    for width in (8, 16, 4):
        kinds = (f"Gather<{width}, 1>", f"Spread<{width}>")
        for kind in kinds if width > 4 else (*kinds, "Gather<4, 2>"):
            wide = (2, 3, 17) if width == 4 and "Gather" in kind else (2, 3, 9)  # a tile of one image
            for images, *small in (wide, (3, 5, 7)):
                integers = lines_launch(kind, images, *(2 * size if ", 2>" in kind else size for size in small))
                yield "mma_nhwc_f16", f"stream_lines<f16, {kind}, Sync>", 128, 80896, integers


def padded_kernels():
    """Row for CORRECT, as above: what differs from mma_nhwc are sizes, so one launch will do."""
    kind = "PaddedGroups<Fused<Gather<16, 1> > >"
    yield "mma_nhwc_padded_f16", f"stream_lines<f16, {kind}, Sync>", 128, 80896, lines_launch(kind, 2, 3, 9)


def tf32_kernels():
    """Rows for CORRECT, as above: what differs from mma_nhwc is in registers, so one launch of each walk will do."""
    for kind in ("Gather<16, 1>, 1", "Gather<16, 1>, 3", "Spread<16>, 1"):
        integers = lines_launch(f"Tf32<{kind}>", 2, 3, 9)
        yield "mma_nhwc_tf32", f"stream_lines<f32, Tf32<{kind}>, Sync>", 128, 80896, integers
