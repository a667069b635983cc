"""Mult-Adds and parameters per layer, counted from the papers' tables and never from the module.

One mult-add is one multiply-accumulate of a convolution or fully connected layer (V1 section 3.1). Both
paddings give the same feature map sizes, ceil(size / stride), so the padding does not enter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.blocks import (
    Activation,
    BottleneckRow,
    ConvRow,
    Network,
    Row,
    SeparableRow,
    has_expansion,
    has_shortcut,
)
from models.registry import check_resolution, network
from pipeline.artifacts import AlpharhoError

Shape = tuple[int, int, int]
"""Channels, height, width."""

LAW_TERMS: dict[str, str] = {
    "stem": "linear",
    "depthwise": "linear",
    "pointwise": "quadratic",
    "squeeze_excite": "constant",
    "classifier": "constant",
}
"""Kind of layer to its term of T = c0 + c1 alpha rho^2 + c2 alpha^2 rho^2.

`linear` grows with alpha rho^2, `quadratic` with alpha^2 rho^2 (V1 equation 7); `constant` is free of rho.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """One convolution or fully connected layer. `name` is its module path, `kind` a key of LAW_TERMS."""

    name: str
    kind: str
    in_shape: Shape
    out_shape: Shape
    kernel: int
    stride: int
    macs: int
    weight_params: int  # weights, and bias where there is one
    norm_params: int  # scale and shift of the batch norm that follows, 0 for none

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


@dataclass(frozen=True, slots=True, kw_only=True)
class OpCounts:
    """How many of each operation an exported network has, for an op budget.

    Each squeeze-and-excite is a mean, two 1x1 convolutions, a ReLU, a hard-sigmoid and a multiplication; none
    of them is in the other counts.
    """

    dense_convs: int
    depthwise_convs: int
    residual_adds: int
    squeeze_excites: int
    hard_swishes: int
    fully_connected: int


def cost_of(name: str, alpha: float = 1.0, resolution: int = 224, num_classes: int = 1000) -> Cost:
    """Cost of `models.build(name, alpha, num_classes)` on one `resolution` x `resolution` image.

    AlpharhoError for an unknown name, an alpha outside (0, 2], a resolution below the network's stride.
    """
    check_resolution(name, resolution)
    if num_classes < 1:
        raise AlpharhoError(f"num_classes is {num_classes}; a classifier needs at least 1")
    return Cost(tuple(_layers(network(name, alpha), resolution, num_classes)))


def op_counts(name: str, alpha: float = 1.0) -> OpCounts:
    """Operations of `name` at width `alpha`, from its table. AlpharhoError as `cost_of`."""
    net = network(name, alpha)
    kinds = Counter(layer.kind for layer in _layers(net, net.total_stride, 1))
    blocks = list(zip(_input_channels(net), net.rows, strict=True))
    shortcuts = [isinstance(row, BottleneckRow) and has_shortcut(c_in, row) for c_in, row in blocks]
    return OpCounts(
        dense_convs=kinds["stem"] + kinds["pointwise"],
        depthwise_convs=kinds["depthwise"],
        residual_adds=sum(shortcuts),
        squeeze_excites=kinds["squeeze_excite"] // 2,
        hard_swishes=sum(act is nn.Hardswish for act in _activations(net)),
        fully_connected=kinds["classifier"],
    )


def _layers(net: Network, resolution: int, num_classes: int) -> Iterator[LayerCost]:
    shape: Shape = (3, resolution, resolution)
    for i, row in enumerate(net.rows):
        for layer in _ROW_LAYERS[type(row)](f"features.{i}", shape, row):
            yield layer
            shape = layer.out_shape if layer.kind != "squeeze_excite" else shape
    if net.hidden is None:
        yield _linear("classifier.1", shape[0], num_classes)
        return
    yield _linear("classifier.0", shape[0], net.hidden.channels)
    yield _linear("classifier.3", net.hidden.channels, num_classes)


def _conv_row(path: str, shape: Shape, row: ConvRow) -> Iterator[LayerCost]:
    kind = "stem" if path == "features.0" else "pointwise"
    yield _conv(f"{path}.conv", kind, shape, row.channels, kernel=row.kernel, stride=row.stride)


def _separable_row(path: str, shape: Shape, row: SeparableRow) -> Iterator[LayerCost]:
    depthwise = _depthwise(f"{path}.depthwise.conv", shape, row.kernel, row.stride)
    yield depthwise
    yield _conv(f"{path}.pointwise.conv", "pointwise", depthwise.out_shape, row.channels)


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


_ROW_LAYERS: dict[type, Callable[[str, Shape, Any], Iterator[LayerCost]]] = {
    ConvRow: _conv_row,
    SeparableRow: _separable_row,
    BottleneckRow: _bottleneck_row,
}


def _conv(
    name: str, kind: str, shape: Shape, channels: int, *, kernel: int = 1, stride: int = 1
) -> LayerCost:
    """Dense convolution with batch norm: D_K^2 M N mult-adds per output pixel (V1 equation 2)."""
    return _normed(name, kind, shape, channels, kernel, stride, kernel**2 * shape[0] * channels)


def _depthwise(name: str, shape: Shape, kernel: int, stride: int) -> LayerCost:
    """Depthwise convolution with batch norm: D_K^2 M mult-adds per output pixel (V1 equation 4)."""
    return _normed(name, "depthwise", shape, shape[0], kernel, stride, kernel**2 * shape[0])


def _normed(
    name: str, kind: str, shape: Shape, channels: int, kernel: int, stride: int, weights: int
) -> LayerCost:
    height, width = (math.ceil(size / stride) for size in shape[1:])
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


def _input_channels(net: Network) -> Iterator[int]:
    yield 3
    yield from (row.channels for row in net.rows[:-1])


def _activations(net: Network) -> Iterator[Activation]:
    for c_in, row in zip(_input_channels(net), net.rows, strict=True):
        yield from [row.act] * _activations_of(c_in, row)
    if net.hidden is not None:
        yield net.hidden.act


def _activations_of(c_in: int, row: Row) -> int:
    if isinstance(row, BottleneckRow):
        return 1 + has_expansion(c_in, row)
    return 2 if isinstance(row, SeparableRow) else 1
