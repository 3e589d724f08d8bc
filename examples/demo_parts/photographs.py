"""Real photographs that come with scikit-learn and scikit-image, made ready for an ImageNet network."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from skimage import data
from sklearn.datasets import load_sample_image
from torch import Tensor

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

# Both packages carry these files in their wheels: nothing is downloaded.
SOURCES = {
    "china": lambda: load_sample_image("china.jpg"),
    "flower": lambda: load_sample_image("flower.jpg"),
    "astronaut": data.astronaut,
    "coffee": data.coffee,
    "chelsea": data.chelsea,
}


def preprocess(image: np.ndarray, side: int = 224, shorter: int = 256) -> Tensor:
    """What ImageNet networks expect: shorter side to `shorter`, the central square, normalised colours.

    Args:
        image: (H, W, 3) uint8, red, green and blue.
        side: height and width of the result, in pixels.
        shorter: length of the shorter side after resizing, in pixels.

    Returns:
        (3, side, side) float32, contiguous; every colour has about mean 0 and standard deviation 1.

    """
    pixels = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    height, width = pixels.shape[1:]
    scale = min(height, width)
    size = (shorter * height // scale, shorter * width // scale)
    pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    top, left = (round((length - side) / 2) for length in size)
    return ((pixels[:, top : top + side, left : left + side] - MEAN) / STD).contiguous()


def displayable(photo: Tensor) -> np.ndarray:
    """The picture that `preprocess` normalised: (3, H, W) to (H, W, 3) in 0 to 1."""
    return (photo.cpu() * STD + MEAN).clamp(0, 1).permute(1, 2, 0).numpy()


def load(count: int = len(SOURCES)) -> tuple[list[str], Tensor]:
    """The first `count` photographs: their names, and the batch (count, 3, 224, 224) in float32."""
    names = list(SOURCES)[:count]
    return names, torch.stack([preprocess(SOURCES[name]()) for name in names])
