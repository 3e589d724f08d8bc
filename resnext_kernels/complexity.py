"""Shapes, parameters and multiply-adds of ResNeXt, in closed form (Xie et al., CVPR 2017, "Model Capacity")."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

EXPANSION = 4  # output channels of a block per plane
STEM_CHANNELS = 64


def check_positive_integers(**values: object) -> None:
    """Raises ValueError, with its name, for the first value that is not an integer above zero."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"expected {name} to be a positive integer, got {value!r}")


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
        stem: "imagenet" (7x7 stride 2, then 3x3 max pooling stride 2) or "cifar" (3x3).
        num_classes: outputs of the classifier.
        in_channels: channels of the images.

    Raises:
        ValueError: a number is not a positive integer, there are no stages, the stem is unknown, or a group would
            have no channels.
    """

    depths: tuple[int, ...]
    cardinality: int = 1
    base_width: int = 64
    stem: str = "imagenet"
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        if self.stem not in ("imagenet", "cifar"):
            raise ValueError(f"expected stem to be 'imagenet' or 'cifar', got {self.stem!r}")
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
        image_size: side, or height and width, of the image in pixels; 224 for an "imagenet" stem, 32 for "cifar" if
            None.

    Raises:
        ValueError: a side of the image is not a positive integer.
    """
    imagenet = architecture.stem == "imagenet"
    if image_size is None:
        image_size = 224 if imagenet else 32
    size = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(size) != 2:
        raise ValueError(f"expected image_size to be a side or (height, width), got {image_size!r}")
    for side in size:
        check_positive_integers(image_size=side)
    stem = STEM_CHANNELS * architecture.in_channels * (49 if imagenet else 9)
    parameters = stem + 2 * STEM_CHANNELS
    size = _halved(size) if imagenet else size
    multiply_adds = stem * prod(size)
    size = _halved(size) if imagenet else size
    grouped_parameters = grouped_multiply_adds = 0

    channels = STEM_CHANNELS
    for stage in architecture.stages():
        before, size = size, _halved(size) if stage.stride == 2 else size
        window = 9 * stage.width * (stage.width // architecture.cardinality)  # weights of one 3x3 convolution
        reduce = channels * stage.width + (stage.depth - 1) * stage.channels * stage.width
        expand, shortcut = stage.depth * stage.width * stage.channels, channels * stage.channels
        batch_norm = stage.depth * 2 * (2 * stage.width + stage.channels) + 2 * stage.channels
        parameters += reduce + stage.depth * window + expand + shortcut + batch_norm
        # the first block reduces at the size that it receives; its 3x3 has the stride
        multiply_adds += channels * stage.width * prod(before)
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
