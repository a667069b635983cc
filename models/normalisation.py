"""Input normalisation of imported weights, folded into the first convolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from models.blocks import MobileNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision, of pixels in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


def fold_normalisation(module: MobileNet, mean: Sequence[float], std: Sequence[float]) -> None:
    """Change `module`, which takes (pixel / 255 - mean) / std per channel, to take (pixel - 127.5) / 127.5.

    Exact inside the image; the zero padding at its border then means grey 127.5 instead of the mean colour.
    """
    conv, norm = module.get_submodule("features.0.conv"), module.get_submodule("features.0.norm")
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    with torch.no_grad():
        deviation, average = (torch.tensor(values).view(1, 3, 1, 1) for values in (std, mean))
        offset = (conv.weight * ((0.5 - average) / deviation)).sum((1, 2, 3))
        conv.weight /= 2 * deviation
        norm.running_mean -= offset
