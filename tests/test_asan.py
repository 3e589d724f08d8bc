"""The CPU kernels and the emulated ones under sanitizers, with planted overruns: in part `make test`, all `make asan`.

The ordinary emulation stops at once what steps over one end of an array, finds writes over the other end afterwards,
and knows nothing of arrays in a thread's local memory; AddressSanitizer stops every access beside an array, where it
happens. That takes minutes, so `make test` leaves it out.

The CPU kernels run in a program of their own, csrc/testing/cpu_guarded.cpp, also under UndefinedBehaviorSanitizer. In
`make test` they do without the checks that take minutes to compile: of each pointer's alignment and the object behind
it, and of local variables after their scope.
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
QUICKLY = ["-fno-sanitize=null,alignment,object-size,pointer-overflow", "-fno-sanitize-address-use-after-scope"]
QUICKLY += ["--param", "asan-instrumentation-with-call-threshold=0"]  # the same checks, by calls
AVX2, AVX512 = ["-mavx2", "-mfma", "-mf16c"], [f"-mavx512{part}" for part in ("f", "bw", "vl", "dq")] + ["-mfma"]
INSTRUCTION_SETS = {"_avx2": AVX2, "_avx512": AVX512, "_avx512bf16": [*AVX512, "-mavx512bf16"]}


@pytest.fixture(scope="module")
def _only_if_asked(request):
    if not request.config.getoption("--asan"):
        pytest.skip("`make asan` runs this")
    OUTPUT.mkdir(parents=True, exist_ok=True)


@pytest.fixture(scope="module")
def cpu_program(request, tmp_path_factory):
    """csrc/testing/cpu_guarded.cpp with the CPU kernels; for `make asan`, only what has changed is built."""
    asked = request.config.getoption("--asan")
    folder, flags = (OUTPUT, CPU_FLAGS) if asked else (tmp_path_factory.mktemp("asan"), [*CPU_FLAGS, *QUICKLY])
    folder.mkdir(parents=True, exist_ok=True)
    headers = [*(ROOT / "csrc").glob("*.h"), *(ROOT / "csrc/cpu").glob("*.h"), Path(__file__)]
    newest = max(path.stat().st_mtime for path in headers)

    def compile(source):
        target = folder / f"cpu_{source.stem}.o"
        if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime):
            isa = next((INSTRUCTION_SETS[isa] for isa in INSTRUCTION_SETS if source.stem.endswith(isa)), [])
            subprocess.run(["g++", "-c", *flags, *isa, str(source), "-o", str(target)], check=True)
        return str(target)

    sources = sorted((ROOT / "csrc/cpu").glob("*.cpp"), key=lambda path: "_avx512" not in path.stem)  # slow ones first
    sources += [ROOT / "csrc/testing/cpu_guarded.cpp"]
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", "2"))) as pool:
        objects = list(pool.map(compile, sources))
    program = folder / "cpu_guarded"
    subprocess.run(["g++", "-fsanitize=address,undefined", "-fopenmp", "-o", str(program), *objects], check=True)
    return program


@pytest.mark.skipif(not has_direct_kernels, reason="this CPU has no AVX2")
def test_cpu_kernels_touch_nothing_beside_their_arrays(cpu_program):
    done = subprocess.run([cpu_program, "full"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr[-10000:]
    assert int(done.stdout.split()[0]) > 1000, done.stdout


@pytest.mark.skipif(not has_direct_kernels, reason="this CPU has no AVX2")
def test_arrays_that_are_too_small_are_noticed(cpu_program):
    done = subprocess.run([cpu_program, "short"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "AddressSanitizer: SEGV" in done.stderr, done.stderr[-10000:]
    assert "csrc/cpu/simd.h" in done.stderr, "a kernel's store is named"


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
