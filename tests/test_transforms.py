"""Programs that PyTorch's tools make of a module (TorchScript, export, AOTInductor, ONNX) compute what it computes."""

import io
import shutil

import pytest
import torch
from torch import nn

from resnext_kernels import GroupedConv2d

pytestmark = pytest.mark.usefixtures("own_kernels")


def _net(**kwargs):
    return nn.Sequential(GroupedConv2d(8, 8, 3, **{"padding": 1, "groups": 4, **kwargs}), nn.ReLU()).eval()


def _saved(save, load, program):
    """The program after a round trip through a file."""
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    return load(file)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace_saves_and_freezes_our_operator():
    net, image = _net(stride=2), torch.randn(2, 8, 6, 6)
    traced = torch.jit.trace(net, image)
    assert "resnext_kernels::grouped_conv2d" in str(traced.inlined_graph)
    other = torch.randn(3, 8, 9, 7)
    for program in (_saved(torch.jit.save, torch.jit.load, traced), torch.jit.freeze(traced)):
        assert torch.equal(program(other), net(other))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "kwargs", [{}, {"padding": "same"}, {"padding_mode": "reflect"}, {"padding_mode": "circular", "bias": False}]
)
def test_jit_script_runs_pytorchs_convolution(kwargs):
    """TorchScript cannot read grouped_conv2d, so a scripted module is an nn.Conv2d."""
    net, image = _net(**kwargs), torch.randn(2, 8, 6, 6)
    scripted = _saved(torch.jit.save, torch.jit.load, torch.jit.script(net))
    assert "aten::conv2d" in str(scripted.inlined_graph)
    torch.testing.assert_close(scripted(image), net(image))


@pytest.mark.parametrize("kwargs", [{}, {"padding": "same", "dilation": 2}, {"stride": 2, "bias": False}])
def test_exported_program_survives_a_file(kwargs):
    net, batch = _net(**kwargs), torch.export.Dim("batch")
    program = torch.export.export(net, (torch.randn(2, 8, 6, 6),), dynamic_shapes=({0: batch},))
    loaded = _saved(torch.export.save, torch.export.load, program)
    assert "resnext_kernels.grouped_conv2d" in str(loaded.graph)
    image = torch.randn(5, 8, 6, 6)
    assert torch.equal(loaded.module()(image), net(image))
    assert torch.equal(loaded.run_decompositions().module()(image), net(image))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="AOTInductor needs a C++ compiler")
def test_aotinductor_package(tmp_path):
    net = _net().to(memory_format=torch.channels_last)
    example = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    image = torch.randn(5, 8, 6, 6).to(memory_format=torch.channels_last)
    output = torch._inductor.aoti_load_package(path)(image)
    assert output.stride() == net(image).stride()
    torch.testing.assert_close(output, net(image))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False], ids=["torch.export", "TorchScript"])
def test_onnx_export_gives_a_standard_conv(dynamo, tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if dynamo:
        pytest.importorskip("onnxscript")
    net, image, path = _net(stride=2), torch.randn(2, 8, 6, 6), str(tmp_path / "net.onnx")
    torch.onnx.export(net, (image,), path, dynamo=dynamo)
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node] == ["Conv", "Relu"]
    session = runtime.InferenceSession(path)
    (output,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), net(image), rtol=1e-4, atol=1e-5)


def test_onnx_exporters_are_given_pytorchs_operator(monkeypatch):
    """The same without the onnx package: what either exporter would find in the program."""
    net, image = _net(), torch.randn(2, 8, 6, 6)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    program = torch.export.export(net, (image,))
    assert "resnext_kernels" not in str(program.graph)
    assert "aten.conv2d" in str(program.graph)
    traced = str(torch.jit.trace(net, image).inlined_graph)
    assert "resnext_kernels::" not in traced
    assert "aten::_convolution" in traced


def test_symbolic_trace_of_a_module_runs():
    net, image = _net(), torch.randn(2, 8, 6, 6)
    traced = torch.fx.symbolic_trace(net)
    assert torch.equal(traced(image), net(image))
    assert torch.equal(torch.fx.experimental.proxy_tensor.make_fx(net)(image)(image), net(image))


def test_derivatives_of_compiled_code():
    """Forward mode through a compiled module is right; double backward is what PyTorch does not support at all."""
    torch._dynamo.reset()
    net, image = _net().double(), torch.randn(2, 8, 6, 6).double()
    compiled = torch.compile(net, backend="aot_eager")
    ours, expected = (torch.func.jvp(model, (image,), (image,))[1] for model in (compiled, net))
    torch.testing.assert_close(ours, expected)
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(compiled(image).square().sum(), net[0].weight, create_graph=True)[0].sum().backward()


def test_channels_last_and_dynamic_sizes_in_one_graph():
    """A compiled training step with batch and image of any size gives eager's gradients in eager's strides."""
    torch._dynamo.reset()
    net = _net().train()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((2, 8, 6, 6), (3, 8, 9, 5), (4, 8, 5, 7)):
        image = torch.randn(size).to(memory_format=torch.channels_last)
        results = []
        for model in (compiled, net):
            output = model(image)
            results.append([output.detach(), *torch.autograd.grad(output.square().sum(), list(net.parameters()))])
        for a, b in zip(*results, strict=True):
            assert a.stride() == b.stride()
            torch.testing.assert_close(a, b)
