"""Large outputs on the CPU: in memory that freed ones had, and never in memory that anything still uses."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from resnext_kernels import grouped_conv2d

MIB = 1 << 20
WEIGHT = torch.randn(16, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def large(mib, value=None, layout=torch.contiguous_format):
    """An input whose output takes so many MiB."""
    size = (mib, 16, 128, 128)
    input = torch.randn(size) if value is None else torch.full(size, value)
    return input.to(memory_format=layout)


def convolve(input):
    return grouped_conv2d(input, WEIGHT, padding=1, groups=4)


def grad_input(grad_output):
    operator = torch.ops.resnext_kernels.grouped_conv2d_grad_input
    return operator(grad_output, WEIGHT, grad_output.shape[2:], [1, 1], [1, 1], [1, 1], 4)


def is_mapped(address):
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= address < end:
            return True
    return False


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("operator", [convolve, grad_input])
def test_the_next_output_has_the_memory_of_a_freed_one(operator, layout):
    """Of PyTorch's, blocks over 32 MB are unmapped when they are freed."""
    first, second = large(40, 1.0, layout), large(40, 2.0, layout)
    output = operator(first)
    address = output.data_ptr()
    assert address % (2 * MIB) == 0
    assert output.is_contiguous(memory_format=layout)
    del output
    assert is_mapped(address)
    output = operator(second)
    assert output.data_ptr() == address
    with torch.no_grad():
        assert torch.equal(output, 2 * operator(first))


def test_memory_in_use_is_not_given_to_another():
    input = large(6)
    expected = convolve(input)
    output = convolve(input)
    view = output[3:]
    del output
    others = [convolve(2 * input) for _ in range(3)]
    storages = [tensor.untyped_storage().data_ptr() for tensor in (expected, view, *others)]
    assert len(set(storages)) == len(storages)
    assert torch.equal(view, expected[3:])


def which_stay_mapped():
    outputs = [convolve(large(40, 1.0)) for _ in range(15)]
    addresses = [output.data_ptr() for output in outputs]
    while outputs:
        del outputs[0]
    return [is_mapped(address) for address in addresses]


def test_what_is_kept_is_bounded():
    """In a process of its own, whose heap has no gap for an output: such gaps stay mapped when malloc has them back."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        assert process.submit(which_stay_mapped).result() == 3 * [False] + 12 * [True]  # 12 * 40 MiB


def test_small_outputs_are_left_to_pytorch():
    assert convolve(large(3)).untyped_storage().resizable()
    assert not convolve(large(4)).untyped_storage().resizable()


def test_kept_memory_is_shared_by_threads():
    def results_are_right(seed):
        input = large(5, float(seed))
        return all(torch.equal(convolve(input), seed * ones) for _ in range(20))

    ones = convolve(large(5, 1.0))
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(results_are_right, (1, 2, 4, 8)))


def convolve_and_send(input, sender):
    sender.send(all(torch.equal(convolve(input), convolve(input)) for _ in range(3)))


def test_the_child_of_a_fork_has_memory_of_its_own():
    input = large(5)
    expected = convolve(input)
    output = convolve(input)
    del output
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=convolve_and_send, args=(2 * input, sender), daemon=True)
    child.start()
    try:
        assert receiver.poll(60), "the child hangs"
        assert receiver.recv()
    finally:
        child.kill()
    assert torch.equal(convolve(input), expected)
