"""Reads from a compiled library which GPU architectures it holds code for, without a GPU and without loading it.

nvcc puts GPU code into a library as fat binaries: a header with the length of all, then an entry for each architecture
with a header of its own. NVIDIA publishes no description; the fields below are those that `cuobjdump -lelf -lptx`
lists, to which tests/test_fatbinary.py compares them.
"""

from __future__ import annotations

import struct
from pathlib import Path

MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)  # then the version, and how long this header is
LENGTH = struct.Struct("<8xQ")  # of all entries together
ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, length of this header, length of the code, architecture
KINDS = {1: "compute", 2: "sm"}  # PTX, which later GPUs can compile, and machine code


def architectures(path: Path) -> list[str]:
    """The architectures that a library holds code for.

    Args:
        path: an ELF file, or any other.

    Returns:
        Names as nvcc knows them, machine code first: ["sm_80", "sm_90", "compute_90"]; [] for a library without GPU
        code. The architecture-specific sm_90a counts as sm_90.

    Raises:
        OSError: the file cannot be read.

    """
    data, found = path.read_bytes(), set()
    start = data.find(MAGIC)
    while start >= 0:
        place = start + LENGTH.size
        end = min(place + LENGTH.unpack_from(data, start)[0], len(data)) if place <= len(data) else 0
        while place + ENTRY.size <= end:
            kind, _, header, length, number = ENTRY.unpack_from(data, place)
            if kind in KINDS:
                found.add((-kind, number))
            place += max(header + length, ENTRY.size)
        start = data.find(MAGIC, start + 1)
    return [f"{KINDS[-kind]}_{number}" for kind, number in sorted(found)]
