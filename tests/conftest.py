import importlib
import os
import sys

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read on import: threads that wait take no core from other workers
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's threads, likewise, in xdist's workers, which inherit this
import torch

# Problems here are small: a team would cost more than it saves, and stalls beside a busy neighbour. Tests of
# threading set the number themselves.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--all-architectures", action="store_true", help="test_cubins.py: every architecture, not just sm_80"
    )
    parser.addoption("--asan", action="store_true", help="test_asan.py: build and run under AddressSanitizer")
    parser.addoption("--emulation", help="a folder with the _testing_cuda to test, instead of the package's own")
    parser.addoption("--device", default="", help="gpu: run these tests on another device (cpu: a rehearsal)")
    parser.addoption("--huge", action="store_true", help="gpu: also tensors of more than 2^31 elements")


def pytest_configure(config):
    if folder := config.getoption("--emulation"):
        sys.path.insert(0, folder)
        sys.modules["resnext_kernels._testing_cuda"] = importlib.import_module("_testing_cuda")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def own_kernels(monkeypatch):
    """This package's kernels run also where PyTorch's would be faster, such as in float64."""
    monkeypatch.setattr("resnext_kernels.functional._why_pytorch_is_faster", lambda *problem: "")
