"""The networks that the papers compare MobileNets with, as tables: AlexNet, SqueezeNet, GoogLeNet, VGG-16.

And two of MobileNet V1's own: with full convolutions (its Table 4) and without its five equal blocks (Table
5). Fully connected layers over a feature map are convolutions as large as the map: the same Mult-Adds and
parameters, and any larger picture runs too. Alpha scales every width, as V1's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from models import mobilenet_v1
from models.blocks import (
    BLOCKS,
    CLASSIFIERS,
    NETWORKS,
    ConvRow,
    Layers,
    MobileNet,
    Network,
    SeparableRow,
    make_divisible,
)


@dataclass(frozen=True, slots=True)
class Conv:
    """Convolution with bias, or with a batch norm in its place, and ReLU."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    normed: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """Maximum over a window; a window that the map's edge cuts off counts."""

    kernel: int
    stride: int
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Drop:
    """Dropout."""

    rate: float


@dataclass(frozen=True, slots=True)
class Parallel:
    """Branches of the same input, concatenated."""

    branches: tuple[tuple[Layer, ...], ...]


Layer = Conv | Pool | Drop | Parallel


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


def fire(squeezed: int, expanded: int) -> tuple[Layer, ...]:
    """SqueezeNet's module (arXiv:1602.07360, Figure 1)."""
    return Conv(squeezed, 1), Parallel(((Conv(expanded, 1),), (Conv(expanded, 3, padding=1),)))


def inception(
    one: int, three: tuple[int, int], five: tuple[int, int], pooled: int, kernel: int = 3
) -> Parallel:
    """GoogLeNet's module (arXiv:1409.4842, Figure 2b); `kernel` is that of its 5x5 branch."""
    conv = partial(Conv, normed=True)
    return Parallel(
        (
            (conv(one, 1),),
            (conv(three[0], 1), conv(three[1], 3, padding=1)),
            (conv(five[0], 1), conv(five[1], kernel, padding=kernel // 2)),
            (Pool(3, 1, 1), conv(pooled, 1)),
        )
    )


# fmt: off
ALEXNET: tuple[Layer, ...] = (                                        # arXiv:1404.5997, one tower
    Conv(64, 11, 4, 2), Pool(3, 2), Conv(192, 5, 1, 2), Pool(3, 2),
    Conv(384, 3, 1, 1), Conv(256, 3, 1, 1), Conv(256, 3, 1, 1), Pool(3, 2),
    Drop(0.5), Conv(4096, 6), Drop(0.5), Conv(4096, 1),
)

VGG16: tuple[Layer, ...] = (                                          # arXiv:1409.1556, Table 1 column D
    *(Conv(64, 3, 1, 1),) * 2, Pool(2, 2),
    *(Conv(128, 3, 1, 1),) * 2, Pool(2, 2),
    *(Conv(256, 3, 1, 1),) * 3, Pool(2, 2),
    *(Conv(512, 3, 1, 1),) * 3, Pool(2, 2),
    *(Conv(512, 3, 1, 1),) * 3, Pool(2, 2),
    Conv(4096, 7), Drop(0.5), Conv(4096, 1),
)

SQUEEZENET: tuple[Layer, ...] = (                                     # version 1.0, Table 1
    Conv(96, 7, 2), Pool(3, 2),
    *fire(16, 64), *fire(16, 64), *fire(32, 128), Pool(3, 2),
    *fire(32, 128), *fire(48, 192), *fire(48, 192), *fire(64, 256), Pool(3, 2),
    *fire(64, 256),
)

GOOGLENET: tuple[Layer, ...] = (                                      # Table 1, with batch norm
    Conv(64, 7, 2, 3, normed=True), Pool(3, 2),
    Conv(64, 1, normed=True), Conv(192, 3, 1, 1, normed=True), Pool(3, 2),
    inception( 64, ( 96, 128), (16,  32),  32),
    inception(128, (128, 192), (32,  96),  64), Pool(3, 2),
    inception(192, ( 96, 208), (16,  48),  64),
    inception(160, (112, 224), (24,  64),  64),
    inception(128, (128, 256), (24,  64),  64),
    inception(112, (144, 288), (32,  64),  64),
    inception(256, (160, 320), (32, 128), 128), Pool(2, 2),
    inception(256, (160, 320), (32, 128), 128),
    inception(384, (192, 384), (48, 128), 128),
)
# fmt: on


class Concatenated(nn.Module):
    """Branches of the same input, concatenated along the channels. NCHW."""

    def __init__(self, branches: list[nn.Sequential]) -> None:
        """All branches keep height and width equal."""
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Channels of the branches, in order."""
        return torch.cat([branch(x) for branch in self.branches], 1)


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
        channels, layer.channels, layer.kernel, layer.stride, layer.padding, bias=not layer.normed
    )
    norm = [layers.norm(layer.channels)] if layer.normed else []
    return nn.Sequential(conv, *norm, nn.ReLU()), layer.channels


def _pool(layer: Pool, channels: int, layers: Layers) -> tuple[nn.Module, int]:
    return nn.MaxPool2d(layer.kernel, layer.stride, layer.padding, ceil_mode=layer.stride > 1), channels


def _drop(layer: Drop, channels: int, layers: Layers) -> tuple[nn.Module, int]:
    return nn.Dropout(layer.rate), channels


def _parallel(layer: Parallel, channels: int, layers: Layers) -> tuple[nn.Module, int]:
    made = [_sequence(branch, channels, layers) for branch in layer.branches]
    return Concatenated([branch for branch, _ in made]), sum(width for _, width in made)


_MAKERS: dict[type, Callable[..., tuple[nn.Module, int]]] = {
    Conv: _conv,
    Pool: _pool,
    Drop: _drop,
    Parallel: _parallel,
}


def _class_maps(
    layers: Layers, c_in: int, hidden: ClassMaps, num_classes: int, dropout: float
) -> nn.Sequential:
    return nn.Sequential(nn.Dropout(dropout), nn.Conv2d(c_in, num_classes, 1), nn.ReLU())


def table_network(
    alpha: float, table: tuple[Layer, ...], smallest: int, dropout: float, hidden: ClassMaps | None = None
) -> Network:
    """A table of layers with every width multiplied by alpha; `smallest` is the least resolution."""
    layers = _scaled(table, alpha)
    row = TableRow(layers, _width(layers), _stride(layers))
    return Network(
        rows=(row,),
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
    return math.prod(layer.stride for layer in table if isinstance(layer, Conv | Pool))


def full_convolutions(alpha: float = 1.0) -> Network:
    """MobileNet V1 with a 3x3 convolution in place of every separable one."""
    net = mobilenet_v1.network(alpha)
    rows = (
        ConvRow(row.channels, row.kernel, row.stride, row.act) if isinstance(row, SeparableRow) else row
        for row in net.rows
    )
    return replace(net, rows=tuple(rows))


def shallow(alpha: float = 1.0) -> Network:
    """MobileNet V1 without the five separable layers of 14x14x512."""
    net = mobilenet_v1.network(alpha)
    return replace(net, rows=(*net.rows[:7], *net.rows[12:]))


COMPARATORS: dict[str, Callable[[float], Network]] = {
    "alexnet": partial(table_network, table=ALEXNET, smallest=224, dropout=0.0),
    "squeezenet": partial(table_network, table=SQUEEZENET, smallest=32, dropout=0.5, hidden=ClassMaps()),
    "googlenet": partial(table_network, table=GOOGLENET, smallest=32, dropout=0.2),
    "vgg16": partial(table_network, table=VGG16, smallest=224, dropout=0.5),
    "v1_full_conv": full_convolutions,
    "v1_shallow": shallow,
}

BLOCKS[TableRow] = _table
CLASSIFIERS[ClassMaps] = _class_maps
NETWORKS[ClassMaps] = ClassMapNetwork
