"""The diagnosis names what was broken on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.graph import Graph, Tensor
from quantize.advice import SYMPTOMS, Advice, advise
from quantize.diagnose import BEST_DB, LayerReport, diagnose, unevenness, worst
from quantize.int8 import Io, to_int8
from quantize.ranges import Range, min_max, observe
from quantize.recipes import RECIPES, Recipe, quantize
from tests.quantize.networks import images, inverted_residuals, squeezed

PLAIN = Recipe(name="plain")


def _ranges(graph: Graph) -> dict[str, Range]:
    return {name: min_max(seen) for name, seen in observe(graph, [images(24)]).items()}


def _named(reports: list[LayerReport], recipe: Recipe = PLAIN) -> dict[str, Advice]:
    return {advice.symptom: advice for advice in advise(reports, recipe)}


def test_a_cut_range_is_found_and_named() -> None:
    graph = inverted_residuals()
    ranges = _ranges(graph)
    cut = replace(ranges["second/project"], high=ranges["second/project"].high / 10)
    quantized = to_int8(graph, {**ranges, "second/project": cut}, Io())
    reports = diagnose(graph, quantized, images(16))
    assert worst(reports, 1)[0].module == "second.project"
    found = _named(reports)["float values lie beyond the 8-bit grid"]
    assert found.layers[0] == "second.project"
    assert "% of values clipped" in found.figures


def test_a_wrong_bias_shows_as_shifted_means() -> None:
    graph = inverted_residuals()
    quantized = to_int8(graph, _ranges(graph), Io())
    bias = quantized.tensors["last/bias"]
    assert bias.data is not None
    moved = Tensor.constant((bias.data + np.abs(bias.data).max()).astype(np.int32), bias.quantization)
    broken = replace(quantized, tensors={**quantized.tensors, "last/bias": moved})
    assert "last" in _named(diagnose(graph, broken, images(16)))["channel means are off"].layers


def test_an_error_upstream_is_not_this_layers_own() -> None:
    graph = inverted_residuals()
    ranges = _ranges(graph)
    cut = replace(ranges["stem"], high=ranges["stem"].high / 20)
    clean, broken = (
        {r.name: r for r in diagnose(graph, to_int8(graph, found, Io()), images(8))}
        for found in (ranges, {**ranges, "stem": cut})
    )
    assert broken["first/project"].sqnr_db < clean["first/project"].sqnr_db - 6
    assert broken["last"].alone_db == pytest.approx(clean["last"].alone_db, abs=0.01)


def test_weights_are_told_from_activations() -> None:
    graph = inverted_residuals()
    quantized = to_int8(graph, _ranges(graph), Io())
    weights = quantized.tensors["last/weight"]
    assert weights.data is not None
    coarse = Tensor.constant((weights.data // 32 * 32).astype(np.int8), weights.quantization)
    broken = replace(quantized, tensors={**quantized.tensors, "last/weight": coarse})
    found = _named(diagnose(graph, broken, images(8)))["rounding the weights is the layer's main loss"]
    assert found.layers[0] == "last"


def test_the_remedy_is_one_that_the_recipe_does_not_hold_yet() -> None:
    graph = squeezed()
    report = diagnose(graph, graph, images(4))[0]
    uneven = replace(report, in_float=False, unevenness=50.0, alone_db=10.0, clipped=0.0)
    symptom = "a few channels of the result are much wider than the others"
    tried = Recipe(name="tried", graph_passes=("equalize",))
    assert "pass equalize" in _named([uneven])[symptom].remedy
    assert _named([uneven])[symptom].remedy != _named([uneven], tried)[symptom].remedy
    assert report.module in _named([uneven], tried)[symptom].remedy


def test_a_float_graph_held_against_itself_has_no_error_and_no_advice_about_one() -> None:
    graph = squeezed()
    reports = diagnose(graph, graph, images(4))
    assert {report.sqnr_db for report in reports} == {BEST_DB}
    assert not {symptom.title for symptom in SYMPTOMS[:6]} & _named(reports).keys()


def test_levels_of_hard_swishs_negative_lobe_are_counted() -> None:
    graph = squeezed()
    ranges = _ranges(graph)
    wide = {**ranges, "stem": Range(-3.0, 252.0)}
    found = {r.name: r for r in diagnose(graph, to_int8(graph, wide, Io()), images(4))}
    assert found["stem"].lobe_levels == pytest.approx(3, abs=0.1)
    assert found["depthwise"].lobe_levels is None
    assert "stem" in _named(list(found.values()))["hard-swish sees few levels where it bends"].layers


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_layer_is_reported_in_order(recipe: str) -> None:
    model = quantize(inverted_residuals(), [images(24)], RECIPES[recipe], Io())
    reports = diagnose(model.exact, model.plain, images(8))
    assert [report.name for report in reports] == [node.output for node in model.exact.nodes]
    in_float = {report.name for report in reports if report.in_float}
    assert in_float <= set(map(str, model.report["float_nodes"]))  # type: ignore[call-overload]  # JSON values


def test_unevenness_leaves_dead_channels_out() -> None:
    assert unevenness(np.array([0.0, 1.0, 1.0, 4.0])) == 4.0
    assert unevenness(np.zeros(3)) == 1.0
