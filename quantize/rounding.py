"""Rounding of weights by what it does to a layer's results, not weight by weight."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.artifacts import AlpharhoError
from quantize.affine import WEIGHT_MAX
from quantize.lockstep import Layer

BLOCK = 32  # inputs whose errors are passed on to the rest at once
DAMPING = 0.01  # of the mean input energy, added to every input's


def compensated(layer: Layer) -> Layer:
    """The layer with every weight rounded so that those after it make up for the error (arXiv:2208.07339).

    The order is by input energy, largest first. A channel that comes no closer that way keeps its old steps.
    """
    energy = energy_of(layer)
    steps = _rounded_in_order(layer.weights / layer.scales[..., None], _damped(energy))
    apart, together = steps - layer.steps, steps + layer.steps - 2 * layer.weights / layer.scales[..., None]
    wins = ((apart @ energy) * together).sum(2) < 0  # the difference of two squares
    return replace(layer, steps=torch.where(wins[..., None], steps, layer.steps))


def energy_of(layer: Layer) -> torch.Tensor:
    """Second moments of the layer's inputs about their means, summed over the samples, [G, K, K]."""
    inputs = layer.inputs - layer.inputs.mean(1, keepdim=True)
    return inputs.transpose(1, 2) @ inputs


def _damped(energy: torch.Tensor) -> torch.Tensor:
    diagonal = energy.diagonal(dim1=1, dim2=2)
    floor = diagonal.mean(1, keepdim=True).clamp(min=1e-12) * DAMPING
    return energy + torch.diag_embed(floor.expand_as(diagonal))


def _rounded_in_order(wanted: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    """Steps for the `wanted` ones [G, O, K], by Babai's nearest plane in the lattice of `energy` [G, K, K].

    That is optimal brain quantisation in a fixed order without its inverse (arXiv:2507.18553): a weight takes
    the errors of those before it by the Cholesky factor of `energy`, last input first.
    """
    order = torch.argsort(energy.diagonal(dim1=1, dim2=2), dim=1)
    groups = torch.arange(len(order), device=order.device)[:, None, None]
    factor = _factor(energy[groups, order[:, :, None], order[:, None, :]])
    reach = factor / factor.diagonal(dim1=1, dim2=2)[..., None]
    places = order[..., None].expand(*order.shape, wanted.shape[1])
    wanted = torch.gather(wanted.transpose(1, 2), 1, places)
    errors = torch.zeros_like(wanted)
    for stop in range(wanted.shape[1], 0, -BLOCK):
        block, done = slice(max(stop - BLOCK, 0), stop), slice(stop, None)
        left = torch.baddbmm(wanted[:, block], reach[:, block, done], errors[:, done])
        _round_block(wanted[:, block], left, reach[:, block, block], errors[:, block])
    steps = torch.round(wanted - errors)
    return torch.empty_like(steps).scatter_(1, places, steps).transpose(1, 2)


def _factor(energy: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor; damped once more where that is not enough for float32."""
    factor: torch.Tensor
    factor, failed = torch.linalg.cholesky_ex(energy, upper=True)
    if not failed.any():
        return factor
    if not torch.isfinite(energy).all():
        raise AlpharhoError(
            "a layer's inputs are too large to be squared in float32; look for a diverged or missing batch "
            "norm, or use --recipe int8_min_max"
        )
    return _factor(_damped(energy))


def _round_block(wanted: torch.Tensor, left: torch.Tensor, reach: torch.Tensor, errors: torch.Tensor) -> None:
    """Round `left` [G, block, O] from the last input on, and write the `errors`, which are zero before."""
    count = left.shape[1]
    rows = list(zip(*(values.chunk(count, 1) for values in (wanted, left, reach, errors)), strict=True))
    for want, rest, pull, error in reversed(rows):
        steps = torch.baddbmm(rest, pull, errors).round_().clamp_(-WEIGHT_MAX, WEIGHT_MAX)
        torch.sub(want, steps, out=error)
