"""The networks that the papers compare MobileNets with, as tables: AlexNet, SqueezeNet, GoogLeNet, VGG-16.

And two of MobileNet V1's own: with full convolutions (its Table 4) and without its five equal blocks (Table
5). Fully connected layers over a feature map are convolutions as large as the map: the same Mult-Adds and
parameters, and any larger picture runs too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from models import mobilenet_v1
from models.blocks import ConvRow, MobileNet, Network, SeparableRow
from pipeline.artifacts import AlpharhoError


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
class Mean:
    """Mean over height and width, which stay as axes of one."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Dropout."""

    rate: float


@dataclass(frozen=True, slots=True)
class Parallel:
    """Branches of the same input, concatenated."""

    branches: tuple[tuple[Layer, ...], ...]


Layer = Conv | Pool | Mean | Drop | Parallel


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
    Conv(4096, 7), Drop(0.5), Conv(4096, 1), Drop(0.5),
)

SQUEEZENET: tuple[Layer, ...] = (                                     # version 1.0, Table 1
    Conv(96, 7, 2), Pool(3, 2),
    *fire(16, 64), *fire(16, 64), *fire(32, 128), Pool(3, 2),
    *fire(32, 128), *fire(48, 192), *fire(48, 192), *fire(64, 256), Pool(3, 2),
    *fire(64, 256), Drop(0.5),
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
    Mean(), Drop(0.2),
)
# fmt: on

RESOLUTION = 224


class Concatenated(nn.Module):
    """Branches of the same input, concatenated along the channels. NCHW."""

    def __init__(self, branches: list[nn.Sequential]) -> None:
        """All branches keep height and width equal."""
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Channels of the branches, in order."""
        return torch.cat([branch(x) for branch in self.branches], 1)


class GlobalMean(nn.Module):
    """Mean over height and width. `[N, C, H, W]` to `[N, C, 1, 1]`."""

    def forward(self, x: Tensor) -> Tensor:
        """Dtype is kept."""
        return x.mean((2, 3), keepdim=True)


class Comparator(nn.Module):
    """Layers of a table, then a 1x1 convolution to the classes: [N, 3, H, W] to [N, num_classes]."""

    def __init__(self, table: tuple[Layer, ...], num_classes: int) -> None:
        """Weights are He-initialised from torch's global generator, biases zero."""
        super().__init__()
        self.features, channels = _sequence(table, 3)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Logits are the mean over what the convolutions leave of height and width."""
        logits: Tensor = self.classifier(self.features(x)).mean((2, 3))
        return logits


class RectifiedComparator(Comparator):
    """SqueezeNet rectifies the maps of the classes before their mean."""

    def forward(self, x: Tensor) -> Tensor:
        """As Comparator."""
        logits: Tensor = torch.relu(self.classifier(self.features(x))).mean((2, 3))
        return logits


def _sequence(table: tuple[Layer, ...], channels: int) -> tuple[nn.Sequential, int]:
    parts = []
    for layer in table:
        part, channels = _MAKERS[type(layer)](layer, channels)
        parts.append(part)
    return nn.Sequential(*parts), channels


def _conv(layer: Conv, channels: int) -> tuple[nn.Module, int]:
    conv = nn.Conv2d(
        channels, layer.channels, layer.kernel, layer.stride, layer.padding, bias=not layer.normed
    )
    norm = [nn.BatchNorm2d(layer.channels, eps=1e-3)] if layer.normed else []
    return nn.Sequential(conv, *norm, nn.ReLU()), layer.channels


def _pool(layer: Pool, channels: int) -> tuple[nn.Module, int]:
    return nn.MaxPool2d(layer.kernel, layer.stride, layer.padding, ceil_mode=layer.stride > 1), channels


def _mean(layer: Mean, channels: int) -> tuple[nn.Module, int]:
    return GlobalMean(), channels


def _drop(layer: Drop, channels: int) -> tuple[nn.Module, int]:
    return nn.Dropout(layer.rate), channels


def _parallel(layer: Parallel, channels: int) -> tuple[nn.Module, int]:
    made = [_sequence(branch, channels) for branch in layer.branches]
    return Concatenated([branch for branch, _ in made]), sum(width for _, width in made)


_MAKERS: dict[type, Callable[..., tuple[nn.Module, int]]] = {
    Conv: _conv,
    Pool: _pool,
    Mean: _mean,
    Drop: _drop,
    Parallel: _parallel,
}


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


COMPARATORS: dict[str, Callable[[int], nn.Module]] = {
    "alexnet": partial(Comparator, ALEXNET),
    "squeezenet": partial(RectifiedComparator, SQUEEZENET),
    "googlenet": partial(Comparator, GOOGLENET),
    "vgg16": partial(Comparator, VGG16),
    "v1_full_conv": lambda classes: MobileNet(full_convolutions(), classes, "tf", 0.001),
    "v1_shallow": lambda classes: MobileNet(shallow(), classes, "tf", 0.001),
}


def build(name: str, num_classes: int = 1000) -> nn.Module:
    """A network of COMPARATORS: float32 `[N, 3, H, W]` in, logits `[N, num_classes]` out, H and W >= 224.

    SqueezeNet, GoogLeNet and V1's variants take smaller pictures too. AlpharhoError for an unknown name or no
    classes.
    """
    if name not in COMPARATORS:
        raise AlpharhoError(f"unknown comparator {name!r}; choose one of {', '.join(COMPARATORS)}")
    if num_classes < 1:
        raise AlpharhoError(f"num_classes is {num_classes}; a classifier needs at least 1")
    return COMPARATORS[name](num_classes)


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            module.bias.zero_()
