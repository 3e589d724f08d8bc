"""`convert` on the networks of torchvision and timm: outputs and gradients stay what they were, in float64."""

import pytest
import torch
from torch import nn

from resnext_kernels import GroupedConv2d, convert

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
    output, ours = run(model, images)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    assert ours.keys() == gradients.keys()
    for key, gradient in gradients.items():
        scale = gradient.abs().max()
        torch.testing.assert_close(ours[key], gradient, rtol=0, atol=1e-10 * float(scale), msg=key)
