"""MobileNet V1 (arXiv:1704.04861). STEM and BLOCKS are Table 1 of the paper, row for row."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from models.blocks import ConvRow, Network, SeparableRow, make_divisible


class Block(NamedTuple):
    """Two rows of Table 1: `Conv dw` with the stride, then the 1x1 `Conv` with the channels at alpha 1."""

    channels: int
    stride: int


# fmt: off
STEM = Block(32, 2)     # input 224x224x3
BLOCKS = (              # input at resolution 224
    Block(  64, 1),     # 112x112x32
    Block( 128, 2),     # 112x112x64
    Block( 128, 1),     #  56x56x128
    Block( 256, 2),     #  56x56x128
    Block( 256, 1),     #  28x28x256
    Block( 512, 2),     #  28x28x256
    Block( 512, 1),     #  14x14x512, five times
    Block( 512, 1),
    Block( 512, 1),
    Block( 512, 1),
    Block( 512, 1),
    Block(1024, 2),     #  14x14x512
    Block(1024, 1),     #   7x7x1024; the paper prints stride 2 but keeps 7x7, its code has 1
)
# fmt: on


def network(alpha: float) -> Network:
    """Table 1 with every width multiplied by alpha. Batch norm eps and dropout as the authors' code."""
    stem = ConvRow(make_divisible(STEM.channels * alpha), 3, STEM.stride, nn.ReLU6)
    blocks = (
        SeparableRow(make_divisible(block.channels * alpha), 3, block.stride, nn.ReLU6) for block in BLOCKS
    )
    return Network(rows=(stem, *blocks), hidden=None, dropout=0.001, norm_eps=1e-3, norm_momentum=0.1)
