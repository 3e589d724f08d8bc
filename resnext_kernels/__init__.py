"""Grouped 3x3 convolution for PyTorch: kernels, a drop-in for nn.Conv2d, and ResNeXt built on it."""

from ._ops import ResNeXtKernelsWarning
from .functional import Explanation, GroupedConv2dFunction, explain, grouped_conv2d
from .fusion import fuse
from .inference import FusedConv2d, FusedGroupedConv2d, grouped_conv2d_act
from .module import ConversionReport, GroupedConv2d, LazyGroupedConv2d, convert
from .weights import export_weights, load_weights

__all__ = [
    "ConversionReport",
    "Explanation",
    "FusedConv2d",
    "FusedGroupedConv2d",
    "GroupedConv2d",
    "GroupedConv2dFunction",
    "LazyGroupedConv2d",
    "ResNeXtKernelsWarning",
    "convert",
    "explain",
    "export_weights",
    "fuse",
    "grouped_conv2d",
    "grouped_conv2d_act",
    "load_weights",
]
