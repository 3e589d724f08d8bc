"""Networks against torchvision's: the same keys, the same initial values, the same logits and gradients."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from resnext_kernels import GroupedConv2d, network, problems

GENERIC = {"resnext101_32x4d": ((3, 4, 23, 3), 32, 4), "resnext152_32x4d": ((3, 8, 36, 3), 32, 4)}
IMAGENET = ["resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d"]
IMAGENET += ["resnext101_64x4d", "resnext152_32x4d"]


def _theirs(name):
    if name in GENERIC:
        depths, groups, width = GENERIC[name]
        return ResNet(Bottleneck, list(depths), groups=groups, width_per_group=width)
    return getattr(torchvision.models, name)(weights=None)


@pytest.mark.parametrize("name", IMAGENET)
def test_state_dict_has_torchvisions_keys_and_shapes(name):
    with torch.device("meta"):
        ours, theirs = getattr(network, name)().state_dict(), _theirs(name).state_dict()
    assert [(k, v.shape, v.dtype) for k, v in ours.items()] == [(k, v.shape, v.dtype) for k, v in theirs.items()]


def test_same_seed_gives_torchvisions_initial_values():
    torch.manual_seed(5)
    ours = network.resnext50_32x4d(zero_init_residual=True)
    torch.manual_seed(5)
    theirs = torchvision.models.resnext50_32x4d(zero_init_residual=True)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_every_grouped_convolution_is_ours():
    with torch.device("meta"):
        net = network.resnext50_32x4d()
    grouped = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.groups > 1]
    assert len(grouped) == 16
    assert all(type(module) is GroupedConv2d for module in grouped)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_logits_equal_torchvisions_to_rounding(training, memory_format):
    """Against float64, ours may err at most twice as much as torchvision's network, plus one rounding."""
    theirs = torchvision.models.resnext50_32x4d(weights=None)
    images = torch.randn(4, 3, 64, 64)
    if not training:  # running statistics of these images, so that activations keep a sane size
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            theirs(images)
    ours, exact = network.resnext50_32x4d(), torchvision.models.resnext50_32x4d(weights=None).double()
    for net in (ours, exact):
        net.load_state_dict(theirs.state_dict())
    for net in (ours, theirs, exact):
        net.train(training)
    with torch.no_grad():
        expected = exact(images.double())
        error = (theirs(images) - expected).abs().max()
        output = ours.to(memory_format=memory_format)(images.contiguous(memory_format=memory_format))
    assert (output - expected).abs().max() <= 2 * error + torch.finfo(torch.float32).eps * expected.abs().max()


def _assert_same_outputs_and_gradients(ours, theirs, images):
    """In float64, to 1e-12 of the largest element of each tensor.

    In eval mode: batch norm of the few values in the last stage would amplify rounding beyond any fixed bound.
    """
    ours.double(), theirs.double().load_state_dict(ours.state_dict())
    tensors = []
    for net in (ours, theirs):
        output = net.eval()(images.double())
        output.square().sum().backward()
        tensors.append({"output": output, **{name: p.grad for name, p in net.named_parameters()}})
    assert list(tensors[0]) == list(tensors[1])
    for name, expected in tensors[1].items():
        assert (tensors[0][name] - expected).abs().max() <= 1e-12 * expected.abs().max(), name


@pytest.mark.parametrize("dilate", [None, (True, False, True), (False, True, True)])
def test_small_networks_follow_torchvision_with_dilation_instead_of_stride(dilate):
    theirs = ResNet(Bottleneck, [1, 2, 1, 2], 10, groups=8, width_per_group=4, replace_stride_with_dilation=dilate)
    ours = network.ResNeXt((1, 2, 1, 2), 8, 4, 10, replace_stride_with_dilation=dilate)
    _assert_same_outputs_and_gradients(ours, theirs, torch.randn(3, 3, 24, 20))


@pytest.mark.parametrize("in_channels", [1, 3])
def test_cifar_network_is_torchvisions_with_another_stem_and_three_stages(in_channels):
    theirs = ResNet(Bottleneck, [2, 1, 1, 1], groups=4, width_per_group=8)
    theirs.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    theirs.maxpool, theirs.layer4, theirs.fc = nn.Identity(), nn.Identity(), nn.Linear(1024, 10)
    ours = network.ResNeXt((2, 1, 1), 4, 8, 10, "cifar", in_channels=in_channels)
    _assert_same_outputs_and_gradients(ours, theirs, torch.randn(2, in_channels, 9, 8))


def test_seed_gives_torchvisions_values_in_small_networks_too():
    """Every stage has a projection, and a head of another size."""
    torch.manual_seed(5)
    ours = network.ResNeXt((2, 1, 1, 2), 8, 4, 7)
    torch.manual_seed(5)
    theirs = ResNet(Bottleneck, [2, 1, 1, 2], 7, groups=8, width_per_group=4)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"])
def test_grouped_layers_are_those_that_tests_and_benchmarks_of_kernels_run(name):
    with torch.device("meta"):
        net, shapes = getattr(network, name)().eval(), set()

    def hook(module, inputs, output):
        (_, c, h, w), stride = inputs[0].shape, module.stride
        shapes.add(problems.Problem(1, c, h, w, output.shape[1], groups=module.groups, stride=stride))

    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.register_forward_hook(hook)
    net(torch.empty(1, 3, 224, 224, device="meta"))
    assert shapes == set(getattr(problems, name))


def test_cifar_network_trains():
    net = network.ResNeXt((1, 1, 1), 4, 16, 10, "cifar")
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert net(images).shape == (8, 10)
    assert losses[-1] < 0.5 * losses[0]


def test_norm_without_parameters():
    net = network.ResNeXt(
        (1,),
        4,
        16,
        10,
        "cifar",
        zero_init_residual=True,
        norm_layer=lambda channels: nn.BatchNorm2d(channels, affine=False),
    )
    assert net.layer1[0].bn3.weight is None


def test_other_norm_layers():
    net = network.ResNeXt((1, 1), 4, 16, 10, "cifar", norm_layer=lambda channels: nn.GroupNorm(4, channels))
    assert not [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert net(torch.randn(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stem": "svhn"}, "expected stem to be one of 'imagenet', 'cifar', 'deep', 'deep_tiered', got 'svhn'"),
        ({"style": "tensorflow"}, "expected style to be one of 'pytorch', 'caffe', got 'tensorflow'"),
        ({"se_ratio": 3}, "expected se_ratio to be one of None, 1, 2, 4, 8, 16, 32, got 3"),
        ({"dilation_rule": "timm"}, "expected dilation_rule to be one of 'torchvision', 'mmpretrain', got 'timm'"),
        ({"frozen_stages": 4}, "expected frozen_stages to be one of -1, 0, 1, 2, 3, got 4"),
        ({"out_indices": (1, 3)}, "expected out_indices to be one of 0, 1, 2, got 3"),
        ({"depths": ()}, r"expected depths to have an entry per stage, got \(\)"),
        ({"depths": (3, 0)}, r"expected depths\[1\] to be a positive integer, got 0"),
        ({"num_classes": 0}, "expected num_classes to be a positive integer, got 0"),
        ({"in_channels": -1}, "expected in_channels to be a positive integer, got -1"),
        ({"base_width": 4.5}, r"expected base_width to be a positive integer, got 4\.5"),
        ({"replace_stride_with_dilation": (True,)}, "expected replace_stride_with_dilation to have 2 values"),
        ({"cardinality": 0}, "expected cardinality to be a positive integer, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        network.ResNeXt(**{"depths": (1, 1, 1), **arguments})
