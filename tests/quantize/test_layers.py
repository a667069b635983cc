"""Rounding and bias correction, layer by layer and over whole networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from export.run import Program
from pipeline.artifacts import AlpharhoError
from quantize import rounding
from quantize.adaround import LearntRounding
from quantize.affine import WEIGHT_MAX
from quantize.bias import corrected
from quantize.int8 import Io
from quantize.lockstep import Layer
from quantize.recipes import RECIPES, quantize, spread
from quantize.rounding import compensated
from quantize.scales import fitted_scales
from tests.quantize.networks import images, inverted_residuals, squeezed


def _layer(bounds: tuple[float, float] = (-np.inf, np.inf), groups: int = 1) -> Layer:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(groups, 12, 12, generator=generator)  # inputs go together, as those of a network do
    inputs = torch.randn(groups, 500, 12, generator=generator) @ mixing + 1.0
    weights = torch.randn(groups, 5, 12, generator=generator)
    scales = weights.abs().amax(2) / 7  # a coarse grid, so that rounding shows
    steps = torch.round(weights / scales[..., None])
    bias = torch.randn(groups, 5, generator=generator)
    targets = inputs @ weights.transpose(1, 2) + bias[:, None]
    return Layer(
        name="layer",
        op="CONV_2D" if groups == 1 else "DEPTHWISE_CONV_2D",
        inputs=inputs,
        targets=targets,
        weights=weights,
        bias=bias,
        scales=scales,
        steps=steps,
        one_scale=False,
        bounds=bounds,
    )


def _noise(layer: Layer) -> torch.Tensor:
    difference = layer.found() - layer.targets
    return (difference - difference.mean(1, keepdim=True)).square().mean(1)


def _held_out(layer: Layer) -> torch.Tensor:
    """Squared error after the activation on the last quarter of the rows, the bias put right."""
    sums, targets = (values[:, 375:] for values in (layer.found(), layer.targets))
    sums = sums + (targets - sums).mean(1, keepdim=True)
    return (layer.clamped(sums) - layer.clamped(targets)).square().mean(1)


@pytest.mark.parametrize("groups", [1, 4])
def test_compensated_rounding_is_never_worse_and_mostly_better(groups: int) -> None:
    before = _layer(groups=groups)
    after = compensated(before)
    assert (_noise(after) <= _noise(before) * 1.0001).all()
    assert _noise(after).sum() < 0.7 * _noise(before).sum()
    assert torch.equal(after.steps, torch.round(after.steps))


def test_compensated_rounding_takes_inputs_that_are_nearly_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "DAMPING", 1e-7)  # too little for float32
    before = _layer()
    inputs = before.inputs[..., :1] * torch.linspace(0.999, 1.001, 12)
    before = replace(before, inputs=inputs, targets=inputs @ before.weights.transpose(1, 2))
    energy = rounding.energy_of(before)
    floor = energy.diagonal(dim1=1, dim2=2).mean() * rounding.DAMPING
    assert torch.linalg.cholesky_ex(energy + floor * torch.eye(12)).info.any()
    after = compensated(before)
    assert _noise(after).sum() < 0.5 * _noise(before).sum()


@pytest.mark.parametrize("copies", [1, 9])
def test_compensated_rounding_refuses_inputs_whose_squares_are_not_finite(copies: int) -> None:
    layer = _layer()
    inputs, weights, steps = (
        values.repeat(1, 1, copies) for values in (layer.inputs, layer.weights, layer.steps)
    )
    inputs = inputs[:, : 500 if copies == 1 else 12] * 1e25  # of few samples no energy is computed
    with pytest.raises(AlpharhoError, match="too large to be squared"):
        compensated(replace(layer, inputs=inputs, weights=weights, steps=steps))


@pytest.mark.parametrize(("groups", "inputs"), [(1, 12), (1, 64), (1, 250), (3, 250)])
def test_rounding_from_few_samples_is_that_from_their_second_moments(groups: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(4)
    mixing = torch.randn(groups, 6, inputs, generator=generator)
    seen = torch.randn(groups, 20, 6, generator=generator) @ mixing
    seen += 0.2 * torch.randn(groups, 20, inputs, generator=generator)
    seen -= seen.mean(1, keepdim=True)
    wanted = 20 * torch.randn(groups, 40, inputs, generator=generator)
    energy = seen.transpose(1, 2) @ seen
    by_energy = rounding._rounded_by_energy(wanted, energy)
    by_samples = rounding._rounded_by_samples(wanted, seen)
    assert (by_energy == by_samples).float().mean() > 0.99
    plain, first, second = (
        ((steps - wanted) @ seen.transpose(1, 2)).square().sum()
        for steps in (wanted.round(), by_energy, by_samples)
    )
    assert second < 0.2 * plain and abs(second - first) < 0.02 * first


def test_compensated_rounding_takes_one_sample_and_inputs_that_are_all_zero() -> None:
    layer = _layer()
    for inputs in (
        layer.inputs[:, :1],
        torch.zeros_like(layer.inputs[:, :1]),
        torch.zeros_like(layer.inputs),
    ):
        assert torch.equal(compensated(replace(layer, inputs=inputs)).steps, layer.steps)


@pytest.mark.parametrize("one_scale", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_fitted_scales_are_never_worse_and_take_what_a_lone_large_weight_costs(
    groups: int, one_scale: bool
) -> None:
    before = _layer(groups=groups)
    weights = before.weights.clone()
    weights[:, 0, 0] *= 1.2  # beyond the others by less than a step
    scales = weights.abs().amax(2) / WEIGHT_MAX * 8
    scales = scales.max().expand_as(scales) if one_scale else scales
    steps = torch.round(weights / scales[..., None])
    before = replace(before, weights=weights, scales=scales, steps=steps, one_scale=one_scale)
    before = replace(before, targets=before.inputs @ weights.transpose(1, 2) + before.bias[:, None])
    after = fitted_scales(before)
    old, new = _noise(before), _noise(after)
    assert new.sum() < old.sum()
    assert one_scale or (new <= old * 1.001).all()
    assert not one_scale or len(after.scales.unique()) == 1


def test_learnt_rounding_is_better_where_nothing_else_has_looked() -> None:
    before = _layer((0.0, 6.0), groups=4)
    learnt = LearntRounding(600.0)
    after = learnt(before)
    assert _held_out(after).sum() < 0.9 * _held_out(before).sum()
    assert (_held_out(after) <= _held_out(before) * 1.0001).all()
    assert torch.equal(after.steps, torch.round(after.steps))
    told = learnt.told()
    assert told["layers"] == 1 and told["channels_learnt"] + told["channels_kept"] == 20  # type: ignore[operator]


def test_learnt_rounding_is_the_same_every_time() -> None:
    first, second = (LearntRounding(600.0)(_layer(groups=4)).steps for _ in "ab")
    assert torch.equal(first, second)


def test_learnt_rounding_leaves_a_layer_when_time_is_up_and_dense_ones_always() -> None:
    late, layer = LearntRounding(0.0), _layer(groups=4)
    assert late(layer) is layer and late.outcomes["layers_out_of_time"] == 1
    dense = _layer()
    assert LearntRounding(600.0)(dense) is dense


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, np.inf), (0.0, 6.0)])
def test_bias_correction_gives_the_float_models_means(bounds: tuple[float, float]) -> None:
    before = _layer(bounds)
    after = corrected(before)
    wanted = before.clamped(before.targets).mean(1)
    old, new = ((layer.clamped(layer.found()).mean(1) - wanted).abs().sum() for layer in (before, after))
    assert new < 0.3 * old


def test_bias_correction_keeps_a_bias_that_is_right() -> None:
    layer = _layer()
    exact = replace(layer, targets=layer.found())
    assert torch.allclose(corrected(exact).bias, exact.bias, atol=1e-5)


@pytest.mark.parametrize("make", [inverted_residuals, squeezed])
def test_the_default_recipe_is_closer_to_float_than_min_and_max(make: object) -> None:
    graph = make()  # type: ignore[operator]
    calibration, test = images(64), images(64, seed=8)
    expected = Program(graph)(test)
    errors = {
        name: np.square(
            Program(quantize(graph, [calibration], RECIPES[name], Io()).graph)(test) - expected
        ).sum()
        for name in ("int8", "int8_min_max")
    }
    assert errors["int8"] < errors["int8_min_max"]


def test_quantising_twice_gives_the_same_graph() -> None:
    first, second = (quantize(inverted_residuals(), [images(24)], RECIPES["int8"], Io()).graph for _ in "ab")
    for name, tensor in first.tensors.items():
        if tensor.data is not None:
            np.testing.assert_array_equal(tensor.data, second.tensors[name].data)


def test_spread_takes_images_evenly_from_all_batches() -> None:
    batches = [np.arange(start, start + 4, dtype=np.float32) for start in (0, 4, 8)]
    assert np.concatenate(spread(batches, 4)).tolist() == [0, 4, 7, 11]
    assert np.concatenate(spread(batches, 99)).tolist() == list(range(12))
