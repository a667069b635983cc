from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import models
from models.blocks import (
    BottleneckRow,
    ConvRow,
    HiddenLayer,
    InvertedResidual,
    SameConv2d,
    SqueezeExcite,
    SymmetricConv2d,
    make_divisible,
    same_padding,
)
from models.cost import cost_of
from models.mobilenet_v3 import HS, RE
from pipeline.artifacts import AlpharhoError
from tests.models.published import rows

MINIMALISTIC = [name for name in models.MODELS if name.endswith("minimalistic")]


def build(name: str, alpha: float = 1.0, classes: int = 7, padding: str = "tf") -> models.MobileNet:
    return models.build(name, alpha, classes, padding).eval()


def kinds(module: nn.Module) -> set[type[nn.Module]]:
    return {type(child) for child in module.modules()}


@pytest.mark.parametrize("padding", models.PADDINGS)
@pytest.mark.parametrize("name", models.MODELS)
@torch.no_grad()
def test_logits_for_any_picture_shape(name: str, padding: str) -> None:
    net = build(name, 0.25, padding=padding)
    for height, width in ((56, 56), (33, 47)):
        logits = net(torch.randn(2, 3, height, width))
        assert logits.shape == (2, 7) and logits.dtype == torch.float32
        assert (logits[0] - logits[1]).abs().max() > 0


@pytest.mark.parametrize("name", models.MODELS)
def test_default_arguments_are_imagenet_with_tf_padding(name: str) -> None:
    with torch.device("meta"):
        net = models.build(name)
    assert list(net.parameters())[-1].shape == (1000,)
    assert net.padding == "tf" and SameConv2d in kinds(net) and SymmetricConv2d not in kinds(net)


def test_v1_is_table_1_row_for_row() -> None:
    layers = cost_of("v1").layers
    table = rows("mobilenet_v1_arch")
    assert len(layers) == len(table) == 28
    for layer, row in zip(layers, table, strict=True):
        size, channels = row["input_size"].split("x")[0], row["input_size"].split("x")[2]
        assert layer.in_shape == (int(channels), int(size), int(size))
        stride = 1 if row["row"] == "26" else int(row["stride"].removeprefix("s"))  # the known misprint
        assert layer.stride == stride
        weights = math.prod(int(n) for n in row["filter_shape"].removesuffix(" dw").split("x"))
        assert layer.weight_params == weights + (1000 if row["type"] == "FC" else 0)


@pytest.mark.parametrize("table", ["large", "small"])
def test_v3_is_tables_1_and_2_row_for_row(table: str) -> None:
    printed = [row for row in rows("mobilenet_v3_layers") if row["network"] == table]
    net = models.network(f"v3_{table}")
    *convs, _pool, hidden, _logits = printed
    assert len(convs) == len(net.rows)
    acts = {"RE": RE, "HS": HS}
    for row, want in zip(net.rows, convs, strict=True):
        kernel = int(want["operator"].split()[1][0])
        assert isinstance(row, ConvRow | BottleneckRow)
        assert (row.kernel, row.channels, row.stride) == (kernel, int(want["out"]), int(want["stride"]))
        assert row.act is acts[want["NL"]]
        if isinstance(row, BottleneckRow):
            assert row.expanded == int(want["exp_size"])
            assert bool(row.squeezed) == (want["SE"] == "1")
        else:
            assert want["operator"].startswith("conv2d")
    width = {"large": int(hidden["out"]), "small": 1024}[table]  # Table 2 prints 1280, see the file's note
    assert net.hidden == HiddenLayer(width, HS)


def test_v2_is_table_2() -> None:
    blocks = [row for row in models.network("v2").rows if isinstance(row, BottleneckRow)]
    assert [row.channels for row in blocks] == [16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [
        160
    ] * 3 + [320]
    assert [i for i, row in enumerate(blocks) if row.stride == 2] == [1, 3, 6, 13]
    widths = [32, *(row.channels for row in blocks)]
    assert [row.expanded // c_in for c_in, row in zip(widths, blocks, strict=False)] == [1] + [6] * 16
    assert [models.network("v2", alpha).rows[-1].channels for alpha in (0.35, 1.0, 1.4)] == [1280, 1280, 1792]


@pytest.mark.parametrize("name", MINIMALISTIC)
def test_minimalistic_has_no_squeeze_excite_no_hard_swish_no_5x5(name: str) -> None:
    with torch.device("meta"):
        net, full = models.build(name), models.build(name.removesuffix("_minimalistic"))
    assert not kinds(net) & {SqueezeExcite, nn.Hardswish, nn.Hardsigmoid}
    assert {SqueezeExcite, nn.Hardswish, nn.Hardsigmoid} <= kinds(full)
    assert {conv.kernel_size for conv in net.modules() if isinstance(conv, nn.Conv2d)} == {(1, 1), (3, 3)}


def test_module_paths_are_the_contract_for_tensor_names() -> None:
    with torch.device("meta"):
        nets = {name: models.build(name) for name in ("v1", "v2", "v3_small")}
    paths = {
        name: {path for path, part in net.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
        for name, net in nets.items()
    }
    assert {
        "features.0.conv",
        "features.13.depthwise.conv",
        "features.13.pointwise.conv",
        "classifier.1",
    } <= paths["v1"]
    assert {
        "features.2.expand.conv",
        "features.17.project.conv",
        "features.18.conv",
        "classifier.1",
    } <= paths["v2"]
    squeeze = {"features.1.squeeze_excite.reduce", "features.1.squeeze_excite.expand"}
    assert squeeze | {"features.12.conv", "classifier.0", "classifier.3"} <= paths["v3_small"]
    assert "features.1.expand.conv" not in paths["v2"] | paths["v3_small"]
    assert [child for child, _ in nets["v2"].features[0].named_children()] == ["conv", "norm", "act"]
    project = nets["v2"].get_submodule("features.1.project")
    assert [child for child, _ in project.named_children()] == ["conv", "norm"]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        (224, 3, 2, (0, 1)),
        (7, 3, 2, (1, 1)),
        (14, 5, 2, (1, 2)),
        (9, 5, 1, (2, 2)),
        (8, 1, 2, (0, 0)),
        (1, 3, 2, (1, 1)),
    ],
)
def test_same_padding_as_tensorflow_defines_it(
    size: int, kernel: int, stride: int, padding: tuple[int, int]
) -> None:
    assert same_padding(size, kernel, stride) == padding


@given(size=st.integers(1, 300), kernel=st.sampled_from([1, 3, 5, 7]), stride=st.integers(1, 3))
def test_same_padding_is_the_least_that_keeps_every_stride(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    outputs = math.ceil(size / stride)
    assert (size + before + after - kernel) // stride + 1 == outputs
    assert after - before in (0, 1) and before >= 0
    if before + after:
        assert (size + before + after - 1 - kernel) // stride + 1 < outputs


def test_both_paddings_on_one_row_of_pixels() -> None:
    picture = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    for conv_type, want in ((SameConv2d, [6.0, 7.0]), (SymmetricConv2d, [3.0, 9.0])):
        conv = conv_type(1, 1, 3, stride=2, groups=1, bias=False)
        nn.init.ones_(conv.weight)
        assert conv(picture).flatten().tolist() == want


@torch.no_grad()
@pytest.mark.parametrize("name", ["v1", "v2", "v3_small"])
def test_paddings_agree_where_every_stage_is_odd_and_only_there(name: str) -> None:
    tf, torch_like = build(name, 0.35), build(name, 0.35, padding="torch")
    torch_like.load_state_dict(tf.state_dict())
    odd, even = torch.randn(1, 3, 65, 65), torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(tf(odd), torch_like(odd))
    assert (tf(even) - torch_like(even)).abs().max() > 1e-3 * tf(even).abs().max()


@given(channels=st.floats(0.01, 4000))
def test_make_divisible_keeps_at_least_nine_tenths(channels: float) -> None:
    rounded = make_divisible(channels)
    assert rounded % 8 == 0 and rounded >= max(8, 0.9 * channels)
    assert rounded <= max(8.0, channels + 8)


@torch.no_grad()
def test_squeeze_excite_scales_channels_by_a_hard_sigmoid_of_their_means() -> None:
    block, x = SqueezeExcite(16, 8), torch.randn(2, 16, 5, 6)
    nn.init.normal_(block.get_parameter("expand.bias"))
    inner = F.relu(F.linear(x.mean((2, 3)), block.reduce.weight[:, :, 0, 0], block.reduce.bias))
    outer = F.linear(inner, block.expand.weight[:, :, 0, 0], block.expand.bias)
    gate = torch.clamp(outer + 3, 0, 6) / 6
    torch.testing.assert_close(block(x), x * gate[:, :, None, None])


@torch.no_grad()
def test_shortcut_only_at_stride_1_and_equal_widths() -> None:
    shortcuts = {
        path: block.has_shortcut
        for path, block in build("v2").named_modules()
        if isinstance(block, InvertedResidual)
    }
    assert [path for path, yes in shortcuts.items() if not yes] == [
        f"features.{i}" for i in (1, 2, 4, 7, 11, 14, 17)
    ]
    block = build("v2").get_submodule("features.3")
    nn.init.zeros_(block.get_parameter("project.conv.weight"))
    x = torch.randn(1, 24, 9, 9)
    torch.testing.assert_close(block(x), x)


@torch.no_grad()
@pytest.mark.parametrize("name", models.MODELS)
def test_fresh_network_keeps_the_signal_and_is_seeded(name: str) -> None:
    torch.manual_seed(5)
    first = models.build(name, 0.5, 7)
    torch.manual_seed(5)
    again = models.build(name, 0.5, 7)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )
    last = first.train().features(torch.randn(8, 3, 64, 64))
    assert 0.05 < last.std() < 5
    assert not any(value.any() for key, value in first.state_dict().items() if key.endswith("bias"))


def test_dropout_is_the_authors_or_the_callers() -> None:
    def rate(net: nn.Module) -> float:
        return next(part.p for part in net.modules() if isinstance(part, nn.Dropout))

    with torch.device("meta"):
        assert [rate(models.build(name)) for name in ("v1", "v2", "v3_large")] == [0.001, 0.2, 0.2]
        assert rate(models.build("v2", dropout=0.0)) == 0.0


@given(name=st.sampled_from(sorted(models.MODELS)), alpha=st.floats(0, 2, exclude_min=True))
def test_any_alpha_keeps_the_table_and_rounds_every_width_to_8(name: str, alpha: float) -> None:
    net, full = models.network(name, alpha), models.network(name)
    assert [row.stride for row in net.rows] == [row.stride for row in full.rows]
    step = 4 if name.startswith("micronet") else 8
    assert all(row.channels % step == 0 for row in net.rows[1:])
    bottlenecks = (row for row in net.rows if isinstance(row, BottleneckRow))
    assert all(row.expanded % 8 == row.squeezed % 8 == 0 for row in bottlenecks)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "v4"}, r"unknown model 'v4'.*v1, .*v2, v3_small"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": 2.01}, "alpha is 2.01.*at most 2"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"padding": "valid"}, "unknown padding 'valid'.*tf, torch"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(AlpharhoError, match=said) as caught:
        models.build(**{"name": "v1", **arguments})  # type: ignore[arg-type]  # wrong values are the point
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", models.MODELS)
def test_resolution_below_the_total_stride_is_refused(name: str) -> None:
    models.check_resolution(name, 32)
    with pytest.raises(AlpharhoError, match="resolution 31 is too small"):
        models.check_resolution(name, 31)
