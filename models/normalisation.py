"""Input normalisation of imported weights, folded into the first convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from models.blocks import ConvNormAct, MobileNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision, of pixels in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Normalisation:
    """(pixel / 255 - mean) / std for red, green and blue."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        """`mean 0.5 0.5 0.5 std 0.5 0.5 0.5`."""
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"mean {mean} std {std}"


IMAGENET = Normalisation(IMAGENET_MEAN, IMAGENET_STD)
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # what this project trains with: [-1, 1]
UNIT = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def fold_normalisation(module: MobileNet, mean: Sequence[float], std: Sequence[float]) -> None:
    """Change `module`, which takes (pixel / 255 - mean) / std per channel, to take (pixel - 127.5) / 127.5.

    Exact inside the image; the zero padding at its border then means grey 127.5 instead of the mean colour.
    """
    first = next(part for part in module.features.modules() if isinstance(part, ConvNormAct))
    conv, norm = first.conv, first.norm
    assert conv.in_channels == len(mean) == len(std) and norm.running_mean is not None
    with torch.no_grad():
        deviation, average = (torch.tensor(values).view(1, 3, 1, 1) for values in (std, mean))
        offset = (conv.weight * ((0.5 - average) / deviation)).sum((1, 2, 3))
        conv.weight /= 2 * deviation
        norm.running_mean -= offset
