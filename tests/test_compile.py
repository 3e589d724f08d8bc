"""torch.compile and torch.export keep the operators whole and give eager's values and strides."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from resnext_kernels import GroupedConv2d, GroupedConv2dFunction, grouped_conv2d

from .cases import tensors

pytestmark = pytest.mark.usefixtures("own_kernels")


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def _step(net, image):
    net.zero_grad()
    output = net(image)
    output.square().sum().backward()
    return [output, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_step_in_one_graph(backend, memory_format):
    net = torch.nn.Sequential(GroupedConv2d(8, 8, 3, padding=1, groups=4), torch.nn.ReLU())
    image = torch.randn(2, 8, 6, 6).contiguous(memory_format=memory_format).requires_grad_()
    expected = _step(net, image)
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    for a, b in zip(_step(compiled, image), expected, strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(a, b)


def test_graphs_hold_our_operators():
    graphs = []

    def backend(graph, example_inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    compiler = lambda graph, inputs: make_boxed_func(backend(graph, inputs))  # noqa: E731
    compiled = torch.compile(grouped_conv2d, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))
    *args, kwargs = tensors("stride 1", dtype=torch.float32)
    compiled(*args, **kwargs).sum().backward()
    forward, backward = graphs
    assert "resnext_kernels.grouped_conv2d.default" in forward
    assert "resnext_kernels.grouped_conv2d_grad_input.default" in backward
    assert "resnext_kernels.grouped_conv2d_grad_weight_bias.default" in backward
    assert not [name for name in backward if "sum" in name], "the bias's gradient comes with the weight's"
    assert not [name for name in forward + backward if "convolution" in name]


@pytest.mark.parametrize("training", [False, True])
def test_dynamic_shapes_compile_once_or_twice(training):
    counter = CompileCounterWithBackend("aot_eager")
    conv = GroupedConv2d(8, 8, 3, padding=1, groups=4).requires_grad_(training)
    compiled = torch.compile(conv, fullgraph=True, backend=counter, dynamic=True)
    for n, h, w in [(2, 6, 6), (3, 7, 9), (5, 12, 8), (4, 5, 6)]:
        image = torch.randn(n, 8, h, w)
        torch.testing.assert_close(compiled(image), conv(image))
    assert counter.frame_count <= 2


TRANSFORMS = {
    "jvp": lambda loss, w: torch.func.jvp(loss, (w,), (w,))[1],
    "grad": lambda loss, w: torch.func.grad(loss)(w),
    "vmap": lambda loss, w: torch.func.vmap(loss)(torch.stack([w, 2 * w])),
    "jvp of grad": lambda loss, w: torch.func.jvp(torch.func.grad(loss), (w,), (w,))[1],
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_inside_compiled_code(transform):
    input, weight, _, kwargs = tensors("stride 1", requires_grad=False)
    function = lambda w: transform(lambda w: grouped_conv2d(input, w, **kwargs).square().sum(), w)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(weight), function(weight))


def test_public_function_compiles():
    *args, kwargs = tensors("stride 1", dtype=torch.float32)
    run = lambda *t: GroupedConv2dFunction.apply(*t, (1, 1), (1, 1), (1, 1), kwargs["groups"])  # noqa: E731
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*args), grouped_conv2d(*args, **kwargs))
    grads = torch.autograd.grad(compiled(*args).square().sum(), args)
    for a, b in zip(grads, torch.autograd.grad(grouped_conv2d(*args, **kwargs).square().sum(), args), strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_inside_compiled_code():
    conv = GroupedConv2d(8, 8, 3, padding=1, groups=4)
    image = torch.randn(2, 8, 6, 6)

    def run(image):
        with torch.autocast("cpu", torch.bfloat16):
            return conv(image)

    output = torch.compile(run, fullgraph=True, backend="aot_eager")(image)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, run(image))


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_sizes(strict):
    conv = GroupedConv2d(8, 8, 3, stride=2, padding=1, groups=4)
    batch, height = torch.export.Dim("batch"), torch.export.Dim("height", min=4)
    example = (torch.randn(2, 8, 6, 6),)
    program = torch.export.export(conv, example, dynamic_shapes={"input": {0: batch, 2: height}}, strict=strict)
    assert "resnext_kernels.grouped_conv2d" in str(program.graph)
    image = torch.randn(3, 8, 9, 6)
    assert torch.equal(program.module()(image), conv(image))


def test_symbolic_trace_keeps_the_function():
    graph = torch.fx.symbolic_trace(GroupedConv2d(8, 8, 3, padding=1, groups=4))
    module = torch.fx.symbolic_trace(lambda x, w: grouped_conv2d(x, w, padding=1, groups=4))
    assert [n.target for n in module.graph.nodes if n.op == "call_function"] == [grouped_conv2d]
    image = torch.randn(1, 8, 5, 5)
    assert graph(image).shape == (1, 8, 5, 5)
