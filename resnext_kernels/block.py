"""The ResNeXt block in the paper's three equivalent forms, and exact conversion among them (figure 3)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from .complexity import EXPANSION, SE_RATIOS, check_choice, check_positive_integers, inner_width
from .module import GroupedConv2d

Tensors = dict[str, Tensor]


class SqueezeExcitation(nn.Module):
    """Scales each channel by a function of all channels' means (Hu et al., CVPR 2018), with timm's names.

    Args:
        channels: of the input and the output.
        hidden: width between the two 1x1 convolutions.

    Shape:
        input and output (N, channels, H, W).
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        """(N, channels, H, W) to the same."""
        return input * self.fc2(self.relu(self.fc1(input.mean((2, 3), keepdim=True)))).sigmoid()


class Block(nn.Module):
    """What the three forms share: three convolutions, a shortcut, and where batch norm goes.

    Each convolution is followed by batch norm, and all but the last by ReLU; the last ReLU follows the sum with
    the shortcut (paper, section 4). Batch norm of a branch equals batch norm of its channels in the
    concatenation; the third one always follows the sum over branches.

    Args:
        in_channels: channels of the input.
        planes: a quarter of the output's channels.
        cardinality: number of branches or groups (C in the paper).
        base_width: channels per branch at 64 planes (d in the paper); 64 planes of 32x4d have 4, 128 have 8.
        stride: stride of the 3x3 convolution, or of the first 1x1 (see `style`).
        dilation: dilation of the 3x3 convolution.
        downsample: module on the shortcut, or None for the identity.
        norm_layer: makes a norm of a number of channels.
        se_ratio: squeeze-and-excitation behind the third norm, with 4 * planes / se_ratio hidden channels; None for
            none.
        style: "pytorch" for the stride on the 3x3 convolution, "caffe" for the stride on the first 1x1.

    Shape:
        input (N, in_channels, H, W), output (N, 4 * planes, ceil(H / stride), ceil(W / stride)).

    Raises:
        ValueError: a number is not a positive integer, the width of a branch would be zero, or an unknown style or
            se_ratio.
    """

    def __init__(
        self,
        in_channels: int,
        planes: int,
        cardinality: int = 1,
        base_width: int = 64,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        se_ratio: int | None = None,
        style: str = "pytorch",
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "planes": planes, "cardinality": cardinality, "base_width": base_width}
        check_positive_integers(**sizes, stride=stride, dilation=dilation)
        check_choice("style", style, ("pytorch", "caffe"))
        check_choice("se_ratio", se_ratio, (None, *SE_RATIOS))
        self.width = inner_width(planes, cardinality, base_width)
        if self.width == 0:
            raise ValueError(f"expected planes * base_width >= 64, got planes={planes} and base_width={base_width}")
        self.arguments = {**sizes, "stride": stride, "dilation": dilation, "se_ratio": se_ratio, "style": style}
        self.norm_layer = norm_layer
        self.cardinality = cardinality
        channels = planes * EXPANSION
        self.first_stride = stride if style == "caffe" else 1
        window = {"stride": stride // self.first_stride, "dilation": dilation}
        self._build(in_channels, self.width // cardinality, channels, window)
        self.bn3 = norm_layer(channels)
        self.se = SqueezeExcitation(channels, channels // se_ratio) if se_ratio else None
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def _build(self, channels: int, branch_width: int, out_channels: int, window: dict[str, int]) -> None:
        """Makes the convolutions, and the norms between them, in the order of forward."""
        raise NotImplementedError

    def _transform(self, input: Tensor) -> Tensor:
        """What is added to the shortcut, before the third norm."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, 4 * planes, H', W')."""
        shortcut = input if self.downsample is None else self.downsample(input)
        output = self.bn3(self._transform(input))
        return self.relu((output if self.se is None else self.se(output)) + shortcut)

    # A form is known by its two maps between named tensors (weights, gradients, running statistics) of its own
    # and of the grouped form. The maps only cut and join, so they convert exactly.

    def to_grouped(self, tensors: Tensors) -> Tensors:
        """Tensors named as in this block, renamed and joined as in GroupedBlock."""
        raise NotImplementedError

    def from_grouped(self, tensors: Tensors) -> Tensors:
        """Tensors named as in GroupedBlock, cut and renamed as in this block."""
        raise NotImplementedError


def _window(channels: int, stride: int, dilation: int, groups: int = 1) -> GroupedConv2d:
    padding = dilation  # keeps the map's size at stride 1
    return GroupedConv2d(channels, channels, 3, stride, padding, dilation, groups, bias=False)


class GroupedBlock(Block):
    """Form (c), the one to use: 1x1, grouped 3x3, 1x1, with torchvision's names (conv1, bn1, ..., downsample)."""

    def _build(self, channels, branch_width, out_channels, window):
        width = self.width
        self.conv1 = nn.Conv2d(channels, width, 1, self.first_stride, bias=False)
        self.bn1 = self.norm_layer(width)
        self.conv2, self.bn2 = _window(width, **window, groups=self.cardinality), self.norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)

    def _transform(self, input: Tensor) -> Tensor:
        output = self.relu(self.bn1(self.conv1(input)))
        output = self.relu(self.bn2(self.conv2(output)))
        return self.conv3(output)

    def to_grouped(self, tensors: Tensors) -> Tensors:
        return dict(tensors)

    def from_grouped(self, tensors: Tensors) -> Tensors:
        return dict(tensors)


class _Branch(nn.Module):
    """1x1 to the branch's width, 3x3, and with `out_channels` the closing 1x1."""

    def __init__(self, channels, width, first_stride, window, norm_layer, out_channels=None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, first_stride, bias=False), norm_layer(width)
        self.conv2, self.bn2 = _window(width, **window), norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False) if out_channels else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        output = self.relu(self.bn1(self.conv1(input)))
        output = self.relu(self.bn2(self.conv2(output)))
        return output if self.conv3 is None else self.conv3(output)


class _BranchedBlock(Block):
    """What forms (a) and (b) share: C branches, whose tensors are named branches.I.NAME."""

    # The axis along which the grouped form joins the branches' tensors, by the layer they belong to.
    joined: dict[str, int]

    def to_grouped(self, tensors: Tensors) -> Tensors:
        joined: Tensors = {}
        for name, tensor in tensors.items():
            if not name.startswith("branches."):
                joined[name] = tensor
            elif name.startswith("branches.0."):
                inner = name.removeprefix("branches.0.")
                parts = [tensors[f"branches.{i}.{inner}"] for i in range(self.cardinality)]
                axis = self.joined[inner.split(".")[0]]
                joined[inner] = torch.cat(parts, axis) if tensor.dim() else _common(inner, parts)
        return joined

    def from_grouped(self, tensors: Tensors) -> Tensors:
        cut: Tensors = {}
        for name, tensor in tensors.items():
            axis = self.joined.get(name.split(".")[0])
            if axis is None:
                cut[name] = tensor
                continue
            parts = tensor.chunk(self.cardinality, axis) if tensor.dim() else [tensor] * self.cardinality
            cut.update({f"branches.{i}.{name}": part for i, part in enumerate(parts)})
        return cut


def _common(name: str, scalars: list[Tensor]) -> Tensor:
    """What the branches hold alike, such as the number of batches that their norms have seen."""
    first = scalars[0]
    for i, other in enumerate(scalars[1:], start=1):
        if not first.is_meta and first.item() != other.item():
            raise ValueError(f"expected {name} to be the same in all branches, got {first} in 0 and {other} in {i}")
    return first


class SummedBlock(_BranchedBlock):
    """Form (a): C branches of 1x1, 3x3, 1x1, summed."""

    joined = {"conv1": 0, "bn1": 0, "conv2": 0, "bn2": 0, "conv3": 1}  # noqa: RUF012 - a constant

    def _build(self, channels, branch_width, out_channels, window):
        arguments = (channels, branch_width, self.first_stride, window, self.norm_layer, out_channels)
        self.branches = nn.ModuleList(_Branch(*arguments) for _ in range(self.cardinality))

    def _transform(self, input: Tensor) -> Tensor:
        return sum(branch(input) for branch in self.branches)


class ConcatenatedBlock(_BranchedBlock):
    """Form (b): C branches of 1x1, 3x3, concatenated early, then one 1x1."""

    joined = {"conv1": 0, "bn1": 0, "conv2": 0, "bn2": 0}  # noqa: RUF012 - a constant

    def _build(self, channels, branch_width, out_channels, window):
        arguments = (channels, branch_width, self.first_stride, window, self.norm_layer)
        self.branches = nn.ModuleList(_Branch(*arguments) for _ in range(self.cardinality))
        self.conv3 = nn.Conv2d(self.width, out_channels, 1, bias=False)

    def _transform(self, input: Tensor) -> Tensor:
        return self.conv3(torch.cat([branch(input) for branch in self.branches], 1))


def convert_block(block: Block, form: type[Block]) -> Block:
    """The same function as another form, exactly: only copies, cuts and joins.

    Weights, running statistics, the norms' settings, devices, dtypes, training modes and which parameters are frozen
    carry over; hooks do not. No random number is drawn.

    Args:
        block: a block in any form, with nn.BatchNorm2d or nn.SyncBatchNorm after the convolutions: other norms mix
            channels, so that a branch's norm is not its part of the whole.
        form: SummedBlock, ConcatenatedBlock or GroupedBlock.

    Returns:
        A new block, which shares nothing with the old one; the module on the shortcut is a copy.

    Raises:
        TypeError: `block` is not a block, or `form` is not one of the three.
        ValueError: the norms are of another class or differ in settings or training mode, or the branches differ in
            what the new form has once: the number of batches seen, or which parameters are frozen.
    """
    if not isinstance(block, Block):
        raise TypeError(f"expected block to be a Block, got {type(block).__name__}")
    if form not in (SummedBlock, ConcatenatedBlock, GroupedBlock):
        raise TypeError(f"expected form to be SummedBlock, ConcatenatedBlock or GroupedBlock, got {form!r}")
    norm, training = _norm_of(block)
    with torch.device("meta"):
        converted = form(**block.arguments, norm_layer=norm).train(block.training)
    for module in _norms(converted):
        module.train(training)
    converted.downsample = copy.deepcopy(block.downsample)
    state = converted.from_grouped(block.to_grouped(block.state_dict()))
    converted.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    learned = {name: torch.tensor(p.requires_grad, device="cpu") for name, p in block.named_parameters()}
    for name, flag in converted.from_grouped(block.to_grouped(learned)).items():
        converted.get_parameter(name).requires_grad_(flag.item())
    return converted


def _norms(block: Block) -> list[nn.Module]:
    """The norms behind the block's convolutions, without those on the shortcut."""
    names = [name for name, _ in block.named_modules() if not name.startswith("downsample")]
    return [block.get_submodule(name) for name in names if name.split(".")[-1] in ("bn1", "bn2", "bn3")]


def _norm_of(block: Block) -> tuple[Callable[[int], nn.Module], bool]:
    """A maker of norms with the settings that all norms of the block have, and their training mode."""
    found = []
    for norm in _norms(block):
        if not isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            raise ValueError(f"expected the norms of block to be nn.BatchNorm2d or nn.SyncBatchNorm, got {norm}")
        settings = {name: getattr(norm, name) for name in ("eps", "momentum", "affine", "track_running_stats")}
        found.append((type(norm), settings, norm.training))
    for other in found[1:]:
        if other != found[0]:
            raise ValueError(f"expected the norms of block to have the same settings, got {found[0]} and {other}")
    kind, settings, training = found[0]
    return partial(kind, **settings), training
