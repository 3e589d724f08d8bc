"""Importing this makes `conv_cfg=dict(type="GroupedConv2d")` known to mmcv, for mmpretrain, mmdetection and others.

In a configuration file:

    custom_imports = dict(imports=["resnext_kernels.mmpretrain"])
    model = dict(backbone=dict(type="ResNeXt", depth=50, groups=32, conv_cfg=dict(type="GroupedConv2d")))

mmcv gives a conv_cfg to every convolution of a network. Grouped 3x3 ones become GroupedConv2d; all others, the 1x1 ones
among them, are nn.Conv2d as without a conv_cfg.
"""

from __future__ import annotations

from mmengine.registry import MODELS
from torch import nn

from .module import convert


@MODELS.register_module("GroupedConv2d")
def build_conv(*args, **kwargs) -> nn.Conv2d:
    """A GroupedConv2d if it is a grouped 3x3 convolution, else an nn.Conv2d. Arguments as for `nn.Conv2d`."""
    conv = nn.Conv2d(*args, **kwargs)
    convert(conv)
    return conv
