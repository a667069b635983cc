"""MobileNet V2 (arXiv:1801.04381). V2 is Table 2 of the paper, row for row."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from models.blocks import Activation, BottleneckRow, ConvRow, Network, Row, make_divisible


class Stage(NamedTuple):
    """One bottleneck row of Table 2; the kernel and squeeze-and-excite are what MnasNet varies."""

    expansion: int  # t: hidden channels = t x input channels
    channels: int  # c: output channels at alpha 1
    repeats: int  # n: blocks in the stage
    stride: int  # s: of the first block; the others use 1
    kernel: int = 3
    squeeze_excite: bool = False  # of a quarter of the block's input inside


class Table(NamedTuple):
    """A network of stages: width of the stem at alpha 1, activation, and its authors' batch norms."""

    stem: int
    stages: tuple[Stage, ...]
    act: Activation
    norm_eps: float
    norm_momentum: float


LAST_CHANNELS = 1280

# fmt: off
V2 = Table(32, (           # output at resolution 224, after a 112x112 stem
    Stage(1,  16, 1, 1),   # 112x112
    Stage(6,  24, 2, 2),   #  56x56
    Stage(6,  32, 3, 2),   #  28x28
    Stage(6,  64, 4, 2),   #  14x14
    Stage(6,  96, 3, 1),   #  14x14
    Stage(6, 160, 3, 2),   #   7x7
    Stage(6, 320, 1, 1),   #   7x7
), nn.ReLU6, norm_eps=1e-5, norm_momentum=0.1)
# fmt: on


def network(alpha: float, table: Table = V2, least_last: float = 1.0) -> Network:
    """`table` at width alpha; the last convolution widens above alpha 1 but never narrows (section 4).

    `least_last` is the alpha below which it does not: 0 narrows it with the rest, as for detection.
    """
    channels = make_divisible(table.stem * alpha)
    rows: list[Row] = [ConvRow(channels, 3, 2, table.act)]
    for stage in table.stages:
        for i in range(stage.repeats):
            row = BottleneckRow(
                kernel=stage.kernel,
                expanded=channels * stage.expansion,
                channels=make_divisible(stage.channels * alpha),
                squeezed=max(1, channels // 4) if stage.squeeze_excite else 0,
                act=table.act,
                stride=stage.stride if i == 0 else 1,
            )
            rows.append(row)
            channels = row.channels
    rows.append(ConvRow(make_divisible(LAST_CHANNELS * max(alpha, least_last)), 1, 1, table.act))
    return Network(
        rows=tuple(rows),
        hidden=None,
        dropout=0.2,
        norm_eps=table.norm_eps,
        norm_momentum=table.norm_momentum,
    )
