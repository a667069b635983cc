"""MnasNet (arXiv:1807.11626), which V3's paper compares with: A1 of its Figure 7, and the small one.

The gate of squeeze-and-excite is V3's hard-sigmoid here, which costs what a sigmoid does in Mult-Adds.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from models.blocks import BottleneckRow, ConvRow, Network, Row, make_divisible


class Stage(NamedTuple):
    """Equal blocks; the inner width of squeeze-and-excite is a quarter of the block's input, or nothing."""

    expansion: int
    channels: int
    repeats: int
    stride: int  # of the first block
    kernel: int
    squeeze_excite: bool


class Table(NamedTuple):
    """Width of the stem, and the stages."""

    stem: int
    stages: tuple[Stage, ...]


LAST_CHANNELS = 1280
SE, __ = True, False

# fmt: off
A1 = Table(32, (                     # output at resolution 224, after a 112x112 stem
    Stage(1,  16, 1, 1, 3, __),      # 112x112
    Stage(6,  24, 2, 2, 3, __),      #  56x56
    Stage(3,  40, 3, 2, 5, SE),      #  28x28
    Stage(6,  80, 4, 2, 3, __),      #  14x14
    Stage(6, 112, 2, 1, 3, SE),      #  14x14
    Stage(6, 160, 3, 2, 5, SE),      #   7x7
    Stage(6, 320, 1, 1, 3, __),      #   7x7
))

SMALL = Table(8, (
    Stage(1,   8, 1, 1, 3, __),      # 112x112
    Stage(3,  16, 1, 2, 3, __),      #  56x56
    Stage(6,  16, 2, 2, 3, __),      #  28x28
    Stage(6,  32, 4, 2, 5, SE),      #  14x14
    Stage(6,  32, 3, 1, 3, SE),      #  14x14
    Stage(6,  88, 3, 2, 5, SE),      #   7x7
    Stage(6, 144, 1, 1, 3, __),      #   7x7
))
# fmt: on


def network(alpha: float, table: Table, least_last: float = 1.0) -> Network:
    """`table` at width alpha; the last convolution is as V2's."""
    channels = make_divisible(table.stem * alpha)
    rows: list[Row] = [ConvRow(channels, 3, 2, nn.ReLU)]
    for stage in table.stages:
        for i in range(stage.repeats):
            row = BottleneckRow(
                kernel=stage.kernel,
                expanded=channels * stage.expansion,
                channels=make_divisible(stage.channels * alpha),
                squeezed=max(1, channels // 4) if stage.squeeze_excite else 0,
                act=nn.ReLU,
                stride=stage.stride if i == 0 else 1,
            )
            rows.append(row)
            channels = row.channels
    rows.append(ConvRow(make_divisible(LAST_CHANNELS * max(alpha, least_last)), 1, 1, nn.ReLU))
    return Network(rows=tuple(rows), hidden=None, dropout=0.2, norm_eps=1e-3, norm_momentum=0.01)
