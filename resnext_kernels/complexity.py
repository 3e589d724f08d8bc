"""Shapes, parameters and multiply-adds of ResNeXt, in closed form (Xie et al., CVPR 2017, "Model Capacity")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod, sqrt

EXPANSION = 4  # output channels of a block per plane
STEM_CHANNELS = 64
# Output channels of the stem's convolutions: one 7x7 or 3x3, or three 3x3 (He et al., CVPR 2019, "C" and "D").
STEMS = {"imagenet": (64,), "cifar": (64,), "deep": (32, 32, 64), "deep_tiered": (24, 32, 64)}
SE_RATIOS = (1, 2, 4, 8, 16, 32)  # timm and mmpretrain round to multiples of 8, which changes nothing for these


def check_positive_integers(**values: object) -> None:
    """Raises ValueError, with its name, for the first value that is not an integer above zero."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"expected {name} to be a positive integer, got {value!r}")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raises ValueError, with its name, for a value that is not one of the choices."""
    if value not in tuple(choices):
        raise ValueError(f"expected {name} to be one of {', '.join(map(repr, choices))}, got {value!r}")


@dataclass(frozen=True)
class Stage:
    """A run of blocks with one output size: `depth` blocks, `width` channels inside, `channels` channels out."""

    depth: int
    planes: int
    width: int
    channels: int
    stride: int


@dataclass(frozen=True)
class Architecture:
    """What tells one network of the family from another.

    Attributes:
        depths: number of blocks in each stage.
        cardinality: number of groups of every 3x3 convolution; 1 makes it ResNet.
        base_width: channels per group in the first stage; doubles with every stage.
        stem: "imagenet" (7x7 stride 2, then 3x3 max pooling stride 2), "deep" (three 3x3 of 32, 32 and 64 channels
            in place of the 7x7), "deep_tiered" (24, 32 and 64) or "cifar" (one 3x3, no pooling).
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        avg_down: average pooling and a 1x1 of stride 1 on the shortcut, in place of a 1x1 of stride 2.
        se_ratio: squeeze-and-excitation (Hu et al., CVPR 2018) behind the third norm of every block, with a hidden
            layer of channels / se_ratio; None for none.
        style: which convolution of a block has the stride: "pytorch" the 3x3, "caffe" the first 1x1.

    Raises:
        ValueError: a number is not a positive integer, there are no stages, or a name or ratio is unknown.
    """

    depths: tuple[int, ...]
    cardinality: int = 1
    base_width: int = 64
    stem: str = "imagenet"
    num_classes: int = 1000
    in_channels: int = 3
    avg_down: bool = False
    se_ratio: int | None = None
    style: str = "pytorch"

    def __post_init__(self) -> None:
        check_choice("stem", self.stem, STEMS)
        check_choice("style", self.style, ("pytorch", "caffe"))
        check_choice("se_ratio", self.se_ratio, (None, *SE_RATIOS))
        if not self.depths:
            raise ValueError(f"expected depths to have an entry per stage, got {self.depths!r}")
        check_positive_integers(**{f"depths[{i}]": depth for i, depth in enumerate(self.depths)})
        check_positive_integers(
            cardinality=self.cardinality,
            base_width=self.base_width,
            num_classes=self.num_classes,
            in_channels=self.in_channels,
        )

    def stages(self) -> list[Stage]:
        """The stages, first to last."""
        planes = [STEM_CHANNELS * 2**i for i in range(len(self.depths))]
        return [
            Stage(depth, p, inner_width(p, self.cardinality, self.base_width), p * EXPANSION, 1 if i == 0 else 2)
            for i, (depth, p) in enumerate(zip(self.depths, planes, strict=True))
        ]


ARCHITECTURES = {
    "resnet50": Architecture((3, 4, 6, 3)),
    "resnet101": Architecture((3, 4, 23, 3)),
    "resnet152": Architecture((3, 8, 36, 3)),
    "resnext50_32x4d": Architecture((3, 4, 6, 3), 32, 4),
    "resnext101_32x4d": Architecture((3, 4, 23, 3), 32, 4),
    "resnext101_32x8d": Architecture((3, 4, 23, 3), 32, 8),
    "resnext101_64x4d": Architecture((3, 4, 23, 3), 64, 4),
    "resnext152_32x4d": Architecture((3, 8, 36, 3), 32, 4),
    "resnext50d_32x4d": Architecture((3, 4, 6, 3), 32, 4, "deep", avg_down=True),
    "seresnext50_32x4d": Architecture((3, 4, 6, 3), 32, 4, se_ratio=16),
    "seresnext101_32x4d": Architecture((3, 4, 23, 3), 32, 4, se_ratio=16),
    "resnext29_8x64d": Architecture((3, 3, 3), 8, 64, "cifar", 10),
    "resnext29_16x64d": Architecture((3, 3, 3), 16, 64, "cifar", 10),
}


def inner_width(planes: int, cardinality: int, base_width: int) -> int:
    """Channels inside a block: `cardinality` groups of `base_width` channels, scaled by planes / 64."""
    return planes * base_width // 64 * cardinality


def block_parameters(cardinality: int, base_width: int, channels: int = 256) -> int:
    """Weights of a block's three convolutions, C (256 d + 9 d^2 + 256 d) (paper, "Model Capacity").

    Raises:
        ValueError: cardinality or channels is not a positive integer, or base_width (which may be a fraction, to
            compare with `matching_base_width`) is not positive.
    """
    check_positive_integers(cardinality=cardinality, channels=channels)
    if base_width <= 0:
        raise ValueError(f"expected base_width to be positive, got {base_width}")
    return cardinality * (channels * base_width + 9 * base_width**2 + base_width * channels)


def block_multiply_adds(
    cardinality: int, base_width: int, channels: int = 256, height: int = 56, width: int = 56
) -> int:
    """Multiply-adds of a block of stride 1 on a map of height x width."""
    return block_parameters(cardinality, base_width, channels) * height * width


def matching_base_width(cardinality: int, parameters: int = block_parameters(1, 64), channels: int = 256) -> float:
    """The d for which a block of this cardinality has this many weights: 9 C d^2 + 2 channels C d = parameters.

    The default number of weights is that of ResNet's bottleneck (paper, table 2).

    Raises:
        ValueError: an argument is not a positive integer.
    """
    check_positive_integers(cardinality=cardinality, parameters=parameters, channels=channels)
    return (sqrt(channels**2 + 9 * parameters / cardinality) - channels) / 9


@dataclass(frozen=True)
class Complexity:
    """Totals of a network: all of it, and the share of its grouped 3x3 convolutions."""

    parameters: int
    multiply_adds: int
    grouped_parameters: int
    grouped_multiply_adds: int


def network_complexity(architecture: Architecture, image_size: int | tuple[int, int] | None = None) -> Complexity:
    """Parameters (batch norm and classifier included) and multiply-adds (convolutions and classifier).

    Args:
        architecture: the network; `ARCHITECTURES` has the named ones.
        image_size: side, or height and width, of the image in pixels; if None 224, or 32 for a "cifar" stem.

    Raises:
        ValueError: a side of the image is not a positive integer.
    """
    strided = architecture.stem != "cifar"
    if image_size is None:
        image_size = 224 if strided else 32
    size = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(size) != 2:
        raise ValueError(f"expected image_size to be a side or (height, width), got {image_size!r}")
    for side in size:
        check_positive_integers(image_size=side)
    taps = 49 if architecture.stem == "imagenet" else 9
    widths = STEMS[architecture.stem]
    stem = taps * sum(c * k for c, k in zip((architecture.in_channels, *widths), widths, strict=False))
    parameters = stem + 2 * sum(widths)
    size = _halved(size) if strided else size
    multiply_adds = stem * prod(size)
    size = _halved(size) if strided else size
    grouped_parameters = grouped_multiply_adds = 0

    channels = STEM_CHANNELS
    for stage in architecture.stages():
        before, size = size, _halved(size) if stage.stride == 2 else size
        window = 9 * stage.width * (stage.width // architecture.cardinality)  # weights of one 3x3 convolution
        reduce = channels * stage.width + (stage.depth - 1) * stage.channels * stage.width
        expand, shortcut = stage.depth * stage.width * stage.channels, channels * stage.channels
        batch_norm = stage.depth * 2 * (2 * stage.width + stage.channels) + 2 * stage.channels
        parameters += reduce + stage.depth * window + expand + shortcut + batch_norm
        if architecture.se_ratio:
            hidden = stage.channels // architecture.se_ratio
            parameters += stage.depth * (2 * stage.channels * hidden + stage.channels + hidden)
            multiply_adds += stage.depth * 2 * stage.channels * hidden
        # where the 3x3 has the stride, the first block reduces at the size that it receives
        multiply_adds += channels * stage.width * prod(before if architecture.style == "pytorch" else size)
        multiply_adds += (reduce - channels * stage.width + stage.depth * window + expand + shortcut) * prod(size)
        if architecture.cardinality > 1:
            grouped_parameters += stage.depth * window
            grouped_multiply_adds += stage.depth * window * prod(size)
        channels = stage.channels
    classifier = channels * architecture.num_classes
    parameters += classifier + architecture.num_classes
    return Complexity(parameters, multiply_adds + classifier, grouped_parameters, grouped_multiply_adds)


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    return (size[0] + 1) // 2, (size[1] + 1) // 2
