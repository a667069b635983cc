"""What MicroNets are made of (arXiv:2108.05894): factorised convolutions, shuffles and Dynamic Shift-Max.

Channel orders are those of the authors' code. `models.deploy` gives the same function without a shuffle.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import BLOCKS, CLASSIFIERS, ConvNormAct, Layers, has_shortcut, make_divisible

COEFFICIENT_RANGE = 2.0  # a coefficient is its initial value plus at most this, minus at most this


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftMax:
    """Dynamic Shift-Max, equation 4: the maximum of K sums over J shifted copies of the channels.

    `initial[k][j]` is the coefficient that an untrained layer gives the j-th copy in the k-th sum. J = 1 is
    dynamic ReLU, J = K = 1 squeeze-and-excite. `squeezed` is the inner width of the coefficients' generator;
    0 means none: static Shift-Max, whose coefficients are trained. `rectified`: a ReLU
    follows, as in the ablations of K = 1.
    """

    groups: int
    squeezed: int
    initial: tuple[tuple[float, ...], ...]
    rectified: bool = False

    @property
    def sums(self) -> int:
        """K."""
        return len(self.initial)

    @property
    def copies(self) -> int:
        """J."""
        return len(self.initial[0])


@dataclass(frozen=True, slots=True)
class Clamp:
    """ReLU6, where a MicroNet has no Dynamic Shift-Max."""


@dataclass(frozen=True, slots=True)
class Linear:
    """No activation."""


Place = ShiftMax | Clamp | Linear
"""What stands after a convolution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroStem:
    """k x 1 convolution to `inner` channels, then 1 x k in as many groups, shuffled, ReLU6."""

    channels: int
    inner: int
    kernel: int
    stride: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LiteRow:
    """Micro-Block A, and the first half of B: the depthwise pair widens, a group convolution squeezes.

    `factors` are how many filters per channel the k x 1 and the 1 x k convolution have.
    """

    channels: int
    kernel: int
    stride: int
    factors: tuple[int, int]
    squeeze_groups: int
    wide: Place
    narrow: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class RegularRow:
    """Expand, depthwise, squeeze: the last expansion of one Micro-Block and the start of the next C.

    The shortcut, where shapes agree, goes from squeezed to squeezed output as in the authors' code.
    """

    channels: int
    expanded: int
    kernel: int
    stride: int
    expand_groups: int
    squeeze_groups: int
    factorised: bool
    first: Place
    wide: Place
    narrow: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRow:
    """The last expansion, then ReLU6."""

    channels: int
    groups: int
    act: Place
    stride: int = 1


@dataclass(frozen=True, slots=True)
class NormedHidden:
    """The classifier's hidden layer: both layers have a batch norm and a hard-swish after them."""

    channels: int


def shuffle(x: Tensor, groups: int) -> Tensor:
    """NCHW with channel (group, position) moved to (position, group)."""
    count, channels, height, width = x.shape
    split = x.reshape(count, groups, channels // groups, height, width)
    return split.transpose(1, 2).reshape(x.shape)


def shifted(x: Tensor, groups: int) -> Tensor:
    """NCHW whose channel (group, position) is that of (group + 1, position + 1), both going round."""
    count, channels, height, width = x.shape
    split = x.reshape(count, groups, channels // groups, height, width)
    return split.roll((-1, -1), (1, 2)).reshape(x.shape)


class ShiftMaxLayer(nn.Module):
    """Equation 4 on NCHW; what the coefficients come from is the matter of a subclass."""

    spec: ShiftMax

    def coefficients(self, x: Tensor) -> Tensor:
        """Of shape [N or 1, K, J, C, 1, 1]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of `x` are kept."""
        spec, weights = self.spec, self.coefficients(x)
        copies = [x]
        while len(copies) < spec.copies:
            copies.append(shifted(copies[-1], spec.groups))
        sums = (
            reduce(torch.add, (weights[:, k, j] * copy for j, copy in enumerate(copies)))
            for k in range(spec.sums)
        )
        made = reduce(torch.maximum, sums)
        return F.relu(made) if spec.rectified else made


class DynamicShiftMax(ShiftMaxLayer):
    """Coefficients from the channels' means."""

    initial: Tensor

    def __init__(self, channels: int, spec: ShiftMax) -> None:
        """`reduce` and `expand` are the coefficients' generator."""
        super().__init__()
        self.spec = spec
        self.reduce = nn.Linear(channels, spec.squeezed)
        self.expand = nn.Linear(spec.squeezed, spec.sums * spec.copies * channels)
        initial = torch.tensor(spec.initial).view(1, spec.sums, spec.copies, 1, 1, 1)
        self.register_buffer("initial", initial, persistent=False)

    def coefficients(self, x: Tensor) -> Tensor:
        """Each within COEFFICIENT_RANGE of its initial value."""
        spec = self.spec
        hidden = F.relu(self.reduce(x.mean((2, 3))))
        gate = F.hardsigmoid(self.expand(hidden)).view(-1, spec.sums, spec.copies, x.shape[1], 1, 1)
        return (gate - 0.5) * (2 * COEFFICIENT_RANGE) + self.initial


class StaticShiftMax(ShiftMaxLayer):
    """Coefficients that are trained and do not depend on the input (the paper's Table 2)."""

    def __init__(self, channels: int, spec: ShiftMax) -> None:
        """`weight` is [K, J, C], at first `spec.initial` for every channel."""
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.tensor(spec.initial).unsqueeze(-1).repeat(1, 1, channels))

    def coefficients(self, x: Tensor) -> Tensor:
        """The same for every image."""
        return self.weight[None, ..., None, None]


def place(channels: int, spec: Place) -> nn.Module:
    """The module of what stands after a convolution of `channels`."""
    if isinstance(spec, ShiftMax):
        return DynamicShiftMax(channels, spec) if spec.squeezed else StaticShiftMax(channels, spec)
    return nn.ReLU6() if isinstance(spec, Clamp) else nn.Identity()


def depthwise_pair(
    layers: Layers, c_in: int, kernel: int, stride: int, factors: tuple[int, int]
) -> nn.Sequential:
    """Micro-factorised depthwise convolution: k x 1 with the vertical stride, 1 x k with the horizontal."""
    middle = c_in * factors[0]
    vertical = ConvNormAct(layers, c_in, middle, kernel=(kernel, 1), stride=(stride, 1), groups=c_in)
    horizontal = ConvNormAct(
        layers, middle, middle * factors[1], kernel=(1, kernel), stride=(1, stride), groups=middle
    )
    return nn.Sequential(OrderedDict(vertical=vertical, horizontal=horizontal))


class Stem(nn.Module):
    """`vertical`, `horizontal`, shuffle, `act`. NCHW."""

    def __init__(self, layers: Layers, c_in: int, row: MicroStem) -> None:
        """`row.channels` is the width of the output."""
        super().__init__()
        self.row = row
        self.vertical = ConvNormAct(layers, c_in, row.inner, kernel=(row.kernel, 1), stride=(row.stride, 1))
        self.horizontal = ConvNormAct(
            layers, row.inner, row.channels, kernel=(1, row.kernel), stride=(1, row.stride), groups=row.inner
        )
        self.act = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, c_in, H, W]` to `[N, channels, ceil(H / stride), ceil(W / stride)]`."""
        y: Tensor = self.act(shuffle(self.horizontal(self.vertical(x)), self.row.inner))
        return y


class Lite(nn.Module):
    """`depthwise`, `wide`, shuffle, `squeeze`, `narrow`, shuffle, a shortcut where shapes allow it. NCHW."""

    def __init__(self, layers: Layers, c_in: int, row: LiteRow) -> None:
        """The depthwise pair widens `c_in` by both factors."""
        super().__init__()
        self.row, self.c_in = row, c_in
        expanded = c_in * row.factors[0] * row.factors[1]
        self.depthwise = depthwise_pair(layers, c_in, row.kernel, row.stride, row.factors)
        self.wide = place(expanded, row.wide)
        self.squeeze = ConvNormAct(layers, expanded, row.channels, groups=row.squeeze_groups)
        self.narrow = place(row.channels, row.narrow)
        self.has_shortcut = has_shortcut(c_in, row)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, c_in, H, W]` to `[N, channels, ceil(H / stride), ceil(W / stride)]`."""
        y = self.narrow(self.squeeze(self.shuffle_wide(self.wide(self.depthwise(x)))))
        y = self.shuffle_narrow(y)
        return x + y if self.has_shortcut else y

    def shuffle_wide(self, y: Tensor) -> Tensor:
        """The order of channels between `wide` and `squeeze`."""
        y = shuffle(y, self.c_in)
        return shuffle(y, y.shape[1] // 2) if isinstance(self.row.wide, ShiftMax) else y

    def shuffle_narrow(self, y: Tensor) -> Tensor:
        """The order of channels after `narrow`."""
        return _shuffle_output(y, self.row)


class Regular(nn.Module):
    """`expand`, `first`, shuffle, `depthwise`, `wide`, shuffle, `squeeze`, `narrow`, shuffle. NCHW."""

    def __init__(self, layers: Layers, c_in: int, row: RegularRow) -> None:
        """A row that is not factorised has one k x k depthwise convolution."""
        super().__init__()
        self.row, wide = row, row.expanded
        self.expand = ConvNormAct(layers, c_in, wide, groups=row.expand_groups)
        self.first = place(wide, row.first)
        self.depthwise: nn.Sequential = (
            depthwise_pair(layers, wide, row.kernel, row.stride, (1, 1))
            if row.factorised
            else ConvNormAct(layers, wide, wide, kernel=row.kernel, stride=row.stride, groups=wide)
        )
        self.wide = place(wide, row.wide)
        self.squeeze = ConvNormAct(layers, wide, row.channels, groups=row.squeeze_groups)
        self.narrow = place(row.channels, row.narrow)
        self.has_shortcut = has_shortcut(c_in, row)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, c_in, H, W]` to `[N, channels, ceil(H / stride), ceil(W / stride)]`."""
        y = self.depthwise(shuffle(self.first(self.expand(x)), self.row.expand_groups))
        y = self.narrow(self.squeeze(self.shuffle_wide(self.wide(y))))
        y = self.shuffle_narrow(y)
        return x + y if self.has_shortcut else y

    def shuffle_wide(self, y: Tensor) -> Tensor:
        """The order of channels between `wide` and `squeeze`."""
        row, channels = self.row, y.shape[1]
        if not isinstance(row.wide, ShiftMax):
            return y
        return shuffle(y, channels // (4 if isinstance(row.first, ShiftMax) else 2))

    def shuffle_narrow(self, y: Tensor) -> Tensor:
        """The order of channels after `narrow`."""
        return _shuffle_output(y, self.row)


class Last(nn.Sequential):
    """`expand`, `act`, `clamp`. NCHW."""

    expand: ConvNormAct
    act: nn.Module

    def __init__(self, layers: Layers, c_in: int, row: LastRow) -> None:
        """`row.channels` is the width of the output."""
        expand = ConvNormAct(layers, c_in, row.channels, groups=row.groups)
        act = place(row.channels, row.act)
        super().__init__(OrderedDict(expand=expand, act=act, clamp=nn.ReLU6()))


def squeezed_width(channels: int, reduction: int) -> int:
    """Inner width of a coefficient generator."""
    return make_divisible(channels // reduction, 4)


def _shuffle_output(y: Tensor, row: LiteRow | RegularRow) -> Tensor:
    y = shuffle(y, row.squeeze_groups)
    return shuffle(y, row.channels // 2) if isinstance(row.narrow, ShiftMax) else y


def _classifier(
    layers: Layers, c_in: int, hidden: NormedHidden, num_classes: int, dropout: float
) -> nn.Sequential:
    """`1` and `5` hold the weights; the logits too are normalised and go through a hard-swish."""
    widen = (nn.Hardswish(), nn.Linear(c_in, hidden.channels), _norm(layers, hidden.channels), nn.Hardswish())
    logits = (nn.Linear(hidden.channels, num_classes), _norm(layers, num_classes), nn.Hardswish())
    return nn.Sequential(*widen, nn.Dropout(dropout), *logits)


def _norm(layers: Layers, channels: int) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(channels, eps=layers.norm_eps, momentum=layers.norm_momentum)


BLOCKS.update({MicroStem: Stem, LiteRow: Lite, RegularRow: Regular, LastRow: Last})
CLASSIFIERS[NormedHidden] = _classifier
