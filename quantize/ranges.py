"""Activation ranges from calibration images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray

from export.graph import Graph, Node
from export.parallel import pieces, workers
from export.run import Program
from pipeline.artifacts import AlpharhoError

Batches = Iterable[NDArray[np.float32]]

ROWS_PER_IMAGE = 16  # positions of a tensor kept from every image, for the choice of ranges
HARD_SWISH_ZERO = -3.0
PERCENTILE = 99.99
CANDIDATES = np.linspace(1.0, 0.5, 26)  # parts of the observed range that the MSE rule tries
LEVELS = 255


@dataclass(frozen=True, slots=True)
class Range:
    """The interval of real values that a tensor's grid covers."""

    low: float
    high: float

    def union(self, other: Range) -> Range:
        """The smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    def cut(self, other: Range) -> Range:
        """The part of this range inside `other`; the end of `other` that is nearer where there is none."""
        low, high = (min(max(bound, other.low), other.high) for bound in (self.low, self.high))
        return Range(low, high)


@dataclass(frozen=True, slots=True)
class Observation:
    """What the calibration images showed of one tensor, per channel of its last axis.

    `low` and `high` are exact, float64 [channels]; `rows` is a sample of values, float32 [samples, channels].
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    rows: NDArray[np.float32]

    @property
    def magnitude(self) -> NDArray[np.float64]:
        """Largest absolute value per channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def scaled(self, factors: NDArray[np.float64]) -> Observation:
        """The observation had every channel been multiplied by its positive factor."""
        return Observation(self.low * factors, self.high * factors, (self.rows * factors).astype(np.float32))

    def shifted(self, offsets: NDArray[np.float64]) -> Observation:
        """The observation had its offset been added to every channel."""
        return Observation(self.low + offsets, self.high + offsets, (self.rows + offsets).astype(np.float32))

    def widened(self, factor: float, bound: float) -> Observation:
        """The observation had the extremes been `factor` times as far from zero, but none above `bound`."""
        return Observation(self.low * factor, np.minimum(self.high * factor, bound), self.rows)


Observations = Mapping[str, Observation]
EVERYTHING = Range(-np.inf, np.inf)
# The values that a clamp lets through, from its constant operands.
CLAMPS: Mapping[str, Callable[[Sequence[NDArray[np.generic]]], Range]] = {
    "RELU": lambda bounds: Range(0.0, np.inf),
    "RELU6": lambda bounds: Range(0.0, 6.0),
    "MAXIMUM": lambda bounds: Range(float(np.min(bounds[0])), np.inf),
    "MINIMUM": lambda bounds: Range(-np.inf, float(np.max(bounds[0]))),
}


def observe(graph: Graph, batches: Batches) -> dict[str, Observation]:
    """An Observation of every computed tensor over all images, by tensor name.

    `batches` yields float32 [N, H, W, C] in the graph input's own scale. Raises AlpharhoError without any
    image, or when the network computes a value that is not finite.
    """
    program = Program(graph)

    def seen(images: NDArray[np.float32]) -> dict[str, Observation]:
        found: dict[str, Observation] = {}
        program(images, lambda name, values: found.update({name: _seen(name, values)}))
        return found

    with workers(program.device) as pool:
        parts = [part for batch in batches for part in pool.map(seen, pieces(batch))]
    if not parts:
        raise AlpharhoError("no calibration images; int8 needs some (200 or more) to find its ranges")
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def _seen(name: str, values: torch.Tensor) -> Observation:
    by_channel = values.reshape(len(values), -1, values.shape[-1])
    low, high = (bound.double().cpu().numpy() for bound in _extremes(by_channel))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise AlpharhoError(
            f"{name!r} is not finite on the calibration images; look for NaN in them or in the weights"
        )
    stride = -(-by_channel.shape[1] // ROWS_PER_IMAGE)
    return Observation(low, high, by_channel[:, stride // 2 :: stride].flatten(0, 1).cpu().numpy())


def _extremes(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest value per channel of [N, positions, channels]; images first, the faster order."""
    flat = values.reshape(len(values), -1)
    low, high = (f(f(flat, 0).view(values.shape[1:]), 0) for f in (torch.amin, torch.amax))
    return low, high


def _joined(parts: list[Observation]) -> Observation:
    return Observation(
        np.min([part.low for part in parts], axis=0),
        np.max([part.high for part in parts], axis=0),
        np.concatenate([part.rows for part in parts]),
    )


# --- rules: observation to range ----------------------------------------------------------------------------


def min_max(seen: Observation) -> Range:
    """Everything that was seen."""
    return Range(float(seen.low.min()), float(seen.high.max()))


def percentile(seen: Observation) -> Range:
    """All but a ten-thousandth of the sampled values at either end."""
    low, high = np.percentile(seen.rows, (100 - PERCENTILE, PERCENTILE))
    return Range(float(low), float(high))


def least_squares(seen: Observation) -> Range:
    """The part of the observed range with the least squared error of rounding and clipping on the sample."""
    full = min_max(seen)
    values = seen.rows.ravel()[:: max(1, seen.rows.size // 100_000)].astype(np.float64)
    best = (
        min(
            (_squared_error(values, full.low * low, full.high * high), low, high)
            for low in (CANDIDATES if full.low < 0 else CANDIDATES[:1])
            for high in CANDIDATES
            if full.low * low < full.high * high
        )
        if full.low < full.high
        else (0.0, 1.0, 1.0)
    )
    return Range(full.low * best[1], full.high * best[2])


def _squared_error(values: NDArray[np.float64], low: float, high: float) -> float:
    step = (max(high, 0.0) - min(low, 0.0)) / LEVELS
    inside = values[(values >= low) & (values <= high)]
    clipped = np.square(np.minimum(values - low, 0)).sum() + np.square(np.maximum(values - high, 0)).sum()
    return float(clipped + len(inside) * step * step / 12)


RangeRule = Callable[[Observation], Range]
RANGE_RULES: dict[str, RangeRule] = {"min_max": min_max, "percentile": percentile, "mse": least_squares}


def ranges_of(graph: Graph, observations: Observations, rule: RangeRule) -> dict[str, Range]:
    """The range of every tensor by `rule`, cut to what its only reader can tell apart."""
    return narrowed_to_use(graph, {name: rule(seen) for name, seen in observations.items()})


def narrowed_to_use(graph: Graph, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Ranges cut to the part that their readers can tell apart."""
    used = used_ranges(graph)
    return {name: found.cut(used.get(name, EVERYTHING)) for name, found in ranges.items()}


def used_ranges(graph: Graph) -> dict[str, Range]:
    """For every computed tensor the real values beyond which its readers' results stay the same."""
    readers = graph.consumers()
    used: dict[str, Range] = {}
    for node in reversed(graph.nodes):
        for name in node.outputs:
            found = [_told_apart(graph, reader, used) for reader in readers[name]]
            if name in graph.outputs or not found:
                found = [EVERYTHING]
            used[name] = reduce(Range.union, found)
    return used


def _told_apart(graph: Graph, reader: Node, used: Mapping[str, Range]) -> Range:
    """The operands that `reader` can tell apart; a clamp no more than its own readers can."""
    if reader.op == "HARD_SWISH":
        return Range(HARD_SWISH_ZERO, np.inf)
    if reader.op not in CLAMPS:
        return EVERYTHING
    bounds = [bound for name in reader.inputs if (bound := graph.constant(name)) is not None]
    if len(bounds) != len(reader.inputs) - 1:
        return EVERYTHING
    return used[reader.output].cut(CLAMPS[reader.op](bounds))


def observe_ranges(graph: Graph, batches: Batches) -> dict[str, Range]:
    """Smallest and largest value of every computed tensor over all images; raises as `observe`."""
    return {name: min_max(seen) for name, seen in observe(graph, batches).items()}
