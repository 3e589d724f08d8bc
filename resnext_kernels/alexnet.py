"""AlexNet in its two groups, which torchvision leaves out: `convert(restore_groups(torchvision.models.alexnet()))`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

# The second, fourth and fifth convolution, which the paper splits between two GPUs (Krizhevsky et al., NeurIPS 2012).
ALEXNET = {"features.3": 2, "features.8": 2, "features.10": 2}


def restore_groups(model: nn.Module, groups: Mapping[str, int] = ALEXNET) -> nn.Module:
    """Makes dense convolutions grouped, in place: each group of outputs sees its own group of inputs only.

    The weights within the groups stay, those between groups are dropped: another function, to be trained, or to be
    loaded with the weights of a grouped network. The parameter `weight` is a new one: call this before an optimizer is
    made. A bias stays as it is.

    Args:
        model: torchvision's AlexNet, or any module.
        groups: name of a convolution in the model: its number of groups.

    Returns:
        The model.

    Raises:
        ValueError: a name without a dense nn.Conv2d, or whose channels the number of groups does not divide; nothing
            has been changed then.

    """
    modules = dict(model.named_modules())
    for name, count in groups.items():
        conv = modules.get(name)
        if not isinstance(conv, nn.Conv2d) or conv.groups != 1:
            raise ValueError(f"expected {name} to be an nn.Conv2d with groups=1, got {conv}")
        if count < 1 or conv.in_channels % count or conv.out_channels % count:
            sizes = f"{conv.in_channels} to {conv.out_channels} channels"
            raise ValueError(f"expected the groups of {name} to divide its {sizes}, got {count}")
    for name, count in groups.items():
        conv = modules[name]
        rows = zip(conv.weight.detach().chunk(count, 0), range(count), strict=True)
        blocks = [row.chunk(count, 1)[i] for row, i in rows]
        conv.weight = nn.Parameter(torch.cat(blocks, 0), conv.weight.requires_grad)
        conv.groups = count
    return model
