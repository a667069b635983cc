"""Rounding of weights by what it does to a layer's results, not weight by weight."""

from __future__ import annotations

from dataclasses import replace

import torch

from quantize.affine import WEIGHT_MAX
from quantize.lockstep import Layer

BLOCK = 64  # columns whose errors are passed on to the rest at once
DAMPING = 0.01  # of the mean input energy, added to every input's


def compensated(layer: Layer) -> Layer:
    """The layer with every weight rounded so that those after it make up for the error (arXiv:2208.07339).

    The order is by input energy, largest first. A channel that comes no closer that way keeps its old steps.
    """
    energy = energy_of(layer)
    order = torch.argsort(energy.diagonal(dim1=1, dim2=2), dim=1, descending=True)
    steps = _rounded_in_order(layer.weights, layer.scales, energy, order)
    candidate = replace(layer, steps=steps)
    return _better(candidate, layer)


def energy_of(layer: Layer) -> torch.Tensor:
    """Second moments of the layer's inputs about their means, a little damped, [G, K, K]."""
    inputs = layer.inputs - layer.inputs.mean(1, keepdim=True)
    return _damped(inputs.transpose(1, 2) @ inputs, DAMPING)


def _damped(energy: torch.Tensor, damping: float) -> torch.Tensor:
    diagonal = energy.diagonal(dim1=1, dim2=2)
    floor = diagonal.mean(1, keepdim=True).clamp(min=1e-12) * damping
    return energy + torch.diag_embed(floor.expand_as(diagonal))


def _rounded_in_order(
    weights: torch.Tensor, scales: torch.Tensor, energy: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """Optimal brain quantisation in a fixed order: [G, O, K] steps for `weights`, with `energy` [G, K, K]."""
    groups = torch.arange(len(order))[:, None, None]
    energy = energy[groups, order[:, :, None], order[:, None, :]]
    left = torch.gather(weights, 2, order[:, None].expand_as(weights)) / scales[..., None]
    inverse = torch.linalg.inv(energy.double())
    spread = torch.linalg.cholesky(inverse, upper=True).float()
    steps = torch.empty_like(left)
    for start in range(0, left.shape[2], BLOCK):
        inside = slice(start, min(start + BLOCK, left.shape[2]))
        block = left[..., inside]
        errors = _round_block(block, steps[..., inside], spread[:, inside, inside])
        left[..., inside.stop :] -= errors @ spread[:, inside, inside.stop :]
    return torch.empty_like(steps).scatter_(2, order[:, None].expand_as(steps), steps)


def _round_block(left: torch.Tensor, steps: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Round `left` column by column into `steps`; both are written. The scaled errors, of their shape."""
    errors = torch.empty_like(left)
    for k in range(left.shape[2]):
        steps[..., k] = torch.round(left[..., k]).clamp_(-WEIGHT_MAX, WEIGHT_MAX)
        errors[..., k] = (left[..., k] - steps[..., k]) / spread[:, k, k, None]
        left[..., k + 1 :] -= errors[..., k, None] * spread[:, k, None, k + 1 :]
    return errors


def _better(candidate: Layer, layer: Layer) -> Layer:
    """Channel by channel, the steps that come closer to the wanted weights' results on the inputs."""
    inputs = layer.inputs - layer.inputs.mean(1, keepdim=True)

    def noise(steps: torch.Tensor) -> torch.Tensor:
        return (inputs @ (steps * layer.scales[..., None] - layer.weights).transpose(1, 2)).square().mean(1)

    wins = noise(candidate.steps) < noise(layer.steps)
    return replace(layer, steps=torch.where(wins[..., None], candidate.steps, layer.steps))
