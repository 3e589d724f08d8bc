"""Proofs that compiled kernels compute what a PyTorch expression does, over the real numbers; needs no GPU.

As in test_races.py sentryward runs every thread of one small launch of the PTX symbolically. Here it compares the terms
that end up in each element of the result with those of a function in references.py, for all values of the tensors. So
it shows the indexing, not the rounding, of that launch. `make verify` runs it.

Not proven: launches with padding. sentryward 0.1.1 answers equivalence_not_proven there, whether the reference adds
zeros or leaves the terms out, while it proves the same kernel on the same taps without padding.
"""

import json
import re

import pytest

from benchmarks import cubins
from tests.proofs import prove

pytest.importorskip("sentryward", reason="no sentryward: `make .venv/.verify` installs it")
if WHY_NOT := cubins.why_not():
    pytest.skip(f"CUDA kernels cannot be compiled here: {WHY_NOT}", allow_module_level=True)

# Two groups of two input and four output channels, maps of 5 x 6, no padding.
GROUPS, C, K, H, W, P, Q = 2, 2, 4, 5, 6, 3, 4
SHAPES = {
    "input": [GROUPS * C, H, W],
    "weight": [GROUPS * K, C, 3, 3],
    "bias": [GROUPS * K],
    "output": [GROUPS * K, P, Q],
}


def gather_fields():
    """What launch_gather gives fprop in NCHW, field by field: numbers, or names of tensors."""
    axes = [[H, P, 3, 1, 0, 1], [W, Q, 3, 1, 0, 1]]
    return [
        *("input", "weight", "bias", "output"),
        *(GROUPS * C * H * W, H * W, W, 1),
        *(GROUPS * K * P * Q, P * Q, Q, 1),
        *(K * C * 9, C * 9, 9, 3, 1),
        *(1, GROUPS, K, C),
        *(P, Q),
        *(number for axis in axes for number in axis),
    ]


def strides(shape):
    """Byte strides of a dense float tensor."""
    found = [4]
    for size in reversed(shape[1:]):
        found.insert(0, found[0] * size)
    return found


def verify(tmp_path, source, fields, reference):
    """The checker's answer on gather<Fprop, ChannelsOfAPixel, float> of a source file, in one block."""
    cubins.build((), sources=[source], output=tmp_path)
    path = tmp_path / f"{source.stem}.{cubins.PTX}.ptx"
    symbols = cubins.short_names(re.findall(r"\.entry (\w+)\(", path.read_text()))
    symbol = next(symbol for symbol, name in symbols.items() if name == "gather<Fprop, ChannelsOfAPixel, f32>")
    place = lambda i: {"parameter": f"{symbol}_param_0", "offset": 8 * i}  # noqa: E731
    kernel = {
        "schema": "spverify.kernel-input/v1",
        "entry": symbol,
        "launch": {"grid_dim": [1, 1, 1], "block_dim": [128, 1, 1]},
        "declarations": [
            {**place(i), "type": "pointer", "space": "global", "object": field}
            for i, field in enumerate(fields)
            if isinstance(field, str)
        ],
        "arguments": [
            {**place(i), "type": "u64", "value": field} for i, field in enumerate(fields) if not isinstance(field, str)
        ],
    }
    key = {name: f"6:global{len(name)}:{name}" for name in SHAPES}
    operands = [name for name in SHAPES if name != "output"]
    layout = {
        name: {
            **{"shape": SHAPES[name], "element_bytes": 4, "source_offset": 0, "target_offset": 0},
            **{"source_strides_bytes": strides(SHAPES[name]), "target_strides_bytes": strides(SHAPES[name])},
        }
        for name in operands
    }
    arguments = [{"name": n, "allocation": n, "shape": SHAPES[n], "dtype": "float32"} for n in operands]
    binding = {
        "reference": {"arguments": arguments},
        "left_inputs": {"allocations": {name: name for name in operands}, "layouts": layout},
        "right_inputs": {
            "allocations": {key[name]: name for name in operands},
            "layouts": {key[name]: layout[name] for name in operands},
        },
        "outputs": {
            **{"kind": "dense_tensor", "left_allocation": "output", "right_allocation": key["output"]},
            **{"left_offset": 0, "right_offset": 0, "element_bytes": 4, "shape": SHAPES["output"]},
            **{"left_strides_bytes": strides(SHAPES["output"]), "right_strides_bytes": strides(SHAPES["output"])},
        },
    }
    (tmp_path / "input.json").write_text(json.dumps(kernel))
    (tmp_path / "reference_binding.json").write_text(json.dumps(binding))
    (tmp_path / "reference.py").write_text(f"from tests.references import {reference} as reference\n")
    files = {"input": str(tmp_path / "input.json"), "reference": str(tmp_path / "reference.py")}
    return prove(path, 240, **files)


def test_the_generic_fprop_is_the_convolution(tmp_path):
    source = cubins.ROOT / "csrc/cuda/generic_gather.cu"
    answer = verify(tmp_path, source, gather_fields(), "grouped_fprop")
    assert answer["result"] == "verified", answer["diagnostics"]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("weights + r * g.weight_r + s * g.weight_s", "weights + s * g.weight_r + r * g.weight_s"),
        ("g.weight + at.group * g.weight_group", "g.weight + (1 - at.group) * g.weight_group"),
    ],
)
def test_a_wrong_index_is_not_proven(tmp_path, right, wrong):
    text = (cubins.ROOT / "csrc/cuda/generic_gather.cu").read_text()
    assert text.count(right) == 1
    source = tmp_path / "wrong.cu"
    source.write_text(text.replace(right, wrong).replace('#include "', '#include "cuda/'))
    assert verify(tmp_path, source, gather_fields(), "grouped_fprop")["result"] == "equivalence_not_proven"
