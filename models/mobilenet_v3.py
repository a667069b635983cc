"""MobileNet V3 (arXiv:1905.02244). LARGE and SMALL are the bneck rows of Tables 1 and 2, row for row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from models.blocks import Activation, BottleneckRow, ConvRow, HiddenLayer, Network, Row, make_divisible


class Bneck(NamedTuple):
    """One bneck row; channels at alpha 1."""

    kernel: int
    expanded: int
    channels: int
    squeeze_excite: bool
    act: Activation
    stride: int


class Table(NamedTuple):
    """One of the paper's two networks; channels at alpha 1."""

    stem_act: Activation  # conv2d 3x3, 16 channels, stride 2
    bnecks: tuple[Bneck, ...]
    last: int  # conv2d 1x1 after the bnecks
    hidden: int  # conv2d 1x1 NBN after the pool
    head_act: Activation


STEM_CHANNELS = 16
RE, HS = nn.ReLU, nn.Hardswish
SE, __ = True, False

# fmt: off
LARGE = Table(HS, (                    # input at resolution 224
    Bneck(3,  16,  16, __, RE, 1),     # 112x112x16
    Bneck(3,  64,  24, __, RE, 2),     # 112x112x16
    Bneck(3,  72,  24, __, RE, 1),     #  56x56x24
    Bneck(5,  72,  40, SE, RE, 2),     #  56x56x24
    Bneck(5, 120,  40, SE, RE, 1),     #  28x28x40
    Bneck(5, 120,  40, SE, RE, 1),     #  28x28x40
    Bneck(3, 240,  80, __, HS, 2),     #  28x28x40
    Bneck(3, 200,  80, __, HS, 1),     #  14x14x80
    Bneck(3, 184,  80, __, HS, 1),     #  14x14x80
    Bneck(3, 184,  80, __, HS, 1),     #  14x14x80
    Bneck(3, 480, 112, SE, HS, 1),     #  14x14x80
    Bneck(3, 672, 112, SE, HS, 1),     #  14x14x112
    Bneck(5, 672, 160, SE, HS, 2),     #  14x14x112
    Bneck(5, 960, 160, SE, HS, 1),     #   7x7x160
    Bneck(5, 960, 160, SE, HS, 1),     #   7x7x160
), 960, 1280, HS)

SMALL = Table(HS, (                    # input at resolution 224
    Bneck(3,  16,  16, SE, RE, 2),     # 112x112x16
    Bneck(3,  72,  24, __, RE, 2),     #  56x56x16
    Bneck(3,  88,  24, __, RE, 1),     #  28x28x24
    Bneck(5,  96,  40, SE, HS, 2),     #  28x28x24
    Bneck(5, 240,  40, SE, HS, 1),     #  14x14x40
    Bneck(5, 240,  40, SE, HS, 1),     #  14x14x40
    Bneck(5, 120,  48, SE, HS, 1),     #  14x14x40
    Bneck(5, 144,  48, SE, HS, 1),     #  14x14x48
    Bneck(5, 288,  96, SE, HS, 2),     #  14x14x48
    Bneck(5, 576,  96, SE, HS, 1),     #   7x7x96
    Bneck(5, 576,  96, SE, HS, 1),     #   7x7x96
), 576, 1024, HS)  # the paper prints SE on the 576 and a 1280; the released networks have no SE and 1024
# fmt: on


def minimalistic(table: Table) -> Table:
    """The authors' variant for hardware without the newer ops: no squeeze-and-excite, 3x3 kernels, ReLU."""
    bnecks = tuple(row._replace(kernel=3, squeeze_excite=False, act=RE) for row in table.bnecks)
    return table._replace(stem_act=RE, bnecks=bnecks, head_act=RE)


def halved(table: Table) -> Table:
    """Half the channels after the last map of stride 16, whose expansion is kept (section 6.3)."""
    first = max(i for i, row in enumerate(table.bnecks) if row.stride == 2)
    kept, (last_stage, *rest) = table.bnecks[:first], table.bnecks[first:]
    narrow = [row._replace(expanded=row.expanded // 2, channels=row.channels // 2) for row in rest]
    bnecks = (*kept, last_stage._replace(channels=last_stage.channels // 2), *narrow)
    return table._replace(bnecks=bnecks, last=table.last // 2)


def network(alpha: float, table: Table) -> Network:
    """`table` at width alpha; the hidden layer widens above alpha 1, as the authors do, but never narrows."""
    stem = ConvRow(make_divisible(STEM_CHANNELS * alpha), 3, 2, table.stem_act)
    last = ConvRow(make_divisible(table.last * alpha), 1, 1, table.head_act)
    hidden = HiddenLayer(make_divisible(table.hidden * max(alpha, 1.0)), table.head_act)
    rows: tuple[Row, ...] = (stem, *_bottlenecks(alpha, table), last)
    return Network(rows=rows, hidden=hidden, dropout=0.2, norm_eps=1e-3, norm_momentum=0.01)


def _bottlenecks(alpha: float, table: Table) -> Iterator[BottleneckRow]:
    """Expanded widths keep the table's ratio to the block's rounded input width, as in the authors' code."""
    printed, channels = STEM_CHANNELS, make_divisible(STEM_CHANNELS * alpha)
    for row in table.bnecks:
        expanded = make_divisible(channels * row.expanded / printed)
        printed, channels = row.channels, make_divisible(row.channels * alpha)
        yield BottleneckRow(
            kernel=row.kernel,
            expanded=expanded,
            channels=channels,
            squeezed=make_divisible(expanded / 4) if row.squeeze_excite else 0,
            act=row.act,
            stride=row.stride,
        )
