"""Mult-Adds and parameters per layer, counted from the papers' tables and never from the module.

One mult-add is one multiply-accumulate of a convolution or fully connected layer (V1 section 3.1). Both
paddings give the same feature map sizes, ceil(size / stride), so the padding does not enter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from models.blocks import (
    BottleneckRow,
    ConvRow,
    HiddenLayer,
    Network,
    SeparableRow,
    Sides,
    both_sides,
    has_expansion,
)
from models.factorised import FlattenedRow, LowRankRow
from models.layer_table import ClassMaps, Conv, Layer, Parallel, Pool, TableRow
from models.micronet_blocks import LastRow, LiteRow, MicroStem, NormedHidden, Place, RegularRow, ShiftMax
from models.registry import check_resolution, network
from pipeline.artifacts import AlpharhoError

Shape = tuple[int, int, int]
"""Channels, height, width."""

LAW_TERMS: dict[str, str] = {
    "stem": "linear",
    "depthwise": "linear",
    "pointwise": "quadratic",
    "squeeze_excite": "constant",
    "shift_max": "constant",
    "classifier": "constant",
}
"""Kind of layer to its term of T = c0 + c1 alpha rho^2 + c2 alpha^2 rho^2.

`linear` grows with alpha rho^2, `quadratic` with alpha^2 rho^2 (V1 equation 7); `constant` is free of rho.
MicroNet's group convolutions are called `quadratic` although they grow with about alpha^1.5.
"""


ONE_PIXEL = frozenset({"squeeze_excite", "shift_max"})
"""Kinds of layers that see the channels' means and leave the feature map's shape alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One convolution or fully connected layer. `name` is its module path, `kind` a key of LAW_TERMS."""

    name: str
    kind: str
    in_shape: Shape
    out_shape: Shape
    kernel: Sides
    stride: Sides
    macs: int
    weight_params: int  # weights, and bias where there is one
    norm_params: int  # scale and shift of the batch norm that follows, 0 for none
    multiplies: int = 0  # of feature maps by the coefficients that this layer computes; not Mult-Adds

    @property
    def params(self) -> int:
        """Trainable parameters, batch norm included."""
        return self.weight_params + self.norm_params


@dataclass(frozen=True, slots=True)
class Cost:
    """Every layer in execution order, and their sums."""

    layers: tuple[LayerCost, ...]

    @property
    def macs(self) -> int:
        """Mult-Adds of one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def params(self) -> int:
        """Trainable parameters, batch norm included."""
        return sum(layer.params for layer in self.layers)

    @property
    def weight_params(self) -> int:
        """Parameters once the batch norms are dropped: the count of the authors' V2 table."""
        return sum(layer.weight_params for layer in self.layers)

    @property
    def multiplies(self) -> int:
        """Multiplications of feature maps by computed coefficients; MicroNet's paper adds them to `macs`."""
        return sum(layer.multiplies for layer in self.layers)

    def macs_by_kind(self) -> dict[str, int]:
        """Mult-Adds of every kind in LAW_TERMS."""
        totals = Counter({layer.kind: 0 for layer in self.layers})
        for layer in self.layers:
            totals[layer.kind] += layer.macs
        return {kind: totals[kind] for kind in LAW_TERMS}

    def macs_by_term(self) -> dict[str, int]:
        """Mult-Adds of every term of the law: `linear`, `quadratic`, `constant`."""
        terms = dict.fromkeys(LAW_TERMS.values(), 0)
        for kind, macs in self.macs_by_kind().items():
            terms[LAW_TERMS[kind]] += macs
        return terms


def cost_of(name: str, alpha: float = 1.0, resolution: int = 224, num_classes: int = 1000) -> Cost:
    """Cost of `models.build(name, alpha, num_classes)` on one `resolution` x `resolution` image.

    AlpharhoError for an unknown name, an alpha outside (0, 2], a resolution below the network's stride.
    """
    check_resolution(name, resolution)
    if num_classes < 1:
        raise AlpharhoError(f"num_classes is {num_classes}; a classifier needs at least 1")
    return network_cost(network(name, alpha), resolution, num_classes)


def network_cost(net: Network, resolution: int = 224, num_classes: int = 1000) -> Cost:
    """Cost of a network that need not have a name, on one `resolution` x `resolution` image."""
    return Cost(tuple(_layers(net, resolution, num_classes)))


def _layers(net: Network, resolution: int, num_classes: int) -> Iterator[LayerCost]:
    shape: Shape = (3, resolution, resolution)
    for i, row in enumerate(net.rows):
        if isinstance(row, TableRow):
            found, shape = table_layers(f"features.{i}", shape, row.layers)
            yield from found
            continue
        for layer in _ROW_LAYERS[type(row)](f"features.{i}", shape, row):
            yield layer
            shape = layer.out_shape if layer.kind not in ONE_PIXEL else shape
    yield from _HEAD_LAYERS[type(net.hidden)](shape, net.hidden, num_classes)


def table_layers(path: str, shape: Shape, table: tuple[Layer, ...]) -> tuple[list[LayerCost], Shape]:
    """The convolutions of a table of layers, and the shape of what comes out of it."""
    found: list[LayerCost] = []
    for i, layer in enumerate(table):
        if isinstance(layer, Parallel):
            names = [f"{path}.{i}.branches.{b}" for b in range(len(layer.branches))]
            made = [
                table_layers(name, shape, branch) for name, branch in zip(names, layer.branches, strict=True)
            ]
            found += [each for layers, _ in made for each in layers]
            shape = (sum(after[0] for _, after in made), *made[0][1][1:])
        if isinstance(layer, Conv):
            found.append(_table_conv(f"{path}.{i}.0", shape, layer))
            shape = found[-1].out_shape
        if isinstance(layer, Pool):
            shape = (shape[0], _pooled(shape[1], layer), _pooled(shape[2], layer))
    return found, shape


def _table_conv(path: str, shape: Shape, layer: Conv) -> LayerCost:
    kind = "stem" if shape[0] == 3 else "pointwise"
    kernel, padding = both_sides(layer.kernel), both_sides(layer.padding)
    reach = [layer.dilation * (side - 1) for side in kernel]
    height, width = (
        (size + 2 * pad - far - 1) // layer.stride + 1
        for size, pad, far in zip(shape[1:], padding, reach, strict=True)
    )
    weights = math.prod(kernel) * shape[0] * layer.channels
    made = _normed(path, kind, shape, layer.channels, layer.kernel, layer.stride, weights)
    out, bias = (layer.channels, height, width), 0 if layer.normed else layer.channels
    norms = made.norm_params if layer.normed else 0
    sized = replace(made, out_shape=out, macs=weights * height * width)
    return replace(sized, weight_params=weights + bias, norm_params=norms)


def _pooled(size: int, layer: Pool) -> int:
    """Windows that begin in the map or the padding before it; a cut one counts if the layer says so."""
    free = size + 2 * layer.padding - layer.kernel
    count = (math.ceil if layer.cut else math.floor)(free / layer.stride) + 1
    return count - int((count - 1) * layer.stride >= size + layer.padding)


def _plain_head(shape: Shape, hidden: None, num_classes: int) -> Iterator[LayerCost]:
    yield _linear("classifier.1", shape[0], num_classes)


def _class_map_head(shape: Shape, hidden: ClassMaps, num_classes: int) -> Iterator[LayerCost]:
    yield _table_conv("classifier.1", shape, Conv(num_classes, 1))


def _hidden_head(shape: Shape, hidden: HiddenLayer, num_classes: int) -> Iterator[LayerCost]:
    yield _linear("classifier.0", shape[0], hidden.channels)
    yield _linear("classifier.3", hidden.channels, num_classes)


def _normed_head(shape: Shape, hidden: NormedHidden, num_classes: int) -> Iterator[LayerCost]:
    widen = _linear("classifier.1", shape[0], hidden.channels)
    logits = _linear("classifier.5", hidden.channels, num_classes)
    for layer in (widen, logits):
        yield replace(layer, norm_params=2 * layer.out_shape[0])


_HEAD_LAYERS: dict[type, Callable[[Shape, Any, int], Iterator[LayerCost]]] = {
    type(None): _plain_head,
    ClassMaps: _class_map_head,
    HiddenLayer: _hidden_head,
    NormedHidden: _normed_head,
}


def _conv_row(path: str, shape: Shape, row: ConvRow) -> Iterator[LayerCost]:
    kind = "stem" if path == "features.0" else "pointwise"
    yield _conv(f"{path}.conv", kind, shape, row.channels, kernel=row.kernel, stride=row.stride)


def _separable_row(path: str, shape: Shape, row: SeparableRow) -> Iterator[LayerCost]:
    depthwise = _depthwise(f"{path}.depthwise.conv", shape, row.kernel, row.stride)
    yield depthwise
    yield _conv(f"{path}.pointwise.conv", "pointwise", depthwise.out_shape, row.channels)


def _flattened_row(path: str, shape: Shape, row: FlattenedRow) -> Iterator[LayerCost]:
    yield from (pair := _depthwise_pair(path, shape, row.kernel, row.stride, (1, 1)))
    yield _conv(f"{path}.pointwise.conv", "pointwise", pair[-1].out_shape, row.channels)


def _low_rank_row(path: str, shape: Shape, row: LowRankRow) -> Iterator[LayerCost]:
    depthwise = _depthwise(f"{path}.depthwise.conv", shape, row.kernel, row.stride)
    yield depthwise
    reduce = _conv(f"{path}.pointwise.reduce.conv", "pointwise", depthwise.out_shape, row.rank)
    yield reduce
    yield _conv(f"{path}.pointwise.expand.conv", "pointwise", reduce.out_shape, row.channels)


def _bottleneck_row(path: str, shape: Shape, row: BottleneckRow) -> Iterator[LayerCost]:
    if has_expansion(shape[0], row):
        expand = _conv(f"{path}.expand.conv", "pointwise", shape, row.expanded)
        yield expand
        shape = expand.out_shape
    depthwise = _depthwise(f"{path}.depthwise.conv", shape, row.kernel, row.stride)
    yield depthwise
    if row.squeezed:
        yield _gate(f"{path}.squeeze_excite.reduce", row.expanded, row.squeezed)
        yield _gate(f"{path}.squeeze_excite.expand", row.squeezed, row.expanded)
    yield _conv(f"{path}.project.conv", "pointwise", depthwise.out_shape, row.channels)


def _micro_stem(path: str, shape: Shape, row: MicroStem) -> Iterator[LayerCost]:
    kernel, stride = row.kernel, row.stride
    vertical = _conv(
        f"{path}.vertical.conv", "stem", shape, row.inner, kernel=(kernel, 1), stride=(stride, 1)
    )
    yield vertical
    yield _grouped(
        f"{path}.horizontal.conv",
        "stem",
        vertical.out_shape,
        row.channels,
        kernel=(1, kernel),
        stride=(1, stride),
        groups=row.inner,
    )


def _lite_row(path: str, shape: Shape, row: LiteRow) -> Iterator[LayerCost]:
    yield from (pair := _depthwise_pair(path, shape, row.kernel, row.stride, row.factors))
    shape = pair[-1].out_shape
    yield from _place(f"{path}.wide", shape, row.wide)
    squeeze = _grouped(f"{path}.squeeze.conv", "pointwise", shape, row.channels, groups=row.squeeze_groups)
    yield squeeze
    yield from _place(f"{path}.narrow", squeeze.out_shape, row.narrow)


def _regular_row(path: str, shape: Shape, row: RegularRow) -> Iterator[LayerCost]:
    expand = _grouped(f"{path}.expand.conv", "pointwise", shape, row.expanded, groups=row.expand_groups)
    yield expand
    shape = expand.out_shape
    yield from _place(f"{path}.first", shape, row.first)
    depthwise = (
        _depthwise_pair(path, shape, row.kernel, row.stride, (1, 1))
        if row.factorised
        else (_depthwise(f"{path}.depthwise.conv", shape, row.kernel, row.stride),)
    )
    yield from depthwise
    shape = depthwise[-1].out_shape
    yield from _place(f"{path}.wide", shape, row.wide)
    squeeze = _grouped(f"{path}.squeeze.conv", "pointwise", shape, row.channels, groups=row.squeeze_groups)
    yield squeeze
    yield from _place(f"{path}.narrow", squeeze.out_shape, row.narrow)


def _last_row(path: str, shape: Shape, row: LastRow) -> Iterator[LayerCost]:
    expand = _grouped(f"{path}.expand.conv", "pointwise", shape, row.channels, groups=row.groups)
    yield expand
    yield from _place(f"{path}.act", expand.out_shape, row.act)


def _depthwise_pair(
    path: str, shape: Shape, kernel: int, stride: int, factors: tuple[int, int]
) -> tuple[LayerCost, LayerCost]:
    vertical = _grouped(
        f"{path}.depthwise.vertical.conv",
        "depthwise",
        shape,
        shape[0] * factors[0],
        kernel=(kernel, 1),
        stride=(stride, 1),
        groups=shape[0],
    )
    middle = vertical.out_shape
    horizontal = _grouped(
        f"{path}.depthwise.horizontal.conv",
        "depthwise",
        middle,
        middle[0] * factors[1],
        kernel=(1, kernel),
        stride=(1, stride),
        groups=middle[0],
    )
    return vertical, horizontal


def _place(path: str, shape: Shape, place: Place) -> Iterator[LayerCost]:
    """The coefficients of a Shift-Max, with their generator if any, and the multiplications by them."""
    if not isinstance(place, ShiftMax):
        return
    coefficients = place.sums * place.copies
    multiplies = coefficients * math.prod(shape)
    if not place.squeezed:
        trained = _pixel(path, "shift_max", 0, coefficients * shape[0])
        yield replace(trained, multiplies=multiplies)
        return
    yield _pixel(f"{path}.reduce", "shift_max", shape[0], place.squeezed)
    expand = _pixel(f"{path}.expand", "shift_max", place.squeezed, coefficients * shape[0])
    yield replace(expand, multiplies=multiplies)


_ROW_LAYERS: dict[type, Callable[[str, Shape, Any], Iterator[LayerCost]]] = {
    ConvRow: _conv_row,
    SeparableRow: _separable_row,
    FlattenedRow: _flattened_row,
    LowRankRow: _low_rank_row,
    BottleneckRow: _bottleneck_row,
    MicroStem: _micro_stem,
    LiteRow: _lite_row,
    RegularRow: _regular_row,
    LastRow: _last_row,
}


def _conv(
    name: str, kind: str, shape: Shape, channels: int, *, kernel: Sides = 1, stride: Sides = 1
) -> LayerCost:
    """Dense convolution with batch norm: D_K^2 M N mult-adds per output pixel (V1 equation 2)."""
    return _grouped(name, kind, shape, channels, kernel=kernel, stride=stride, groups=1)


def _grouped(
    name: str,
    kind: str,
    shape: Shape,
    channels: int,
    *,
    kernel: Sides = 1,
    stride: Sides = 1,
    groups: int,
) -> LayerCost:
    """Convolution in groups, with batch norm: every output sees M / G inputs."""
    weights = math.prod(both_sides(kernel)) * shape[0] * channels // groups
    return _normed(name, kind, shape, channels, kernel, stride, weights)


def _depthwise(name: str, shape: Shape, kernel: int, stride: int) -> LayerCost:
    """Depthwise convolution with batch norm: D_K^2 M mult-adds per output pixel (V1 equation 4)."""
    return _normed(name, "depthwise", shape, shape[0], kernel, stride, kernel**2 * shape[0])


def _normed(
    name: str, kind: str, shape: Shape, channels: int, kernel: Sides, stride: Sides, weights: int
) -> LayerCost:
    height, width = (math.ceil(size / step) for size, step in zip(shape[1:], both_sides(stride), strict=True))
    return LayerCost(
        name=name,
        kind=kind,
        in_shape=shape,
        out_shape=(channels, height, width),
        kernel=kernel,
        stride=stride,
        macs=weights * height * width,
        weight_params=weights,
        norm_params=2 * channels,
    )


def _gate(name: str, c_in: int, c_out: int) -> LayerCost:
    """1x1 convolution of squeeze-and-excite: one pixel, a bias, no batch norm."""
    return _pixel(name, "squeeze_excite", c_in, c_out)


def _linear(name: str, c_in: int, c_out: int) -> LayerCost:
    return _pixel(name, "classifier", c_in, c_out)


def _pixel(name: str, kind: str, c_in: int, c_out: int) -> LayerCost:
    return LayerCost(
        name=name,
        kind=kind,
        in_shape=(c_in, 1, 1),
        out_shape=(c_out, 1, 1),
        kernel=1,
        stride=1,
        macs=c_in * c_out,
        weight_params=c_in * c_out + c_out,
        norm_params=0,
    )
