"""What only a device has: streams, graphs, several devices, and more memory than 32 bits can address."""

import numpy as np
import pytest
import torch

from resnext_kernels import explain, grouped_conv2d
from resnext_kernels.problems import Problem, resnext50_32x4d
from tests.passes import LAYOUTS, PASSES, operands

from .operators import FORMAT, accepting, bits, call, keep_busy, record, side_stream, synchronize, tensor

PROBLEM = Problem(3, 64, 30, 31, 64, groups=8)  # wgrad needs a workspace and a second kernel


def draw(pass_name, layout, device, seed=1):
    """Normal operands of the pass as float tensors."""
    rng = np.random.default_rng(seed)
    arrays = operands(pass_name, PROBLEM, rng.standard_normal)
    return [None if a is None else tensor(a, "f32", layout, device) for a in arrays]


def test_the_device_has_kernels(device):
    image, weight = torch.randn(1, 128, 56, 56, device=device), torch.randn(128, 4, 3, 3, device=device)
    for pass_name in PASSES:
        explanation = explain(pass_name, image, weight, padding=1, groups=32)
        assert explanation.kernel, explanation
        assert explanation.kernel.startswith(pass_name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_work_is_in_order_on_the_current_stream(pass_name, layout, device):
    """Operands that arrive late on a side stream: a kernel on any other stream would read the zeros before them."""
    values = draw(pass_name, layout, device)
    for kernel in accepting(pass_name, PROBLEM, "f32", layout, device):
        expected = bits(call(pass_name, PROBLEM, *values, kernel=kernel))
        late = [None if value is None else torch.zeros_like(value) for value in values]
        synchronize(device)
        with side_stream(device):
            keep_busy(device)
            for to, value in zip(late, values, strict=True):
                if to is not None:
                    to.copy_(value)
            result = call(pass_name, PROBLEM, *late, kernel=kernel)
            copy = result.clone()
        synchronize(device)
        assert bits(copy) == expected, kernel


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_a_graph_replays_on_new_values(pass_name, layout, device):
    for kernel in accepting(pass_name, PROBLEM, "f32", layout, device):
        operands_ = draw(pass_name, layout, device)
        run = lambda: call(pass_name, PROBLEM, *operands_, kernel=kernel)  # noqa: B023, E731
        result, replay = record(run, device)
        for seed in (2, 3):
            new = draw(pass_name, layout, device, seed)
            for to, value in zip(operands_, new, strict=True):
                if to is not None:
                    to.copy_(value)
            replay()
            synchronize(device)
            assert bits(result) == bits(call(pass_name, PROBLEM, *new, kernel=kernel)), kernel


def test_a_training_step_in_a_graph(device):
    image, weight = torch.randn(2, 32, 14, 14, device=device), torch.randn(32, 4, 3, 3, device=device)
    leaves = [image.requires_grad_(), weight.requires_grad_()]

    def step():
        output = grouped_conv2d(image, weight, padding=1, groups=8)
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(output.square().sum(), leaves)])

    result, replay = record(step, device)
    replay()
    synchronize(device)
    assert torch.equal(result, step())


@pytest.mark.parametrize("pass_name", PASSES)
def test_the_second_device(pass_name, device):
    """Tensors on another device than the current one: kernel, workspace and result must all be there."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    other = "cuda:1" if device == "cuda" else device
    for layout in LAYOUTS:
        values, here = draw(pass_name, layout, other), draw(pass_name, layout, device)
        for kernel in accepting(pass_name, PROBLEM, "f32", layout, device):
            result = call(pass_name, PROBLEM, *values, kernel=kernel)
            assert result.device == values[0].device
            expected = call(pass_name, PROBLEM, *here, kernel=kernel)
            torch.testing.assert_close(result.cpu(), expected.cpu(), rtol=1e-4, atol=1e-4)
    if device == "cuda":
        with pytest.raises(RuntimeError, match="device"):
            call(pass_name, PROBLEM, values[0], here[1], here[2])


def test_tensors_of_two_kinds_of_device_are_refused(device):
    image, weight, bias = draw("fprop", "NCHW", device)
    elsewhere = "meta" if device == "cpu" else "cpu"
    with pytest.raises((RuntimeError, NotImplementedError), match=r"device|kernel"):
        torch.ops.resnext_kernels.grouped_conv2d(image, weight.to(elsewhere), bias, (1, 1), (1, 1), (1, 1), 8)


def test_errors_come_before_a_launch(device):
    image, weight, bias = draw("fprop", "NCHW", device)
    with pytest.raises(RuntimeError, match="Given groups=7"):
        grouped_conv2d(image, weight, bias, padding=1, groups=7)
    with pytest.raises(RuntimeError, match=r"expected kernel to be one of .*got 'fastest'"):
        grouped_conv2d(image, weight, bias, padding=1, groups=8, kernel="fastest")
    synchronize(device)  # an error of the device would show here
    assert grouped_conv2d(image, weight, bias, padding=1, groups=8).isfinite().all()


HUGE = resnext50_32x4d[0].with_batch(5400)  # 5400 x 128 x 56 x 56: 2.17e9 elements, in float16 4.3 GB a tensor


@pytest.mark.huge
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_more_than_2_to_the_31_elements(pass_name, layout, device):
    """The last images of a huge batch; for wgrad a huge batch that is zero but for its last images."""
    problem = HUGE if device == "cuda" else HUGE.with_batch(20)
    needed = 5 * problem.n * problem.c * problem.h * problem.w * 2
    if device == "cuda" and torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / 1e9:.0f} GB of free GPU memory")
    few, tail = 3, problem.with_batch(3)
    rng = np.random.default_rng(6)
    arrays = operands(pass_name, tail, lambda shape: rng.integers(-1, 2, shape).astype(float))
    small = [None if a is None else tensor(a, "f16", layout, device) for a in arrays]
    huge = list(small)
    for i, shape in enumerate(operands(pass_name, problem, lambda shape: shape)[:2]):
        if shape[0] == problem.n:
            huge[i] = torch.empty(shape, dtype=torch.float16, device=device, memory_format=FORMAT[layout]).zero_()
            huge[i][-few:] = small[i]
    for kernel in accepting(pass_name, problem, "f16", layout, device):
        expected = call(pass_name, tail, *small, kernel=kernel)
        result = call(pass_name, problem, *huge, kernel=kernel)
        assert torch.equal(result if pass_name == "wgrad" else result[-few:], expected), kernel
