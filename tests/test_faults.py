"""What goes wrong at run time: no memory, infinities and NaN. The process stays usable, and nothing is hidden."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from resnext_kernels import grouped_conv2d

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def test_a_size_beyond_any_memory_is_an_error_and_no_more():
    input = torch.zeros(1).expand(2**26, 8, 2**10, 2**10)
    weight = torch.randn(8, 2, 3, 3, requires_grad=True)
    for convolve in (grouped_conv2d, F.conv2d):
        with pytest.raises(RuntimeError, match=r"not enough memory|can't allocate memory"):
            convolve(input, weight, padding=1, groups=4)
    image = torch.randn(1, 8, 5, 5)
    torch.testing.assert_close(grouped_conv2d(image, weight, groups=4), F.conv2d(image, weight, groups=4))


STARVED = """
import resource, sys, torch
from resnext_kernels import grouped_conv2d
torch.set_num_threads(1)
failures = successes = 0
for layout in (torch.contiguous_format, torch.channels_last):
    for dtype in (torch.float32, torch.bfloat16):
        args = [torch.randn(size, dtype=dtype) for size in ((4, 128, 56, 56), (128, 4, 3, 3), (128,))]
        args[0] = args[0].contiguous(memory_format=layout)
        for tensor in args:
            tensor.requires_grad_()
        def step():
            output = grouped_conv2d(*args, padding=1, groups=32)
            return [output.detach(), *torch.autograd.grad(output, args, torch.ones_like(output))]
        expected = step()
        for megabytes in (0, 2, 4, 6, 8, 12, 16, 24, 256):
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + megabytes * 2**20, resource.RLIM_INFINITY))
            try:
                step()
                successes += 1
            except (RuntimeError, MemoryError) as error:
                assert isinstance(error, MemoryError) or "memory" in str(error) or "bad_alloc" in str(error), error
                failures += 1
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert all(torch.equal(a, b) for a, b in zip(step(), expected)), megabytes
print(failures, successes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on address space")
def test_out_of_memory_in_a_training_step_leaves_the_process_usable():
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    failures, successes = map(int, done.stdout.split())
    assert failures, "no limit was low enough"
    assert successes, "no limit was high enough"


CASES = [(width, stride, dilation) for width in (2, 4, 8, 16, 32, 3) for stride in (1, 2) for dilation in (1, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["input", "grad_output"])
def test_what_is_not_finite_spreads_as_in_pytorch(place, value, layout, dtype):
    """One such value in one channel reaches what depends on it, and nothing else."""
    for width, stride, dilation in CASES:
        channels, geometry = 4 * width, (stride, dilation, dilation, 4)
        draw = lambda *size: (torch.randint(1, 4, size) * (2 * torch.randint(0, 2, size) - 1)).to(dtype)  # noqa: E731
        tensors = {"input": draw(2, channels, 9, 9), "weight": draw(channels, width, 3, 3)}
        tensors["grad_output"] = draw(*F.conv2d(*tensors.values(), None, *geometry).shape)
        tensors[place][1, width + 1, 4 // (stride if place == "grad_output" else 1), 2] = value

        def passes(convolve, tensors, geometry=geometry):
            input, weight, grad_output = tensors
            leaves = [input.clone().requires_grad_(), weight.clone().requires_grad_()]
            output = convolve(*leaves, None, *geometry)
            return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]

        ours = passes(grouped_conv2d, [t.contiguous(memory_format=LAYOUTS[layout]) for t in tensors.values()])
        exact = passes(F.conv2d, [t.double() for t in tensors.values()])
        assert not all(tensor.isfinite().all() for tensor in exact)
        for result, expected in zip(ours, exact, strict=True):
            assert torch.equal(result.isnan(), expected.isnan()), (width, stride, dilation)
            assert torch.equal(result.isposinf(), expected.isposinf()), (width, stride, dilation)
            assert torch.equal(result.isneginf(), expected.isneginf()), (width, stride, dilation)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_weight_that_is_not_finite_spoils_its_output_channel_only(layout):
    for width, stride, _ in CASES[::2]:
        weight = torch.randn(4 * width, width, 3, 3)
        weight[width, 1, 1, 1] = float("nan")
        image = torch.randn(2, 4 * width, 9, 9).contiguous(memory_format=LAYOUTS[layout])
        output = grouped_conv2d(image, weight, None, stride, 1, 1, 4)
        spoilt = output.isnan().flatten(2).transpose(0, 1).flatten(1)
        assert spoilt[width].all()
        assert spoilt.sum() == spoilt[width].numel()
