"""Recipes: which quantisation passes run, in what order, as data."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from export.graph import WEIGHTED, Graph, Node, added_operators
from pipeline.artifacts import AlpharhoError, UsageError
from quantize.adaround import LearntRounding
from quantize.analytic import analytically_corrected, expected
from quantize.bias import corrected
from quantize.clamps import unclamped
from quantize.delegate import bytes_through_table, pixels_in_pairs
from quantize.equalize import CLAMP, absorbed, centred, equalized, groups_of, weights_equalized
from quantize.int8 import Io, to_int8
from quantize.lockstep import Treatment, settled
from quantize.ranges import RANGE_RULES, Observation, Observations, observe, ranges_of
from quantize.rounding import compensated
from quantize.scales import fitted_scales
from quantize.synthetic import generated

Batches = Sequence[NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A named way to quantise; every field is a row of a table below, in the order of use."""

    name: str
    images: str = "given"  # of IMAGES: what is calibrated on
    graph_passes: tuple[str, ...] = ()  # of GRAPH_PASSES: exact rewrites before quantisation
    ranges: str = "min_max"  # of RANGE_RULES
    float_parts: tuple[str, ...] = ()  # of FLOAT_PARTS: what computes on real values
    weights: str = "per_channel"  # of WEIGHT_FORMS
    layer_passes: tuple[str, ...] = ()  # of LAYER_PASSES: layer by layer, on what the 8-bit model sees
    layer_images: int = 64  # calibration images that the layer passes look at
    final_passes: tuple[str, ...] = ()  # of FINAL_PASSES: on the 8-bit graph, without images
    delegate_passes: tuple[str, ...] = ()  # of DELEGATE_PASSES: the same values from fewer instructions
    learning_budget_s: float = 300.0  # wall-clock time that `learnt_rounding` may take in all


@dataclass(frozen=True, slots=True)
class Prepared:
    """The float graph on its way, what was seen of it, the images, and what the passes have to tell."""

    graph: Graph
    seen: Observations
    batches: Batches
    notes: Mapping[str, object] = field(default_factory=dict)


GraphPass = Callable[[Prepared], Prepared]
Rewrite = Callable[[Graph, Observations], tuple[Graph, dict[str, Observation]]]


@dataclass(frozen=True, slots=True)
class QuantizedModel:
    """The quantised graph, the equalised float graph it stands for, and what was done, as JSON values.

    `plain` is the quantised graph before the delegate passes: node by node that of `exact`.
    """

    graph: Graph
    plain: Graph
    exact: Graph
    report: dict[str, object]


def residual_sums(graph: Graph) -> set[str]:
    """The ADDs of two computed tensors: summed in float, so that a stage's rounding does not pile up.

    A residual stage stays in 8 bits where it has one sum, whose operands and result are rounded anyway, and
    where its map is wider than a DEEP-th of the input: a sum there costs as much as all of the deep ones.
    """
    producers = graph.producers()
    stages: dict[str, list[str]] = {}
    found: set[str] = set()
    for node in graph.nodes:
        if node.op != "ADD" or any(graph.constant(name) is not None for name in node.inputs):
            continue
        found.add(node.output)
        if any(name in producers and producers[name].op in WEIGHTED for name in node.inputs):
            stage = next((stages[name] for name in node.inputs if name in stages), [])
            stage.append(node.output)
            stages[node.output] = stage
    return found - {name for name, stage in stages.items() if len(stage) < 2 or not _is_deep(graph, name)}


def _is_deep(graph: Graph, name: str) -> bool:
    sizes = zip(graph.tensors[name].shape[1:-1], graph.tensors[graph.inputs[0]].shape[1:-1], strict=False)
    return all(size <= math.ceil(of_input / DEEP) for size, of_input in sizes)


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


def _exact(rewrite: Rewrite) -> GraphPass:
    def apply(prepared: Prepared) -> Prepared:
        graph, seen = rewrite(prepared.graph, prepared.seen)
        return replace(prepared, graph=graph, seen=seen)

    return apply


def unclamp(prepared: Prepared) -> Prepared:
    """RELU for RELU6 if the float network then says the same of calibration images; notes the share."""
    found = unclamped(prepared.graph, spread(prepared.batches, GUARD_IMAGES))
    notes = {"nodes": found.nodes, "agreement": found.agreement, "done": found.holds}
    prepared = replace(prepared, notes={**prepared.notes, "unclamp": notes})
    if not found.holds or found.graph is prepared.graph:
        return prepared
    return replace(prepared, graph=found.graph, seen=observe(found.graph, prepared.batches))


def widen(prepared: Prepared) -> Prepared:
    """More room than the images ask for, where what will be seen is not like them; the input is exact."""
    graph = prepared.graph
    capped = {node.output for node in graph.nodes if _activation_of(node) == "RELU6"}
    seen = {
        name: found.widened(ROOM, CLAMP if name in capped else np.inf)
        for name, found in prepared.seen.items()
        if name not in graph.inputs
    }
    return replace(prepared, seen={**prepared.seen, **seen})


def expect(prepared: Prepared) -> Prepared:
    """Ranges that hold what the weights let expect, beside what was seen."""
    hoped = expected(prepared.graph, prepared.seen)
    seen = {
        name: replace(
            found,
            low=np.minimum(found.low, hoped[name].low),
            high=np.maximum(found.high, hoped[name].high),
        )
        for name, found in prepared.seen.items()
    }
    return replace(prepared, seen=seen)


def _activation_of(node: Node) -> object:
    return node.attributes.get("fused_activation_function", "NONE")


def _given(graph: Graph, batches: Batches, io: Io) -> Batches:
    return batches


def _generated(graph: Graph, batches: Batches, io: Io) -> Batches:
    """Painted pictures instead of `batches`, so that nothing but the weights is needed."""
    pictures = generated(GENERATED_IMAGES, graph.tensors[graph.inputs[0]].shape, io.low, io.high)
    return [pictures[i : i + BATCH] for i in range(0, len(pictures), BATCH)]


DEEP = 16  # times narrower than the input, in either direction
GUARD_IMAGES = 64  # that `unclamp` looks at
ROOM = 1.5  # what `widen` multiplies ranges by
GENERATED_IMAGES, BATCH = 128, 32

IMAGES: Mapping[str, Callable[[Graph, Batches, Io], Batches]] = {"given": _given, "generated": _generated}
GRAPH_PASSES: Mapping[str, GraphPass] = {
    "widen": widen,
    "expect": expect,
    "unclamp": unclamp,
    "absorb": _exact(absorbed),
    "equalize": _exact(partial(equalized, strength=0.5)),
    "equalize_fully": _exact(partial(equalized, strength=1.0)),
    "equalize_weights": _exact(weights_equalized),
    "centre": _exact(centred),
}
FLOAT_PARTS: Mapping[str, Callable[[Graph], Set[str]]] = {
    "residual_sums": residual_sums,
    "head": head,
    "gates": gates,
}
LAYER_PASSES: Mapping[str, Callable[[Recipe], Treatment]] = {
    "fitted_scales": lambda recipe: fitted_scales,
    "compensated_rounding": lambda recipe: compensated,
    "learnt_rounding": lambda recipe: LearntRounding(recipe.learning_budget_s),
    "bias_correction": lambda recipe: corrected,
}
FINAL_PASSES: Mapping[str, Callable[[Graph, Graph, Observations], Graph]] = {
    "analytic_bias": analytically_corrected,
}
DELEGATE_PASSES: Mapping[str, Callable[[Graph], Graph]] = {
    "bytes_through_table": bytes_through_table,
    "pixels_in_pairs": pixels_in_pairs,
}

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="int8",
            graph_passes=("equalize", "centre"),
            float_parts=("residual_sums",),
            layer_passes=("compensated_rounding", "bias_correction"),
            delegate_passes=tuple(DELEGATE_PASSES),
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
        Recipe(
            name="int8_adaround",
            graph_passes=("equalize", "centre"),
            float_parts=("residual_sums",),
            layer_passes=("compensated_rounding", "learnt_rounding", "bias_correction"),
            delegate_passes=tuple(DELEGATE_PASSES),
        ),
        Recipe(
            name="int8_data_free",
            images="generated",
            graph_passes=("widen", "expect", "equalize", "centre"),
            float_parts=("residual_sums", "head"),
            layer_passes=("compensated_rounding",),
            final_passes=("analytic_bias",),
            delegate_passes=tuple(DELEGATE_PASSES),
        ),
        Recipe(
            name="int8_analytic",
            images="generated",
            graph_passes=("widen", "expect", "equalize", "centre"),
            float_parts=("residual_sums", "head"),
            final_passes=("analytic_bias",),
            delegate_passes=tuple(DELEGATE_PASSES),
        ),
        Recipe(name="int8_min_max"),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe; UsageError with the known names otherwise."""
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def quantize(
    graph: Graph, batches: Batches, recipe: Recipe, io: Io, keep_float: Collection[str] = ()
) -> QuantizedModel:
    """The float `graph` as int8, calibrated on `batches`; nodes named in `keep_float` compute on real values.

    Batches are float32 [N, H, W, C] in the model input's own scale. The same arguments give the same graph.
    Raises AlpharhoError without images, where the network computes values that are not finite, and for a name
    in `keep_float` that no node has.
    """
    if unknown := sorted(set(keep_float) - {node.output for node in graph.nodes}):
        raise AlpharhoError(f"no node is called {unknown[0]!r}; keep_float takes names of the graph's nodes")
    batches = IMAGES[recipe.images](graph, batches, io)
    prepared = Prepared(graph, observe(graph, batches), batches)
    for name in recipe.graph_passes:
        prepared = GRAPH_PASSES[name](prepared)
    graph = prepared.graph
    ranges = ranges_of(graph, prepared.seen, RANGE_RULES[recipe.ranges])
    in_float = frozenset(keep_float).union(*(FLOAT_PARTS[name](graph) for name in recipe.float_parts))
    plain = to_int8(graph, ranges, io, in_float, recipe.weights)
    treatments = [LAYER_PASSES[name](recipe) for name in recipe.layer_passes]
    if treatments:
        plain = settled(graph, plain, spread(batches, recipe.layer_images), treatments)
    for name in recipe.final_passes:
        plain = FINAL_PASSES[name](graph, plain, prepared.seen)
    final = plain
    for name in recipe.delegate_passes:
        final = DELEGATE_PASSES[name](final)
    report: dict[str, object] = {
        "recipe": asdict(recipe),
        "calibration_images": sum(len(batch) for batch in batches),
        "equalized_groups": len(groups_of(graph)) if recipe.graph_passes else 0,
        "float_nodes": sorted(in_float),
        "added_operators": added_operators(plain, final),
        **prepared.notes,
    }
    for treatment in treatments:
        if isinstance(treatment, LearntRounding):
            report["learnt_rounding"] = treatment.told()
    return QuantizedModel(final, plain, graph, report)


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
