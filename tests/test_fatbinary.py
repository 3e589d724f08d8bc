"""Which GPU architectures a library holds code for, as read from the file and as NVIDIA's own tool lists them."""

import re
import struct
import subprocess

import pytest

from benchmarks import cubins
from resnext_kernels.fatbinary import architectures


def fat_binary(*code):
    """A fat binary with a few bytes of code of each (kind, architecture)."""
    entries = b"".join(
        struct.pack("<HHIQIIHHI", kind, 0x101, 64, 24, 0, 0, 1, 8, number) + bytes(32 + 24) for kind, number in code
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def write(folder, content):
    file = folder / "library.so"
    file.write_bytes(content)
    return file


def test_all_fat_binaries_of_a_file_count(tmp_path):
    content = b"ELF" + fat_binary((2, 75), (2, 100)) + bytes(5) + fat_binary((2, 100), (1, 120), (16, 90)) + b"end"
    assert architectures(write(tmp_path, content)) == ["sm_75", "sm_100", "compute_120"]
    assert architectures(write(tmp_path, b"")) == []


def test_a_truncated_file_gives_what_is_left(tmp_path):
    content = fat_binary((2, 80), (2, 90))
    found = [architectures(write(tmp_path, content[:size])) for size in range(len(content))]
    assert [len(names) for names in found] == sorted(len(names) for names in found)
    assert found[0] == []
    assert found[-1] == ["sm_80", "sm_90"]


@pytest.mark.skipif(bool(cubins.why_not()), reason=f"no CUDA compiler: {cubins.why_not()}")
def test_nvidias_tool_lists_the_same(tmp_path):
    source, library = tmp_path / "one.cu", tmp_path / "library.so"
    source.write_text("__global__ void kernel(float* y) { y[threadIdx.x] = 1; }")
    code = ["80,code=[sm_80,sm_86]", "120,code=[sm_120,compute_120]"]
    options = ["-shared", *(f"-gencode=arch=compute_{item}" for item in code)]
    subprocess.run([f"{cubins.find_toolkit()}/bin/nvcc", *options, "-o", str(library), str(source)], check=True)
    command = [cubins.find_cuobjdump(), "-lelf", "-lptx", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = {name.replace("sm", "compute") if kind == "ptx" else name for name, kind in LISTED(listing)}
    assert architectures(library) == ["sm_80", "sm_86", "sm_120", "compute_120"]
    assert listed == set(architectures(library))


LISTED = re.compile(r"\.(sm_\d+)\.(cubin|ptx)").findall
