"""Rescaling and recentring change nothing in float, and flatten the ranges that they are for."""

from __future__ import annotations

import numpy as np
import pytest

from export.graph import Graph
from export.run import Program
from quantize.equalize import LARGEST_FACTOR, centred, equalized, groups_of, weights_equalized
from quantize.ranges import observe
from tests.quantize.networks import images, inverted_residuals, squeezed

CALIBRATION = images(24)
GRAPHS = {"relu6": inverted_residuals(), "relu": inverted_residuals("RELU"), "squeezed": squeezed()}
PASSES = {
    "half": lambda graph, seen: equalized(graph, seen, 0.5),
    "fully": lambda graph, seen: equalized(graph, seen, 1.0),
    "weights": weights_equalized,
    "centred": centred,
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
