"""Each wrapper of csrc/cuda/ptx.h on the GPU, against the models that the emulation is held to: tests/test_wrappers.py.

The probes are built by nvcc into a library without torch. In a rehearsal it is built and loaded, but only asked for a
probe that it does not have, and the emulation answers for the GPU.
"""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import cubins
from tests import test_wrappers

TESTING = Path(__file__).resolve().parent.parent.parent / "csrc/testing"
globals().update({name: test for name, test in vars(test_wrappers).items() if name.startswith("test_")})


@pytest.fixture(scope="module")
def library(device, tmp_path_factory):
    """The probes' launch function."""
    toolkit = cubins.find_toolkit()
    if not toolkit:
        pytest.skip(cubins.why_not())
    major, minor = torch.cuda.get_device_capability() if device == "cuda" else (8, 0)
    if major < 8:
        pytest.skip("the tensor-core wrappers are for sm_80 and newer")
    path = tmp_path_factory.mktemp("probes") / "probes.so"
    sources = [str(TESTING / "wrapper_probes.cu"), str(TESTING / "probe_library.cpp")]
    command = [f"{toolkit}/bin/nvcc", "-shared", "-Xcompiler=-fPIC", f"-arch=sm_{major}{minor}", "-o", str(path)]
    done = subprocess.run([*command, *cubins.FLAGS, *sources], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    launch = ctypes.CDLL(str(path)).resnext_wrapper_probe
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    launch.argtypes = [ctypes.c_char_p, pointer, pointer, number, pointer, ctypes.c_char_p, number]
    return launch


@pytest.fixture
def probe(device, library):
    """As in tests/test_wrappers.py; a GPU has no seed for its schedule."""
    if device != "cuda":
        assert library(b"unknown", None, None, 0, None, ctypes.create_string_buffer(1), 1) == 1
        return pytest.importorskip("resnext_kernels._testing_cuda").probe

    def run(name: str, source: np.ndarray, output: np.ndarray, seed: int = 1) -> None:
        input = torch.from_numpy(np.ascontiguousarray(source).view(np.uint8)).cuda()
        result = torch.full((output.nbytes,), 255, dtype=torch.uint8, device="cuda")
        error = ctypes.create_string_buffer(1000)
        stream = torch.cuda.current_stream().cuda_stream
        done = library(name.encode(), input.data_ptr(), result.data_ptr(), source.size, stream, error, len(error))
        assert done == 0, error.value.decode() or f"there is no probe {name!r}"
        output.view(np.uint8)[:] = result.cpu().numpy()

    return run
