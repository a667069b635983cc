"""Bias correction: the mean of every channel as the float model has it."""

from __future__ import annotations

from dataclasses import replace

import torch

from quantize.lockstep import BOUNDS, Layer

ROUNDS = 3
SMALLEST_SHARE = 0.1  # of positions that the clamp lets through; below it the step would overshoot


def corrected(layer: Layer) -> Layer:
    """The layer with biases that give the float model's means after the activation (1906.04721, section 4.2).

    Empirical and sequential: the inputs are the 8-bit model's. Without a clamp the mean of the results is the
    result of the mean. With one, a channel whose squared error would grow keeps its old bias.
    """
    if layer.bounds == BOUNDS["NONE"]:
        mean_input = replace(layer, inputs=layer.inputs.mean(1, keepdim=True))
        return replace(layer, bias=layer.bias + (layer.targets.mean(1) - mean_input.found()[:, 0]))
    wanted, sums, bias = layer.clamped(layer.targets), layer.found(), layer.bias
    mean = wanted.mean(1)
    before = _error(layer, sums, wanted)
    for _ in range(ROUNDS):
        step = (mean - layer.clamped(sums).mean(1)) / _share_let_through(layer, sums)
        bias = bias + step
        sums += step[:, None]
    return replace(layer, bias=torch.where(_error(layer, sums, wanted) < before, bias, layer.bias))


def _share_let_through(layer: Layer, sums: torch.Tensor) -> torch.Tensor:
    """The share of the samples strictly between the activation's bounds, [G, O]: its mean slope."""
    slopes: torch.Tensor = torch.ops.aten.hardtanh_backward(torch.ones_like(sums), sums, *layer.bounds)
    return slopes.mean(1).clamp_(min=SMALLEST_SHARE)


def _error(layer: Layer, sums: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return layer.clamped(sums).sub_(wanted).square_().mean(1)
