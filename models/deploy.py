"""Networks as they are exported: the same function, in operators that a phone's int8 kernels have.

Only MicroNets differ from what is trained. Their shuffles cost nothing here: every map keeps the order in
which its group convolutions and Dynamic Shift-Max are cheapest, and the weights beside it are permuted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import reduce

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
    ShiftMaxLayer,
    StaticShiftMax,
    Stem,
    shifted,
    shuffle,
)

Order = Tensor
"""int64 [C]: channel i of an exported map is channel `order[i]` of the trained one."""

Pieces = tuple[tuple[int, int], ...]
"""First and last + 1 of the slices of channels that, concatenated, are a shifted map."""

SLICE_MACS = 800  # Mult-Adds of a dense 1x1 convolution that cost as much as one slice of channels, per pixel
GROUPED_OUTPUTS = 16  # of each group, from which on a group convolution costs less than a dense one


def deployed(net: MobileNet) -> nn.Module:
    """`net` in evaluation mode and without shuffles: same input, same logits up to rounding; `net` is kept.

    Networks without shuffles are returned as they are. Of a MicroNet, batch norms are folded, and a shift of
    channels becomes slices and a concatenation, mostly a rotation. Expansions stay group convolutions where
    that is cheaper on a core (`GROUPED_OUTPUTS`), all others become dense: a map has one order, and the
    groups of a squeeze lie across those of the expansion before it.
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
            block, order = _BLOCKS[type(row)](row, order, _asked(following))
            blocks.append(block)
        self.features = nn.Sequential(*blocks)
        self.classifier = _classifier(net.classifier, order)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Features, global mean, classifier."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class Activated(nn.Module):
    """A convolution and what follows it; `copies` are the same convolution with its channels shifted."""

    def __init__(self, conv: nn.Module, act: nn.Module, copies: Sequence[nn.Module] = ()) -> None:
        """Without `copies`, `act` makes the shifted maps itself, or needs none."""
        super().__init__()
        self.conv, self.act, self.copies = conv, act, nn.ModuleList(copies)

    def forward(self, x: Tensor) -> Tensor:
        """NCHW in, NCHW out."""
        y: Tensor = self.act(self.conv(x), *(copy(x) for copy in self.copies))
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


class Summed(nn.Sequential):
    """The sum of what the children make of the input. NCHW."""

    def forward(self, x: Tensor) -> Tensor:
        """All children keep one shape."""
        y: Tensor = reduce(torch.add, (part(x) for part in self))
        return y


class LoweredShiftMax(nn.Module):
    """Shift-Max without a maximum: max(a, b) = a + relu(b - a). NCHW."""

    def __init__(self, trained: ShiftMaxLayer, order: Order, pieces: Sequence[Pieces]) -> None:
        """`order` is that of the input; `pieces` of the shifted maps that the input itself holds."""
        super().__init__()
        self.spec, self.pieces = trained.spec, pieces
        self.weights = _WEIGHTS[type(trained)](trained, order)

    def forward(self, x: Tensor, *copies: Tensor) -> Tensor:
        """Shape and dtype of `x` are kept; `copies` are the shifted maps where `pieces` has none."""
        slices = {piece: x[:, slice(*piece)] for pieces in self.pieces for piece in pieces}
        assembled = (torch.cat([slices[piece] for piece in pieces], 1) for pieces in self.pieces)
        maps = [x, *assembled, *copies]
        weights = self.weights(x)
        first = weights[: len(maps)]
        y = _weighted(first, maps)
        for k in range(1, self.spec.sums):
            more = weights[k * len(maps) : (k + 1) * len(maps)]
            gains = [b - a for a, b in zip(first, more, strict=True)]
            y = y + torch.relu(_weighted(gains, maps) if k == 1 else _weighted(more, maps) - y)
        return torch.relu(y) if self.spec.rectified else y


class GeneratedWeights(nn.Module):
    """Coefficients from the channels' means, K J times [N, C, 1, 1]."""

    def __init__(self, trained: DynamicShiftMax, order: Order) -> None:
        """The hard-sigmoid's 3 and 1/6, and the coefficients' range, are in weights and biases."""
        super().__init__()
        spec = trained.spec
        self.reduce = _pointwise(trained.reduce.weight[:, order], trained.reduce.bias)
        weights = trained.expand.weight.view(spec.sums, spec.copies, -1, spec.squeezed)[:, :, order]
        biases = trained.expand.bias.view(spec.sums, spec.copies, -1)[:, :, order] + 3
        pairs = [(k, j) for k in range(spec.sums) for j in range(spec.copies)]
        self.expand = nn.ModuleList(_pointwise(weights[k, j], biases[k, j]) for k, j in pairs)
        self.scale = nn.ModuleList(_affine(len(order), spec.initial[k][j]) for k, j in pairs)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The coefficients for the maps `x`, sum by sum."""
        hidden = torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))
        return [
            scale(nn.functional.relu6(expand(hidden)))
            for expand, scale in zip(self.expand, self.scale, strict=True)
        ]


class TrainedWeights(nn.Module):
    """Coefficients that are constants."""

    weight: Tensor

    def __init__(self, trained: StaticShiftMax, order: Order) -> None:
        """`weight` is [K J, C], in the input's order."""
        super().__init__()
        self.register_buffer("weight", trained.weight.flatten(0, 1)[:, order].detach())

    def forward(self, x: Tensor) -> list[Tensor]:
        """The coefficients, sum by sum."""
        return [row.view(1, -1, 1, 1) for row in self.weight]


_WEIGHTS: dict[type, Callable[..., nn.Module]] = {
    DynamicShiftMax: GeneratedWeights,
    StaticShiftMax: TrainedWeights,
}


def _weighted(weights: Sequence[Tensor], maps: Sequence[Tensor]) -> Tensor:
    return reduce(torch.add, (each * weight for weight, each in zip(weights, maps, strict=True)))


def _stem(block: Stem, order: Order, asked: int) -> tuple[nn.Module, Order]:
    """The trained order is free: the group convolution is made dense, with permuted weights."""
    after = _order_after(lambda y: shuffle(y, block.row.inner), block.row.channels)
    vertical = _dense(block.vertical, order, torch.arange(block.row.inner))
    horizontal = _dense(block.horizontal, torch.arange(block.row.inner), after)
    return nn.Sequential(vertical, horizontal, nn.ReLU6()), torch.arange(block.row.channels)


def _lite(block: Lite, order: Order, asked: int) -> tuple[nn.Module, Order]:
    rotates = isinstance(block.wide, ShiftMaxLayer) and block.wide.spec.copies > 1
    widen = _rotating_pair if rotates else _plain_pair
    pair, wide_order = widen(block, order)
    wide = _activated(pair, block.wide, wide_order)
    squeeze, result = _squeeze(block, wide_order, order if block.has_shortcut else _wished(block, asked))
    return _chain(block)(wide, squeeze), result


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


def _regular(block: Regular, order: Order, asked: int) -> tuple[nn.Module, Order]:
    channels, groups = block.row.expanded, block.row.expand_groups
    shuffled = _order_after(lambda y: shuffle(y, groups), channels)
    expand, first_order = _expansion(block.expand, order, shuffled[_preferred(block.wide, channels)])
    wide_order = torch.argsort(shuffled)[first_order]
    first = _activated(expand, block.first, first_order)
    parts = _parts(block.depthwise)
    depthwise = nn.Sequential(*(_depthwise(part, wide_order, channels) for part in parts))
    wide = _activated(depthwise, block.wide, wide_order)
    squeeze, result = _squeeze(block, wide_order, order if block.has_shortcut else _wished(block, asked))
    return _chain(block)(first, wide, squeeze), result


def _chain(block: Lite | Regular) -> type[nn.Sequential]:
    return Residual if block.has_shortcut else nn.Sequential


def _expansion(part: ConvNormAct, order: Order, preferred: Order) -> tuple[nn.Module, Order]:
    """The expansion and the order of its output: in groups where that is cheaper, else `preferred`.

    Channel q of the g-th group is position q + g, going round, so that the shift by a group and a position
    is a shift by a group alone.
    """
    conv = part.conv
    inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    group = order.view(conv.groups, inputs) // inputs
    if not _stays_grouped(conv) or (group != group[:, :1]).any():
        return _dense(part, order, preferred), preferred
    turned = (torch.arange(outputs) + torch.arange(conv.groups)[:, None]) % outputs
    own = (group[:, :1] * outputs + turned).flatten()
    weight, bias = _folded(part)
    columns = (order % inputs).view(conv.groups, inputs).repeat_interleave(outputs, 0)
    return _like(conv, weight[own].gather(1, columns[:, :, None, None]), bias[own], conv.groups), own


def _stays_grouped(conv: nn.Conv2d) -> bool:
    return conv.groups > 1 and conv.out_channels // conv.groups >= GROUPED_OUTPUTS


def _parts(depthwise: nn.Sequential) -> tuple[ConvNormAct, ...]:
    """The convolutions of a depthwise stage: two where it is factorised."""
    if isinstance(depthwise, ConvNormAct):
        return (depthwise,)
    return tuple(part for part in depthwise if isinstance(part, ConvNormAct))


def _squeeze(block: Lite | Regular, order: Order, wished: Order | None) -> tuple[nn.Module, Order]:
    """The squeeze and what follows; the result's order is the one wished for, or whichever is cheapest."""
    conv = block.squeeze.conv
    before = _order_after(block.shuffle_wide, conv.in_channels)
    after = _order_after(block.shuffle_narrow, conv.out_channels)
    own = _preferred(block.narrow, conv.out_channels) if wished is None else after[wished]
    order_in = torch.argsort(before)[order]
    squeeze = _dense(block.squeeze, order_in, own)
    pieces, copies = _pieces_of(block.narrow, own), []
    if SLICE_MACS * sum(map(len, pieces)) > conv.in_channels * conv.out_channels * len(pieces):
        shifts, pieces = _shifts(block.narrow, len(own)), []
        copies = [_dense(block.squeeze, order_in, shift[own]) for shift in shifts]
    if copies and isinstance(block.narrow, StaticShiftMax) and block.narrow.spec.sums == 1:
        return _scaled_sum([squeeze, *copies], block.narrow, own), torch.argsort(after)[own]
    return Activated(squeeze, _place(block.narrow, own, pieces), copies), torch.argsort(after)[own]


def _scaled_sum(convs: Sequence[nn.Module], trained: StaticShiftMax, order: Order) -> nn.Module:
    """A sum of convolutions, each with its constant coefficients in its weights."""
    for conv, factor in zip(convs, trained.weight[0], strict=True):
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        conv.weight.mul_(factor[order].view(-1, 1, 1, 1))
        conv.bias.mul_(factor[order])
    return Summed(*convs)


def _last(block: Last, order: Order, asked: int) -> tuple[nn.Module, Order]:
    preferred = _preferred(block.act, block.expand.conv.out_channels)
    expand, own = _expansion(block.expand, order, preferred)
    return nn.Sequential(_activated(expand, block.act, own), nn.ReLU6()), own


_BLOCKS: dict[type, Callable[..., tuple[nn.Module, Order]]] = {
    Stem: _stem,
    Lite: _lite,
    Regular: _regular,
    Last: _last,
}


def _asked(following: nn.Module | None) -> int:
    """In how many groups of neighbours, in their trained order, the next row wants its input; 1: no wish."""
    if isinstance(following, Lite) and isinstance(following.wide, ShiftMaxLayer):
        return _parts(following.depthwise)[0].conv.in_channels
    if isinstance(following, Regular | Last) and _stays_grouped(following.expand.conv):
        return following.expand.conv.groups
    return 1


def _wished(block: Lite | Regular, asked: int) -> Order | None:
    """An order of the row's output in which the `asked` groups stay together, and a shift is few slices.

    Both shuffles after the squeeze leave position p of group g where groups of the next row hold all even or
    all odd g of two neighbouring p. In runs of one p and one parity, the shift is one from run to run.
    """
    channels, groups = block.squeeze.conv.out_channels, block.row.squeeze_groups
    if asked == 1:
        return None
    trained, positions = torch.arange(channels), channels // groups
    if asked != positions or not _shifts(block.narrow, channels) or groups % 2 or positions % 2:
        return trained
    parity, p, q = torch.meshgrid(
        torch.arange(2), torch.arange(positions), torch.arange(groups // 2), indexing="ij"
    )
    g = (2 * q + p + (parity - p) % 2) % groups
    after = _order_after(block.shuffle_narrow, channels)
    return torch.argsort(after)[(g * positions + p).flatten()]


def _activated(conv: nn.Module, act: nn.Module, order: Order) -> nn.Module:
    return Activated(conv, _place(act, order, _pieces_of(act, order)))


def _place(act: nn.Module, order: Order, pieces: Sequence[Pieces]) -> nn.Module:
    return LoweredShiftMax(act, order, pieces) if isinstance(act, ShiftMaxLayer) else copy.deepcopy(act)


def _preferred(act: nn.Module, channels: int) -> Order:
    """An order in which the shift is a rotation: its cycles side by side."""
    if not isinstance(act, ShiftMaxLayer):
        return torch.arange(channels)
    shift, free, cycles = _shift_of(act.spec, channels), set(range(channels)), []
    while free:
        cycle = [min(free)]
        while (following := int(shift[cycle[-1]])) != cycle[0]:
            cycle.append(following)
        cycles.append(cycle)
        free.difference_update(cycle)
    return torch.tensor(cycles).T.flatten()


def _pieces_of(act: nn.Module, order: Order) -> list[Pieces]:
    """Of what each of the shifted maps of a Shift-Max consists; nothing for other activations."""
    return [_pieces(shift, order) for shift in _shifts(act, len(order))]


def _pieces(shift: Order, order: Order) -> Pieces:
    """The runs of neighbours of which the shift of a map in `order` consists."""
    source = torch.argsort(order)[shift[order]]
    ends = [*((source[1:] - source[:-1] != 1).nonzero().flatten() + 1).tolist(), len(source)]
    starts = [0, *ends[:-1]]
    return tuple((int(source[a]), int(source[b - 1]) + 1) for a, b in zip(starts, ends, strict=True))


def _shifts(act: nn.Module, channels: int) -> list[Order]:
    """Where each of the shifted maps of a Shift-Max takes its channels from."""
    if not isinstance(act, ShiftMaxLayer):
        return []
    once = _shift_of(act.spec, channels)
    found = [torch.arange(channels)]
    while len(found) < act.spec.copies:
        found.append(once[found[-1]])
    return found[1:]


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
