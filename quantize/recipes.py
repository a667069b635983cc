"""Recipes: which quantisation passes run, in what order, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from export.graph import WEIGHTED, Graph
from pipeline.artifacts import UsageError
from quantize.bias import corrected
from quantize.equalize import centred, equalized, groups_of, weights_equalized
from quantize.int8 import Io, to_int8
from quantize.lockstep import Treatment, settled
from quantize.ranges import RANGE_RULES, Observation, Observations, observe, ranges_of
from quantize.rounding import compensated

Batches = Sequence[NDArray[np.float32]]
GraphPass = Callable[[Graph, Observations], tuple[Graph, dict[str, Observation]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A named way to quantise; every field is a row of a table below, in the order of use."""

    name: str
    graph_passes: tuple[str, ...] = ()  # of GRAPH_PASSES: exact rewrites before quantisation
    ranges: str = "min_max"  # of RANGE_RULES
    float_parts: tuple[str, ...] = ()  # of FLOAT_PARTS: what computes on real values
    weights: str = "per_channel"  # of WEIGHT_FORMS
    layer_passes: tuple[str, ...] = ()  # of LAYER_PASSES: layer by layer, on what the 8-bit model sees
    layer_images: int = 64  # calibration images that the layer passes look at


@dataclass(frozen=True, slots=True)
class QuantizedModel:
    """The quantised graph, the equalised float graph it stands for, and what was done, as JSON values."""

    graph: Graph
    exact: Graph
    report: dict[str, object]


def residual_sums(graph: Graph) -> set[str]:
    """The ADDs of two computed tensors: summed in float, so that a stage's rounding does not pile up."""
    return {
        node.output
        for node in graph.nodes
        if node.op == "ADD" and all(graph.tensors[name].data is None for name in node.inputs)
    }


def head(graph: Graph) -> set[str]:
    """The global mean and everything after it: 0.4 % of MobileNetV2's work."""
    producers = graph.producers()
    found: set[str] = set()
    pending = [producers[name] for name in graph.outputs]
    while pending:
        node = pending.pop()
        found.add(node.output)
        if node.op == "MEAN":
            continue
        sources = [name for name in node.inputs if name in producers]
        pending += [producers[name] for name in sources if _is_vector(graph, name)]
    return found


def gates(graph: Graph) -> set[str]:
    """Squeeze-and-excite from the mean to the gate, which then multiplies a whole map."""
    of_head = head(graph)
    computed = (node.output for node in graph.nodes if node.op in WEIGHTED | {"MEAN", "MUL", "ADD", "RELU"})
    return {name for name in computed if _is_vector(graph, name) and name not in of_head}


def _is_vector(graph: Graph, name: str) -> bool:
    shape = graph.tensors[name].shape
    return int(np.prod(shape)) == shape[-1]


GRAPH_PASSES: Mapping[str, GraphPass] = {
    "equalize": partial(equalized, strength=0.5),
    "equalize_fully": partial(equalized, strength=1.0),
    "equalize_weights": weights_equalized,
    "centre": centred,
}
FLOAT_PARTS: Mapping[str, Callable[[Graph], Set[str]]] = {
    "residual_sums": residual_sums,
    "head": head,
    "gates": gates,
}
LAYER_PASSES: Mapping[str, Treatment] = {"compensated_rounding": compensated, "bias_correction": corrected}

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="int8",
            graph_passes=("equalize", "centre"),
            float_parts=("residual_sums", "head"),
            layer_passes=("compensated_rounding", "bias_correction"),
        ),
        Recipe(
            name="int8_full",
            graph_passes=("equalize", "centre"),
            layer_passes=("compensated_rounding", "bias_correction"),
        ),
        Recipe(
            name="int8_per_tensor",
            graph_passes=("equalize_weights", "equalize", "centre"),
            weights="per_tensor",
            layer_passes=("compensated_rounding", "bias_correction"),
        ),
        Recipe(name="int8_min_max"),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe; UsageError with the known names otherwise."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def quantize(graph: Graph, batches: Batches, recipe: Recipe, io: Io) -> QuantizedModel:
    """The float `graph` as int8, calibrated on `batches`.

    These are float32 [N, H, W, C] in the model input's own scale. The same arguments give the same graph.
    Raises AlpharhoError without images and where the network computes values that are not finite.
    """
    seen: Observations = observe(graph, batches)
    for name in recipe.graph_passes:
        graph, seen = GRAPH_PASSES[name](graph, seen)
    ranges = ranges_of(graph, seen, RANGE_RULES[recipe.ranges])
    in_float = frozenset[str]().union(*(FLOAT_PARTS[name](graph) for name in recipe.float_parts))
    rough = to_int8(graph, ranges, io, in_float, recipe.weights)
    if recipe.layer_passes:
        treatments = [LAYER_PASSES[name] for name in recipe.layer_passes]
        rough = settled(graph, rough, spread(batches, recipe.layer_images), treatments)
    images = sum(len(batch) for batch in batches)
    report = {
        "recipe": asdict(recipe),
        "calibration_images": images,
        "equalized_groups": len(groups_of(graph)) if recipe.graph_passes else 0,
        "float_nodes": sorted(in_float),
    }
    return QuantizedModel(rough, graph, report)


def spread(batches: Batches, count: int) -> list[NDArray[np.float32]]:
    """`count` images (or all, if there are fewer) taken evenly from all batches, in their order."""
    sizes = [len(batch) for batch in batches]
    chosen = np.unique(np.linspace(0, sum(sizes) - 1, min(count, sum(sizes))).round().astype(np.int64))
    starts = np.cumsum([0, *sizes])
    return [
        batch[chosen[(chosen >= start) & (chosen < start + len(batch))] - start]
        for batch, start in zip(batches, starts[:-1], strict=True)
        if ((chosen >= start) & (chosen < start + len(batch))).any()
    ]
