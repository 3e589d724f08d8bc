"""The launches of the NCHW tensor-core kernels that test_races.py proves, and what it does not take."""

FAULTS = ("NoAsyncWait", "AsyncWaitTooLax", "NoBarrierAtUnit", "NoBarrierAtResults")


def launch(told, kind, images, rows, columns):
    """What launch_planes of mma_nchw.h gives its kernel for one block, by the source's size."""
    values = told("Planes", f"mma_nchw/plan/{kind}", images, rows, columns)
    assert values["channel_blocks"] == 1
    assert values["walk"] == values["units"]
    return {**values, "bias": 0, "scale": 0}


def correct(told):
    """Rows for CORRECT: narrow maps, an odd number of tiles in a row, and several units one after the other."""
    for kind in ("Gather<8, 1>", "Gather<16, 1>", "Gather<4, 2>", "Spread<8>"):
        for size in ((1, 3, 8), (6, 10, 24)) if "8" in kind else ((1, 3, 8),):
            yield "mma_nchw_f16", f"stream_planes<f16, {kind}, false, Sync>", 256, 65536, launch(told, kind, *size)


def correct_padded(told):
    """And of a group that is padded."""
    kind = "PaddedGroups<Gather<16, 1> >"
    integers = launch(told, kind, 1, 3, 8)
    yield "mma_nchw_padded_f16", f"stream_planes<f16, {kind}, true, Sync>", 256, 65536, integers


def correct_tf32(told):
    """The same in floats: one launch of each walk, and one of three products."""
    for kind in ("Gather<8, 1>, 1", "Gather<8, 1>, 3", "Gather<8, 2>, 1", "Spread<8>, 1"):
        integers = launch(told, f"Tf32<{kind}>", 1, 3, 8)
        yield "mma_nchw_tf32", f"stream_planes<f32, Tf32<{kind}>, false, Sync>", 256, 65536, integers


def faulty():
    for fault in FAULTS:
        yield "mma_nchw_bugs", f"stream_planes<f16, Gather<8, 1>, false, {fault}>", "potential_race"


def not_verified(verified):
    for width in (16, 32):
        for kind in (f"Gather<{width}, 1>", f"Gather<{width}, 2>", f"Spread<{width}>"):
            for products in (1, 3):
                name = f"stream_planes<f32, Tf32<{kind}, {products}>, false, Sync>"
                yield name, "the code of groups of 8, in too many channels to be run in time"
    for dtype in ("f16", "bf16"):
        for width in (16, 32, 64):
            for kind, fused in (
                (f"Gather<{width}, 1>", "true"),
                (f"Gather<{width}, 2>", "true"),
                (f"Spread<{width}>", "false"),
            ):
                if (name := f"stream_planes<{dtype}, PaddedGroups<{kind} >, {fused}, Sync>") not in verified:
                    yield name, "the code of the others but for sizes; one is verified"
        for width in (4, 8, 16, 32, 64):
            for kind in (f"Gather<{width}, 1>", f"Gather<{width}, 2>", f"Spread<{width}>"):
                for fused in ("false", "true"):
                    if (name := f"stream_planes<{dtype}, {kind}, {fused}, Sync>") not in verified:
                        yield name, "the code of f16 in groups of 4, 8 and 16, in too many channels to be run in time"
