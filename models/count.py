"""Mult-Adds and parameters of a module as it runs, for networks that have no table of rows."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Count:
    """Mult-Adds of convolutions and fully connected layers on one image, and trainable parameters."""

    macs: int
    params: int


def counted(module: nn.Module, resolution: int, channels: int = 3) -> Count:
    """Count `module` on one `[1, channels, resolution, resolution]` map, without computing anything."""
    macs: list[int] = []

    def watch(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(part, nn.Conv2d | nn.Linear)
        macs.append(part.weight[0].numel() * output.shape[1] * math.prod(output.shape[2:]))

    bare = copy.deepcopy(module).to("meta").eval()
    for part in bare.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.register_forward_hook(watch)
    bare(torch.empty(1, channels, resolution, resolution, device="meta"))
    return Count(sum(macs), sum(parameter.numel() for parameter in bare.parameters()))
