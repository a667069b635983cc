from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import models
from export.to_onnx import to_onnx
from models import micronet
from models.blocks import Layers, MobileNet, Network, SameConv2d
from models.cost import LayerCost, cost_of
from models.deploy import GROUPED_OUTPUTS, Activated, LoweredShiftMax, deployed
from models.micronet_blocks import (
    DynamicShiftMax,
    Last,
    LiteRow,
    Regular,
    RegularRow,
    ShiftMax,
    shifted,
    shuffle,
)
from models.op_counts import deployed_ops, joined_parts, op_counts
from tests.models.published import rows

NAMES = {"M0": "micronet_m0", "M1": "micronet_m1", "M2": "micronet_m2", "M3": "micronet_m3"}
PUBLISHED = {  # million parameters, Mult-Adds with the multiplications of Shift-Max: as printed, as executed
    "micronet_m0": (1.0, 4, 1.0196, 3.449, 4.054),
    "micronet_m1": (1.8, 6, 1.7776, 5.314, 6.120),
    "micronet_m2": (2.4, 12, 2.3939, 10.338, 12.743),
    "micronet_m3": (2.6, 21, 2.6230, 18.236, 20.808),
}
TABLES = {name: getattr(micronet, short) for short, name in NAMES.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_as_published_and_as_executed(name: str) -> None:
    cost = cost_of(name)
    printed_params, printed_macs, params, macs, with_multiplies = PUBLISHED[name]
    assert round(cost.params / 1e6, 4) == params and round(cost.macs / 1e6, 3) == macs
    assert round((cost.macs + cost.multiplies) / 1e6, 3) == with_multiplies
    assert round(cost.params / 1e6, 1) == printed_params
    assert abs((cost.macs + cost.multiplies) / 1e6 - printed_macs) < 0.8


def merged(layers: tuple[LayerCost, ...]) -> list[tuple[int, int]]:
    """(Mult-Adds, parameters without batch norm) per published row: a generator's two layers are one row."""
    found: list[tuple[int, int]] = []
    for layer in layers:
        macs, params = layer.macs, layer.weight_params
        if layer.kind == "shift_max" and layer.name.endswith("expand"):
            before = found.pop()
            macs, params = macs + before[0], params + before[1]
        found.append((macs, params))
    return found


@pytest.mark.parametrize(("short", "name"), NAMES.items())
def test_every_layer_counts_what_the_authors_network_executes(short: str, name: str) -> None:
    table = [row for row in rows("micronet_layers") if row["model"] == short and row["op"] != "shuffle"]
    layers = cost_of(name).layers
    assert merged(layers) == [(int(row["macs"]), int(row["params"])) for row in table]
    convs = [layer for layer in layers if layer.kind not in ("shift_max", "classifier")]
    for layer, row in zip(convs, [row for row in table if row["op"] == "conv"], strict=True):
        assert "x".join(map(str, layer.in_shape)) == row["in_shape"]
        assert "x".join(map(str, layer.out_shape)) == row["out_shape"]


@pytest.mark.parametrize(("short", "name"), NAMES.items())
def test_every_group_shift_and_generator_is_the_authors(short: str, name: str) -> None:
    table = [row for row in rows("micronet_layers") if row["model"] == short]
    with torch.device("meta"):
        net = models.build(name)
    convs = [part for part in net.modules() if isinstance(part, nn.Conv2d)]
    for conv, row in zip(convs, [row for row in table if row["op"] == "conv"], strict=True):
        assert "x".join(map(str, conv.kernel_size)) == row["kernel"]
        assert (conv.groups, "x".join(map(str, conv.stride))) == (int(row["groups"]), row["stride"])
    shifts = [part.spec for part in net.modules() if isinstance(part, DynamicShiftMax)]
    for spec, row in zip(shifts, [row for row in table if row["op"] == "dyshiftmax"], strict=True):
        assert (spec.groups, spec.squeezed) == (int(row["groups"]), int(row["squeeze"]))
        assert (spec.sums, spec.copies) == (int(row["sums"]), 2)


@pytest.mark.parametrize(("short", "name"), NAMES.items())
def test_every_shuffle_is_the_authors(short: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def watched(x: Tensor, groups: int) -> Tensor:
        seen.append((x.shape[1], groups))
        return shuffle(x, groups)

    monkeypatch.setattr("models.micronet_blocks.shuffle", watched)
    with torch.device("meta"):
        models.build(name).eval()(torch.empty(1, 3, 32, 32))
    table = [row for row in rows("micronet_layers") if row["model"] == short and row["op"] == "shuffle"]
    assert seen == [(int(row["in_shape"].split("x")[0]), int(row["groups"])) for row in table]


def channels_of(x: Tensor) -> list[int]:
    return [int(value) for value in x.flatten()]


def test_shift_is_by_a_group_and_by_one_inside_the_group() -> None:
    x = torch.arange(12.0).view(1, 12, 1, 1)
    assert channels_of(shifted(x, 3)) == [5, 6, 7, 4, 9, 10, 11, 8, 1, 2, 3, 0]
    assert channels_of(shuffle(x, 3)) == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


IDENTITY = ((1.0, 0.0), (1.0, 0.0))


@torch.no_grad()
def test_untrained_shift_max_is_the_identity_and_m3s_is_not() -> None:
    x = torch.randn(2, 8, 3, 4)
    for initial, want in ((IDENTITY, x), (IDENTITY[:1], x)):
        layer = DynamicShiftMax(8, ShiftMax(groups=2, squeezed=4, initial=initial))
        nn.init.zeros_(layer.expand.weight)
        nn.init.zeros_(layer.expand.bias)
        torch.testing.assert_close(layer(x), want)
    layer.initial = torch.tensor(((1.0, 0.0), (0.5, 0.5))).view(1, 2, 2, 1, 1, 1)
    layer.expand = nn.Linear(4, 32)
    nn.init.zeros_(layer.expand.weight)
    nn.init.zeros_(layer.expand.bias)
    layer.spec = replace(layer.spec, initial=((1.0, 0.0), (0.5, 0.5)))
    torch.testing.assert_close(layer(x), torch.maximum(x, (x + shifted(x, 2)) / 2))


@torch.no_grad()
def test_shift_max_is_equation_4() -> None:
    layer = DynamicShiftMax(6, ShiftMax(groups=3, squeezed=4, initial=((1.0, 0.0), (0.5, 0.5))))
    nn.init.normal_(layer.expand.weight)
    x = torch.randn(2, 6, 3, 4)
    hidden = layer.reduce(x.mean((2, 3))).clamp(min=0)
    gate = (layer.expand(hidden) + 3).clamp(0, 6) / 6
    a1, b1, a2, b2 = ((gate - 0.5) * 4).view(2, 4, 6, 1, 1).unbind(1)
    copy = shifted(x, 3)
    want = torch.maximum(x * (a1 + 1) + copy * b1, x * (a2 + 0.5) + copy * (b2 + 0.5))
    torch.testing.assert_close(layer(x), want)


@torch.no_grad()
def trained_like(net: MobileNet) -> MobileNet:
    """`net` in float64 with batch norms and generators away from their initial values."""
    net = net.double()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            part.weight.uniform_(0.7, 1.3)
            part.bias.normal_(0, 0.2)
            part.momentum = 1.0
        if isinstance(part, nn.Linear):
            part.weight.normal_(0, 0.1)
    net.train()(torch.randn(6, 3, 40, 40, dtype=torch.float64))
    return net.eval()


def same_function(net: MobileNet) -> nn.Module:
    torch.set_default_dtype(torch.float64)
    try:
        made = deployed(trained_like(net))
        x = torch.randn(2, 3, 37, 45)
        with torch.no_grad():
            want, got = net(x), made(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert want.std(0).max() > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7)
    return made


@pytest.mark.parametrize("padding", models.PADDINGS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_deployed_is_the_same_function(name: str, padding: str) -> None:
    same_function(models.build(name, 1.0, 5, padding))


@pytest.mark.parametrize(
    ("name", "alpha"), [("micronet_m0", 0.3), ("micronet_m1", 0.6), ("micronet_m3", 1.2)]
)
def test_deployed_is_the_same_function_at_other_widths(name: str, alpha: float) -> None:
    same_function(models.build(name, alpha, 5))


VARIANTS = {
    "dynamic relu": {"activation": "dynamic_relu"},
    "relu": {"activation": "relu"},
    "full depthwise": {"depthwise": "full"},
}


def build_variant(changes: dict[str, str]) -> tuple[Network, MobileNet]:
    network = micronet.network(1.0, replace(micronet.M0, **changes))  # type: ignore[arg-type]  # only names
    return network, MobileNet(network, 5, "tf", 0.0)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_variants_of_the_ablations_deploy_too(changes: dict[str, str]) -> None:
    same_function(build_variant(changes)[1])


def test_variants_change_what_they_name() -> None:
    specs = {
        name: [part.spec for part in build_variant(changes)[1].modules() if isinstance(part, DynamicShiftMax)]
        for name, changes in VARIANTS.items()
    }
    assert not specs["relu"] and len(specs["full depthwise"]) == 15
    assert {spec.copies for spec in specs["dynamic relu"]} == {1}
    assert {spec.copies for spec in specs["full depthwise"]} == {2}
    full = build_variant(VARIANTS["full depthwise"])[1]
    blocks = [part for part in full.modules() if isinstance(part, Regular)]
    kernels = {block.depthwise.get_parameter("conv.weight").shape[2:] for block in blocks}
    assert kernels == {(5, 5), (3, 3)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_expansions_of_wide_groups_stay_in_groups_and_all_else_is_dense(name: str) -> None:
    net = models.build(name, 1.0, 5).eval()
    expansions = [row.expand.conv for row in net.features if isinstance(row, Regular | Last)]
    made = [part for part in deployed(net).modules() if isinstance(part, nn.Conv2d)]
    groups = [conv.groups for conv in made if conv.groups not in (1, conv.in_channels)]
    assert groups == [conv.groups for conv in expansions]
    assert min(conv.out_channels // conv.groups for conv in expansions) >= GROUPED_OUTPUTS


@pytest.mark.parametrize("name", PUBLISHED)
def test_shifted_maps_are_few_slices_or_convolutions_of_their_own(name: str) -> None:
    made = deployed(models.build(name, 1.0, 5).eval())
    places = [part for part in made.modules() if isinstance(part, LoweredShiftMax)]
    copied = [part for part in made.modules() if isinstance(part, Activated) and len(part.copies)]
    shifts = sum(part.spec.copies - 1 for part in places)
    assert sum(len(part.pieces) for part in places) + len(copied) == shifts
    assert max(len(pieces) for part in places for pieces in part.pieces) <= 6


def test_networks_without_shuffles_are_deployed_as_they_are() -> None:
    with torch.device("meta"):
        net = models.build("v3_small")
    assert deployed(net) is net


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("alpha", [0.1, 0.35, 0.75, 1.5, 2.0])
def test_groups_follow_the_width_so_that_every_output_sees_every_input(name: str, alpha: float) -> None:
    found = models.network(name, alpha).rows
    for row, following in pairwise(found[1:]):
        if isinstance(row, LiteRow | RegularRow) and isinstance(following, RegularRow):
            assert row.squeeze_groups * following.expand_groups == row.channels


def test_signal_survives_an_untrained_network() -> None:
    torch.manual_seed(0)
    block = models.build("micronet_m2", 0.5, 7).train()
    last = block.features(torch.randn(8, 3, 64, 64))
    assert 0.05 < last.std() < 5
    assert Layers(SameConv2d, 1e-5, 0.1).norm(4).eps == 1e-5 and math.isfinite(float(last.detach().sum()))


@pytest.mark.parametrize(("name", "alpha"), [("micronet_m0", 0.35), ("micronet_m3", 0.5)])
def test_operators_of_an_exported_micronet(name: str, alpha: float) -> None:
    model = to_onnx(deployed(models.build(name, alpha, 5).eval()), 32)
    found = Counter(node.op_type for node in model.graph.node)
    shapes = {value.name: value.dims for value in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    groups = [attribute.i for node in convs for attribute in node.attribute if attribute.name == "group"]
    inputs = [shapes[node.input[1]][1] for node in convs]
    depthwise = sum(group > 1 and each == 1 for group, each in zip(groups, inputs, strict=True))
    ops, extra = op_counts(name, alpha), Counter(deployed_ops(name, alpha))
    assert depthwise == ops.depthwise_convs + extra["DEPTHWISE_CONV_2D"]
    assert len(convs) - depthwise == ops.dense_convs + extra["CONV_2D"]
    assert found["Mul"] == extra["MUL"] and found["Sub"] == extra["SUB"]
    assert found["Add"] == extra["ADD"] + ops.residual_adds
    assert (found["Slice"], found["Concat"]) == (extra["SLICE"], len(joined_parts(name, alpha)))
    assert found["ReduceMean"] == extra["MEAN"] + 1 and found["Gemm"] == ops.fully_connected
    assert not set(found) & {"Gather", "Max", "Transpose", "Reshape", "BatchNormalization"}
    assert not deployed_ops("v3_small")
