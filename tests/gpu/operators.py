"""The three operators by pass, on tensors made of numpy arrays; and how to run them on a stream or in a graph."""

from contextlib import nullcontext

import torch

from resnext_kernels import _ops
from tests import tolerance

DTYPE = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
FORMAT = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
OPERATOR = {
    "fprop": torch.ops.resnext_kernels.grouped_conv2d,
    "dgrad": torch.ops.resnext_kernels.grouped_conv2d_grad_input,
    "wgrad": torch.ops.resnext_kernels.grouped_conv2d_grad_weight,
}


def tensor(values, dtype, layout, device):
    """A float64 array as a tensor; its values must be values of `dtype`."""
    result = torch.from_numpy(values).to(device=device, dtype=DTYPE[dtype])
    return result.contiguous(memory_format=FORMAT[layout]) if values.ndim == 4 else result


def array(result):
    """A tensor's values in float64."""
    return result.detach().to("cpu", torch.float64).numpy()


def accepting(pass_name, problem, dtype, layout, device):
    """The names of the kernels of a device that accept a problem."""
    geometry = [problem.groups, *problem.stride, *problem.padding, *problem.dilation]
    shape = [*problem.input_shape, *problem.weight_shape, *geometry]
    lines = _ops.explain_lines(torch.device(device).type, pass_name, shape, DTYPE[dtype], layout == "NHWC")
    return [name for name, reason in lines if not reason]


def call(pass_name, problem, first, second, bias=None, kernel=""):
    """Runs a pass: first and second are input and weight, grad_output and weight, or grad_output and input."""
    size = {"fprop": bias, "dgrad": problem.input_shape[2:], "wgrad": problem.kernel_size}[pass_name]
    geometry = problem.stride, problem.padding, problem.dilation, problem.groups
    return OPERATOR[pass_name](first, second, size, *geometry, kernel_name=kernel)


def run(pass_name, kernel, problem, dtype, layout, device, first, second, bias=None):
    """The same on arrays, in a given kernel; the result in float64."""
    tensors = [None if t is None else tensor(t, dtype, layout, device) for t in (first, second, bias)]
    result = call(pass_name, problem, *tensors, kernel=kernel)
    assert result.device.type == torch.device(device).type
    return array(result)


def bits(result):
    """A tensor's bytes, to compare without tolerance and with NaN equal to itself."""
    return tolerance.np.ascontiguousarray(result.detach().cpu().contiguous().view(torch.uint8).numpy()).tobytes()


def side_stream(device):
    """A context in which work goes to another stream than the default one."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if torch.device(device).type == "cuda" else nullcontext()


def keep_busy(device):
    """Holds up the current stream for about 50 ms, so that work that does not wait for it comes too early."""
    if torch.device(device).type == "cuda":
        torch.cuda._sleep(10**8)


def synchronize(device):
    """Waits for all of a device's work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def record(function, device):
    """Captures a function of no arguments in a CUDA graph; returns the tensor that it fills and how to replay it."""
    if torch.device(device).type != "cuda":
        result = function()
        return result, lambda: result.copy_(function())
    with side_stream(device):  # what happens once, such as loading a module, happens before the capture
        function()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return result, graph.replay
