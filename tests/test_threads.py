"""The CPU kernels where a program has threads and processes of its own: Python threads, forks, DataLoader workers."""

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from resnext_kernels import grouped_conv2d


@pytest.fixture
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def gradients(seed):
    """Output and gradients of a problem that is large enough for a team, by our kernels and what needs none."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((4, 32, 40, 40), (32, 4, 3, 3), (4, 32, 40, 40))
    input, weight, grad_output = (torch.randn(size, generator=generator) for size in sizes)
    args = input.requires_grad_(), weight.requires_grad_()
    output = grouped_conv2d(*args, padding=1, groups=8)
    return [output.detach(), *torch.autograd.grad(output, args, grad_output)]


def equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.usefixtures("_two_threads")
def test_several_python_threads_at_once():
    expected = [gradients(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            assert all(map(equal, pool.map(gradients, range(4)), expected))


def in_child(seed, sender):
    sender.send([tensor.numpy().tobytes() for tensor in gradients(seed)])


def run_alone(check):
    """Runs a function of this file in a new process: after torch.export, PyTorch allows no backward pass in a fork."""
    code = f"from tests import test_threads; test_threads.{check.__name__}()"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def after_a_fork():
    torch.set_num_threads(2)
    expected = [tensor.numpy().tobytes() for tensor in gradients(3)]
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(3, sender), daemon=True)
    child.start()
    try:
        assert receiver.poll(60), "the child hangs"
        assert receiver.recv() == expected
    finally:
        child.kill()


def test_after_a_fork():
    """PyTorch's own operators hang there: GCC's OpenMP has the child wait for threads that only its parent has."""
    run_alone(after_a_fork)


class Outputs(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return gradients(index)


def in_workers_of_a_data_loader():
    torch.set_num_threads(2)
    expected = [gradients(index) for index in range(4)]
    loader = DataLoader(Outputs(), batch_size=None, num_workers=2, timeout=60, multiprocessing_context="fork")
    assert all(map(equal, loader, expected))


def test_in_workers_of_a_data_loader():
    run_alone(in_workers_of_a_data_loader)
