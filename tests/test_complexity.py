"""The formulas against published numbers, and against networks counted layer by layer."""

import pytest
import torch
from torch import nn

from resnext_kernels import GroupedConv2d, network
from resnext_kernels.complexity import (
    ARCHITECTURES,
    STEMS,
    Architecture,
    block_multiply_adds,
    block_parameters,
    matching_base_width,
    network_complexity,
)

# name: parameters, multiply-adds at 224 (CIFAR: 32), and those of the grouped 3x3 convolutions
PUBLISHED = {
    "resnet50": (25_557_032, 4_089_184_256, 0, 0),
    "resnet101": (44_549_160, 7_801_405_440, 0, 0),
    "resnet152": (60_192_808, 11_513_626_624, 0, 0),
    "resnext50_32x4d": (25_028_904, 4_230_479_872, 1_414_656, 231_211_008),
    "resnext101_32x4d": (44_177_704, 7_969_996_800, 2_668_032, 476_872_704),
    "resnext101_32x8d": (88_791_336, 16_414_015_488, 10_672_128, 1_907_490_816),
    "resnext101_64x4d": (83_455_272, 15_460_270_080, 5_336_064, 953_745_408),
    "resnext152_32x4d": (59_951_400, 11_709_513_728, 3_700_224, 722_534_400),
    "resnext50d_32x4d": (25_048_136, 4_470_120_448, 1_414_656, 231_211_008),
    "seresnext50_32x4d": (27_559_896, 4_232_994_816, 1_414_656, 231_211_008),
    "seresnext101_32x4d": (48_955_416, 7_974_739_968, 2_668_032, 476_872_704),
    "resnext29_8x64d": (34_426_698, 5_387_266_048, 18_579_456, 2_717_908_992),
    "resnext29_16x64d": (68_155_210, 10_688_866_304, 37_158_912, 5_435_817_984),
}

# Paper, table 2: (cardinality, base_width): weights of a block, parameters and multiply-adds of the 50-layer network
CONSTANT_COMPLEXITY = {
    (1, 64): (69_632, 25_557_032, 4_089_184_256),
    (2, 40): (69_760, 25_425_000, 4_124_508_160),
    (4, 24): (69_888, 25_292_968, 4_159_832_064),
    (8, 14): (71_456, 25_603_016, 4_267_409_408),
    (32, 4): (70_144, 25_028_904, 4_230_479_872),
}


def _count(net: nn.Module, height: int, width: int):
    """The four totals of an instantiated network, by hooks on every layer."""
    totals = [sum(p.numel() for p in net.parameters()), 0, 0, 0]

    def hook(module, inputs, output):
        weights = module.weight.numel()
        per_image = weights * (output[0, 0].numel() if output.dim() == 4 else 1)
        totals[1] += per_image
        if isinstance(module, GroupedConv2d) and module.groups > 1:
            totals[2] += weights
            totals[3] += per_image

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(hook)
    net.eval()(torch.empty(1, net.architecture.in_channels, height, width, device="meta"))
    return tuple(totals)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_named_networks(name):
    size = 32 if ARCHITECTURES[name].stem == "cifar" else 224
    with torch.device("meta"):
        net = getattr(network, name)()
    formula = network_complexity(ARCHITECTURES[name])
    assert tuple(vars(formula).values()) == PUBLISHED[name] == _count(net, size, size)


@pytest.mark.parametrize(("depth", "parameters"), [(8, 34_518_948), (16, 68_247_460)])
def test_cifar_100(depth, parameters):
    assert network_complexity(Architecture((3, 3, 3), depth, 64, "cifar", 100)).parameters == parameters


@pytest.mark.parametrize("image_size", [97, 128, 225, (64, 101)])
@pytest.mark.parametrize("variant", [{}, {"avg_down": True, "se_ratio": 8}, {"style": "caffe"}], ids=str)
@pytest.mark.parametrize("stem", STEMS)
def test_any_architecture_at_any_size(stem, variant, image_size):
    architecture = Architecture((1, 2, 1), 8, 14, stem, 7, in_channels=2, **variant)
    with torch.device("meta"):
        net = network.ResNeXt(**vars(architecture))
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    assert tuple(vars(network_complexity(architecture, image_size)).values()) == _count(net, *size)


@pytest.mark.parametrize("setting", CONSTANT_COMPLEXITY)
def test_constant_complexity(setting):
    weights, parameters, multiply_adds = CONSTANT_COMPLEXITY[setting]
    assert block_parameters(*setting) == weights
    assert block_multiply_adds(*setting) == weights * 56 * 56
    totals = network_complexity(Architecture((3, 4, 6, 3), *setting))
    assert (totals.parameters, totals.multiply_adds) == (parameters, multiply_adds)


@pytest.mark.parametrize(("cardinality", "width"), [(1, 64), (2, 39.948), (4, 23.932), (8, 13.701), (32, 3.973)])
def test_matching_base_width(cardinality, width):
    exact = matching_base_width(cardinality)
    assert round(exact, 3) == width
    assert block_parameters(cardinality, exact) == pytest.approx(block_parameters(1, 64), rel=1e-12)


def test_bad_arguments():
    with pytest.raises(ValueError, match="expected cardinality to be a positive integer, got 0"):
        matching_base_width(0)
    with pytest.raises(ValueError, match="expected channels to be a positive integer, got -1"):
        block_parameters(32, 4, -1)
    with pytest.raises(ValueError, match="expected base_width to be positive, got 0"):
        block_parameters(32, 0)
    for size in (0, (224, 0)):
        with pytest.raises(ValueError, match="expected image_size to be a positive integer, got 0"):
            network_complexity(ARCHITECTURES["resnet50"], size)
    with pytest.raises(ValueError, match=r"expected image_size to be a side or \(height, width\), got \(1, 2, 3\)"):
        network_complexity(ARCHITECTURES["resnet50"], (1, 2, 3))
    with pytest.raises(
        ValueError, match="expected stem to be one of 'imagenet', 'cifar', 'deep', 'deep_tiered', got 'svhn'"
    ):
        Architecture((1,), stem="svhn")
