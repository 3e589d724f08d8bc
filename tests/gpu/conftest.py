"""Tests of the CUDA kernels on a GPU, through the operators. `make gpu` runs them, with everything around them.

Without a GPU one skip stands for them all, and test_rehearsal.py runs them on CPU tensors, so that a slip in a test is
found before it reaches a machine with a GPU.
"""

import pytest
import torch


def _device(config):
    """What to test: --device, or the GPU, or nothing."""
    return config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "")


def pytest_ignore_collect(collection_path, config):
    if collection_path.name.startswith("test_"):
        return bool(_device(config)) == (collection_path.name == "test_rehearsal.py") or None
    return None


@pytest.fixture(autouse=True)
def _only_if_asked_for(request):
    if request.node.get_closest_marker("huge") and not request.config.getoption("--huge"):
        pytest.skip("more than 2^31 elements: run with --huge")


@pytest.fixture(autouse=True)
def _float32_in_full():
    """Neither this package's kernels nor cuDNN's round float32 to TF32, so that results can be compared."""
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


@pytest.fixture(scope="session")
def device(request):
    """The device under test: "cuda", or "cpu" in a rehearsal."""
    return _device(request.config)
