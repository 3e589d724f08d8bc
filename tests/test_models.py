"""Networks of torchvision, timm and mmpretrain, converted: outputs and gradients stay what they were, in float64."""

import copy
import warnings

import pytest
import torch
from torch import nn

from resnext_kernels import GroupedConv2d, convert
from resnext_kernels.alexnet import ALEXNET, restore_groups

torchvision_models = pytest.importorskip("torchvision").models
timm = pytest.importorskip("timm")

# Name and how many grouped 3x3 convolutions it has.
TORCHVISION = [
    ("resnext50_32x4d", 16),
    ("regnet_x_400mf", 22),
    ("regnet_y_400mf", 16),
    ("resnet18", 0),
    ("shufflenet_v2_x0_5", 0),  # its 3x3 are depthwise: kept
]
TIMM = [
    ("resnext50_32x4d", 16),
    ("resnext26ts", 8),
    ("seresnext26d_32x4d", 8),
    ("ecaresnext26t_32x4d", 8),
    ("skresnext50_32x4d", 32),
    ("resnest14d", 4),
    ("regnetx_002", 13),
    ("regnety_002", 13),
    ("regnetz_b16", 22),
    ("nf_regnet_b0", 0),  # convolutions of a class of its own: kept
]


def make(library, name):
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(name, num_classes=10)
    return getattr(torchvision_models, name)(num_classes=10)


def grouped(model):
    """The convolutions that are ours to take."""
    return [
        module
        for module in model.modules()
        if type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and 1 < module.groups < module.in_channels
        and module.padding_mode == "zeros"
    ]


def run(model, images):
    """Output, and the gradients of everything that has one."""
    model.zero_grad()
    output = model(images)
    (output * torch.arange(1, 11)).sum().backward()
    return output, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(model, images, expected, gradients):
    """The model still gives these outputs and gradients."""
    output, ours = run(model, images)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    assert ours.keys() == gradients.keys()
    for key, gradient in gradients.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(ours[key], gradient, rtol=0, atol=1e-10 * float(scale), msg=key)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("library", "name", "count"),
    [("torchvision", *row) for row in TORCHVISION] + [("timm", *row) for row in TIMM],
)
def test_converted_networks_agree(library, name, count, memory_format):
    model = make(library, name).double().eval().to(memory_format=memory_format)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    images = images.contiguous(memory_format=memory_format)
    expected, gradients = run(model, images)
    wanted = grouped(model)
    report = convert(model)
    assert len(report.converted) == len(wanted) == count
    assert all(isinstance(module, GroupedConv2d) for module in wanted)
    assert_same(model, images, expected, gradients)


# --- AlexNet in its two halves


def test_alexnet_in_two_groups():
    """Its convolutions are the dense ones with zeros between the groups; two of them are 3x3 and converted."""
    dense = make("torchvision", "alexnet").double().eval()
    for name in ALEXNET:
        weight = dense.get_submodule(name).weight.data
        k, c = weight.shape[0] // 2, weight.shape[1] // 2
        weight[:k, c:] = weight[k:, :c] = 0
    grouped = restore_groups(copy.deepcopy(dense))
    assert [tuple(grouped.get_submodule(name).weight.shape[:2]) for name in ALEXNET] == [
        (192, 32),
        (256, 192),
        (256, 128),
    ]
    assert convert(grouped).converted == ["features.8", "features.10"]
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected, gradients = run(dense, images)
    for name in ALEXNET:
        gradient = gradients[f"{name}.weight"]
        halves = [half.chunk(2, 1)[i] for i, half in enumerate(gradient.chunk(2, 0))]
        gradients[f"{name}.weight"] = torch.cat(halves)
    assert_same(grouped, images, expected, gradients)


def test_what_cannot_be_grouped():
    model = make("torchvision", "alexnet")
    before = model.features[3].weight
    for groups, message in [
        ({"features.3": 2, "features.1": 2}, r"expected features\.1 to be an nn\.Conv2d with groups=1, got ReLU"),
        ({"features.3": 2, "features.99": 2}, r"expected features\.99 to be an nn\.Conv2d with groups=1, got None"),
        (
            {"features.3": 2, "features.0": 2},
            r"expected the groups of features\.0 to divide its 3 to 64 channels, got 2",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            restore_groups(model, groups)
    assert model.features[3].weight is before


# --- mmpretrain, where it is installed: `make mmpretrain`


def mmpretrains(name, **options):
    pytest.importorskip("mmengine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mmpretrain.models as models
    torch.manual_seed(0)
    backbone = getattr(models, name)(50, groups=32, width_per_group=4, **options)
    return nn.Sequential(backbone, models.GlobalAveragePooling(), First(), nn.Linear(2048, 10)).double().eval()


class First(nn.Module):
    """mmpretrain's modules return tuples."""

    def forward(self, inputs):
        return inputs[0]


@pytest.mark.parametrize("name", ["ResNeXt", "SEResNeXt"])
def test_mmpretrain(name):
    model = mmpretrains(name)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected, gradients = run(model, images)
    registered = pytest.importorskip("resnext_kernels.mmpretrain", exc_type=ImportError)
    other = mmpretrains(name, conv_cfg={"type": "GroupedConv2d"})
    other.load_state_dict(model.state_dict())
    assert len(convert(model).converted) == 16
    for converted in (model, other):
        convs = [module for module in converted.modules() if isinstance(module, nn.Conv2d)]
        assert {type(conv) for conv in convs if conv.groups == 32} == {GroupedConv2d}
        assert {type(conv) for conv in convs if conv.groups == 1} == {nn.Conv2d}
        assert_same(converted, images, expected, gradients)
    assert type(registered.build_conv(8, 8, 1)) is nn.Conv2d
