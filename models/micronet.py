"""MicroNet (arXiv:2108.05894). M0 to M3 are Table 1, cut into rows where the authors' code cuts it.

The paper's last expansion of one Micro-Block and the depthwise convolution and squeeze of the next are one
row here, because the shortcuts go from squeezed to squeezed output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from models.blocks import Network, Row, make_divisible
from models.micronet_blocks import (
    Clamp,
    LastRow,
    Linear,
    LiteRow,
    MicroStem,
    NormedHidden,
    Place,
    RegularRow,
    ShiftMax,
    squeezed_width,
)


class Stem(NamedTuple):
    """k x 1 convolution to `inner` channels, 1 x k to `inner * ratio`; alpha scales `inner`."""

    kernel: int
    inner: int
    ratio: int


class Micro(NamedTuple):
    """A row at alpha 1. `expand_groups` 0 is the lite combination, whose depthwise pair widens four times."""

    stride: int
    channels: int
    kernel: int
    expand_groups: int
    squeeze_groups: int
    reduction: int  # of the coefficient generators: their inner width is that of the channels / 8 / reduction


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Sums of Dynamic Shift-Max at the three places of a row, 0 for none, and its initial coefficients."""

    first: int
    wide: int
    narrow: int
    initial: tuple[tuple[float, float], ...]
    lite_first_wide: int  # of the first row, which the authors treat apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One network at alpha 1, and what of it an ablation may change."""

    stem: Stem
    rows: tuple[Micro, ...]
    expansion: int
    last_groups: int
    hidden: int
    dropout: float
    places: Activations
    activation: str = "shift_max"
    copies: int = 2  # J of Shift-Max
    rectified: bool = False  # whether a ReLU follows where K = 1, as long as the place is not a squeeze's
    depthwise: str = "factorised"
    pointwise: str = "factorised"
    lite: str = "low"


ACTIVATIONS = ("relu", "dynamic_relu", "static_shift_max", "shift_max")
"""ReLU6 and nothing after a squeeze; J = 1; coefficients trained; coefficients from the input."""

DEPTHWISE: dict[str, bool] = {"factorised": True, "full": False}
"""Name to whether the regular rows' depthwise convolutions are factorised; the lite rows' always are."""

POINTWISE: dict[str, bool] = {"factorised": True, "full": False}
"""Name to whether squeezes and expansions have groups."""

LITE: dict[str, bool] = {"low": True, "nowhere": False}
"""Name to whether the first rows are lite; where not, they expand as all others do, in one group."""

IDENTITY = Activations(first=2, wide=2, narrow=1, initial=((1.0, 0.0), (1.0, 0.0)), lite_first_wide=0)
WIDE_ONLY = Activations(first=0, wide=2, narrow=0, initial=((1.0, 0.0), (0.5, 0.5)), lite_first_wide=2)

# fmt: off
M0 = Table(stem=Stem(3, 2, 2), rows=(    # input at resolution 224
    Micro(2,   8, 3,  0,  2, 1),         # 112x112x4
    Micro(2,  12, 3,  0,  4, 1),         #  56x56x8
    Micro(2,  16, 5,  0,  4, 1),         #  28x28x12
    Micro(1,  32, 5,  4,  4, 1),         #  14x14x16
    Micro(2,  64, 5,  8,  8, 1),         #  14x14x32
    Micro(1,  96, 3,  8,  8, 2),         #   7x7x64
), expansion=4, last_groups=12, hidden=640, dropout=0.05, places=IDENTITY)

M1 = Table(stem=Stem(3, 3, 2), rows=(
    Micro(2,   8, 3,  0,  2, 1),         # 112x112x6
    Micro(2,  16, 3,  0,  4, 1),         #  56x56x8
    Micro(2,  16, 5,  0,  4, 1),         #  28x28x16
    Micro(1,  32, 5,  4,  4, 1),         #  14x14x16
    Micro(2,  64, 5,  8,  8, 1),         #  14x14x32
    Micro(1,  96, 3,  8,  8, 2),         #   7x7x64
), expansion=6, last_groups=12, hidden=960, dropout=0.05, places=IDENTITY)

M2 = Table(stem=Stem(3, 4, 2), rows=(
    Micro(2,  12, 3,  0,  4, 1),         # 112x112x8
    Micro(2,  16, 3,  0,  4, 1),         #  56x56x12
    Micro(1,  24, 3,  0,  4, 1),         #  28x28x16
    Micro(2,  32, 5,  6,  4, 1),         #  28x28x24
    Micro(1,  32, 5,  8,  4, 2),         #  14x14x32
    Micro(1,  64, 5,  8,  8, 2),         #  14x14x32
    Micro(2,  96, 5,  8,  8, 2),         #  14x14x64
    Micro(1, 128, 3, 12,  8, 2),         #   7x7x96
), expansion=6, last_groups=16, hidden=1024, dropout=0.1, places=IDENTITY)

M3 = Table(stem=Stem(3, 4, 3), rows=(
    Micro(2,  16, 3,  0,  4, 1),         # 112x112x12
    Micro(2,  24, 3,  0,  4, 1),         #  56x56x16
    Micro(1,  24, 3,  0,  4, 1),         #  28x28x24
    Micro(2,  32, 5,  6,  4, 1),         #  28x28x24
    Micro(1,  32, 5,  8,  4, 2),         #  14x14x32; the paper prints kernel 3, its code has 5
    Micro(1,  64, 5,  8,  8, 2),         #  14x14x32
    Micro(1,  80, 5,  8,  8, 2),         #  14x14x64
    Micro(1,  80, 5, 10,  8, 2),         #  14x14x80
    Micro(2, 120, 5, 10, 10, 2),         #  14x14x80
    Micro(1, 120, 5, 12, 10, 2),         #   7x7x120; the paper prints kernel 3, its code has 5
    Micro(1, 144, 3, 12, 12, 2),         #   7x7x120
), expansion=6, last_groups=12, hidden=1024, dropout=0.1, places=WIDE_ONLY)
# fmt: on

LITE_FACTORS = (2, 2)
LAST_REDUCTION = 2


def network(alpha: float, table: Table) -> Network:
    """`table` at width alpha: squeezed widths are scaled, groups follow them as G1 G2 = C / R asks.

    The hidden layer widens above alpha 1 and never narrows, as V3's.
    """
    stem, lite = _stem(alpha, table), LITE[table.lite]
    widths = [stem.channels, *(_width(row.channels, alpha) for row in table.rows)]
    groups = tuple(_groups(table, widths))
    rows: list[Row] = [stem]
    for i, (row, (c_in, channels)) in enumerate(zip(table.rows, pairwise(widths), strict=True)):
        if row.expand_groups or not lite:
            before = groups[i - 1][1] if i else 1
            rows.append(_regular(table, row, c_in, channels, (before, groups[i][0])))
        else:
            wide = table.places.wide if i else table.places.lite_first_wide
            rows.append(_lite(table, row, c_in, channels, groups[i][0], wide))
    rows.append(_last(table, widths[-1], groups[-1][1]))
    hidden = NormedHidden(make_divisible(table.hidden * max(alpha, 1.0)))
    return Network(rows=tuple(rows), hidden=hidden, dropout=table.dropout, norm_eps=1e-5, norm_momentum=0.1)


def _stem(alpha: float, table: Table) -> MicroStem:
    """Widths that the shuffles and the shift of the rows after it can divide, at every alpha."""
    kernel, inner, ratio = table.stem
    step = 4 if table.places.lite_first_wide else 1
    scaled = inner if alpha == 1 else make_divisible(inner * alpha, step)
    return MicroStem(channels=scaled * ratio, inner=scaled, kernel=kernel, stride=2)


def _width(channels: int, alpha: float) -> int:
    return make_divisible(channels * alpha, 4 if channels < 32 else 8)


def _groups(table: Table, widths: list[int]) -> Iterator[tuple[int, int]]:
    """Per row, the groups of its squeeze and of the expansion that follows (of a lite row: 1)."""
    following = [row.expand_groups for row in table.rows[1:]] + [table.last_groups]
    for row, expand_groups, (c_in, channels) in zip(table.rows, following, pairwise(widths), strict=True):
        if not POINTWISE[table.pointwise]:
            yield 1, 1
            continue
        expansion = table.expansion if row.expand_groups else math.prod(LITE_FACTORS)
        allowed = math.gcd(channels, c_in * expansion)
        if not expand_groups:
            yield math.gcd(row.squeeze_groups, allowed), 1
            continue
        wanted = math.log(row.squeeze_groups / expand_groups)
        divisors = [group for group in range(1, allowed + 1) if allowed % group == 0]
        squeeze = min(divisors, key=lambda group: abs(math.log(group * group / channels) - wanted))
        yield squeeze, channels // squeeze


def _lite(table: Table, row: Micro, c_in: int, channels: int, squeeze_groups: int, sums: int) -> LiteRow:
    expanded = c_in * math.prod(LITE_FACTORS)
    return LiteRow(
        channels=channels,
        kernel=row.kernel,
        stride=row.stride,
        factors=LITE_FACTORS,
        squeeze_groups=squeeze_groups,
        wide=_place(table, sums, expanded, c_in, 8 * row.reduction) or Clamp(),
        narrow=_narrow(table, channels, squeeze_groups, 4 * row.reduction),
    )


def _regular(table: Table, row: Micro, c_in: int, channels: int, groups: tuple[int, int]) -> RegularRow:
    places, expanded = table.places, c_in * table.expansion
    before, squeeze_groups = groups
    reduction = 4 if channels < expanded else 8
    return RegularRow(
        channels=channels,
        expanded=expanded,
        kernel=row.kernel,
        stride=row.stride,
        expand_groups=before,
        squeeze_groups=squeeze_groups,
        factorised=DEPTHWISE[table.depthwise],
        first=_place(table, places.first, expanded, before, 8 * row.reduction) or Clamp(),
        wide=_place(table, places.wide, expanded, expanded // before, 8 * row.reduction) or Clamp(),
        narrow=_narrow(table, channels, squeeze_groups, reduction * row.reduction),
    )


def _last(table: Table, c_in: int, groups: int) -> LastRow:
    channels = c_in * table.expansion
    return LastRow(channels=channels, groups=groups, act=_narrow(table, channels, groups, 8 * LAST_REDUCTION))


def _narrow(table: Table, channels: int, groups: int, reduction: int) -> Place:
    """What follows a squeeze or the last expansion: linear, or a Shift-Max that is never rectified."""
    linear = replace(table, rectified=False)
    return _place(linear, table.places.narrow, channels, groups, reduction) or Linear()


def _place(table: Table, sums: int, channels: int, groups: int, reduction: int) -> Place | None:
    if not sums or table.activation == "relu":
        return None
    copies = 1 if table.activation == "dynamic_relu" else table.copies
    given = table.places.initial
    rows = (given[min(k, len(given) - 1)] for k in range(sums))
    initial = tuple((*row, *[0.0] * copies)[:copies] for row in rows)
    dynamic = table.activation != "static_shift_max"
    squeezed = squeezed_width(channels, reduction) if dynamic else 0
    rectified = sums == 1 and table.rectified
    return ShiftMax(groups=groups, squeezed=squeezed, initial=initial, rectified=rectified)


def _placed(first: int, wide: int, narrow: int, copies: int = 2) -> Table:
    """M2 with K sums at the three places of its rows, 0 for ReLU6 or nothing, of J copies."""
    places = replace(IDENTITY, first=first, wide=wide, narrow=narrow)
    return replace(M2, places=places, copies=copies)


MOBILENET = replace(M2, activation="relu", depthwise="full", pointwise="full", lite="nowhere")

ABLATIONS: dict[str, Table] = {
    "mobilenet": MOBILENET,
    "dw": replace(MOBILENET, depthwise="factorised"),
    "dw_pw": replace(M2, activation="relu", lite="nowhere"),
    "relu": replace(M2, activation="relu"),
    "dynamic_relu": replace(M2, activation="dynamic_relu"),
    "static_shift_max": replace(M2, activation="static_shift_max"),
    "after_depthwise": _placed(0, 2, 0),
    "after_squeeze": _placed(0, 0, 1),
    "after_expand": _placed(2, 0, 0),
    "after_depthwise_and_squeeze": _placed(0, 2, 1),
    "after_depthwise_and_expand": _placed(2, 2, 0),
    "after_squeeze_and_expand": _placed(2, 0, 1),
    "se_relu": replace(_placed(1, 1, 1, copies=1), rectified=True),
    "j2_k1": replace(_placed(1, 1, 1), rectified=True),
    "j2_k3": _placed(3, 3, 1),
    "j3_k2": _placed(2, 2, 1, copies=3),
    "j3_k3": _placed(3, 3, 1, copies=3),
}
"""Variants of M2, as the rows of the paper's Tables 2, 4, 5 and 6; registered as `micronet_m2_<name>`."""
