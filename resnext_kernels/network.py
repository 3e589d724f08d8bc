"""ResNeXt and ResNet networks on GroupedConv2d, with torchvision's module names and initialisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .block import GroupedBlock
from .complexity import ARCHITECTURES, STEM_CHANNELS, Architecture, Stage


class ResNeXt(nn.Module):
    """A residual network of aggregated transformations (Xie et al., CVPR 2017); cardinality 1 is ResNet.

    state_dict keys, their order, and the initial values for a given seed are those of torchvision's ResNet.

    Args:
        depths: number of blocks per stage, such as (3, 4, 6, 3).
        cardinality: groups of every 3x3 convolution.
        base_width: channels per group in the first stage.
        num_classes: outputs of the classifier.
        stem: "imagenet" (7x7 and max pooling, both of stride 2) or "cifar" (one 3x3).
        zero_init_residual: start every block as its shortcut (weights of the last norm zero).
        replace_stride_with_dilation: for every stage but the first, whether to dilate instead of striding.
        norm_layer: makes a norm of a number of channels.
        in_channels: channels of the images.

    Shape:
        input (N, in_channels, H, W), contiguous or channels_last; output (N, num_classes).

    Raises:
        ValueError: a number is not a positive integer, unknown stem, no stages, or a
            replace_stride_with_dilation of the wrong length.
    """

    def __init__(
        self,
        depths: Sequence[int],
        cardinality: int = 1,
        base_width: int = 64,
        num_classes: int = 1000,
        stem: str = "imagenet",
        zero_init_residual: bool = False,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.architecture = Architecture(tuple(depths), cardinality, base_width, stem, num_classes, in_channels)
        dilate = [False, *(replace_stride_with_dilation or [False] * (len(depths) - 1))]
        if len(dilate) != len(depths):
            expected = f"expected replace_stride_with_dilation to have {len(depths) - 1} values"
            raise ValueError(f"{expected}, got {replace_stride_with_dilation}")
        self.norm_layer = norm_layer
        window = (
            {"kernel_size": 7, "stride": 2, "padding": 3} if stem == "imagenet" else {"kernel_size": 3, "padding": 1}
        )
        self.conv1 = nn.Conv2d(in_channels, STEM_CHANNELS, **window, bias=False)
        self.bn1 = norm_layer(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        channels, dilation = STEM_CHANNELS, 1
        self.stage_names = []
        for i, stage in enumerate(self.architecture.stages(), start=1):
            layer, dilation = self._make_stage(channels, stage, dilation, dilate[i - 1])
            self.add_module(f"layer{i}", layer)
            self.stage_names.append(f"layer{i}")
            channels = stage.channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self._initialise(zero_init_residual)

    def _make_stage(self, channels: int, stage: Stage, dilation: int, dilate: bool) -> tuple[nn.Sequential, int]:
        """The stage's blocks, and the dilation that later stages start from."""
        stride, first_dilation = stage.stride, dilation
        if dilate:
            stride, dilation = 1, dilation * stage.stride
        downsample = None
        if stride != 1 or channels != stage.channels:
            convolution = nn.Conv2d(channels, stage.channels, 1, stride, bias=False)
            downsample = nn.Sequential(convolution, self.norm_layer(stage.channels))
        shared = {
            "planes": stage.planes,
            "cardinality": self.architecture.cardinality,
            "base_width": self.architecture.base_width,
            "norm_layer": self.norm_layer,
        }
        blocks = [GroupedBlock(channels, **shared, stride=stride, dilation=first_dilation, downsample=downsample)]
        blocks += [GroupedBlock(stage.channels, **shared, dilation=dilation) for _ in range(1, stage.depth)]
        return nn.Sequential(*blocks), dilation

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) and module.weight is not None:
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        if zero_init_residual:
            for module in self.modules():
                if isinstance(module, GroupedBlock) and module.bn3.weight is not None:
                    nn.init.zeros_(module.bn3.weight)

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, num_classes)."""
        output = self.maxpool(self.relu(self.bn1(self.conv1(input))))
        for name in self.stage_names:
            output = getattr(self, name)(output)
        return self.fc(torch.flatten(self.avgpool(output), 1))


def _named(name: str, **arguments) -> ResNeXt:
    architecture = ARCHITECTURES[name]
    return ResNeXt(**{**vars(architecture), **arguments})


def resnet50(**arguments) -> ResNeXt:
    """ResNet-50: `ResNeXt((3, 4, 6, 3), 1, 64)`. Keyword arguments as for ResNeXt, here and below."""
    return _named("resnet50", **arguments)


def resnet101(**arguments) -> ResNeXt:
    """ResNet-101."""
    return _named("resnet101", **arguments)


def resnet152(**arguments) -> ResNeXt:
    """ResNet-152."""
    return _named("resnet152", **arguments)


def resnext50_32x4d(**arguments) -> ResNeXt:
    """ResNeXt-50, 32 groups of 4 channels."""
    return _named("resnext50_32x4d", **arguments)


def resnext101_32x4d(**arguments) -> ResNeXt:
    """ResNeXt-101, 32 groups of 4 channels."""
    return _named("resnext101_32x4d", **arguments)


def resnext101_32x8d(**arguments) -> ResNeXt:
    """ResNeXt-101, 32 groups of 8 channels."""
    return _named("resnext101_32x8d", **arguments)


def resnext101_64x4d(**arguments) -> ResNeXt:
    """ResNeXt-101, 64 groups of 4 channels."""
    return _named("resnext101_64x4d", **arguments)


def resnext152_32x4d(**arguments) -> ResNeXt:
    """ResNeXt-152, 32 groups of 4 channels."""
    return _named("resnext152_32x4d", **arguments)


def resnext29_8x64d(**arguments) -> ResNeXt:
    """ResNeXt-29 for CIFAR, 8 groups of 64 channels; 10 classes unless `num_classes` says otherwise."""
    return _named("resnext29_8x64d", **arguments)


def resnext29_16x64d(**arguments) -> ResNeXt:
    """ResNeXt-29 for CIFAR, 16 groups of 64 channels; 10 classes unless `num_classes` says otherwise."""
    return _named("resnext29_16x64d", **arguments)
