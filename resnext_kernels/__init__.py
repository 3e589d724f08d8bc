"""Grouped 3x3 convolution for PyTorch: kernels, a drop-in for nn.Conv2d, and ResNeXt built on it."""

from ._ops import ResNeXtKernelsWarning
from .functional import Explanation, GroupedConv2dFunction, explain, grouped_conv2d
from .module import ConversionReport, GroupedConv2d, LazyGroupedConv2d, convert
from .weights import export_weights, load_weights

__all__ = [
    "ConversionReport",
    "Explanation",
    "GroupedConv2d",
    "GroupedConv2dFunction",
    "LazyGroupedConv2d",
    "ResNeXtKernelsWarning",
    "convert",
    "explain",
    "export_weights",
    "grouped_conv2d",
    "load_weights",
]
