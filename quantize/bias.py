"""Bias correction: the mean of every channel as the float model has it."""

from __future__ import annotations

from dataclasses import replace

import torch

from quantize.lockstep import Layer

ROUNDS = 3
SMALLEST_SHARE = 0.1  # of positions that the clamp lets through; below it the step would overshoot


def corrected(layer: Layer) -> Layer:
    """The layer with biases that give the float model's means after the activation (1906.04721, section 4.2).

    Empirical and sequential: the inputs are the 8-bit model's. A channel whose squared error would grow keeps
    its old bias.
    """
    wanted = layer.clamped(layer.targets)
    plain = layer.found() - layer.bias[:, None]
    bias = layer.bias
    low, high = layer.bounds
    for _ in range(ROUNDS):
        sums = plain + bias[:, None]
        through = ((sums > low) & (sums < high)).float().mean(1).clamp(min=SMALLEST_SHARE)
        bias = bias + (wanted - layer.clamped(sums)).mean(1) / through
    errors = [
        (layer.clamped(plain + tried[:, None]) - wanted).square().mean(1) for tried in (bias, layer.bias)
    ]
    return replace(layer, bias=torch.where(errors[0] < errors[1], bias, layer.bias))
