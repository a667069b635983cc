"""Positions that a layer is looked at: what they see, times the weights, is what they give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export.graph import Graph, Node, Tensor
from export.run import Program
from quantize.samples import POSITIONS, Samples

SIZES = {"SAME": 6, "VALID": 5}  # of the result, for an input of 11 x 11, 3 x 3 weights and stride 2


def _layer(op: str, padding: str) -> Graph:
    generator = np.random.default_rng(5)
    weights, channels = ((1, 3, 3, 4), 4) if op == "DEPTHWISE_CONV_2D" else ((7, 3, 3, 4), 7)
    size = SIZES[padding]
    tensors = {
        "x": Tensor((1, 11, 11, 4)),
        "w": Tensor.constant(generator.normal(size=weights).astype(np.float32)),
        "b": Tensor.constant(np.zeros(channels, np.float32)),
        "y": Tensor((1, size, size, channels)),
    }
    options = {"stride_h": 2, "stride_w": 2, "dilation_h_factor": 1, "dilation_w_factor": 1}
    texts = {"padding": padding, "fused_activation_function": "RELU"}
    return Graph(tensors, (Node(op, ("x", "w", "b"), ("y",), {**options, **texts}),), ("x",), ("y",))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("op", ["CONV_2D", "DEPTHWISE_CONV_2D"])
def test_what_the_positions_see_times_the_weights_is_what_they_give(op: str, padding: str) -> None:
    graph = _layer(op, padding)
    (node,), program = graph.nodes, Program(graph, "cpu")
    images = np.random.default_rng(6).normal(size=(5, 11, 11, 4)).astype(np.float32)
    samples = Samples.drawn(graph, node, 8, torch.Generator().manual_seed(1), program.device)
    values = program.open(images)
    seen, sums = samples.of_input(values["x"], 3), samples.of_output(program.sums(node, values), 3)
    weights = torch.from_numpy(graph.tensors["w"].real())
    form = "stc,tc->sc" if op == "DEPTHWISE_CONV_2D" else "stc,otc->so"
    expected = torch.einsum(form, seen, weights.reshape(-1, 9, 4).squeeze(0))
    torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-4)
    assert (sums < 0).any()  # before the activation


def test_positions_are_other_ones_in_every_image_and_none_twice() -> None:
    graph = _layer("DEPTHWISE_CONV_2D", "SAME")
    generator = torch.Generator().manual_seed(1)
    found = Samples.drawn(graph, graph.nodes[0], 8, generator, torch.device("cpu")).outputs
    assert found.shape == (8, POSITIONS["DEPTHWISE_CONV_2D"])
    assert all(len(row.unique()) == len(row) for row in found)
    assert len(found.unique(dim=0)) > 1


def test_all_positions_of_a_small_result_are_looked_at() -> None:
    graph = _layer("CONV_2D", "SAME")
    generator = torch.Generator().manual_seed(1)
    found = Samples.drawn(graph, graph.nodes[0], 2, generator, torch.device("cpu")).outputs
    assert [sorted(row.tolist()) for row in found] == [list(range(36))] * 2
