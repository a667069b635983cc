"""Rescaling and recentring change nothing in float, and flatten the ranges that they are for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.graph import Graph, Tensor
from export.run import Program
from quantize.clamps import unclamped
from quantize.equalize import LARGEST_FACTOR, absorbed, centred, equalized, groups_of, weights_equalized
from quantize.int8 import Io
from quantize.ranges import observe
from quantize.recipes import RECIPES, quantize
from tests.quantize.networks import images, inverted_residuals, squeezed

CALIBRATION = images(24)
GRAPHS = {"relu6": inverted_residuals(), "relu": inverted_residuals("RELU"), "squeezed": squeezed()}
PASSES = {
    "half": lambda graph, seen: equalized(graph, seen, 0.5),
    "fully": lambda graph, seen: equalized(graph, seen, 1.0),
    "weights": weights_equalized,
    "centred": centred,
    "absorbed": absorbed,
    "both": lambda graph, seen: centred(*equalized(graph, seen, 0.5)),
}


@pytest.mark.parametrize("rewrite", PASSES)
@pytest.mark.parametrize("name", GRAPHS)
def test_logits_stay_on_the_images_that_were_seen(name: str, rewrite: str) -> None:
    graph = GRAPHS[name]
    rewritten, _ = PASSES[rewrite](graph, observe(graph, [CALIBRATION]))
    expected = Program(graph)(CALIBRATION)
    found = Program(rewritten)(CALIBRATION)
    assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)


@pytest.mark.parametrize("rewrite", PASSES)
@pytest.mark.parametrize("name", GRAPHS)
def test_predicted_observations_are_those_of_the_new_graph(name: str, rewrite: str) -> None:
    graph = GRAPHS[name]
    rewritten, predicted = PASSES[rewrite](graph, observe(graph, [CALIBRATION]))
    for tensor, seen in observe(rewritten, [CALIBRATION]).items():
        tolerance = 1e-4 * max(1.0, float(seen.magnitude.max()))
        assert np.abs(predicted[tensor].low - seen.low).max() < tolerance, tensor
        assert np.abs(predicted[tensor].high - seen.high).max() < tolerance, tensor


def test_channels_have_one_range_after_full_equalisation() -> None:
    graph = inverted_residuals("RELU")
    before = observe(graph, [CALIBRATION])
    _, seen = equalized(graph, before, 1.0)
    old, new = (observed["first/depthwise"].magnitude for observed in (before, seen))
    alive = old > old.max() / LARGEST_FACTOR
    assert alive.sum() > 4 and _spread(old[alive]) > 2
    assert _spread(new[alive]) < 1.01


@pytest.mark.parametrize("activation", ["RELU", "RELU6"])
def test_a_bias_that_always_lifts_a_channel_moves_to_the_next_layer(activation: str) -> None:
    graph = inverted_residuals(activation)
    bias = graph.tensors["second/depthwise/bias"].real().copy()
    weights = graph.tensors["second/depthwise/weight"].real() * np.float32(0.02)
    bias[:3] = 2.5
    raised = {
        "second/depthwise/bias": Tensor.constant(bias),
        "second/depthwise/weight": Tensor.constant(weights),
    }
    graph = graph.with_nodes(graph.nodes, raised)
    before = observe(graph, [CALIBRATION])
    rewritten, seen = absorbed(graph, before)
    assert (before["second/depthwise"].low[:3] > 1).all()
    assert np.abs(seen["second/depthwise"].low[:3]).max() < 1e-5
    expected = Program(graph)(CALIBRATION)
    assert np.abs(Program(rewritten)(CALIBRATION) - expected).max() < 1e-4 * np.ptp(expected)


def test_relu6_goes_only_where_the_float_network_stays_itself() -> None:
    harmless = inverted_residuals()
    small = {
        name: Tensor.constant(tensor.real() * np.float32(0.05))
        for name, tensor in harmless.tensors.items()
        if name.endswith(("expand/weight", "expand/bias", "stem/weight", "stem/bias"))
    }
    harmless = harmless.with_nodes(harmless.nodes, small)
    needed = inverted_residuals()
    large = {
        name: Tensor.constant(tensor.real() * np.float32(20))
        for name, tensor in needed.tensors.items()
        if name.endswith(("expand/weight", "expand/bias", "stem/weight", "stem/bias"))
    }
    needed = needed.with_nodes(needed.nodes, large)
    for graph, holds in ((harmless, True), (needed, False)):
        found = unclamped(graph, [CALIBRATION])
        assert found.holds == holds and found.nodes == 5, found.agreement
        recipe = replace(RECIPES["int8"], graph_passes=("unclamp", "equalize", "centre"))
        model = quantize(graph, [CALIBRATION], recipe, Io())
        assert model.report["unclamp"] == {"nodes": 5, "agreement": found.agreement, "done": holds}
        left = {node.attributes.get("fused_activation_function") for node in model.exact.nodes}
        assert ("RELU6" in left) != holds


def test_hard_sigmoids_keep_their_clamp() -> None:
    graph = unclamped(squeezed(), [CALIBRATION]).graph
    gate = next(node for node in graph.nodes if node.output == "gate")
    assert gate.attributes["fused_activation_function"] == "RELU6"


def test_a_linear_stage_is_symmetric_after_centring() -> None:
    graph = inverted_residuals()
    _, seen = centred(graph, observe(graph, [CALIBRATION]))
    assert np.abs(seen["second/project"].low + seen["second/project"].high).max() < 1e-4


def test_a_residual_stage_is_one_group_and_hard_swish_ends_groups() -> None:
    groups = [set(group.tensors) for group in groups_of(inverted_residuals())]
    assert {"first/project", "second/project", "second/add"} in groups
    tensors = {name for group in groups_of(squeezed()) for name in group.tensors}
    assert not tensors & {"stem", "stem/swish", "last", "last/swish", "pooled", "logits", "gate"}
    assert {"depthwise", "excited", "squeeze"} <= tensors


def test_shared_weights_are_left_alone() -> None:
    graph = inverted_residuals()
    nodes = [
        node
        if node.output != "second/project"
        else node.renamed({"second/project/bias": "first/project/bias"})
        for node in graph.nodes
    ]
    shared: Graph = graph.with_nodes(nodes)
    tensors = {name for group in groups_of(shared) for name in group.tensors}
    assert "second/add" not in tensors


def _spread(values: np.ndarray) -> float:
    return float(values.max() / values.min())
