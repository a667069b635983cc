"""MobileNet V2 (arXiv:1801.04381). STAGES is Table 2 of the paper, row for row."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from models.blocks import BottleneckRow, ConvRow, Network, Row, make_divisible


class Stage(NamedTuple):
    """One bottleneck row of Table 2."""

    expansion: int  # t: hidden channels = t x input channels
    channels: int  # c: output channels at alpha 1
    repeats: int  # n: blocks in the stage
    stride: int  # s: of the first block; the others use 1


STEM_CHANNELS, LAST_CHANNELS = 32, 1280

# fmt: off
STAGES = (                 # output at resolution 224, after a 112x112 stem
    Stage(1,  16, 1, 1),   # 112x112
    Stage(6,  24, 2, 2),   #  56x56
    Stage(6,  32, 3, 2),   #  28x28
    Stage(6,  64, 4, 2),   #  14x14
    Stage(6,  96, 3, 1),   #  14x14
    Stage(6, 160, 3, 2),   #   7x7
    Stage(6, 320, 1, 1),   #   7x7
)
# fmt: on


def network(alpha: float, least_last: float = 1.0) -> Network:
    """Table 2 at width alpha; the last convolution widens above alpha 1 but never narrows (section 4).

    `least_last` is the alpha below which it does not: 0 narrows it with the rest, as for detection.
    """
    channels = make_divisible(STEM_CHANNELS * alpha)
    rows: list[Row] = [ConvRow(channels, 3, 2, nn.ReLU6)]
    for stage in STAGES:
        for i in range(stage.repeats):
            row = BottleneckRow(
                kernel=3,
                expanded=channels * stage.expansion,
                channels=make_divisible(stage.channels * alpha),
                squeezed=0,
                act=nn.ReLU6,
                stride=stage.stride if i == 0 else 1,
            )
            rows.append(row)
            channels = row.channels
    rows.append(ConvRow(make_divisible(LAST_CHANNELS * max(alpha, least_last)), 1, 1, nn.ReLU6))
    return Network(rows=tuple(rows), hidden=None, dropout=0.2, norm_eps=1e-5, norm_momentum=0.1)
