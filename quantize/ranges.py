"""Activation ranges from calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from export.graph import Graph
from export.run import Program
from pipeline.artifacts import AlpharhoError

Batches = Iterable[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Range:
    """The interval of real values that a tensor's grid covers."""

    low: float
    high: float

    def union(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


def observe_ranges(graph: Graph, batches: Batches, device: str = "cpu") -> dict[str, Range]:
    """Smallest and largest value of every computed tensor over all images, by tensor name.

    `batches` yields float32 [N, H, W, C] in the graph input's own scale. Raises AlpharhoError without any image, or when
    the network computes a value that is not finite.
    """
    program = Program(graph, device)
    ranges: dict[str, Range] = {}

    def observe(name: str, values: torch.Tensor) -> None:
        low, high = (float(bound) for bound in torch.aminmax(values))
        if not np.isfinite([low, high]).all():
            raise AlpharhoError(f"{name!r} is not finite on the calibration images; look for NaN or huge weights")
        found = Range(low, high)
        ranges[name] = ranges[name].union(found) if name in ranges else found

    for batch in batches:
        program(batch, observe)
    if not ranges:
        raise AlpharhoError("no calibration images; int8 needs some (200 or more) to find its ranges")
    return ranges


def narrowed_to_use(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Ranges cut to the part that their only reader can tell apart: below -3 hard-swish is zero."""
    readers = graph.consumers()
    narrowed = dict(ranges)
    for name, found in ranges.items():
        if name not in graph.outputs and {node.op for node in readers[name]} == {"HARD_SWISH"}:
            narrowed[name] = Range(max(found.low, HARD_SWISH_ZERO), max(found.high, HARD_SWISH_ZERO))
    return narrowed


HARD_SWISH_ZERO = -3.0
RangeRule = Callable[[Graph, Mapping[str, Range]], dict[str, Range]]
