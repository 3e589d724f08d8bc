"""GroupedConv2d, the drop-in for torch.nn.Conv2d, and convert, which puts it into existing models."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional import Explanation, explain, grouped_conv2d


class GroupedConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` whose grouped 3x3 convolutions run on this package's kernels.

    Constructor, parameters, state_dict, initialisation (the same values for the same seed) and behaviour are
    those of `torch.nn.Conv2d`, of which it is a subclass. What the kernels do not cover (1x1, 5x5, groups=1,
    depthwise, padding_mode other than "zeros", complex numbers) runs as in nn.Conv2d; `explain` says so.

    Shape:
        input (N, C, H, W) or (C, H, W), contiguous or channels_last; output (N, K, P, Q) or (K, P, Q).
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            return F.conv2d(input, weight, bias, self.stride, (0, 0), self.dilation, self.groups)
        if torch.jit.is_scripting():  # TorchScript cannot read grouped_conv2d
            return F.conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return grouped_conv2d(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def explain(self, input: Tensor, op: str = "fprop") -> Explanation:
        """Which kernel runs for this input, and why; see `resnext_kernels.explain`."""
        if self.padding_mode != "zeros":
            return Explanation(None, f"padding_mode={self.padding_mode!r}")
        return explain(op, input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class LazyGroupedConv2d(nn.LazyConv2d):
    """`torch.nn.LazyConv2d` that becomes a GroupedConv2d when its first input tells how many channels there are."""

    cls_to_become = GroupedConv2d


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did, by module name; `str()` gives it as text.

    Attributes:
        converted: names of the modules that are GroupedConv2d now.
        kept: name and reason for every nn.Conv2d that was left as it was.

    """

    converted: list[str] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"converted {len(self.converted)} of {len(self.converted) + len(self.kept)} convolutions"]
        lines += [f"  converted {name or '(the model itself)'}" for name in self.converted]
        lines += [f"  kept {name or '(the model itself)'}: {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines)


def convert(model: nn.Module) -> ConversionReport:
    """Turns every grouped 3x3 `nn.Conv2d` of a model into a `GroupedConv2d`, in place.

    The module objects stay the same ones: parameters (and optimizers that hold them), buffers, hooks, device,
    dtype, training mode, names and modules shared between parents are untouched.

    Args:
        model: any module, or an nn.Conv2d itself.

    Returns:
        What was converted and what was kept, with the reasons.

    Raises:
        TypeError: `model` is not an nn.Module.

    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected model to be a torch.nn.Module, got {type(model).__name__}")
    report = ConversionReport()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if reason := _why_keep(module):
            report.kept[name] = reason
        else:
            module.__class__ = GroupedConv2d
            report.converted.append(name)
    return report


def _why_keep(module: nn.Conv2d) -> str:
    if isinstance(module, GroupedConv2d):
        return "is a GroupedConv2d already"
    if type(module) is not nn.Conv2d:
        return f"is a {type(module).__name__}, a subclass with a forward of its own"
    if module.kernel_size != (3, 3):
        return "has a {}x{} kernel: this package serves 3x3".format(*module.kernel_size)
    if module.groups == 1:
        return "has groups=1: a dense convolution"
    if module.in_channels == module.groups:
        return "has one channel per group: a depthwise convolution"
    if module.padding_mode != "zeros":
        return f"has padding_mode={module.padding_mode!r}"
    if module.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        return f"has dtype {module.weight.dtype}"
    return ""
