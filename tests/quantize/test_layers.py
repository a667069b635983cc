"""Rounding and bias correction, layer by layer and over whole networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from export.run import Program
from quantize.bias import corrected
from quantize.int8 import Io
from quantize.lockstep import Layer
from quantize.recipes import RECIPES, quantize, spread
from quantize.rounding import compensated
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
        inputs=inputs,
        targets=targets,
        weights=weights,
        bias=bias,
        scales=scales,
        steps=steps,
        bounds=bounds,
    )


def _noise(layer: Layer) -> torch.Tensor:
    difference = layer.found() - layer.targets
    return (difference - difference.mean(1, keepdim=True)).square().mean(1)


@pytest.mark.parametrize("groups", [1, 4])
def test_compensated_rounding_is_never_worse_and_mostly_better(groups: int) -> None:
    before = _layer(groups=groups)
    after = compensated(before)
    assert (_noise(after) <= _noise(before) * 1.0001).all()
    assert _noise(after).sum() < 0.7 * _noise(before).sum()
    assert torch.equal(after.steps, torch.round(after.steps))


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
