"""MnasNet (arXiv:1807.11626), which V3's paper compares with: A1 of its Figure 7, and the small one.

Tables of V2's inverted residuals, for `mobilenet_v2.network`. The gate of squeeze-and-excite is V3's
hard-sigmoid here, which costs what a sigmoid does in Mult-Adds.
"""

from __future__ import annotations

from torch import nn

from models.mobilenet_v2 import Stage, Table

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
), nn.ReLU, norm_eps=1e-3, norm_momentum=0.01)

SMALL = Table(8, (
    Stage(1,   8, 1, 1, 3, __),      # 112x112
    Stage(3,  16, 1, 2, 3, __),      #  56x56
    Stage(6,  16, 2, 2, 3, __),      #  28x28
    Stage(6,  32, 4, 2, 5, SE),      #  14x14
    Stage(6,  32, 3, 1, 3, SE),      #  14x14
    Stage(6,  88, 3, 2, 5, SE),      #   7x7
    Stage(6, 144, 1, 1, 3, __),      #   7x7
), nn.ReLU, norm_eps=1e-3, norm_momentum=0.01)
# fmt: on
