"""Inception V2 (arXiv:1502.03167, with a plain 7x7 stem) and V3 (arXiv:1512.00567), without auxiliary heads.

V2 is in three parts, cut where detectors take its maps: Mixed_4c, Mixed_4e, Mixed_5c.
"""

from __future__ import annotations

from functools import partial

from models.layer_table import Average, Conv, Layer, Parallel, Pool

_conv = partial(Conv, normed=True)
_same = partial(Conv, kernel=3, padding=1, normed=True)
_halved = partial(Conv, kernel=3, stride=2, normed=True)
_wide = partial(Conv, kernel=(1, 7), padding=(0, 3), normed=True)
_tall = partial(Conv, kernel=(7, 1), padding=(3, 0), normed=True)
_halve = partial(Pool, 3, 2, cut=False)
_MEAN, _MAXIMUM = Average(3), Pool(3, 1, 1)

Branch = tuple[Layer, ...]


def _mixed(one: int, three: tuple[int, int], twice: tuple[int, int], pool: Layer, pooled: int) -> Parallel:
    """V2's module at stride 1; `twice` is the branch of two 3x3 convolutions."""
    return Parallel(
        (
            (_conv(one, 1),),
            (_conv(three[0], 1), _same(three[1])),
            (_conv(twice[0], 1), _same(twice[1]), _same(twice[1])),
            (pool, _conv(pooled, 1)),
        )
    )


def _mixed_halved(three: tuple[int, int], twice: tuple[int, int]) -> Parallel:
    """V2's module at stride 2, whose pooling branch has no convolution."""
    halved = partial(_halved, padding=1)
    return Parallel(
        (
            (_conv(three[0], 1), halved(three[1])),
            (_conv(twice[0], 1), _same(twice[1]), halved(twice[1])),
            (_halve(padding=1),),
        )
    )


def _block_35(pooled: int) -> Parallel:
    """V3 on 35x35, Figure 5 with the first module's 5x5 kept."""
    twice = (_conv(64, 1), _same(96), _same(96))
    return Parallel(((_conv(64, 1),), (_conv(48, 1), _conv(64, 5, 1, 2)), twice, (_MEAN, _conv(pooled, 1))))


def _block_17(inner: int) -> Parallel:
    """V3 on 17x17, Figure 6: 7x7 convolutions as 1x7 and 7x1."""
    once = (_conv(inner, 1), _wide(inner), _tall(192))
    twice = (_conv(inner, 1), _tall(inner), _wide(inner), _tall(inner), _wide(192))
    return Parallel(((_conv(192, 1),), once, twice, (_MEAN, _conv(192, 1))))


def _block_8() -> Parallel:
    """V3 on 8x8, Figure 7: 1x3 and 3x1 side by side."""
    both = Parallel(
        (
            (_conv(384, (1, 3), padding=(0, 1)),),
            (_conv(384, (3, 1), padding=(1, 0)),),
        )
    )
    twice = (_conv(448, 1), _same(384), both)
    return Parallel(((_conv(320, 1),), (_conv(384, 1), both), twice, (_MEAN, _conv(192, 1))))


_TO_17 = Parallel(((_halved(384),), (_conv(64, 1), _same(96), _halved(96)), (_halve(),)))
_TO_8 = Parallel(
    (
        (_conv(192, 1), _halved(320)),
        (_conv(192, 1), _wide(192), _tall(192), _halved(192)),
        (_halve(),),
    )
)

# fmt: off
V2: tuple[Branch, Branch, Branch] = ((                            # input at resolution 224
    _conv(64, 7, 2, 3), _halve(padding=1),                            # 112x112, 56x56
    _conv(64, 1), _same(192), _halve(padding=1),                      #  28x28x192
    _mixed( 64, ( 64,  64), ( 64,  96), _MEAN,  32),              #  28x28x256   3b
    _mixed( 64, ( 64,  96), ( 64,  96), _MEAN,  64),              #  28x28x320   3c
    _mixed_halved((128, 160), ( 64,  96)),                        #  14x14x576   4a
    _mixed(224, ( 64,  96), ( 96, 128), _MEAN, 128),              #              4b
    _mixed(192, ( 96, 128), ( 96, 128), _MEAN, 128),              #              4c
), (
    _mixed(160, (128, 160), (128, 160), _MEAN,  96),              #              4d
    _mixed( 96, (128, 192), (160, 192), _MEAN,  96),              #              4e
), (
    _mixed_halved((128, 192), (192, 256)),                        #   7x7x1024   5a
    _mixed(352, (192, 320), (160, 224), _MEAN, 128),              #              5b
    _mixed(352, (192, 320), (192, 224), _MAXIMUM, 128),           #              5c
))

V3: Branch = (                                                    # input at resolution 299, Table 1
    _halved(32), _conv(32, 3), _same(64), _halve(),             # 149x149, 147x147, 73x73
    _conv(80, 1), _conv(192, 3), _halve(),                      #  71x71, 35x35
    _block_35(32), _block_35(64), _block_35(64), _TO_17,          #  35x35, 17x17
    _block_17(128), _block_17(160), _block_17(160), _block_17(192), _TO_8,
    _block_8(), _block_8(),                                       #   8x8x2048
)
# fmt: on
