"""Reads what the compiler made of the CUDA kernels for each architecture, without a GPU; compiles them if need be.

    python benchmarks/cubins.py           the root of the CUDA toolkit that is used; exit status 1 if there is none

Kernels are read out of this checkout's CUDA library if that is newer than every source, else compiled one by one to
build/cuda. The compiler is nvcc (CUDA_HOME, then PATH, then the one that requirements-cuda.txt installs); the reader
is cuobjdump (from requirements-dev.txt, or the toolkit's). Standard library only: tests and reports build on this file.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "cuda"
LIBRARY = ROOT / "resnext_kernels" / "_C_cuda.abi3.so"
JOBS = int(os.environ.get("MAX_JOBS", "2"))
FLAGS = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", "-Werror=all-warnings", f"-I{ROOT}/csrc"]


@dataclass(frozen=True)
class Architecture:
    """What one multiprocessor offers. Sizes in bytes; blocks may use `shared` less `reserved` for each block."""

    threads: int
    blocks: int
    shared: int
    reserved: int = 1024
    registers: int = 65536


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
ARCHITECTURES = {
    "sm_75": Architecture(1024, 16, 64 << 10, reserved=0),
    "sm_80": Architecture(2048, 32, 164 << 10),
    "sm_86": Architecture(1536, 16, 100 << 10),
    "sm_89": Architecture(1536, 24, 100 << 10),
    "sm_90": Architecture(2048, 32, 228 << 10),
    "sm_100": Architecture(2048, 32, 228 << 10),
    "sm_120": Architecture(1536, 24, 100 << 10),
}
PTX = "compute_120"  # for the proofs, whose checker does not know `bfi`, which nvcc emits for older targets

# Instructions that are counted, as regular expressions at the start of an instruction.
INSTRUCTIONS = {
    "FFMA": r"FFMA",
    "DFMA": r"DFMA",
    "HFMA2": r"HFMA2(?!.*-RZ, RZ)",  # with zeros it only sets a register to a constant
    "HMMA": r"HMMA",
    "LDG.128": r"LDG\.[\w.]*\b128",
    "LDG": r"LDG\.",
    "STG.128": r"STG\.[\w.]*\b128",
    "STG": r"STG\.",
    "LDGSTS": r"LDGSTS",
    "LDSM": r"LDSM",
    "BAR": r"BAR\.",
    "ATOM": r"(ATOM|ATOMG|ATOMS|RED|REDG)\b",
    "local": r"(LDL|STL)\b",
}


@dataclass
class Kernel:
    """One kernel for one architecture, as compiled.

    Attributes:
        name: short and readable, such as "gather<Fprop, f32>".
        architecture: such as "sm_80".
        threads: the largest block that it may be launched with (its launch bounds).
        registers: per thread.
        stack: bytes of local memory per thread.
        shared: bytes of static shared memory per block.
        instructions: how many of each of INSTRUCTIONS stand in its code (not how many run).

    """

    name: str
    architecture: str
    threads: int = 1024
    registers: int = 0
    stack: int = 0
    shared: int = 0
    instructions: Counter = field(default_factory=Counter)

    def blocks_per_multiprocessor(self, threads: int | None = None, dynamic_shared: int = 0) -> int:
        """How many blocks fit into one multiprocessor at a time, by threads, registers and shared memory."""
        limits = ARCHITECTURES[self.architecture]
        warps = -(-(threads or self.threads) // 32)
        registers_per_warp = -(-self.registers * 32 // 256) * 256  # handed out 256 at a time, to warps in fours
        shared = self.shared + dynamic_shared + limits.reserved
        return min(
            limits.threads // 32 // warps,
            limits.blocks,
            limits.registers // registers_per_warp // 4 * 4 // warps,
            limits.shared // shared if shared else limits.blocks,
        )

    def occupancy(self, threads: int | None = None, dynamic_shared: int = 0) -> float:
        """The share of a multiprocessor's warps that can be resident at a time."""
        warps = -(-(threads or self.threads) // 32)
        blocks = self.blocks_per_multiprocessor(threads, dynamic_shared)
        return blocks * warps * 32 / ARCHITECTURES[self.architecture].threads


def _from_pip(name: str) -> Path | None:
    """A program of NVIDIA's pip packages, which are not on PATH."""
    spec = importlib.util.find_spec("nvidia")
    found = [Path(root) / "cu13/bin" / name for root in (spec.submodule_search_locations if spec else [])]
    return next((path for path in found if path.exists()), None)


def find_toolkit() -> Path | None:
    """The root of a CUDA toolkit, or None. An nvcc on PATH may be a wrapper elsewhere: it tells where it lives."""
    roots = [os.environ.get("CUDA_HOME", "")]
    if nvcc := shutil.which("nvcc"):
        trace = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        roots += [f"{folder}/.." for folder in re.findall(r"^#\$ _HERE_=(.*)$", trace, re.M)]
    if pip := _from_pip("nvcc"):
        roots.append(str(pip.parent.parent))
    roots.append("/usr/local/cuda")
    complete = ("bin/nvcc", "include/cuda_runtime.h", "include/crt/host_config.h")
    found = [Path(root).resolve() for root in roots if root]
    return next((root for root in found if all((root / file).is_file() for file in complete)), None)


def find_cuobjdump() -> str | None:
    """The program that reads compiled kernels; it needs nvdisasm beside it."""
    return str(_from_pip("cuobjdump") or shutil.which("cuobjdump") or "") or None


def why_not() -> str:
    """Why kernels cannot be compiled and read here; "" if they can."""
    if not find_toolkit():
        return "no nvcc: set CUDA_HOME, or pip install -r requirements-cuda.txt"
    return "" if find_cuobjdump() else "no cuobjdump: pip install -r requirements-dev.txt"


def _sources() -> list[Path]:
    """All that a compiled kernel depends on, but for the compiler."""
    found = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc/cuda").glob("*")]
    return [path for path in found if path.suffix in (".h", ".cu", ".cpp")]


def in_library() -> set[str]:
    """The architectures of this checkout's CUDA library, if it is newer than every source; else none."""
    newest = max(path.stat().st_mtime for path in [*_sources(), ROOT / "setup.py"])
    if not LIBRARY.exists() or LIBRARY.stat().st_mtime < newest:
        return set()
    listing = subprocess.run([find_cuobjdump(), "-lelf", str(LIBRARY)], capture_output=True, text=True, check=True)
    return set(re.findall(r"\.(sm_\d+)\.cubin", listing.stdout))


def kernels(architectures) -> list[Kernel]:
    """All kernels of csrc/cuda as compiled for some architectures."""
    if set(architectures) <= in_library():
        parts = [(LIBRARY, architecture) for architecture in architectures]
    else:
        parts = [(path, "") for path in build(architectures, ptx=False)]
    with ThreadPoolExecutor(JOBS) as pool:
        return [kernel for found in pool.map(read, *zip(*parts, strict=True)) for kernel in found] if parts else []


def _compile(source: Path, target: str, toolkit: Path, output: Path) -> Path:
    """One source for one architecture (or to PTX), unless the result is newer than all that it may depend on."""
    kind = "ptx" if target.startswith("compute") else "cubin"
    path = output / f"{source.stem}.{target}.{kind}"
    inputs = [*[file for file in _sources() if file.suffix == ".h"], source, Path(__file__)]
    if path.exists() and path.stat().st_mtime > max(file.stat().st_mtime for file in inputs):
        return path
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    shared = kind == "cubin" and target != "sm_75"  # setup.py compiles once for 8.0 and newer, and assembles for each
    code = [f"-gencode=arch=compute_80,code={target}"] if shared else [f"-arch={target}"]
    command = [f"{toolkit}/bin/nvcc", f"-{kind}", *code, "-o", str(unfinished), *FLAGS, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvcc failed on {source.name} for {target}:\n{done.stdout}{done.stderr}")
    unfinished.replace(path)
    return path


def build(architectures, ptx=True, sources=None, output=OUTPUT) -> list[Path]:
    """Compiles sources (all of csrc/cuda) for architectures; returns the cubins. PTX for proofs beside them."""
    toolkit = find_toolkit()
    if not toolkit:
        raise RuntimeError(why_not())
    output.mkdir(parents=True, exist_ok=True)
    sources = sources or sorted((ROOT / "csrc/cuda").glob("*.cu"))
    targets = [*architectures, *([PTX] if ptx else [])]
    with ThreadPoolExecutor(JOBS) as pool:
        jobs = [pool.submit(_compile, source, target, toolkit, output) for target in targets for source in sources]
        paths = [job.result() for job in jobs]
    return [path for path in paths if path.suffix == ".cubin"]


def short_names(mangled: list[str]) -> dict[str, str]:
    """Readable kernel names: without namespaces and parameters, element types as in the kernels' own names."""
    text = subprocess.run(["c++filt", "-p"], input="\n".join(mangled), capture_output=True, text=True, check=True)
    names = {}
    for symbol, name in zip(mangled, text.stdout.splitlines(), strict=True):
        name = re.sub(r"^void ", "", re.sub(r"\(anonymous namespace\)::", "", name))
        name = re.sub(r"\b\w+::", "", name)
        for long, short in {"__nv_bfloat16": "bf16", "__half": "f16", "float": "f32", "double": "f64"}.items():
            name = re.sub(rf"\b{long}\b", short, name)
        names[symbol] = re.sub(r"\((\w+|unsigned int)\)(?=\w)", "", name)  # (int)32 -> 32
    return names


@cache
def _counted(opcode: str) -> tuple[str, ...]:
    """The names in INSTRUCTIONS under which an instruction is counted."""
    return (*(name for name, pattern in INSTRUCTIONS.items() if re.match(pattern, opcode)), "all")


def read(path: Path, architecture: str = "") -> list[Kernel]:
    """The kernels in a cubin, or in a library with code for several architectures: all of them, or one's."""
    command = [find_cuobjdump(), "-elf", "-sass", "-res-usage", *(["-arch", architecture] if architecture else [])]
    text = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True).stdout
    first = re.search(r"\bsm_\d+", text)  # a cubin prints its resources before its architecture
    architecture, symbol = first[0] if first else "", ""
    instruction = re.compile(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?!@!PT)(?:@!?U?P\w+\s+)?((\w\S*).*?);")
    kernels: dict[tuple[str, str], Kernel] = {}
    for line in text.splitlines():
        if match := instruction.match(line):
            opcode = match[1] if match[2].startswith("HFMA2") else match[2]  # that one's operands tell what it is for
            kernels[architecture, symbol].instructions.update(_counted(opcode))
        elif match := re.search(r"(?:code for |arch = )(sm_\d+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function\s*:?\s+([\w$]+):?\s*$|\.nv\.info\.([\w$]+)\s*$", line):
            symbol = match[1] or match[2]
            kernels.setdefault((architecture, symbol), Kernel(symbol, architecture))
        elif match := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            kernel, (registers, stack, shared, local) = kernels[architecture, symbol], map(int, match.groups())
            reserved = ARCHITECTURES[architecture].reserved if shared and int(architecture[3:]) >= 90 else 0
            kernel.registers, kernel.stack, kernel.shared = registers, stack + local, shared - reserved
    for symbol, threads in _launch_bounds(text):
        for (_, name), kernel in kernels.items():
            if name == symbol:
                kernel.threads = threads
    names = short_names([symbol for _, symbol in kernels])
    for (_, symbol), kernel in kernels.items():
        kernel.name = names[symbol]
    return list(kernels.values())


def budgets() -> list[dict[str, str]]:
    """The rows of csrc/cuda/budgets.csv: what kernels promise of their compiled form (docs/verification.md)."""
    with (ROOT / "csrc/cuda/budgets.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def budget_of(name: str) -> dict[str, str] | None:
    """The first row whose pattern a kernel's short name matches, or None."""
    return next((row for row in budgets() if fnmatchcase(name, row["kernel"])), None)


def _launch_bounds(text: str):
    """(symbol, threads) of each kernel with launch bounds."""
    for section in re.split(r"^(?=\.nv\.info\.)", text, flags=re.M)[1:]:
        symbol = section.split("\n", 1)[0].strip().removeprefix(".nv.info.")
        section = re.split(r"^\.(?!nv\.info\.)", section, maxsplit=1, flags=re.M)[0]
        if match := re.search(r"EIATTR_MAX_THREADS\s+Format:.*\n\s*Value:\s+(\w+) (\w+) (\w+)", section):
            x, y, z = (int(value, 16) for value in match.groups())
            yield symbol, x * y * z


def main() -> None:
    """Command line."""
    toolkit = find_toolkit()
    if not toolkit:
        sys.exit(why_not())
    print(toolkit)


if __name__ == "__main__":
    main()
