"""What MobileNets are made of: rows of the papers' tables, and the modules they become.

A paper's file turns its table into a `Network`: rows with channel counts for one alpha. `MobileNet` builds
the module from it and `models.cost` counts from it; neither knows which paper it came from. Module names are
part of the contract, because exported tensors are named after them: `features.3.depthwise.conv`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[], nn.Module]
Sides = int | tuple[int, int]
"""Kernel or stride: of both sides, or (height, width)."""


@dataclass(frozen=True, slots=True)
class ConvRow:
    """A dense convolution, batch norm, activation: the stem, or the last 1x1 convolution."""

    channels: int
    kernel: int
    stride: int
    act: Activation


@dataclass(frozen=True, slots=True)
class SeparableRow:
    """Depthwise-separable block, V1 section 3.1: depthwise, then 1x1 pointwise, each normalised."""

    channels: int
    kernel: int
    stride: int
    act: Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class BottleneckRow:
    """Inverted residual with linear bottleneck, V2 Table 1, with the squeeze-and-excite of V3 Figure 4.

    `expanded` is the width of the depthwise convolution, `squeezed` the inner width of
    squeeze-and-excite or 0.
    """

    kernel: int
    expanded: int
    channels: int
    squeezed: int
    act: Activation
    stride: int


class Row(Protocol):
    """What every row of a table has; BLOCKS says which module its type becomes."""

    @property
    def channels(self) -> int:
        """Width of the row's output."""

    @property
    def stride(self) -> int:
        """Input pixels per output pixel, along one side."""


@dataclass(frozen=True, slots=True)
class HiddenLayer:
    """The fully connected layer between pooling and the logits of V3 (its NBN rows)."""

    channels: int
    act: Activation


class Head(Protocol):
    """A hidden layer between pooling and the logits; CLASSIFIERS says what its type becomes."""

    @property
    def channels(self) -> int:
        """Width of the hidden layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """One network at one alpha: every channel count is final, the resolution is not part of it.

    `padding` is a key of PADDINGS where the table fixes it; `smallest` the least resolution where the strides
    alone do not say it.
    """

    rows: tuple[Row, ...]
    hidden: Head | None
    dropout: float
    norm_eps: float
    norm_momentum: float
    padding: str = ""
    smallest: int = 0

    @property
    def total_stride(self) -> int:
        """Input pixels per pixel of the last feature map, along one side."""
        return math.prod(row.stride for row in self.rows)

    @property
    def least_resolution(self) -> int:
        """Below it the last stages would see less than one pixel of picture."""
        return max(self.total_stride, self.smallest)


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of `divisor`, at least one, never more than 10 % down, as the authors' code."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def both_sides(sides: Sides) -> tuple[int, int]:
    """(height, width) of a kernel or stride."""
    return (sides, sides) if isinstance(sides, int) else sides


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow SAME padding of one axis, in pixels (before, after); the odd pixel goes after."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow SAME padding, NCHW; output sizes are ceil(size / stride)."""

    def forward(self, x: Tensor) -> Tensor:
        """Pad only where both sides differ, so that an export sees a plain convolution everywhere else."""
        (top, bottom), (left, right) = (
            same_padding(size, kernel, stride)
            for size, kernel, stride in zip(x.shape[2:], self.kernel_size, self.stride, strict=True)
        )
        symmetric = top == bottom and left == right
        padding = (top, left) if symmetric else (0, 0)
        x = x if symmetric else F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class SymmetricConv2d(nn.Conv2d):
    """Convolution padded by `kernel // 2` on every side, as torchvision's; output sizes as SAME."""

    def __init__(self, c_in: int, c_out: int, kernel: Sides, stride: Sides, groups: int, bias: bool) -> None:
        """Args as nn.Conv2d; the padding follows from the kernel."""
        height, width = both_sides(kernel)
        super().__init__(c_in, c_out, kernel, stride, (height // 2, width // 2), groups=groups, bias=bias)


PADDINGS: dict[str, type[nn.Conv2d]] = {"tf": SameConv2d, "torch": SymmetricConv2d}


@dataclass(frozen=True, slots=True)
class Layers:
    """Which convolution and batch norm the blocks of one network are made with."""

    conv: type[nn.Conv2d]
    norm_eps: float
    norm_momentum: float

    def norm(self, channels: int) -> nn.BatchNorm2d:
        """Batch norm over `channels`."""
        return nn.BatchNorm2d(channels, eps=self.norm_eps, momentum=self.norm_momentum)


class ConvNormAct(nn.Sequential):
    """`conv`, `norm` and, unless the block is linear, `act`. NCHW."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d

    def __init__(
        self,
        layers: Layers,
        c_in: int,
        c_out: int,
        *,
        kernel: Sides = 1,
        stride: Sides = 1,
        groups: int = 1,
        act: Activation | None = None,
    ) -> None:
        """The convolution has no bias: the batch norm has one."""
        conv = layers.conv(c_in, c_out, kernel, stride=stride, groups=groups, bias=False)
        children: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, norm=layers.norm(c_out))
        if act is not None:
            children["act"] = act()
        super().__init__(children)


class DepthwiseSeparable(nn.Sequential):
    """`depthwise`, then `pointwise`: V1 Figure 3, right. NCHW."""

    def __init__(self, layers: Layers, c_in: int, row: SeparableRow) -> None:
        """`row.channels` is the width after the pointwise convolution."""
        depthwise = ConvNormAct(
            layers, c_in, c_in, kernel=row.kernel, stride=row.stride, groups=c_in, act=row.act
        )
        pointwise = ConvNormAct(layers, c_in, row.channels, act=row.act)
        super().__init__(OrderedDict(depthwise=depthwise, pointwise=pointwise))


class SqueezeExcite(nn.Module):
    """Scale channels by a gate computed from their means, V3 section 5.3: ReLU, then hard-sigmoid. NCHW."""

    def __init__(self, channels: int, squeezed: int) -> None:
        """The two 1x1 convolutions have a bias and no batch norm."""
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of `x` are kept."""
        gate: Tensor = self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))
        return x * gate


class InvertedResidual(nn.Module):
    """`expand`, `depthwise`, `squeeze_excite`, linear `project`, and a shortcut where shapes allow it. NCHW.

    V2 Figure 4d and V3 Figure 4. `expand` is left out where it would not widen, `squeeze_excite` where the
    row has none.
    """

    def __init__(self, layers: Layers, c_in: int, row: BottleneckRow) -> None:
        """`row.channels` is the width after the projection."""
        super().__init__()
        wide, stages = row.expanded, OrderedDict[str, nn.Module]()
        if has_expansion(c_in, row):
            stages["expand"] = ConvNormAct(layers, c_in, wide, act=row.act)
        stages["depthwise"] = ConvNormAct(
            layers, wide, wide, kernel=row.kernel, stride=row.stride, groups=wide, act=row.act
        )
        if row.squeezed:
            stages["squeeze_excite"] = SqueezeExcite(wide, row.squeezed)
        stages["project"] = ConvNormAct(layers, wide, row.channels)
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.has_shortcut = has_shortcut(c_in, row)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, c_in, H, W]` to `[N, channels, ceil(H / stride), ceil(W / stride)]`."""
        y = x
        for stage in self.children():
            y = stage(y)
        return x + y if self.has_shortcut else y


def has_expansion(c_in: int, row: BottleneckRow) -> bool:
    """Whether the block widens its input before the depthwise convolution."""
    return row.expanded != c_in


def has_shortcut(c_in: int, row: Row) -> bool:
    """Whether the block adds its input to its output: stride 1 and equal widths (V2 section 3.3)."""
    return row.stride == 1 and row.channels == c_in


def _conv(layers: Layers, c_in: int, row: ConvRow) -> nn.Module:
    return ConvNormAct(layers, c_in, row.channels, kernel=row.kernel, stride=row.stride, act=row.act)


BLOCKS: dict[type, Callable[..., nn.Module]] = {
    ConvRow: _conv,
    SeparableRow: DepthwiseSeparable,
    BottleneckRow: InvertedResidual,
}
"""Type of row to the maker of its module, called with (layers, c_in, row); a paper's file may add its own."""


class MobileNet(nn.Module):
    """A `Network` as a module: float32 `[N, 3, H, W]` in, logits `[N, num_classes]` out, for any H and W."""

    def __init__(self, network: Network, num_classes: int, padding: str, dropout: float) -> None:
        """`padding` is a key of PADDINGS; weights are initialised from torch's global generator."""
        super().__init__()
        layers = Layers(PADDINGS[padding], network.norm_eps, network.norm_momentum)
        channels, blocks = 3, []
        for row in network.rows:
            blocks.append(BLOCKS[type(row)](layers, channels, row))
            channels = row.channels
        self.padding = padding
        self.features = nn.Sequential(*blocks)
        head = CLASSIFIERS[type(network.hidden)]
        self.classifier = head(layers, channels, network.hidden, num_classes, dropout)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Features, global mean, classifier."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def _plain(layers: Layers, c_in: int, hidden: None, num_classes: int, dropout: float) -> nn.Sequential:
    """`1` holds the weights, as in torchvision's V2."""
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(c_in, num_classes))


def _with_hidden(
    layers: Layers, c_in: int, hidden: HiddenLayer, num_classes: int, dropout: float
) -> nn.Sequential:
    """`0` and `3` hold the weights, as in torchvision's V3."""
    widen, logits = nn.Linear(c_in, hidden.channels), nn.Linear(hidden.channels, num_classes)
    return nn.Sequential(widen, hidden.act(), nn.Dropout(dropout), logits)


CLASSIFIERS: dict[type, Callable[..., nn.Sequential]] = {type(None): _plain, HiddenLayer: _with_hidden}
"""Type of hidden layer to the maker of the classifier; a paper's file may add its own."""


NETWORKS: dict[type, type[MobileNet]] = {}
"""Type of hidden layer to the class of a network that is not built as MobileNet is; see `module_of`."""


def module_of(network: Network, num_classes: int, padding: str, dropout: float) -> MobileNet:
    """The module of `network`; `padding` where its table does not fix it."""
    made = NETWORKS.get(type(network.hidden), MobileNet)
    return made(network, num_classes, network.padding or padding, dropout)


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    """He initialisation by fan-out per group, N(0, 0.01) for linear layers, biases 0.

    Counting the fan-out per group keeps depthwise outputs at unit scale, above the batch norms' epsilon.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        module.weight.normal_(0.0, math.sqrt(2 / fan_out))
    if isinstance(module, nn.Linear):
        module.weight.normal_(0.0, 0.01)
    if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
        module.bias.zero_()
