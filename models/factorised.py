"""MobileNet V1 with its two convolutions factorised further, as networks that its paper compares with do.

`flattened` cuts the depthwise convolution in two, k x 1 and 1 x k (flattened networks, arXiv:1412.5474);
`low_rank` the pointwise one, to r channels and from them to all (low rank expansions, arXiv:1405.3866).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import nn

from models import mobilenet_v1
from models.blocks import (
    BLOCKS,
    Activation,
    ConvNormAct,
    Layers,
    Network,
    Row,
    SeparableRow,
    make_divisible,
)

RANK_DIVISOR = 4  # r = M / 4: half the Mult-Adds where M = N, 3/8 where N = 2M


@dataclass(frozen=True, slots=True)
class FlattenedRow:
    """A separable block whose depthwise convolution is spatially separable: k x 1, then 1 x k."""

    channels: int
    kernel: int
    stride: int
    act: Activation


@dataclass(frozen=True, slots=True)
class LowRankRow:
    """A separable block whose pointwise convolution goes through `rank` channels, without an activation."""

    channels: int
    kernel: int
    stride: int
    rank: int
    act: Activation


class FlattenedSeparable(nn.Sequential):
    """`depthwise` of `vertical` and `horizontal`, then `pointwise`. NCHW."""

    def __init__(self, layers: Layers, c_in: int, row: FlattenedRow) -> None:
        """The k x 1 convolution has the vertical stride, the 1 x k the horizontal one and the activation."""
        k, s = row.kernel, row.stride
        vertical = ConvNormAct(layers, c_in, c_in, kernel=(k, 1), stride=(s, 1), groups=c_in)
        horizontal = ConvNormAct(layers, c_in, c_in, kernel=(1, k), stride=(1, s), groups=c_in, act=row.act)
        depthwise = nn.Sequential(OrderedDict(vertical=vertical, horizontal=horizontal))
        pointwise = ConvNormAct(layers, c_in, row.channels, act=row.act)
        super().__init__(OrderedDict(depthwise=depthwise, pointwise=pointwise))


class LowRankSeparable(nn.Sequential):
    """`depthwise`, then `pointwise` of `reduce` and `expand`. NCHW."""

    def __init__(self, layers: Layers, c_in: int, row: LowRankRow) -> None:
        """`row.channels` is the width after the block."""
        depthwise = ConvNormAct(
            layers, c_in, c_in, kernel=row.kernel, stride=row.stride, groups=c_in, act=row.act
        )
        reduce = ConvNormAct(layers, c_in, row.rank)
        expand = ConvNormAct(layers, row.rank, row.channels, act=row.act)
        pointwise = nn.Sequential(OrderedDict(reduce=reduce, expand=expand))
        super().__init__(OrderedDict(depthwise=depthwise, pointwise=pointwise))


def flattened(alpha: float) -> Network:
    """V1 with every 3x3 depthwise convolution as 3x1 and 1x3."""
    net = mobilenet_v1.network(alpha)
    return replace(net, rows=tuple(_flattened(row) for row in net.rows))


def low_rank(alpha: float) -> Network:
    """V1 with every pointwise convolution of rank M / 4."""
    net = mobilenet_v1.network(alpha)
    widths = [3, *(row.channels for row in net.rows)]
    rows = (_low_rank(row, c_in) for row, (c_in, _) in zip(net.rows, pairwise(widths), strict=True))
    return replace(net, rows=tuple(rows))


def _flattened(row: Row) -> Row:
    if not isinstance(row, SeparableRow):
        return row
    return FlattenedRow(row.channels, row.kernel, row.stride, row.act)


def _low_rank(row: Row, c_in: int) -> Row:
    if not isinstance(row, SeparableRow):
        return row
    return LowRankRow(row.channels, row.kernel, row.stride, make_divisible(c_in / RANK_DIVISOR), row.act)


BLOCKS.update({FlattenedRow: FlattenedSeparable, LowRankRow: LowRankSeparable})
