"""Networks as they are exported: the same function, in operators that a phone's int8 kernels have.

Only MicroNets differ from what is trained. Their shuffles cost nothing here: every map keeps the order in
which its group convolutions and Dynamic Shift-Max are cheapest, and the weights beside it are permuted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.blocks import ConvNormAct, MobileNet
from models.micronet_blocks import (
    COEFFICIENT_RANGE,
    DynamicShiftMax,
    Last,
    Lite,
    Regular,
    ShiftMax,
    Stem,
    shifted,
    shuffle,
)

Order = Tensor
"""int64 [C]: channel i of an exported map is channel `order[i]` of the trained one."""


def deployed(net: MobileNet) -> nn.Module:
    """`net` in evaluation mode and without shuffles: same input, same logits up to rounding; `net` is kept.

    Networks without shuffles are returned as they are. Of a MicroNet, batch norms are folded, group
    convolutions between shuffles become dense ones, and a shift of channels becomes a rotation: two slices
    and a concatenation.
    """
    if not isinstance(net.features[0], Stem):
        return net
    with torch.no_grad():
        return _Deployed(net)


class _Deployed(nn.Module):
    """Rows in order, each told the order of its input and what the next one asks for."""

    def __init__(self, net: MobileNet) -> None:
        super().__init__()
        self.padding = net.padding
        rows = list(net.features)
        blocks, order = [], torch.arange(3)
        for row, following in zip(rows, [*rows[1:], None], strict=True):
            block, order = _BLOCKS[type(row)](row, order, _needs_trained_order(following))
            blocks.append(block)
        self.features = nn.Sequential(*blocks)
        self.classifier = _classifier(net.classifier, order)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Features, global mean, classifier."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class Activated(nn.Module):
    """A convolution and what follows it; `copy` is the same convolution, with its channels shifted."""

    def __init__(self, conv: nn.Module, act: nn.Module, copy: nn.Module | None) -> None:
        """`copy` None: `act` makes the shifted copy itself, or needs none."""
        super().__init__()
        self.conv, self.act, self.copy = conv, act, copy

    def forward(self, x: Tensor) -> Tensor:
        """NCHW in, NCHW out."""
        y: Tensor = self.act(self.conv(x)) if self.copy is None else self.act(self.conv(x), self.copy(x))
        return y


class Residual(nn.Sequential):
    """The sum of the input and of what the children make of it."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape and dtype of `x` are kept."""
        made = x
        for part in self:
            made = part(made)
        y: Tensor = x + made
        return y


class StaticShiftMax(nn.Module):
    """Dynamic Shift-Max with J, K <= 2 without a maximum: max(a, b) = a + relu(b - a). NCHW."""

    def __init__(self, trained: DynamicShiftMax, order: Order, rotation: int) -> None:
        """`order` is that of the input; the shifted copy is the input rotated by `rotation` channels."""
        super().__init__()
        spec = trained.spec
        assert spec.sums <= 2 and spec.copies <= 2
        self.spec, self.rotation = spec, rotation
        self.reduce = _pointwise(trained.reduce.weight[:, order], trained.reduce.bias)
        weights = trained.expand.weight.view(spec.sums, spec.copies, -1, spec.squeezed)[:, :, order]
        biases = trained.expand.bias.view(spec.sums, spec.copies, -1)[:, :, order] + 3
        pairs = [(k, j) for k in range(spec.sums) for j in range(spec.copies)]
        self.expand = nn.ModuleList(_pointwise(weights[k, j], biases[k, j]) for k, j in pairs)
        self.scale = nn.ModuleList(_affine(len(order), spec.initial[k][j]) for k, j in pairs)

    def forward(self, x: Tensor, copy: Tensor | None = None) -> Tensor:
        """Shape and dtype of `x` are kept; `copy` replaces the rotated input."""
        coefficients = self._coefficients(x)
        copies = [x]
        if self.spec.copies == 2:
            copies.append(_rotated(x, self.rotation) if copy is None else copy)
        first = coefficients[: len(copies)]
        y = _weighted(first, copies)
        if self.spec.sums == 2:
            gains = [b - a for a, b in zip(first, coefficients[len(copies) :], strict=True)]
            y = y + torch.relu(_weighted(gains, copies))
        return y

    def _coefficients(self, x: Tensor) -> list[Tensor]:
        hidden = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return [
            scale(nn.functional.relu6(expand(hidden)))
            for expand, scale in zip(self.expand, self.scale, strict=True)
        ]


def _weighted(weights: list[Tensor], copies: list[Tensor]) -> Tensor:
    terms = [copy * weight for weight, copy in zip(weights, copies, strict=True)]
    return terms[0] + terms[1] if len(terms) == 2 else terms[0]


def _rotated(x: Tensor, count: int) -> Tensor:
    return torch.cat((x[:, count:], x[:, :count]), 1)


def _stem(block: Stem, order: Order, trained: bool) -> tuple[nn.Module, Order]:
    """The trained order is free: the group convolution is made dense, with permuted weights."""
    after = _order_after(lambda y: shuffle(y, block.row.inner), block.row.channels)
    vertical = _dense(block.vertical, order, torch.arange(block.row.inner))
    horizontal = _dense(block.horizontal, torch.arange(block.row.inner), after)
    return nn.Sequential(vertical, horizontal, nn.ReLU6()), torch.arange(block.row.channels)


def _lite(block: Lite, order: Order, trained: bool) -> tuple[nn.Module, Order]:
    rotates = isinstance(block.wide, DynamicShiftMax) and block.wide.spec.copies == 2
    widen = _rotating_pair if rotates else _plain_pair
    pair, wide_order = widen(block, order)
    wide = _activated(pair, block.wide, wide_order)
    squeeze, result = _squeeze(block, wide_order, torch.arange(block.row.channels) if trained else None)
    return nn.Sequential(wide, squeeze), result


def _plain_pair(block: Lite, order: Order) -> tuple[nn.Module, Order]:
    """The depthwise pair as it is trained, on permuted channels."""
    parts: list[nn.Module] = []
    for part in _parts(block.depthwise):
        inputs = part.conv.in_channels
        order = _widened(order, part.conv.out_channels // inputs)
        parts.append(_depthwise(part, order, inputs))
    return nn.Sequential(*parts), order


def _rotating_pair(block: Lite, order: Order) -> tuple[nn.Module, Order]:
    """The depthwise pair with all filters of a channel in the first convolution, in an order that rotates.

    Channel (c, p) holds filter p + c of channel c, so that the shift is a rotation by the filters of one
    channel; that is why the vertical filters are repeated.
    """
    vertical, horizontal = _parts(block.depthwise)
    filters = horizontal.conv.out_channels // len(order)
    assert torch.equal(order, torch.arange(len(order))) and len(order) % filters == 0
    wide = torch.stack([c * filters + (torch.arange(filters) + c) % filters for c in range(len(order))])
    wide = wide.flatten()
    repeat = horizontal.conv.out_channels // horizontal.conv.in_channels
    tall = _depthwise(vertical, wide // repeat, len(order))
    return nn.Sequential(tall, _depthwise(horizontal, wide, len(wide))), wide


def _regular(block: Regular, order: Order, trained: bool) -> tuple[nn.Module, Order]:
    channels, groups = block.row.expanded, block.row.expand_groups
    shuffled = _order_after(lambda y: shuffle(y, groups), channels)
    wide_order = _preferred(block.wide, channels)
    first_order = shuffled[wide_order]
    first = _activated(_dense(block.expand, order, first_order), block.first, first_order)
    parts = _parts(block.depthwise)
    depthwise = nn.Sequential(*(_depthwise(part, wide_order, channels) for part in parts))
    wide = _activated(depthwise, block.wide, wide_order)
    target = torch.arange(block.row.channels) if trained else None
    squeeze, result = _squeeze(block, wide_order, order if block.has_shortcut else target)
    chain = Residual if block.has_shortcut else nn.Sequential
    return chain(first, wide, squeeze), result


def _parts(depthwise: nn.Sequential) -> tuple[ConvNormAct, ...]:
    """The convolutions of a depthwise stage: two where it is factorised."""
    if isinstance(depthwise, ConvNormAct):
        return (depthwise,)
    return tuple(part for part in depthwise if isinstance(part, ConvNormAct))


def _squeeze(block: Lite | Regular, order: Order, target: Order | None) -> tuple[nn.Module, Order]:
    """The squeeze and what follows; the result's order is `target`, or whichever is cheapest."""
    conv = block.squeeze.conv
    before = _order_after(block.shuffle_wide, conv.in_channels)
    after = _order_after(block.shuffle_narrow, conv.out_channels)
    own = _preferred(block.narrow, conv.out_channels) if target is None else after[target]
    order_in = torch.argsort(before)[order]
    squeeze = _dense(block.squeeze, order_in, own)
    copy = None
    if _needs_copy(block.narrow, own):
        assert isinstance(block.narrow, DynamicShiftMax)
        copy = _dense(block.squeeze, order_in, _shift_of(block.narrow.spec, len(own))[own])
    return Activated(squeeze, _place(block.narrow, own), copy), torch.argsort(after)[own]


def _last(block: Last, order: Order, trained: bool) -> tuple[nn.Module, Order]:
    own = _preferred(block.act, block.expand.conv.out_channels)
    return nn.Sequential(_activated(_dense(block.expand, order, own), block.act, own), nn.ReLU6()), own


_BLOCKS: dict[type, Callable[..., tuple[nn.Module, Order]]] = {
    Stem: _stem,
    Lite: _lite,
    Regular: _regular,
    Last: _last,
}


def _needs_trained_order(following: nn.Module | None) -> bool:
    """Whether the next row's shift is a rotation only if its input is in the trained order."""
    return isinstance(following, Lite) and isinstance(following.wide, DynamicShiftMax)


def _activated(conv: nn.Module, act: nn.Module, order: Order) -> nn.Module:
    assert not _needs_copy(act, order)
    return Activated(conv, _place(act, order), None)


def _place(act: nn.Module, order: Order) -> nn.Module:
    if not isinstance(act, DynamicShiftMax):
        return copy.deepcopy(act)
    return StaticShiftMax(act, order, _rotation(act.spec, order))


def _preferred(act: nn.Module, channels: int) -> Order:
    """An order in which the shift is a rotation: its cycles side by side."""
    if not isinstance(act, DynamicShiftMax):
        return torch.arange(channels)
    shift, free, cycles = _shift_of(act.spec, channels), set(range(channels)), []
    while free:
        cycle = [min(free)]
        while (following := int(shift[cycle[-1]])) != cycle[0]:
            cycle.append(following)
        cycles.append(cycle)
        free.difference_update(cycle)
    return torch.tensor(cycles).T.flatten()


def _rotation(spec: ShiftMax, order: Order) -> int:
    """By how many channels the shift rotates a map of `order`; 0 if no rotation does."""
    shift = _shift_of(spec, len(order))
    count = int((order == shift[order[0]]).nonzero())
    return count if torch.equal(order.roll(-count), shift[order]) else 0


def _needs_copy(act: nn.Module, order: Order) -> bool:
    return isinstance(act, DynamicShiftMax) and act.spec.copies == 2 and not _rotation(act.spec, order)


def _shift_of(spec: ShiftMax, channels: int) -> Order:
    return _order_after(lambda x: shifted(x, spec.groups), channels)


def _order_after(move: Callable[[Tensor], Tensor], channels: int) -> Order:
    """Where `move`, which only moves channels, takes each channel from."""
    return move(torch.arange(channels).view(1, -1, 1, 1)).flatten()


def _widened(order: Order, filters: int) -> Order:
    return (order[:, None] * filters + torch.arange(filters)).flatten()


def _folded(part: ConvNormAct) -> tuple[Tensor, Tensor]:
    """Weights and bias of the convolution with its batch norm."""
    norm = part.norm
    assert norm.running_var is not None and norm.running_mean is not None
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return part.conv.weight * factor.view(-1, 1, 1, 1), norm.bias - norm.running_mean * factor


def _dense(part: ConvNormAct, order_in: Order, order_out: Order) -> nn.Module:
    """The convolution of all groups as one, on permuted channels."""
    conv = part.conv
    weight, bias = _folded(part)
    whole = torch.zeros(conv.out_channels, conv.in_channels, *conv.kernel_size)
    rows, columns = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    for group in range(conv.groups):
        inside = slice(group * rows, (group + 1) * rows)
        whole[inside, group * columns : (group + 1) * columns] = weight[inside]
    return _like(conv, whole[order_out][:, order_in], bias[order_out], 1)


def _depthwise(part: ConvNormAct, order: Order, inputs: int) -> nn.Module:
    """The depthwise convolution of `inputs` channels whose output has `order`.

    With several filters per channel it is made dense: kernels for one filter per channel do not take it, and
    the group convolution in their place costs more instructions.
    """
    weight, bias = _folded(part)
    filters = len(order) // inputs
    if filters == 1:
        return _like(part.conv, weight[order], bias[order], inputs)
    whole = weight.new_zeros(len(order), inputs, *weight.shape[2:])
    places = torch.arange(len(order))
    whole[places, places // filters] = weight[order, 0]
    return _like(part.conv, whole, bias[order], 1)


def _like(conv: nn.Conv2d, weight: Tensor, bias: Tensor, groups: int) -> nn.Module:
    kernel, stride = (conv.kernel_size[0], conv.kernel_size[1]), (conv.stride[0], conv.stride[1])
    inputs = weight.shape[1] * groups
    made = type(conv)(inputs, weight.shape[0], kernel, stride=stride, groups=groups, bias=True)
    return _with_values(made, weight, bias)


def _pointwise(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    return _with_values(conv, weight[:, :, None, None], bias)


def _with_values(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    assert conv.bias is not None
    conv.weight.copy_(weight)
    conv.bias.copy_(bias)
    return conv


def _affine(channels: int, initial: float) -> nn.Conv2d:
    """From 6 times a hard-sigmoid in [0, 6] to a coefficient around its initial value."""
    conv = nn.Conv2d(channels, channels, 1, groups=channels)
    weight = torch.full_like(conv.weight, 2 * COEFFICIENT_RANGE / 6)
    return _with_values(conv, weight, torch.full((channels,), initial - COEFFICIENT_RANGE))


def _classifier(trained: nn.Sequential, order: Order) -> nn.Sequential:
    """Both linear layers with their batch norms folded, the first one's inputs permuted."""
    before, widen, widen_norm, act, _dropout, logits, logits_norm, after = trained
    hidden = _linear(widen, widen_norm)
    hidden.weight.copy_(hidden.weight[:, order])
    return nn.Sequential(before, hidden, act, _linear(logits, logits_norm), after)


def _linear(linear: nn.Module, norm: nn.Module) -> nn.Linear:
    assert isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d)
    return nn.utils.fuse_linear_bn_eval(linear.eval(), norm.eval())
