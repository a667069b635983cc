"""How many of each operation an exported network has, counted from the papers' tables: its op budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from models.blocks import (
    Activation,
    BottleneckRow,
    ConvRow,
    HiddenLayer,
    MobileNet,
    Network,
    SeparableRow,
    has_expansion,
    has_shortcut,
)
from models.cost import network_cost
from models.deploy import LoweredShiftMax, deployed
from models.layer_table import Average, Layer, Parallel, TableRow
from models.micronet_blocks import LiteRow, MicroStem, NormedHidden, RegularRow, ShiftMax
from models.registry import network


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCounts:
    """How many of each operation an exported network has, for an op budget.

    Each squeeze-and-excite is a mean, two 1x1 convolutions, a ReLU, a hard-sigmoid and a multiplication; none
    of them is in the other counts. Nor is what a Dynamic Shift-Max consists of. A convolution in groups that
    is not depthwise is among the dense ones, which `models.deploy` makes of it.
    """

    dense_convs: int
    depthwise_convs: int
    residual_adds: int
    squeeze_excites: int
    hard_swishes: int
    fully_connected: int
    shift_maxes: int


def op_counts(name: str, alpha: float = 1.0) -> OpCounts:
    """Operations of `name` at width `alpha`, from its table. AlpharhoError as `cost.cost_of`."""
    net = network(name, alpha)
    kinds = Counter(layer.kind for layer in network_cost(net, net.least_resolution, 1).layers)
    blocks = list(zip(_input_channels(net), net.rows, strict=True))
    with_shortcut = BottleneckRow | LiteRow | RegularRow
    shortcuts = [isinstance(row, with_shortcut) and has_shortcut(c_in, row) for c_in, row in blocks]
    return OpCounts(
        dense_convs=kinds["stem"] + kinds["pointwise"],
        depthwise_convs=kinds["depthwise"] + sum(_averages(row.layers) for row in _table_rows(net)),
        residual_adds=sum(shortcuts),
        squeeze_excites=kinds["squeeze_excite"] // 2,
        hard_swishes=sum(act is nn.Hardswish for act in _activations(net)),
        fully_connected=kinds["classifier"],
        shift_maxes=sum(1 for _ in _shift_maxes(net)),
    )


def _table_rows(net: Network) -> Iterator[TableRow]:
    yield from (row for row in net.rows if isinstance(row, TableRow))


def _averages(table: tuple[Layer, ...]) -> int:
    """Poolings by mean, each a depthwise convolution of constants."""
    inner = (branch for layer in table if isinstance(layer, Parallel) for branch in layer.branches)
    return sum(isinstance(layer, Average) for layer in table) + sum(map(_averages, inner))


def deployed_ops(name: str, alpha: float = 1.0) -> dict[str, int]:
    """What an exported network has beside its `op_counts`, by TFLite's names; nothing but for a MicroNet.

    Each Shift-Max has KJ coefficients, which a generator of a mean and KJ + 1 convolutions makes and KJ
    depthwise ones scale unless they are constants, and the sums of equation 4, whose maximum adds a rectified
    difference. How many convolutions and slices make the shifted maps is for `models.deploy` to choose;
    `joined_parts` says which slices are joined. AlpharhoError as `cost.cost_of`.
    """
    net = network(name, alpha)
    if not isinstance(net.rows[0], MicroStem):
        return {}
    ops = Counter[str]()
    for place in _shift_maxes(net):
        dynamic = place.squeezed > 0
        ops.update(MEAN=int(dynamic))
        ops.update(ADD=place.sums * (place.copies - 1) + place.sums - 1)
        ops.update(SUB=dynamic * place.copies * (place.sums > 1) + max(place.sums - 2, 0))
    made, counts = _deployed(name, alpha), op_counts(name, alpha)
    convs = [part for part in made.modules() if isinstance(part, nn.Conv2d)]
    depthwise = sum(conv.groups == conv.in_channels > 1 for conv in convs)
    ops.update(CONV_2D=len(convs) - depthwise - counts.dense_convs)
    ops.update(DEPTHWISE_CONV_2D=depthwise - counts.depthwise_convs)
    for part in _lowered(made):
        ops.update(MUL=part.spec.sums * part.spec.copies)
        ops.update(SLICE=len({piece for pieces in part.pieces for piece in pieces}))
    return {op: count for op, count in ops.items() if count}


def joined_parts(name: str, alpha: float = 1.0) -> tuple[int, ...]:
    """Of how many slices each shifted map of an exported network consists; AlpharhoError as `cost_of`."""
    if not isinstance(network(name, alpha).rows[0], MicroStem):
        return ()
    return tuple(len(pieces) for part in _lowered(_deployed(name, alpha)) for pieces in part.pieces)


@lru_cache(maxsize=1)
def _deployed(name: str, alpha: float) -> nn.Module:
    """The network as it is exported; the last one is kept, since its budget asks for it twice."""
    return deployed(MobileNet(network(name, alpha), 1, "tf", 0.0))


def _lowered(made: nn.Module) -> list[LoweredShiftMax]:
    return [part for part in made.modules() if isinstance(part, LoweredShiftMax)]


def _shift_maxes(net: Network) -> Iterator[ShiftMax]:
    """Every Dynamic Shift-Max in order."""
    for row in net.rows:
        places = (getattr(row, field, None) for field in ("first", "wide", "narrow", "act"))
        yield from (place for place in places if isinstance(place, ShiftMax))


def _input_channels(net: Network) -> Iterator[int]:
    yield 3
    yield from (row.channels for row in net.rows[:-1])


def _activations(net: Network) -> Iterator[Activation]:
    for c_in, row in zip(_input_channels(net), net.rows, strict=True):
        if isinstance(row, ConvRow | SeparableRow | BottleneckRow):
            yield from [row.act] * _activations_of(c_in, row)
    if isinstance(net.hidden, HiddenLayer):
        yield net.hidden.act
    if isinstance(net.hidden, NormedHidden):
        yield from [nn.Hardswish] * 3


def _activations_of(c_in: int, row: ConvRow | SeparableRow | BottleneckRow) -> int:
    if isinstance(row, BottleneckRow):
        return 1 + has_expansion(c_in, row)
    return 2 if isinstance(row, SeparableRow) else 1
