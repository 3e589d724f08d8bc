"""All of tests/test_autograd.py on the device: every kind of derivative, torch.func, vmap, what backward calls."""

import pytest
import torch

from tests import test_autograd

globals().update({name: test for name, test in vars(test_autograd).items() if name.startswith("test_")})


@pytest.fixture(autouse=True)
def _on_the_device(device, own_kernels):
    with torch.device(device):  # where tensors are made
        yield
