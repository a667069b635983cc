"""Recipes: which quantisation passes run, in what order, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.graph import Graph
from quantize.int8 import Io, to_int8
from quantize.ranges import narrowed_to_use, observe_ranges

Batches = Sequence[NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A named way to quantise."""

    name: str


@dataclass(frozen=True, slots=True)
class QuantizedModel:
    """The quantised graph, and what was done to it in the order it was done, for the manifest."""

    graph: Graph
    report: dict[str, object]


RECIPES = {recipe.name: recipe for recipe in (Recipe(name="int8"), Recipe(name="int8_full"))}


def quantize(graph: Graph, batches: Batches, recipe: Recipe, io: Io) -> QuantizedModel:
    """The float `graph` as int8, calibrated on `batches` of float32 [N, H, W, C] in the model input's own scale."""
    ranges = narrowed_to_use(graph, observe_ranges(graph, batches))
    return QuantizedModel(to_int8(graph, ranges, io), {"recipe": recipe.name})
