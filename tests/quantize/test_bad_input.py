"""What a quantiser is fed by mistake: a clear error, or a correct result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.check import audit_delegate, check_delegate
from export.graph import Graph, Tensor
from export.run import Program
from export.runtime import run_tflite
from export.write_tflite import write_tflite
from pipeline.artifacts import AlpharhoError, UsageError
from quantize.int8 import Io
from quantize.ranges import RANGE_RULES, Observation, Range
from quantize.recipes import RECIPES, quantize, recipe_named
from tests.quantize.networks import images, inverted_residuals, squeezed

NAMES = [
    name for name, recipe in RECIPES.items() if "learnt_rounding" not in recipe.layer_passes
]  # it is slow


def _with(graph: Graph, name: str, data: np.ndarray) -> Graph:
    return replace(graph, tensors={**graph.tensors, name: Tensor.constant(data.astype(np.float32))})


def _weights(graph: Graph, name: str) -> np.ndarray:
    data = graph.tensors[name].data
    assert data is not None
    return data.copy()


@pytest.mark.parametrize("recipe", [name for name in NAMES if RECIPES[name].images == "given"])
def test_no_images_is_an_error(recipe: str) -> None:
    with pytest.raises(AlpharhoError, match="no calibration images"):
        quantize(inverted_residuals(), [], RECIPES[recipe], Io())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_an_error(value: float) -> None:
    broken = images(4)
    broken[2, 3, 3, 1] = value
    with pytest.raises(AlpharhoError, match="not finite"):
        quantize(inverted_residuals(), [broken], RECIPES["int8"], Io())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_an_error(value: float) -> None:
    graph = inverted_residuals()
    weights = _weights(graph, "second/project/weight")
    weights[0, 0, 0, 0] = value
    with pytest.raises(AlpharhoError, match=r"second/project.*not finite"):
        quantize(_with(graph, "second/project/weight", weights), [images(4)], RECIPES["int8"], Io())


def test_weights_without_a_sum_are_an_error_without_images_too() -> None:
    graph = inverted_residuals()
    weights = _weights(graph, "stem/weight")
    weights[:] = np.nan
    with pytest.raises(AlpharhoError, match=r"stem.*not finite"):
        quantize(_with(graph, "stem/weight", weights), [], RECIPES["int8_data_free"], Io())


def test_a_name_that_no_node_has_is_an_error() -> None:
    with pytest.raises(AlpharhoError, match="no node is called 'stem/'"):
        quantize(inverted_residuals(), [images(4)], RECIPES["int8"], Io(), keep_float=["stem", "stem/"])


def test_an_unknown_recipe_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="int8_full"):
        recipe_named("int7")


@pytest.mark.parametrize("recipe", NAMES)
@pytest.mark.parametrize("make", [inverted_residuals, squeezed])
def test_images_of_one_colour_give_a_working_file(make: object, recipe: str, tmp_path: Path) -> None:
    graph = make()  # type: ignore[operator]
    grey = np.full_like(images(4), 0.2)
    _check_works(graph, [grey], recipe, grey, tmp_path)


@pytest.mark.parametrize("recipe", NAMES)
def test_dead_channels_give_a_working_file(recipe: str, tmp_path: Path) -> None:
    graph = inverted_residuals()
    for name, channel in (("second/expand", 3), ("second/project", 1)):
        weights, bias = _weights(graph, f"{name}/weight"), _weights(graph, f"{name}/bias")
        weights[channel], bias[channel] = 0, 0
        graph = _with(_with(graph, f"{name}/weight", weights), f"{name}/bias", bias)
    depthwise, bias = _weights(graph, "first/depthwise/weight"), _weights(graph, "first/depthwise/bias")
    depthwise[..., 2], bias[2] = 0, -5
    graph = _with(_with(graph, "first/depthwise/weight", depthwise), "first/depthwise/bias", bias)
    _check_works(graph, [images(32)], recipe, images(8, seed=4), tmp_path)


@pytest.mark.parametrize("recipe", NAMES)
def test_a_constant_output_is_given_back(recipe: str, tmp_path: Path) -> None:
    graph = inverted_residuals()
    graph = _with(graph, "logits/weight", np.zeros_like(_weights(graph, "logits/weight")))
    _check_works(graph, [images(8)], recipe, images(4, seed=4), tmp_path)


@pytest.mark.parametrize("recipe", NAMES)
def test_all_zero_ranges_give_zeros(recipe: str, tmp_path: Path) -> None:
    graph = inverted_residuals()
    for name in ("last/weight", "last/bias", "logits/bias"):
        graph = _with(graph, name, np.zeros_like(_weights(graph, name)))
    _check_works(graph, [images(8)], recipe, images(4, seed=4), tmp_path)


@pytest.mark.parametrize("recipe", NAMES)
@pytest.mark.parametrize("factor", [1e-8, 1e-4, 1e4])
def test_channels_of_very_different_scale_give_a_working_file(
    factor: float, recipe: str, tmp_path: Path
) -> None:
    graph = inverted_residuals()
    for name, row in (("second/expand", 5), ("second/project", 2)):
        for part in ("weight", "bias"):
            data = _weights(graph, f"{name}/{part}")
            data[row] *= factor
            graph = _with(graph, f"{name}/{part}", data)
    path = tmp_path / "int8.tflite"
    path.write_bytes(write_tflite(quantize(graph, [images(32)], RECIPES[recipe], Io()).graph))
    check_delegate(audit_delegate(path), path)
    expected, found = Program(graph)(images(32)), run_tflite(path, images(32))
    if (
        factor < 1 and RECIPES[recipe].weights == "per_channel"
    ):  # one huge channel drowns the others in 8 bits
        assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()


@pytest.mark.parametrize("recipe", NAMES)
def test_one_image_is_enough_for_a_working_file(recipe: str, tmp_path: Path) -> None:
    one = images(1)
    _check_works(inverted_residuals(), [one], recipe, one, tmp_path)


@pytest.mark.parametrize("rule", RANGE_RULES)
def test_range_rules_take_constant_and_single_values(rule: str) -> None:
    for value in (0.0, -2.0, 3.0):
        rows = np.full((5, 2), value, np.float32)
        seen = Observation(rows[0].astype(np.float64), rows[0].astype(np.float64), rows)
        assert RANGE_RULES[rule](seen) == Range(value, value)


def _check_works(
    graph: Graph, batches: list[np.ndarray], recipe: str, test: np.ndarray, folder: Path
) -> None:
    """The file is one partition, and its logits are the float network's to a few percent of their range."""
    path = folder / "int8.tflite"
    path.write_bytes(write_tflite(quantize(graph, batches, RECIPES[recipe], Io()).graph))
    check_delegate(audit_delegate(path), path)
    expected, found = Program(graph)(test), run_tflite(path, test)
    size = max(1e-6, float(np.abs(expected).max()))
    assert np.abs(found - expected).max() < 0.15 * size
