"""Moments without images: each rule against drawn values, and what the biases gain by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export.graph import WEIGHTED, Attribute, Graph, Node, Tensor
from export.run import KERNELS, Program
from pipeline.artifacts import AlpharhoError
from quantize.analytic import NEAR, RULES, analytically_corrected, expected, moments_of
from quantize.int8 import Io, to_int8
from quantize.ranges import Observation, min_max
from quantize.recipes import GENERATED_IMAGES, RECIPES, quantize
from tests.quantize.networks import images, inverted_residuals, squeezed

SIZE, CHANNELS, DRAWN = 5, 3, 20_000
MEANS, DEVIATIONS = np.array([-1.0, 0.4, 2.5]), np.array([0.5, 1.2, 0.8])
WINDOW: dict[str, Attribute] = {
    "padding": "SAME",
    "stride_h": 2,
    "stride_w": 2,
    "dilation_h_factor": 1,
    "dilation_w_factor": 1,
}
RANDOM = np.random.default_rng(5)
NAMES = (
    "RELU RELU6 HARD_SWISH LEAKY_RELU LOGISTIC TANH PRELU MAXIMUM MINIMUM ADD MUL CONV_2D grouped "
    "DEPTHWISE_CONV_2D MEAN PAD RESHAPE CONCATENATION product"
).split()


def drawn(count: int = DRAWN) -> NDArray[np.float32]:
    """Values of which all of a channel share NEAR of their variance, and channels nothing."""
    random = np.random.default_rng(1)
    common = random.normal(size=(count, 1, 1, CHANNELS))
    own = random.normal(size=(count, SIZE, SIZE, CHANNELS))
    mixed = np.sqrt(NEAR) * common + np.sqrt(1 - NEAR) * own
    return (MEANS + DEVIATIONS * mixed).astype(np.float32)


def door(values: NDArray[np.float32]) -> Observation:
    rows = values.reshape(-1, values.shape[-1])
    return Observation(rows.min(0).astype(np.float64), rows.max(0).astype(np.float64), rows)


def weights(*shape: int) -> Tensor:
    return Tensor.constant(np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32))


def graph_of(name: str) -> Graph:
    """One operator on the drawn input; `product` is of the input and its hard-swish's mean."""
    whole, half = (1, SIZE, SIZE, CHANNELS), (1, 3, 3, 6)
    axes = Tensor.constant(np.array([1, 2], np.int32))
    pads = Tensor.constant(np.array([[0, 0], [1, 0], [0, 2], [0, 0]], np.int32))
    clamp: dict[str, Attribute] = {"fused_activation_function": "RELU6"}
    depth = {**WINDOW, **clamp, "depth_multiplier": 1}
    rows: dict[str, tuple[str, dict[str, Tensor], tuple[int, ...], dict[str, Attribute]]] = {
        "LEAKY_RELU": ("LEAKY_RELU", {}, whole, {"alpha": 0.2}),
        "PRELU": ("PRELU", {"slopes": weights(CHANNELS)}, whole, {}),
        "MAXIMUM": ("MAXIMUM", {"bound": weights(1, 1, 1, CHANNELS)}, whole, {}),
        "MINIMUM": ("MINIMUM", {"bound": weights(1, 1, 1, CHANNELS)}, whole, {}),
        "ADD": ("ADD", {"term": weights(1, 1, 1, CHANNELS)}, whole, clamp),
        "MUL": ("MUL", {"factor": weights(1, 1, 1, CHANNELS)}, whole, clamp),
        "CONV_2D": ("CONV_2D", {"w": weights(6, 3, 3, CHANNELS), "b": weights(6)}, half, {**WINDOW, **clamp}),
        "grouped": ("CONV_2D", {"w": weights(6, 3, 3, 1), "b": weights(6)}, half, {**WINDOW, **clamp}),
        "DEPTHWISE_CONV_2D": (
            "DEPTHWISE_CONV_2D",
            {"w": weights(1, 3, 3, CHANNELS), "b": weights(CHANNELS)},
            (1, 3, 3, CHANNELS),
            depth,
        ),
        "MEAN": ("MEAN", {"axes": axes}, (1, CHANNELS), {"keep_dims": False}),
        "PAD": ("PAD", {"pads": pads}, (1, SIZE + 1, SIZE + 2, CHANNELS), {}),
        "RESHAPE": ("RESHAPE", {}, (1, 75), {"new_shape": (1, 75)}),
        "CONCATENATION": ("CONCATENATION", {"part": weights(*whole)}, (1, SIZE, SIZE, 6), {"axis": 3}),
    }
    op, constants, shape, attributes = rows.get(name, (name, {}, whole, {}))
    tensors = {"x": Tensor(whole), **constants, "y": Tensor(shape)}
    nodes = [Node(op, ("x", *constants), ("y",), attributes)]
    if name == "product":
        tensors |= {"m": Tensor((1, 1, 1, CHANNELS)), "axes": axes}
        nodes = [Node("MEAN", ("x", "axes"), ("m",), {"keep_dims": True}), Node("MUL", ("m", "m"), ("y",))]
    graph = Graph(tensors, tuple(nodes), ("x",), ("y",))
    graph.check()
    return graph


def test_every_kernel_of_a_float_graph_has_a_rule() -> None:
    assert set(RULES) | {"QUANTIZE", "DEQUANTIZE"} == set(KERNELS)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "product"])
def test_moments_are_those_of_drawn_values(name: str) -> None:
    graph, values = graph_of(name), drawn()
    found = moments_of(graph, door(values))["y"]
    results = torch.from_numpy(Program(graph)(values)).double()
    scale = float(results.std())
    assert (found.mean[0] - results.mean(0)).abs().max() < 0.03 * scale
    assert (found.variance[0].sqrt() - results.std(0)).abs().max() < 0.06 * scale
    reach = 1e-5 + 1e-3 * scale
    assert (results.amin(0) >= found.low[0] - reach).all() and (
        results.amax(0) <= found.high[0] + reach
    ).all()


def test_two_factors_are_taken_as_independent_and_a_product_keeps_its_mean() -> None:
    graph, values = graph_of("product"), drawn()
    found = moments_of(graph, door(values))
    np.testing.assert_allclose(found["y"].mean, found["m"].mean.square())


@pytest.mark.parametrize("name", ["MAX_POOL_2D", "AVERAGE_POOL_2D"])
def test_pools_are_close(name: str) -> None:
    attributes = {**WINDOW, "filter_height": 3, "filter_width": 3}
    tensors = {"x": Tensor((1, SIZE, SIZE, CHANNELS)), "y": Tensor((1, 3, 3, CHANNELS))}
    node = Node(name, ("x",), ("y",), attributes)
    graph = Graph(tensors, (node,), ("x",), ("y",))
    values = drawn()
    found, results = moments_of(graph, door(values))["y"], torch.from_numpy(Program(graph)(values)).double()
    spread = results.std(0)
    assert ((found.mean[0] - results.mean(0)).abs() < 0.2 * spread).all()
    assert ((found.variance[0].sqrt() - spread).abs() < 0.2 * spread).all()


@pytest.mark.parametrize("make", [inverted_residuals, squeezed])
def test_an_expectation_has_every_tensor_and_keeps_to_the_clamps(make: Callable[[], Graph]) -> None:
    graph = make()
    seen = {"image": door(images(8))}
    found = expected(graph, seen)
    assert found.keys() == {"image", *(node.output for node in graph.nodes)}
    assert found["image"] is seen["image"]
    for node in graph.nodes:
        low, high = min_max(found[node.output]).low, min_max(found[node.output]).high
        assert found[node.output].rows.min() >= low - 1e-5 and found[node.output].rows.max() <= high + 1e-5
        if node.attributes.get("fused_activation_function") == "RELU6":
            assert low >= 0 and high <= 6
        if node.op == "HARD_SWISH":
            assert -0.3751 < low < 0


def test_biases_take_back_what_coarse_weights_add_to_the_means() -> None:
    graph, calibration = inverted_residuals(), images(64)
    ranges = {name: min_max(seen) for name, seen in expected(graph, {"image": door(calibration)}).items()}
    rough = to_int8(graph, ranges, Io())
    coarse = {
        node.inputs[1]: _without_low_bits(rough.tensors[node.inputs[1]])
        for node in rough.nodes
        if node.op in WEIGHTED
    }
    rough = replace(rough, tensors={**rough.tensors, **coarse})
    mended = analytically_corrected(graph, rough, {"image": door(calibration)})
    exact, before, after = (Program(one)(calibration).mean(0) for one in (graph, rough, mended))
    assert np.abs(after - exact).mean() < 0.5 * np.abs(before - exact).mean()
    assert {name for name in mended.tensors if mended.tensors[name] is not rough.tensors[name]} == {
        node.inputs[2] for node in rough.nodes if node.op in WEIGHTED
    }


def _without_low_bits(tensor: Tensor) -> Tensor:
    """All weights rounded down to sixteenths of the range, which pushes every mean to one side."""
    assert tensor.data is not None
    return Tensor.constant((tensor.data // 16 * 16).astype(np.int8), tensor.quantization)


def test_a_bias_that_two_layers_share_stays_as_it_is() -> None:
    graph = inverted_residuals()
    shared = [
        replace(node, inputs=(*node.inputs[:2], "first/project/bias"))
        if node.output == "second/project"
        else node
        for node in graph.nodes
    ]
    graph = graph.with_nodes(shared)
    seen = {"image": door(images(8))}
    rough = to_int8(graph, {name: min_max(one) for name, one in expected(graph, seen).items()}, Io())
    mended = analytically_corrected(graph, rough, seen)
    assert mended.tensors["first/project/bias"] is rough.tensors["first/project/bias"]
    assert mended.tensors["stem/bias"] is not rough.tensors["stem/bias"]


def test_an_operator_without_a_rule_is_named() -> None:
    graph = graph_of("RELU")
    odd = replace(graph, nodes=(Node("CUMSUM", ("x",), ("y",)),))
    with pytest.raises(AlpharhoError, match="nothing can be expected of CUMSUM"):
        moments_of(odd, door(drawn(10)))


@pytest.mark.parametrize("make", [inverted_residuals, squeezed])
def test_the_recipe_needs_no_images(make: Callable[[], Graph]) -> None:
    graph = make()
    model = quantize(graph, [], RECIPES["int8_analytic"], Io())
    assert model.report["calibration_images"] == GENERATED_IMAGES
    test = images(32, seed=4)
    exact, found = Program(graph)(test), Program(model.graph)(test)
    assert np.square(found - exact).sum() < 0.03 * np.square(exact).sum()  # 15 dB
