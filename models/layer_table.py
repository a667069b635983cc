"""Networks that are a table of plain layers: what a table may have, and the modules it becomes.

Fully connected layers over a feature map are convolutions as large as the map: the same Mult-Adds and
parameters, and any larger picture runs too. Alpha scales every width, as V1's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.blocks import (
    BLOCKS,
    CLASSIFIERS,
    NETWORKS,
    Layers,
    MobileNet,
    Network,
    Sides,
    make_divisible,
)


@dataclass(frozen=True, slots=True)
class Conv:
    """Convolution with bias, or with a batch norm in its place, and ReLU."""

    channels: int
    kernel: Sides
    stride: int = 1
    padding: Sides = 0
    normed: bool = False
    dilation: int = 1


@dataclass(frozen=True, slots=True)
class Pool:
    """Maximum over a window; `cut` says whether one that the map's edge cuts off counts."""

    kernel: int
    stride: int
    padding: int = 0
    cut: bool = True


@dataclass(frozen=True, slots=True)
class Average:
    """Mean over a window around every pixel, zeros beyond the map's edge among its pixels."""

    kernel: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Dropout."""

    rate: float


@dataclass(frozen=True, slots=True)
class Parallel:
    """Branches of the same input, concatenated."""

    branches: tuple[tuple[Layer, ...], ...]


Layer = Conv | Pool | Average | Drop | Parallel


@dataclass(frozen=True, slots=True)
class TableRow:
    """A whole table of layers as one row of a network."""

    layers: tuple[Layer, ...]
    channels: int
    stride: int


@dataclass(frozen=True, slots=True)
class ClassMaps:
    """SqueezeNet's head: a 1x1 convolution to the classes, rectified before its mean."""

    channels: int = 0


class Concatenated(nn.Module):
    """Branches of the same input, concatenated along the channels. NCHW."""

    def __init__(self, branches: list[nn.Sequential]) -> None:
        """All branches keep height and width equal."""
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Channels of the branches, in order."""
        return torch.cat([branch(x) for branch in self.branches], 1)


class Averaged(nn.Module):
    """Mean of the k x k pixels around each, those beyond the edge 0, as a depthwise convolution. NCHW.

    That is average pooling as the Inception networks have it, in an operator with int8 kernels everywhere.
    """

    weight: Tensor

    def __init__(self, channels: int, kernel: int) -> None:
        """`weight` is a constant: no parameter, and no Mult-Adds in the papers' way of counting."""
        super().__init__()
        self.padding = kernel // 2
        self.register_buffer("weight", torch.full((channels, 1, kernel, kernel), 1 / kernel**2), False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of `x` are kept."""
        return nn.functional.conv2d(x, self.weight, padding=self.padding, groups=x.shape[1])


class ClassMapNetwork(MobileNet):
    """A network whose logits are the means of its classes' maps."""

    def forward(self, x: Tensor) -> Tensor:
        """Features, classifier, global mean."""
        logits: Tensor = self.classifier(self.features(x)).mean((2, 3))
        return logits


def _table(layers: Layers, c_in: int, row: TableRow) -> nn.Module:
    return _sequence(row.layers, c_in, layers)[0]


def _sequence(table: tuple[Layer, ...], channels: int, layers: Layers) -> tuple[nn.Sequential, int]:
    parts = []
    for layer in table:
        part, channels = _MAKERS[type(layer)](layer, channels, layers)
        parts.append(part)
    return nn.Sequential(*parts), channels


def _conv(layer: Conv, channels: int, layers: Layers) -> tuple[nn.Module, int]:
    conv = nn.Conv2d(
        channels,
        layer.channels,
        layer.kernel,
        layer.stride,
        layer.padding,
        layer.dilation,
        bias=not layer.normed,
    )
    norm = [layers.norm(layer.channels)] if layer.normed else []
    return nn.Sequential(conv, *norm, nn.ReLU()), layer.channels


def _pool(layer: Pool, channels: int, layers: Layers) -> tuple[nn.Module, int]:
    cut = layer.stride > 1 and layer.cut
    return nn.MaxPool2d(layer.kernel, layer.stride, layer.padding, ceil_mode=cut), channels


def _average(layer: Average, channels: int, layers: Layers) -> tuple[nn.Module, int]:
    return Averaged(channels, layer.kernel), channels


def _drop(layer: Drop, channels: int, layers: Layers) -> tuple[nn.Module, int]:
    return nn.Dropout(layer.rate), channels


def _parallel(layer: Parallel, channels: int, layers: Layers) -> tuple[nn.Module, int]:
    made = [_sequence(branch, channels, layers) for branch in layer.branches]
    return Concatenated([branch for branch, _ in made]), sum(width for _, width in made)


_MAKERS: dict[type, Callable[..., tuple[nn.Module, int]]] = {
    Conv: _conv,
    Pool: _pool,
    Average: _average,
    Drop: _drop,
    Parallel: _parallel,
}


def _class_maps(
    layers: Layers, c_in: int, hidden: ClassMaps, num_classes: int, dropout: float
) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(dropout), nn.Conv2d(c_in, num_classes, 1), nn.ReLU())


def table_network(
    alpha: float,
    *tables: tuple[Layer, ...],
    smallest: int,
    dropout: float = 0.0,
    hidden: ClassMaps | None = None,
) -> Network:
    """A row a table, every width multiplied by alpha; `smallest` is the least resolution."""
    scaled = [_scaled(table, alpha) for table in tables]
    return Network(
        rows=tuple(TableRow(layers, _width(layers), _stride(layers)) for layers in scaled),
        hidden=hidden,
        dropout=dropout,
        norm_eps=1e-3,
        norm_momentum=0.1,
        padding="torch",
        smallest=smallest,
    )


def _scaled(table: tuple[Layer, ...], alpha: float) -> tuple[Layer, ...]:
    def scaled(layer: Layer) -> Layer:
        if isinstance(layer, Parallel):
            return Parallel(tuple(_scaled(branch, alpha) for branch in layer.branches))
        if isinstance(layer, Conv):
            return replace(layer, channels=make_divisible(layer.channels * alpha))
        return layer

    return tuple(scaled(layer) for layer in table)


def _width(table: tuple[Layer, ...]) -> int:
    """Channels after the last layer that changes their number."""
    last = next(layer for layer in reversed(table) if isinstance(layer, Conv | Parallel))
    return last.channels if isinstance(last, Conv) else sum(_width(branch) for branch in last.branches)


def _stride(table: tuple[Layer, ...]) -> int:
    """Input pixels per output pixel; all branches have the same."""
    steps = (_stride(layer.branches[0]) if isinstance(layer, Parallel) else _step(layer) for layer in table)
    return math.prod(steps)


def _step(layer: Conv | Pool | Average | Drop) -> int:
    return layer.stride if isinstance(layer, Conv | Pool) else 1


BLOCKS[TableRow] = _table
CLASSIFIERS[ClassMaps] = _class_maps
NETWORKS[ClassMaps] = ClassMapNetwork
