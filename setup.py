"""Builds two libraries on PyTorch's stable C++ ABI: _C (CPU) and, where a CUDA toolkit fits torch, _C_cuda.

Environment: RESNEXT_KERNELS_CUDA=auto|0|1 (1: fail if the CUDA library cannot be built), CUDA_HOME,
TORCH_CUDA_ARCH_LIST, CXXFLAGS (after our own), and RESNEXT_KERNELS_TESTING=1 for strict warnings and the test-only
modules on numpy arrays.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_clib import build_clib

try:
    import torch
except ImportError as error:
    sys.exit(
        f"resnext_kernels: building needs torch >= 2.11, which cannot be imported here ({error}). "
        "Install torch, then run: pip install --no-build-isolation ."
    )


def find_toolkit() -> tuple[Path | None, str]:
    """The root of a CUDA toolkit of torch's CUDA major version, or why there is none."""
    roots = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    if nvcc := shutil.which("nvcc"):  # may be a wrapper elsewhere: nvcc itself tells where its toolkit is
        trace = subprocess.run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        roots[1:1] = [f"{folder}/.." for folder in re.findall(r"^#\$ _HERE_=(.*)$", trace, re.M)]
    found = []
    for root in [Path(root).resolve() for root in roots if root]:
        if (root / "bin/nvcc").is_file() and (root / "include/cuda_runtime.h").is_file():
            found += re.findall(r"release (\d+)", subprocess.getoutput(f"'{root}/bin/nvcc' --version"))
            if found[-1:] == str(torch.version.cuda).split(".")[:1]:
                return root, ""
    return None, f"torch has CUDA {torch.version.cuda}, toolkits found: {found or 'none'} (set CUDA_HOME to a root)"


switch = os.environ.get("RESNEXT_KERNELS_CUDA", "auto")
if switch not in ("auto", "0", "1"):
    sys.exit(f"resnext_kernels: expected RESNEXT_KERNELS_CUDA to be auto, 0 or 1, got {switch!r}")
cuda_home, reason = find_toolkit() if switch != "0" else (None, "RESNEXT_KERNELS_CUDA=0")
if switch == "1" and not cuda_home:
    sys.exit(f"resnext_kernels: RESNEXT_KERNELS_CUDA=1, but the CUDA library cannot be built: {reason}")
print(f"resnext_kernels: CUDA library {f'with {cuda_home}' if cuda_home else f'left out: {reason}'}")
os.environ |= {"CUDA_HOME": str(cuda_home)} if cuda_home else {}  # read by torch.utils.cpp_extension on import
from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402

ROOT = os.path.dirname(os.path.abspath(__file__))  # mapped away, so that error messages carry no builder's path
CXX = ["-O3", "-g0", "-std=c++20", "-fopenmp", "-fvisibility=hidden", f"-ffile-prefix-map={ROOT}/="]
TESTING = os.environ.get("RESNEXT_KERNELS_TESTING") == "1"
EMULATE_AVX512 = os.environ.get("RESNEXT_KERNELS_EMULATE_AVX512") == "1"  # `make avx512`
CXX += ["-DTORCH_TARGET_VERSION=0x020b000000000000", *(["-Wall", "-Werror"] if TESTING else [])]
CXX += shlex.split(os.environ.get("CXXFLAGS", ""))
GPUS = ["75,code=sm_75", "80,code=[sm_80,sm_86,sm_89,sm_90,sm_100,sm_120,compute_80]"]
GPUS += ["120,code=compute_120"]  # GPUs that none of these runs on compile the newest PTX that they know
if TESTING and switch == "auto":  # `make test`: one that stands for all, which `make cuda` compiles, and every install
    GPUS = ["80,code=[sm_80,compute_80]"]
NVCC = [f"-gencode=arch=compute_{gpus}" for gpus in GPUS if "TORCH_CUDA_ARCH_LIST" not in os.environ]
NVCC += ["-O3", "-Werror=all-warnings"]  # 8.0 and newer: compiled once, assembled for each, in half the time
headers = ["setup.py", *(file for kind in ("h", "cu") for file in glob(f"csrc/**/*.{kind}", recursive=True))]
common = {"include_dirs": [f"{ROOT}/csrc"], "extra_link_args": ["-fopenmp"], "depends": headers}
library = {"py_limited_api": True, "extra_compile_args": {"cxx": CXX, "nvcc": NVCC}, **common}
extensions = [CppExtension("resnext_kernels._C", ["csrc/torch/operator.cpp", "csrc/torch/bindings.cpp"], **library)]
if cuda_home:
    sources = ["csrc/torch/operator.cpp", "csrc/torch/bindings_cuda.cpp", *glob("csrc/cuda/*.c[pu]*")]
    extensions += [CUDAExtension("resnext_kernels._C_cuda", sources, **library)]
if TESTING:
    flags = [*CXX, "-Wno-unknown-pragmas", f"-I{__import__('pybind11').get_include()}"]
    sources = ["csrc/testing/cpu_kernels.cpp"]
    extensions += [Extension("resnext_kernels._testing_cpu", sources, extra_compile_args=flags, **common)]
if TESTING and not EMULATE_AVX512:
    # The CUDA kernels by g++, for the emulated device of csrc/simt, where the sanitizers' calls end too; -O1 compiles
    # them three times as fast as -O3 and runs them two thirds as fast.
    emulated = ["-O1", "-fno-strict-aliasing", "-fsanitize=alignment,bounds", "-fvisibility=default"]
    sources = ["csrc/testing/cuda_emulated.cpp", *glob("csrc/simt/units/*.cpp")]
    extensions += [Extension("resnext_kernels._testing_cuda", sources, extra_compile_args=flags + emulated, **common)]
# Static, without torch, one for each file, whose name ends in the instruction set that it is compiled for. The table,
# which names all others' kernels, is linked before them.
libraries = []
avx2, avx512 = ["-mavx2", "-mfma", "-mf16c"], ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]
instruction_sets = {"avx2": avx2, "avx512": avx512, "avx512bf16": [*avx512, "-mavx512bf16"]}
if EMULATE_AVX512:  # csrc/testing/avx512_emulated.h
    instruction_sets["avx512"] = [*avx2, "-Wno-psabi", "-DRESNEXT_EMULATE_AVX512=1"]
    instruction_sets["avx512bf16"] = [*avx2, "-Wno-psabi", "-DRESNEXT_EMULATE_AVX512=2"]
    instruction_sets["table"] = ["-DRESNEXT_EMULATE_AVX512=1"]
for source in sorted(glob("csrc/cpu/*.cpp"), key=lambda path: not path.endswith("table.cpp")):
    name = Path(source).stem
    cflags = [*CXX, "-Wextra", *instruction_sets.get(name.split("_")[-1], [])]
    build = {"sources": [source], "include_dirs": ["csrc"], "cflags": cflags}
    libraries += [(f"resnext_cpu_{name}", {**build, "obj_deps": {"": headers}})]
# The emulated device itself: at -O3, since it compiles in seconds and then runs for minutes.
if TESTING and not EMULATE_AVX512:
    flags = [*CXX, "-Wno-restrict"]  # some versions of g++ take sums of strings for overlapping copies
    build = {"sources": glob("csrc/simt/*.cpp"), "include_dirs": ["csrc"], "cflags": flags}
    libraries += [("resnext_simt", {**build, "obj_deps": {"": headers}})]


class BuildLibraries(build_clib):
    """Compiles the libraries side by side, as ninja does with the files of an extension."""

    def build_libraries(self, libraries):
        """Takes all of them, or one. Those for AVX-512 take longest and come first."""
        build = super().build_libraries
        slowest_first = sorted(libraries, key=lambda each: "avx512" not in each[0])
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            list(pool.map(lambda each: build([each]), slowest_first))


command = {"build_ext": BuildExtension, "build_clib": BuildLibraries}
options = {"bdist_wheel": {"py_limited_api": "cp310"}}
setup(ext_modules=extensions, libraries=libraries, cmdclass=command, options=options)
