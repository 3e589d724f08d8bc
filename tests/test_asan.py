"""The CPU kernels and the emulated ones under AddressSanitizer, with planted overruns: `make asan`.

The ordinary emulation stops at once what steps over one end of an array, finds writes over the other end afterwards,
and knows nothing of arrays in a thread's local memory; this stops every access beside an array, where it happens. It
takes minutes, so `make test` leaves it out, but for the wide float32 kernels of AVX2: all CPU kernels have one source.

The CPU kernels run in a program of their own, csrc/testing/cpu_guarded.cpp; all of them also under
UndefinedBehaviorSanitizer.
"""

import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resnext_kernels._ops import has_direct_kernels

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build/asan"
FLAGS = ["-O1", "-g1", "-std=c++20", "-fPIC", "-fno-strict-aliasing", "-Wall", "-Wno-unknown-pragmas"]
FLAGS += ["-fsanitize=address,alignment,bounds", f"-I{ROOT}/csrc", f"-I{sysconfig.get_path('include')}"]
KERNELS = "test_exact or test_a_network_layer or test_wrappers or test_correct_kernels"


# As in setup.py, which says what each instruction set is.
CPU_FLAGS = ["-O1", "-g1", "-std=c++20", "-fopenmp", "-Wall", f"-I{ROOT}/csrc", "-fno-sanitize-recover=all"]
CPU_FLAGS += ["-fsanitize=address,undefined"]
AVX2, AVX512 = ["-mavx2", "-mfma", "-mf16c"], [f"-mavx512{part}" for part in ("f", "bw", "vl", "dq")] + ["-mfma"]
INSTRUCTION_SETS = {"_avx2": AVX2, "_avx512": AVX512, "_avx512bf16": [*AVX512, "-mavx512bf16"]}


@pytest.fixture(scope="module")
def _only_if_asked(request):
    if not request.config.getoption("--asan"):
        pytest.skip("`make asan` runs this")
    OUTPUT.mkdir(parents=True, exist_ok=True)


FEW = """#include "cpu/direct_define.h"
RESNEXT_DEFINE_DIRECT(avx2)
RESNEXT_DIRECT_ENTRIES(avx2, f32, 8)
"""


@pytest.mark.skipif(not has_direct_kernels, reason="this CPU has no AVX2")
def test_float32_kernels_touch_nothing_beside_their_arrays(tmp_path):
    """Half a minute of one core. The table names entries that are not linked; the suffix leaves them out."""
    (tmp_path / "few.cpp").write_text(FEW)
    sources = {tmp_path / "few.cpp": AVX2, ROOT / "csrc/cpu/table.cpp": [], ROOT / "csrc/testing/cpu_guarded.cpp": []}

    def compile(source):
        target = tmp_path / f"{source.stem}.o"
        flags = ["-O1", "-g1", "-std=c++20", "-fopenmp", f"-I{ROOT}/csrc", "-fsanitize=address", *sources[source]]
        subprocess.run(["g++", "-c", *flags, str(source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
        objects = list(pool.map(compile, sources))
    link = ["-fsanitize=address", "-fopenmp", "-no-pie", "-Wl,--unresolved-symbols=ignore-in-object-files"]
    program = tmp_path / "few"
    subprocess.run(["g++", *link, "-o", str(program), *objects], check=True)
    check_program(program, 100, "wide_f32_avx2")


def check_program(program, least, *suffix):
    done = subprocess.run([program, "full", *suffix], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-10000:]
    assert int(done.stdout.split()[0]) > least, done.stdout
    done = subprocess.run([program, "short", *suffix], capture_output=True, text=True)
    assert done.returncode != 0, "an array that is too small is not noticed"
    assert "AddressSanitizer: SEGV" in done.stderr, done.stderr[-10000:]
    assert "csrc/cpu/simd.h" in done.stderr, "a kernel's store is named"


@pytest.fixture(scope="module")
def cpu_program(_only_if_asked):
    """Builds csrc/testing/cpu_guarded.cpp with the CPU kernels; only what has changed."""
    headers = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc/cpu").glob("*.h"), Path(__file__)]
    newest = max(path.stat().st_mtime for path in headers)

    def compile(source):
        target = OUTPUT / f"cpu_{source.stem}.o"
        if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
            flags = next((INSTRUCTION_SETS[isa] for isa in INSTRUCTION_SETS if source.stem.endswith(isa)), [])
            subprocess.run(["g++", "-c", *CPU_FLAGS, *flags, str(source), "-o", str(target)], check=True)
        return str(target)

    sources = sorted((ROOT / "csrc/cpu").glob("*.cpp"), reverse=True) + [ROOT / "csrc/testing/cpu_guarded.cpp"]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
        objects = list(pool.map(compile, sources))
    program = OUTPUT / "cpu_guarded"
    subprocess.run(["g++", "-fsanitize=address,undefined", "-fopenmp", "-o", str(program), *objects], check=True)
    return program


def test_cpu_kernels_touch_nothing_beside_their_arrays(cpu_program):
    check_program(cpu_program, 1000)


@pytest.fixture(scope="module")
def emulation(_only_if_asked):
    """Builds the emulated module in a folder of its own; only what has changed."""
    pybind11 = pytest.importorskip("pybind11")
    headers = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cu"}]
    newest = max(path.stat().st_mtime for path in [*headers, Path(__file__)])

    def compile(source):
        target = OUTPUT / f"{source.stem}.o"
        if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
            include = f"-I{pybind11.get_include()}"
            subprocess.run(["g++", "-c", *FLAGS, include, str(source), "-o", str(target)], check=True)
        return str(target)

    sources = [ROOT / "csrc/testing/cuda_emulated.cpp", *(ROOT / "csrc/simt").rglob("*.cpp")]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
        objects = list(pool.map(compile, sources))
    module = OUTPUT / "_testing_cuda.so"
    subprocess.run(["g++", "-shared", "-fsanitize=address", "-o", str(module), *objects], check=True)


def run(*arguments):
    """Runs Python with the sanitizer's library, which must come first; returns its exit status and output."""
    libraries = [f"-print-file-name={name}" for name in ("libasan.so", "libstdc++.so")]
    paths = [subprocess.run(["g++", name], capture_output=True, text=True).stdout.strip() for name in libraries]
    environment = {**os.environ, "LD_PRELOAD": " ".join(paths), "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_kernels_touch_nothing_beside_their_arrays(emulation):
    files = [f"tests/test_{name}.py" for name in ("cuda_kernels", "wrappers", "simt")]
    options = ["-q", "-x", "-p", "no:cacheprovider", "--emulation", str(OUTPUT), "-k", KERNELS]
    code, text = run("-m", "pytest", *options, *files)
    assert code == 0, text[-10000:]
    assert " passed" in text


PROBE = """
import sys; sys.path.insert(0, sys.argv[1])
import numpy as np, _testing_cuda
_testing_cuda.probe(sys.argv[2], np.zeros(129, np.float32), np.zeros(129, np.float32), int(sys.argv[3]))
"""


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("probe", "error"),
    [
        ("memory/shared_overrun", "use-after-poison"),
        ("memory/global_read_near", "use-after-poison"),
        ("memory/global_write_near", "use-after-poison"),
        ("memory/local_overrun", "stack-buffer-overflow"),
        ("memory/none", ""),
    ],
)
def test_overruns_are_found(emulation, probe, error, seed):
    code, text = run("-c", PROBE, str(OUTPUT), probe, str(seed))
    if not error:
        assert (code, text) == (0, "")
        return
    assert code != 0
    assert f"AddressSanitizer: {error}" in text, text
    assert "bugs::memory<" in text, "the kernel is named"
