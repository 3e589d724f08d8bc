"""GroupedConv2d behaves as nn.Conv2d in everything but the kernel, and convert swaps it into models."""

import copy
import io
import pickle

import pytest
import torch
import torchvision
from torch import nn

from resnext_kernels import GroupedConv2d, LazyGroupedConv2d, convert

ARGUMENTS = {
    "plain": ((8, 8, 3), {"groups": 4}),
    "all arguments": ((8, 12, (3, 3), (2, 1), (1, 2), (1, 2), 4, False), {}),
    "same": ((8, 8, 3), {"padding": "same", "groups": 2}),
    "reflect": ((8, 8, 3), {"padding": 1, "groups": 4, "padding_mode": "reflect"}),
    "circular": ((8, 8, 3), {"padding": 1, "groups": 4, "padding_mode": "circular"}),
    "replicate": ((8, 8, 3), {"padding": 1, "groups": 4, "padding_mode": "replicate"}),
    "1x1": ((8, 8, 1), {}),
    "5x5": ((8, 8, 5), {"groups": 4, "padding": 2}),
    "double": ((8, 8, 3), {"groups": 4, "dtype": torch.float64}),
    "complex": ((8, 8, 3), {"groups": 4, "dtype": torch.complex64}),
}


def _pair(name):
    args, kwargs = ARGUMENTS[name]
    modules = []
    for cls in (GroupedConv2d, nn.Conv2d):
        torch.manual_seed(3)
        modules.append(cls(*args, **kwargs))
    return modules


@pytest.mark.parametrize("name", ARGUMENTS)
def test_same_parameters_state_repr_and_results(name):
    ours, theirs = _pair(name)
    assert isinstance(ours, nn.Conv2d)
    assert repr(ours) == "Grouped" + repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    attributes = {key for key in vars(theirs) if not key.startswith("_")}
    assert {key: getattr(ours, key) for key in attributes} == {key: getattr(theirs, key) for key in attributes}
    image = torch.randn(2, 8, 7, 6, dtype=ours.weight.dtype, requires_grad=True)
    outputs = [module(image) for module in (ours, theirs)]
    torch.testing.assert_close(*outputs)
    grad = torch.randn_like(outputs[0])
    gradients = [
        torch.autograd.grad(y, [image, *m.parameters()], grad) for y, m in zip(outputs, (ours, theirs), strict=True)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"groups": 0}, "groups must be a positive integer"),
        ({"groups": 3}, "in_channels must be divisible by groups"),
        ({"padding": "full"}, "Invalid padding string"),
        ({"padding": "same", "stride": 2}, "not supported for strided"),
        ({"padding_mode": "mirror"}, "padding_mode must be one of"),
    ],
)
def test_constructor_errors_are_conv2ds(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GroupedConv2d(8, 8, 3, **kwargs)


@pytest.mark.parametrize("round_trip", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(round_trip):
    conv = GroupedConv2d(8, 8, 3, padding=1, groups=4)
    clone, image = round_trip(conv), torch.randn(1, 8, 5, 5)
    assert type(clone) is GroupedConv2d
    assert torch.equal(clone(image), conv(image))


def test_saved_weights_load_into_conv2d_and_back():
    ours, theirs = _pair("plain")
    theirs.reset_parameters()
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    ours.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(ours.weight, theirs.weight)


def test_meta_device_and_skip_init():
    conv = GroupedConv2d(8, 8, 3, stride=2, padding=1, groups=4, device="meta")
    output = conv(torch.randn(2, 8, 6, 6, device="meta"))
    assert output.shape == (2, 8, 3, 3)
    assert output.device.type == "meta"
    output.sum().backward()
    assert conv.weight.grad.shape == (8, 2, 3, 3)
    assert nn.utils.skip_init(GroupedConv2d, 8, 8, 3, groups=4).weight.device.type == "cpu"


def test_lazy():
    """The first input decides about the channels, and already runs on our kernels."""
    torch.manual_seed(3)
    lazy = LazyGroupedConv2d(8, 3, padding=1, groups=4)
    assert isinstance(lazy.weight, nn.UninitializedParameter)
    torch.manual_seed(4)
    with torch.profiler.profile() as profile:
        output = lazy(torch.ones(2, 12, 5, 5))
    assert "resnext_kernels::grouped_conv2d" in {event.key for event in profile.key_averages()}
    assert type(lazy) is GroupedConv2d
    torch.manual_seed(4)
    eager = GroupedConv2d(12, 8, 3, padding=1, groups=4)
    assert torch.equal(lazy.weight, eager.weight)
    assert torch.equal(output, eager(torch.ones(2, 12, 5, 5)))
    assert LazyGroupedConv2d(8, 3, groups=4).load_state_dict(eager.state_dict())
    with pytest.raises(ValueError, match="in_channels must be divisible by groups"):
        LazyGroupedConv2d(8, 3, groups=4)(torch.ones(2, 13, 5, 5))


def test_weight_norm_and_fused_batch_norm():
    conv = nn.utils.parametrizations.weight_norm(GroupedConv2d(8, 8, 3, padding=1, groups=4))
    conv(torch.randn(1, 8, 5, 5)).sum().backward()
    assert all(p.grad is not None for p in conv.parameters())
    block = nn.Sequential(GroupedConv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8))
    image = torch.randn(4, 8, 5, 5)
    block(image)
    block.eval()
    fused = nn.utils.fusion.fuse_conv_bn_eval(*block)
    assert type(fused) is GroupedConv2d
    torch.testing.assert_close(fused(image), block(image))


def test_explain():
    image = torch.randn(1, 8, 5, 5)
    assert GroupedConv2d(8, 8, 3, padding=1, groups=4).explain(image).kernel
    assert "padding_mode='reflect'" in str(_pair("reflect")[0].explain(image))
    assert "5x5" in str(_pair("5x5")[0].explain(image))


# --- convert


def _model():
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False, dtype=torch.float64), nn.Conv2d(8, 8, 1, groups=4)
        ),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=4, padding_mode="circular", padding=1),
        nn.LazyConv2d(8, 3, groups=4),
        GroupedConv2d(8, 8, 3, groups=4),
        nn.Conv2d(8, 8, 3, groups=4, dtype=torch.complex64),
    )


def test_convert_reports_what_it_swapped_and_why_not():
    model = _model()
    report = convert(model)
    assert report.converted == ["0", "1.0"]
    assert list(report.kept) == ["1.1", "2", "3", "4", "5", "6", "7"]
    words = ["1x1", "dense", "depthwise", "circular", "LazyConv2d", "already", "complex64"]
    for word, reason in zip(words, report.kept.values(), strict=True):
        assert word in reason
    assert "converted 2 of 9 convolutions" in str(report)
    assert "kept 2: has groups=1" in str(report)


def test_convert_keeps_everything_but_the_class():
    model = _model()
    conv, state = model[0], copy.deepcopy(model[0].state_dict())
    optimizer = torch.optim.SGD(conv.parameters(), lr=1.0)
    calls = []
    conv.register_forward_hook(lambda *_: calls.append("forward"))
    conv.register_forward_pre_hook(lambda *_: calls.append("pre"))
    conv.weight.register_hook(lambda grad: calls.append("weight"))
    conv.eval()
    conv.weight.requires_grad_(True)
    conv.bias.requires_grad_(False)
    convert(model)
    assert model[0] is conv
    assert type(conv) is GroupedConv2d
    assert not conv.training
    assert not conv.bias.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(conv.state_dict().values(), state.values(), strict=True))
    conv(torch.randn(1, 8, 5, 5)).sum().backward()
    assert calls == ["pre", "forward", "weight"]
    before = conv.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(conv.weight, before)
    assert model[1][0].weight.dtype == torch.float64


def test_convert_takes_a_convolution_itself_and_shared_modules():
    conv = nn.Conv2d(8, 8, 3, groups=4)
    assert convert(conv).converted == [""]
    assert type(conv) is GroupedConv2d
    shared = nn.Conv2d(8, 8, 3, groups=4)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert convert(model).converted == ["a"]
    assert type(model["b"]) is GroupedConv2d


def test_convert_refuses_what_is_not_a_module():
    with pytest.raises(TypeError, match=r"expected model to be a torch\.nn\.Module, got dict"):
        convert({})


@pytest.mark.parametrize(
    ("build", "grouped"),
    [
        (torchvision.models.resnext50_32x4d, 16),
        (torchvision.models.regnet_y_400mf, 16),
        (torchvision.models.resnet18, 0),
    ],
)
def test_converted_torchvision_models_give_the_same_logits(build, grouped):
    model = build(weights=None).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        exact = copy.deepcopy(model).double()(images.double())
        report = convert(model)
        output = model(images)
    assert len(report.converted) == grouped
    bound = 2 * (expected - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max()
    assert (output - exact).abs().max() <= bound
