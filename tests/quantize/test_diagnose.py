"""The diagnosis names what was broken on purpose."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from export.graph import Graph, Tensor
from quantize.diagnose import advise, diagnose, range_picture, worst
from quantize.int8 import Io, to_int8
from quantize.ranges import min_max, observe
from quantize.recipes import RECIPES, quantize
from tests.quantize.networks import images, inverted_residuals


def _ranges(graph: Graph) -> dict:
    return {name: min_max(seen) for name, seen in observe(graph, [images(24)]).items()}


def test_a_cut_range_is_found_and_named() -> None:
    graph = inverted_residuals()
    ranges = _ranges(graph)
    cut = replace(ranges["second/project"], high=ranges["second/project"].high / 10)
    quantized = to_int8(graph, {**ranges, "second/project": cut}, Io())
    reports = diagnose(graph, quantized, images(16))
    assert worst(reports, 1)[0].name == "second/project"
    named = {advice.symptom: layers for advice, layers in advise(reports)}
    assert "second/project" in named["many float values lie beyond the 8-bit grid"]


def test_a_wrong_bias_shows_as_shifted_means() -> None:
    graph = inverted_residuals()
    quantized = to_int8(graph, _ranges(graph), Io())
    bias = quantized.tensors["last/bias"]
    assert bias.data is not None
    moved = Tensor.constant((bias.data + np.abs(bias.data).max()).astype(np.int32), bias.quantization)
    broken = replace(quantized, tensors={**quantized.tensors, "last/bias": moved})
    named = {advice.symptom: layers for advice, layers in advise(diagnose(graph, broken, images(16)))}
    assert "last" in named["channel means are off"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_int8_layer_is_reported_in_order(recipe: str) -> None:
    model = quantize(inverted_residuals(), [images(24)], RECIPES[recipe], Io())
    names = [report.name for report in diagnose(model.exact, model.graph, images(8))]
    weighted = [node.output for node in model.exact.nodes if "CONV" in node.op]
    assert [name for name in names if name in weighted] == weighted


def test_the_picture_is_svg_with_a_row_for_every_tensor() -> None:
    graph = inverted_residuals()
    after = quantize(graph, [images(24)], RECIPES["int8"], Io()).exact
    picture = ElementTree.fromstring(range_picture(graph, after, images(8)))
    names = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert names == {"image", *(node.output for node in graph.nodes)}
