"""Weight scales chosen by what the rounded weights do to a layer's results."""

from __future__ import annotations

from dataclasses import replace

import torch

from quantize.affine import WEIGHT_MAX
from quantize.lockstep import Layer
from quantize.rounding import energy_of

PARTS = (
    1.0,
    0.98,
    0.96,
    0.94,
    0.92,
    0.9,
    0.87,
    0.84,
    0.8,
    0.75,
    0.7,
)  # of the scale that the largest weight asks for


def fitted_scales(layer: Layer) -> Layer:
    """The layer with the weight scale, per channel, whose rounding disturbs the results least.

    The disturbance is (w - q)' H (w - q) under the second moments H of the inputs about their mean (the mean
    is the bias correction's). The scale it came with is the first candidate, so it is never worse.
    """
    energy = energy_of(layer)
    best = layer
    least = _disturbance(layer.weights, layer.steps, layer.scales, energy)
    for part in PARTS:
        scales = layer.scales * part
        steps = torch.round(layer.weights / scales[..., None]).clamp_(-WEIGHT_MAX, WEIGHT_MAX)
        found = _disturbance(layer.weights, steps, scales, energy)
        if layer.one_scale:
            wins = (found.sum() < least.sum()).expand_as(found)
        else:
            wins = found < least
        least = torch.where(wins, found, least)
        best = replace(
            best,
            scales=torch.where(wins, scales, best.scales),
            steps=torch.where(wins[..., None], steps, best.steps),
        )
    return best


def _disturbance(
    weights: torch.Tensor, steps: torch.Tensor, scales: torch.Tensor, energy: torch.Tensor
) -> torch.Tensor:
    errors = weights - steps * scales[..., None]
    return ((errors @ energy) * errors).sum(2)
