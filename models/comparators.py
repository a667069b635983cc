"""The networks that V1's paper compares with, as tables: AlexNet, SqueezeNet, GoogLeNet, VGG-16, Inception.

And two of MobileNet V1's own: with full convolutions (its Table 4) and without its five equal blocks (Table
5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from models import inception, mobilenet_v1
from models.blocks import ConvRow, Network, SeparableRow
from models.layer_table import ClassMaps, Conv, Drop, Layer, Parallel, Pool, table_network


def fire(squeezed: int, expanded: int) -> tuple[Layer, ...]:
    """SqueezeNet's module (arXiv:1602.07360, Figure 1)."""
    return Conv(squeezed, 1), Parallel(((Conv(expanded, 1),), (Conv(expanded, 3, padding=1),)))


def module(one: int, three: tuple[int, int], five: tuple[int, int], pooled: int, kernel: int = 3) -> Parallel:
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

VGG16_CONV4: tuple[Layer, ...] = (                                    # arXiv:1409.1556, Table 1 column D
    *(Conv(64, 3, 1, 1),) * 2, Pool(2, 2),
    *(Conv(128, 3, 1, 1),) * 2, Pool(2, 2),
    *(Conv(256, 3, 1, 1),) * 3, Pool(2, 2),
    *(Conv(512, 3, 1, 1),) * 3,
)
VGG16_CONV5: tuple[Layer, ...] = (Pool(2, 2), *(Conv(512, 3, 1, 1),) * 3)
VGG16_FULL: tuple[Layer, ...] = (Pool(2, 2), Conv(4096, 7), Drop(0.5), Conv(4096, 1))
VGG16_ATROUS: tuple[Layer, ...] = (                                   # 3x3 of the 7x7 (arXiv:1412.7062)
    Pool(3, 1, 1), Conv(1024, 3, 1, 6, dilation=6), Conv(1024, 1),
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
    module( 64, ( 96, 128), (16,  32),  32),
    module(128, (128, 192), (32,  96),  64), Pool(3, 2),
    module(192, ( 96, 208), (16,  48),  64),
    module(160, (112, 224), (24,  64),  64),
    module(128, (128, 256), (24,  64),  64),
    module(112, (144, 288), (32,  64),  64),
    module(256, (160, 320), (32, 128), 128), Pool(2, 2),
    module(256, (160, 320), (32, 128), 128),
    module(384, (192, 384), (48, 128), 128),
)
# fmt: on


def _tables(
    *tables: tuple[Layer, ...], smallest: int, dropout: float = 0.0, hidden: ClassMaps | None = None
) -> Callable[[float], Network]:
    """The network of these tables at any alpha."""
    return lambda alpha: table_network(alpha, *tables, smallest=smallest, dropout=dropout, hidden=hidden)


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
    "alexnet": _tables(ALEXNET, smallest=224),
    "squeezenet": _tables(SQUEEZENET, smallest=32, dropout=0.5, hidden=ClassMaps()),
    "googlenet": _tables(GOOGLENET, smallest=32, dropout=0.2),
    "inception_v2": _tables(*inception.V2, smallest=32, dropout=0.2),
    "inception_v3": _tables(inception.V3, smallest=75, dropout=0.5),
    "vgg16": _tables(VGG16_CONV4, VGG16_CONV5, VGG16_FULL, smallest=224, dropout=0.5),
    "vgg16_atrous": _tables(VGG16_CONV4, VGG16_CONV5, VGG16_ATROUS, smallest=32, dropout=0.5),
    "v1_full_conv": full_convolutions,
    "v1_shallow": shallow,
}
