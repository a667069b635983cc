"""Rounding of weights by what it does to a layer's results, not weight by weight."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn.functional import pad

from pipeline.artifacts import AlpharhoError
from quantize.affine import WEIGHT_MAX
from quantize.lockstep import Layer

BLOCK = 32  # inputs whose errors are passed on to the rest at once
PANEL = 128  # inputs whose second moments with the rest are computed at once, each pair once
FEW = 8  # times fewer samples than inputs: errors are then carried by what they do to the samples
DAMPING = 0.01  # of the mean input energy, added to every input's


def compensated(layer: Layer) -> Layer:
    """The layer with every weight rounded so that those after it make up for the error (arXiv:2208.07339).

    The order is by input energy, largest first. A channel that comes no closer that way keeps its old steps.
    """
    wanted = layer.weights / layer.scales[..., None]
    if layer.inputs.shape[1] * FEW < layer.inputs.shape[2]:
        inputs = _centred(layer)
        steps, seen = _rounded_by_samples(wanted, inputs), inputs.transpose(1, 2)
        apart, together = (steps - layer.steps) @ seen, (steps + layer.steps - 2 * wanted) @ seen
    else:
        energy = energy_of(layer)
        steps = _rounded_by_energy(wanted, energy)
        apart, together = (steps - layer.steps) @ energy, steps + layer.steps - 2 * wanted
    wins = (apart * together).sum(2) < 0  # the difference of two squares
    return replace(layer, steps=torch.where(wins[..., None], steps, layer.steps))


def energy_of(layer: Layer) -> torch.Tensor:
    """Second moments of the layer's inputs about their means, summed over the samples, [G, K, K]."""
    inputs = _centred(layer)
    energy = inputs.new_empty(len(inputs), inputs.shape[2], inputs.shape[2])
    for first in range(0, inputs.shape[2], PANEL):
        panel, rest = slice(first, first + PANEL), slice(first, None)
        found = inputs[..., panel].transpose(1, 2) @ inputs[..., rest]
        energy[:, panel, rest], energy[:, rest, panel] = found, found.transpose(1, 2)
    return energy


def _centred(layer: Layer) -> torch.Tensor:
    return layer.inputs - layer.inputs.mean(1, keepdim=True)


def _rounded_by_energy(wanted: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    """Steps for the `wanted` ones [G, O, K], by Babai's nearest plane in the lattice of `energy` [G, K, K].

    That is optimal brain quantisation in a fixed order without its inverse (arXiv:2507.18553): a weight takes
    the errors of those before it by the Cholesky factor of the damped energy, last input first.
    """
    energy = _damped(energy)
    order = torch.argsort(energy.diagonal(dim1=1, dim2=2), dim=1)
    reach = _reach(_factor(_rows(_rows(energy, order).transpose(1, 2), order)))
    wanted = _rows(wanted.transpose(1, 2), order)
    errors = torch.zeros_like(wanted)
    for stop in range(wanted.shape[1], 0, -BLOCK):
        block, done = slice(max(stop - BLOCK, 0), stop), slice(stop, None)
        left = torch.baddbmm(wanted[:, block], reach[:, block, done], errors[:, done])
        _round_block(wanted[:, block], left, reach[:, block, block], errors[:, block])
    return _rows(torch.round(wanted - errors), torch.argsort(order, dim=1)).transpose(1, 2)


def _rounded_by_samples(wanted: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The same steps, from centred `inputs` [G, N, K] with N far below K, without a K x K matrix.

    A block counts with the energy that the inputs still to be rounded cannot make up for, by Woodbury's
    identity on N x N systems, those of all blocks at once; the errors of the blocks rounded before it with
    what they do to the samples, [G, N, O].
    """
    energy = inputs.square().sum(1)
    order, floor = torch.argsort(energy, dim=1), _floor(energy)[..., None, None]
    taps, wanted = (_in_blocks(_rows(values.transpose(1, 2), order)) for values in (inputs, wanted))
    own = taps.transpose(2, 3) @ taps
    later = own.cumsum(1) - own
    later.diagonal(dim1=2, dim2=3).add_(floor[..., 0])
    left_over = torch.cholesky_solve(taps.transpose(2, 3), _factor(later), upper=True) * floor
    energies = taps @ left_over
    energies.diagonal(dim1=2, dim2=3).add_(floor[..., 0])
    factors = _factor(energies)
    pull, reach = torch.cholesky_solve(left_over.transpose(2, 3), factors, upper=True), _reach(factors)
    steps = torch.empty_like(wanted)
    effect = wanted.new_zeros(len(wanted), inputs.shape[1], wanted.shape[3])
    for block in reversed(range(wanted.shape[1])):
        best = torch.baddbmm(wanted[:, block], pull[:, block], effect)
        errors = torch.zeros_like(best)
        _round_block(best, best, reach[:, block], errors)
        steps[:, block] = torch.round(best - errors)
        effect.baddbmm_(taps[:, block].transpose(1, 2), wanted[:, block] - steps[:, block])
    steps = steps.flatten(1, 2)[:, -order.shape[1] :]
    return _rows(steps, torch.argsort(order, dim=1)).transpose(1, 2)


def _rows(values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The rows of `values` [G, K, M] in the `order` [G, K] of their group."""
    first = torch.arange(len(order), device=order.device)[:, None] * order.shape[1]
    rows = values.reshape(-1, values.shape[2]).index_select(0, (order + first).flatten())
    return rows.view(values.shape)


def _in_blocks(values: torch.Tensor) -> torch.Tensor:
    """`values` [G, K, M] as [G, blocks, BLOCK, M], with zeros in front where K is no multiple."""
    padded = pad(values, (0, 0, -values.shape[1] % BLOCK, 0))
    return padded.view(len(values), -1, BLOCK, values.shape[2])


def _floor(energy: torch.Tensor) -> torch.Tensor:
    """What is added to every input's `energy` [G, K]; [G, 1]."""
    return energy.mean(1, keepdim=True).clamp(min=1e-12) * DAMPING


def _damped(energy: torch.Tensor) -> torch.Tensor:
    damped = energy.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    diagonal += _floor(diagonal)
    return damped


def _reach(factor: torch.Tensor) -> torch.Tensor:
    """What a weight takes of the others' errors, from the upper Cholesky factor [..., K, K]."""
    return factor / factor.diagonal(dim1=-2, dim2=-1)[..., None]


def _factor(energy: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor; damped once more where that is not enough for float32."""
    factor: torch.Tensor
    factor, failed = torch.linalg.cholesky_ex(energy)
    if not failed.any():
        return factor.mT
    if not torch.isfinite(energy).all():
        raise AlpharhoError(
            "a layer's inputs are too large to be squared in float32; look for a diverged or missing batch "
            "norm, or use --recipe int8_min_max"
        )
    return _factor(_damped(energy.flatten(0, -3)).view(energy.shape))


def _round_block(wanted: torch.Tensor, left: torch.Tensor, reach: torch.Tensor, errors: torch.Tensor) -> None:
    """Round `left` [G, block, O] from the last input on, and write the `errors`, which are zero before."""
    count = left.shape[1]
    rows = list(zip(*(values.chunk(count, 1) for values in (wanted, left, reach, errors)), strict=True))
    for want, rest, pull, error in reversed(rows):
        steps = torch.baddbmm(rest, pull, errors).round_().clamp_(-WEIGHT_MAX, WEIGHT_MAX)
        torch.sub(want, steps, out=error)
