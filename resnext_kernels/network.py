"""ResNeXt and ResNet networks on GroupedConv2d, with torchvision's module names and initialisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .block import GroupedBlock
from .complexity import ARCHITECTURES, STEM_CHANNELS, STEMS, Architecture, Stage, check_choice


class ResNeXt(nn.Module):
    """A residual network of aggregated transformations (Xie et al., CVPR 2017); cardinality 1 is ResNet.

    state_dict keys, their order, and the initial values for a given seed are those of torchvision's ResNet; what
    torchvision does not have (deep stem, avg_down, squeeze-and-excitation) is named as in timm.

    Args:
        depths: number of blocks per stage, such as (3, 4, 6, 3).
        cardinality: groups of every 3x3 convolution.
        base_width: channels per group in the first stage.
        num_classes: outputs of the classifier.
        stem: "imagenet" (7x7 and max pooling, both of stride 2), "deep" or "deep_tiered" (three 3x3 in place of the
            7x7, with 32, 32, 64 or 24, 32, 64 channels) or "cifar" (one 3x3, no pooling).
        zero_init_residual: start every block as its shortcut (weights of the last norm zero).
        replace_stride_with_dilation: for every stage but the first, whether to dilate instead of striding.
        norm_layer: makes a norm of a number of channels.
        in_channels: channels of the images.
        avg_down: on shortcuts, average pooling and a 1x1 of stride 1 in place of a 1x1 of stride 2.
        se_ratio: squeeze-and-excitation in every block, with channels / se_ratio hidden channels; None for none.
        style: which convolution of a block has the stride: "pytorch" the 3x3, "caffe" the first 1x1.
        dilation_rule: what the first block of a stage that dilates instead of striding is dilated by: "torchvision"
            (timm too) by what the stage before it is, "mmpretrain" by what the rest of its own stage is.
        frozen_stages: -1 for none; 0 freezes the stem, n the stem and the first n stages: their parameters require no
            gradient, and they stay in eval mode whatever `train` says.
        out_indices: return the outputs of these stages (0 is the first) in place of the classifier's, and leave the
            classifier out; stages behind the last of them do not run.
        activation_checkpointing: keep only the inputs of the blocks in training and compute the rest again in
            backward. Running statistics still move once per step.

    Shape:
        input (N, in_channels, H, W), contiguous or channels_last; output (N, num_classes), or with out_indices a
        tuple of (N, 256 * 2**i, H', W') for each stage i.

    Raises:
        ValueError: a number is not a positive integer, an unknown name or ratio, no stages, a
            replace_stride_with_dilation of the wrong length, or a stage that does not exist.
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
        avg_down: bool = False,
        se_ratio: int | None = None,
        style: str = "pytorch",
        dilation_rule: str = "torchvision",
        frozen_stages: int = -1,
        out_indices: Sequence[int] | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        shape = (tuple(depths), cardinality, base_width, stem, num_classes, in_channels)
        self.architecture = Architecture(*shape, avg_down, se_ratio, style)
        dilate = [False, *(replace_stride_with_dilation or [False] * (len(depths) - 1))]
        if len(dilate) != len(depths):
            expected = f"expected replace_stride_with_dilation to have {len(depths) - 1} values"
            raise ValueError(f"{expected}, got {replace_stride_with_dilation}")
        check_choice("dilation_rule", dilation_rule, ("torchvision", "mmpretrain"))
        check_choice("frozen_stages", frozen_stages, range(-1, len(depths) + 1))
        for index in () if out_indices is None else out_indices:
            check_choice("out_indices", index, range(len(depths)))
        self.norm_layer, self.dilation_rule = norm_layer, dilation_rule
        self.frozen_stages, self.activation_checkpointing = frozen_stages, activation_checkpointing
        self.out_indices = None if out_indices is None else tuple(out_indices)
        self.conv1 = self._make_stem()
        self.bn1 = norm_layer(STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, 2, 1)
        channels, dilation = STEM_CHANNELS, 1
        self.stage_names = []
        for i, stage in enumerate(self.architecture.stages(), start=1):
            layer, dilation = self._make_stage(channels, stage, dilation, dilate[i - 1])
            self.add_module(f"layer{i}", layer)
            self.stage_names.append(f"layer{i}")
            channels = stage.channels
        if out_indices is None:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(channels, num_classes)
        self._initialise(zero_init_residual)
        for module in self._frozen():
            module.requires_grad_(False)
        self.train()

    def _make_stem(self) -> nn.Module:
        """The convolutions before bn1, with the norms between them."""
        channels, stem = self.architecture.in_channels, self.architecture.stem
        if stem == "imagenet":
            return nn.Conv2d(channels, STEM_CHANNELS, 7, 2, 3, bias=False)
        if stem == "cifar":
            return nn.Conv2d(channels, STEM_CHANNELS, 3, 1, 1, bias=False)
        first, second, last = STEMS[stem]
        layers = [nn.Conv2d(channels, first, 3, 2, 1, bias=False), self.norm_layer(first), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(first, second, 3, 1, 1, bias=False), self.norm_layer(second), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.Conv2d(second, last, 3, 1, 1, bias=False))

    def _make_downsample(self, channels: int, outputs: int, stride: int) -> nn.Sequential:
        """The module on the shortcut of a stage's first block."""
        if not self.architecture.avg_down:
            return nn.Sequential(nn.Conv2d(channels, outputs, 1, stride, bias=False), self.norm_layer(outputs))
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride != 1 else nn.Identity()
        return nn.Sequential(pool, nn.Conv2d(channels, outputs, 1, bias=False), self.norm_layer(outputs))

    def _make_stage(self, channels: int, stage: Stage, dilation: int, dilate: bool) -> tuple[nn.Sequential, int]:
        """The stage's blocks, and the dilation that later stages start from."""
        stride, first_dilation = stage.stride, dilation
        if dilate:
            stride, dilation = 1, dilation * stage.stride
        if self.dilation_rule == "mmpretrain":
            first_dilation = dilation
        downsample = None
        if stride != 1 or channels != stage.channels:
            downsample = self._make_downsample(channels, stage.channels, stride)
        shared = {
            "planes": stage.planes,
            "cardinality": self.architecture.cardinality,
            "base_width": self.architecture.base_width,
            "norm_layer": self.norm_layer,
            "se_ratio": self.architecture.se_ratio,
            "style": self.architecture.style,
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

    def _frozen(self) -> list[nn.Module]:
        """The parts that do not learn."""
        names = ["conv1", "bn1", *self.stage_names[: self.frozen_stages]] if self.frozen_stages >= 0 else []
        return [self.get_submodule(name) for name in names]

    def train(self, mode: bool = True) -> ResNeXt:
        """As `nn.Module.train`, but frozen stages stay in eval mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(N, in_channels, H, W) to (N, num_classes), or with out_indices to a tuple of feature maps."""
        output = self.maxpool(self.relu(self.bn1(self.conv1(input))))
        maps = []
        wanted = (
            self.stage_names if self.out_indices is None else self.stage_names[: max(self.out_indices, default=-1) + 1]
        )
        for name in wanted:
            stage = getattr(self, name)
            if self.activation_checkpointing and stage.training and torch.is_grad_enabled():
                for block in stage:
                    output = _run_checkpointed(block, output)
            else:
                output = stage(output)
            maps.append(output)
        if self.out_indices is not None:
            return tuple(maps[index] for index in self.out_indices)
        return self.fc(torch.flatten(self.avgpool(output), 1))


def _run_checkpointed(block: nn.Module, input: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # the compiler recomputes without the updates of buffers
        return checkpoint(block, input, use_reentrant=False)
    contexts = lambda: (nullcontext(), _buffers_kept(block))  # noqa: E731
    return checkpoint(block, input, use_reentrant=False, context_fn=contexts)


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    """What moves in here are copies of the buffers: computing a batch again must not count it twice."""
    buffers = [(part, name, value) for part in module.modules() for name, value in part.named_buffers(recurse=False)]
    for part, name, value in buffers:
        setattr(part, name, value.clone())
    try:
        yield
    finally:
        for part, name, value in buffers:
            setattr(part, name, value)


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


def resnext50d_32x4d(**arguments) -> ResNeXt:
    """ResNeXt-50 with the deep stem and average pooling on shortcuts, timm's resnext50d_32x4d."""
    return _named("resnext50d_32x4d", **arguments)


def seresnext50_32x4d(**arguments) -> ResNeXt:
    """ResNeXt-50 with squeeze-and-excitation."""
    return _named("seresnext50_32x4d", **arguments)


def seresnext101_32x4d(**arguments) -> ResNeXt:
    """ResNeXt-101 with squeeze-and-excitation."""
    return _named("seresnext101_32x4d", **arguments)


def resnext29_8x64d(**arguments) -> ResNeXt:
    """ResNeXt-29 for CIFAR, 8 groups of 64 channels; 10 classes unless `num_classes` says otherwise."""
    return _named("resnext29_8x64d", **arguments)


def resnext29_16x64d(**arguments) -> ResNeXt:
    """ResNeXt-29 for CIFAR, 16 groups of 64 channels; 10 classes unless `num_classes` says otherwise."""
    return _named("resnext29_16x64d", **arguments)
