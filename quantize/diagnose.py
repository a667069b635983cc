"""Where an 8-bit model loses what its float model knows: error by layer, alone and with all before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from export.graph import WEIGHTED, Graph, Node, Tensor, channel_axis
from export.run import Program
from quantize.equalize import weight_peaks
from quantize.ranges import used_ranges

Values = Mapping[str, NDArray[np.float32]]

EPSILON = 1e-12
BEST_DB = 120.0  # no error, or none to speak of
SUFFIXES = ("/float", "/int8")  # that the 8-bit graph adds to a tensor's name
HARD_SWISH_LOBE = 3.0  # hard-swish is negative on (-3, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One node of the float model, as the 8-bit model computes it.

    `sqnr_db` is with all errors upstream, `alone_db` with this node alone in 8 bits (inputs rounded too),
    `weights_db` with nothing but its weights in 8 bits, BEST_DB for a node that has none. `clipped` is the
    share of float values beyond the grid; `shift` the size of the channels' mean errors, of the size of the
    values; `unevenness` the widest channel's range over the median's, of its results and of its weights;
    `dead` the share of channels that never change; `lobe_levels` the number of levels in (-3, 0) where a
    hard-swish reads it, else None. `in_float`: it computes on real values.
    """

    name: str
    op: str
    in_float: bool
    sqnr_db: float
    alone_db: float
    weights_db: float
    clipped: float
    shift: float
    unevenness: float
    weight_unevenness: float
    dead: float
    lobe_levels: float | None

    @property
    def module(self) -> str:
        """The path of the PyTorch module that the node was."""
        return self.name.replace("/", ".")


def diagnose(exact: Graph, rough: Graph, images: NDArray[np.float32]) -> list[LayerReport]:
    """A report for every node of the float graph that `rough`, its 8-bit form, computes; execution order.

    `exact` is the float graph after equalisation, `images` float32 [N, H, W, C].
    """
    found = values_of(rough, images)
    grids = {
        name: _Bounds(grid.low * float(grid.scale), grid.high * float(grid.scale), float(grid.scale))
        for name, grid in Program(rough).grids.items()
    }
    uncut = values_of(exact, images)
    wanted = _cut(exact, uncut, grids)
    alone, by_weights = _alone(exact, rough, wanted), _by_weights(exact, rough, uncut)
    names = {node.output: next((n for n in _names(node.output) if n in found), None) for node in exact.nodes}
    readers, real = exact.consumers(), _computed_on_reals(rough)
    return [
        LayerReport(
            name=node.output,
            op=node.op,
            in_float=node.output in real,
            sqnr_db=_db(wanted[node.output], found[name]),
            alone_db=alone.get(node.output, BEST_DB),
            weights_db=by_weights.get(node.output, BEST_DB),
            clipped=grids[name].beyond(wanted[node.output]) if name in grids else 0.0,
            shift=_shift(wanted[node.output], found[name]),
            unevenness=unevenness(_widths(wanted[node.output])),
            weight_unevenness=unevenness(weight_widths(exact, node.output)),
            dead=float((_widths(wanted[node.output]) == 0).mean()),
            lobe_levels=(
                HARD_SWISH_LOBE / grids[name].step
                if name in grids and _feeds_hard_swish(readers[node.output])
                else None
            ),
        )
        for node in exact.nodes
        if (name := names[node.output]) is not None
    ]


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Smallest and largest real value of a grid, and its step."""

    low: float
    high: float
    step: float

    def beyond(self, values: NDArray[np.float32]) -> float:
        """Share of values further out than a step."""
        return float(((values < self.low - self.step) | (values > self.high + self.step)).mean())


def _cut(exact: Graph, values: Values, grids: Mapping[str, _Bounds]) -> Values:
    """The values, cut where no reader can tell them apart, as grids are on purpose."""
    used = used_ranges(exact)
    return {
        name: np.clip(found, min(used[name].low, grids[name].low), max(used[name].high, grids[name].high))
        if name in grids and name in used
        else found
        for name, found in values.items()
    }


def _feeds_hard_swish(readers: Sequence[Node]) -> bool:
    return {reader.op for reader in readers} == {"HARD_SWISH"}


def _computed_on_reals(rough: Graph) -> set[str]:
    """The nodes whose float result something other than their own rounding reads."""
    readers = rough.consumers()
    computed = {node.output for node in rough.nodes if node.op not in ("QUANTIZE", "DEQUANTIZE")}
    return {
        _bare(name)
        for name in computed
        if rough.tensors[name].quantization is None
        and (name in rough.outputs or {node.op for node in readers[name]} != {"QUANTIZE"})
    }


def _names(name: str) -> tuple[str, ...]:
    """What the 8-bit graph may call the tensor, its rounded form first."""
    return (name, *(f"{name}{suffix}" for suffix in reversed(SUFFIXES)))


def values_of(graph: Graph, images: NDArray[np.float32]) -> Values:
    """All computed values, by tensor name."""
    seen: dict[str, NDArray[np.float32]] = {}
    Program(graph)(images, lambda name, values: seen.update({name: values.cpu().numpy().copy()}))
    return seen


# --- one node at a time -------------------------------------------------------------------------------------


def _alone(exact: Graph, rough: Graph, wanted: Values) -> dict[str, float]:
    """SQNR of every node when it alone computes in 8 bits: the walk puts the right value after each.

    The input is let be: camera bytes are exact on a grid that is half a level off.
    """
    program, errors = Program(rough), {}
    values = {rough.inputs[0]: _there(program, wanted[exact.inputs[0]])}
    if rough.inputs[0] in program.grids:
        values = program.open(wanted[exact.inputs[0]])
    with torch.inference_mode():
        for node in rough.nodes:
            program.run(node, values)
            right = wanted.get(_bare(node.output))
            if right is not None and _bare(node.output) not in exact.inputs:
                errors[_bare(node.output)] = _db(right, program.real(node.output, values).cpu().numpy())
                values[node.output] = _held(program, node.output, _there(program, right))
            program.forget(node, values)
    return errors


def _bare(name: str) -> str:
    """The float graph's name of a tensor of the 8-bit graph."""
    return name.removesuffix(SUFFIXES[0]).removesuffix(SUFFIXES[1])


def _there(program: Program, values: NDArray[np.float32]) -> torch.Tensor:
    """A copy of the values where the program computes."""
    return torch.from_numpy(np.array(values)).to(program.device)


def _held(program: Program, name: str, values: torch.Tensor) -> torch.Tensor:
    """Real values as the program holds the tensor: on its grid, if it has one."""
    grid = program.grids.get(name)
    return values if grid is None else (values / float(grid.scale)).round_().clamp_(grid.low, grid.high)


def _by_weights(exact: Graph, rough: Graph, wanted: Values) -> dict[str, float]:
    """SQNR of every weighted node on the float model's inputs, with the 8-bit model's weights."""
    constants = {
        name: Tensor.constant(rough.tensors[name].real())
        for node in exact.nodes
        if node.op in WEIGHTED
        for name in node.inputs[1:2]
        if name in rough.tensors and rough.tensors[name].data is not None
    }
    program = Program(exact.with_nodes(exact.nodes, constants))
    errors = {}
    with torch.inference_mode():
        for node in exact.nodes:
            if node.op in WEIGHTED:
                values = {node.inputs[0]: _there(program, wanted[node.inputs[0]])}
                program.run(node, values)
                errors[node.output] = _db(wanted[node.output], values[node.output].cpu().numpy())
    return errors


# --- figures ------------------------------------------------------------------------------------------------


def _rows(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return values.reshape(-1, values.shape[-1]).astype(np.float64)


def _db(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    signal, noise = (float(np.square(values, dtype=np.float64).mean()) for values in (wanted, wanted - found))
    return min(BEST_DB, float(10 * np.log10((signal + EPSILON) / noise))) if noise > 0 else BEST_DB


def _shift(wanted: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    means = _rows(found - wanted).mean(0)
    return float(np.sqrt(np.square(means).mean() / (np.square(wanted, dtype=np.float64).mean() + EPSILON)))


def _widths(values: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.ptp(_rows(values), axis=0))


def unevenness(widths: NDArray[np.float64]) -> float:
    """The widest channel's range over the median's, dead channels left out; 1 where there is no range."""
    alive = widths[widths > 0]
    return float(alive.max() / np.median(alive)) if len(alive) else 1.0


def weight_widths(graph: Graph, name: str) -> NDArray[np.float64]:
    """Largest absolute weight per output channel of the node that computes `name`; empty without weights."""
    node = graph.producers()[name]
    if node.op not in WEIGHTED:
        return np.empty(0)
    return weight_peaks(graph, node, channel_axis(node))


def activation_widths(graph: Graph, images: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Range of every channel of every computed tensor over all images."""
    return {
        name: _widths(values) for name, values in values_of(graph, images).items() if name not in graph.inputs
    }


def worst(reports: list[LayerReport], count: int = 5) -> list[LayerReport]:
    """The nodes that lose most by themselves, worst first."""
    return sorted(reports, key=lambda report: report.alone_db)[:count]
