from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import models
from models.blocks import InvertedResidual, SqueezeExcite
from models.cost import LAW_TERMS, cost_of
from models.micronet_blocks import DynamicShiftMax, Lite, Regular
from models.op_counts import op_counts
from pipeline.artifacts import AlpharhoError
from tests.models.published import rows

MILLION = 1e6


@pytest.mark.parametrize(
    "row", rows("mobilenet_v1_grid"), ids=lambda row: f"{row['alpha']}_{row['resolution']}"
)
def test_v1_grid(row: dict[str, str]) -> None:
    alpha, resolution = float(row["alpha"]), int(row["resolution"])
    cost = cost_of("v1", alpha, resolution)
    assert round(cost.macs / MILLION, 2) == float(row["computed_macs_M"])
    assert round(cost.params / MILLION, 4) == float(row["computed_params_M"])
    published = abs(cost.macs / MILLION - float(row["slim_macs_M"])) <= 0.505  # 149.497 is printed as 150
    assert published == (row["macs_check"] == "match")
    slim = cost_of("v1", alpha, resolution, 1001)
    norm_params = slim.params - slim.weight_params
    assert round((slim.weight_params + 1.5 * norm_params) / MILLION, 2) == float(row["slim_params_M"])


@pytest.mark.parametrize(
    "row", rows("mobilenet_v2_grid"), ids=lambda row: f"{row['alpha']}_{row['resolution']}"
)
def test_v2_grid(row: dict[str, str]) -> None:
    cost = cost_of("v2", float(row["alpha"]), int(row["resolution"]))
    assert math.floor(cost.macs / MILLION) == float(row["macs_M"])
    assert round(cost.weight_params / MILLION, 2) == float(row["params_M"])
    assert round(cost.macs / MILLION, 2) == float(row["computed_macs_M"])
    assert round(cost.params / MILLION, 4) == float(row["computed_params_M_withBN"])
    assert round(cost.weight_params / MILLION, 4) == float(row["computed_params_M_noBN"])


# By how much the published (Mult-Adds, parameters) may be off for each verdict, in million; None: not met.
TOLERANCES = {
    "match": (1.0, 0.11),
    "close": (2.5, 0.11),
    "params differ": (1.0, None),
    "MACs differ": (None, 0.11),
    "MISMATCH": (None, None),
}


@pytest.mark.parametrize(
    "row", rows("mobilenet_v3"), ids=lambda row: f"{row['row_type']}-{row['network']}-{row['precision']}"
)
def test_v3_table(row: dict[str, str]) -> None:
    cost = cost_of(row["model"], float(row["width"]))
    assert round(cost.macs / MILLION, 2) == float(row["computed_macs_M"])
    assert round(cost.params / MILLION, 4) == pytest.approx(float(row["computed_params_M"]), abs=5.1e-5)
    off = (
        abs(cost.macs / MILLION - float(row["madds_M"])),
        abs(cost.params / MILLION - float(row["params_M"])),
    )
    for difference, allowed in zip(off, TOLERANCES[row["check"]], strict=True):
        assert difference <= allowed if allowed is not None else difference > 0.11


def test_exact_published_counts() -> None:
    for alpha, resolution, macs in ((1.0, 224, 567_716_352), (0.75, 128, 106_002_432)):
        cost = cost_of("v1", alpha, resolution)
        assert (
            cost.macs - cost.macs_by_kind()["classifier"] == macs
        )  # the authors' code counts the body alone
    assert cost_of("v2").params == 3_504_872
    assert cost_of("v3_large").params == 5_483_032
    assert cost_of("v3_small").params == 2_542_856


def test_v1_table_2_shares_of_mult_adds_and_parameters() -> None:
    cost = cost_of("v1")
    macs = {kind: 100 * count / cost.macs for kind, count in cost.macs_by_kind().items()}
    params = Counter[str]()
    for layer in cost.layers:
        params[layer.kind] += layer.weight_params
    share = {kind: 100 * count / cost.weight_params for kind, count in params.items()}
    want = {"pointwise": (94.86, 74.59), "depthwise": (3.06, 1.06), "classifier": (0.18, 24.33)}
    for kind, (macs_percent, params_percent) in want.items():
        assert macs[kind] == pytest.approx(macs_percent, abs=0.01)
        assert share[kind] == pytest.approx(params_percent, abs=0.05)
    assert macs["stem"] == pytest.approx(1.91, abs=0.01)  # printed as 1.19, but the column must sum to 100


Layer = tuple[str, tuple[int, ...], tuple[int, ...], int, int]


def hooked_layers(net: nn.Module, resolution: int) -> list[Layer]:
    """(path, input, output, Mult-Adds, parameters) of every convolution and linear layer that ran."""
    seen: list[Layer] = []

    def watch(path: str, part: nn.Conv2d | nn.Linear) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            pixels = math.prod(output.shape[2:])
            macs = part.weight[0].numel() * output.shape[1] * pixels
            params = sum(p.numel() for p in part.parameters())
            before, after = (tuple((*x.shape[1:], 1, 1)[:3]) for x in (inputs[0], output))
            seen.append((path, before, after, macs, params))

        part.register_forward_hook(hook)

    for path, part in net.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            watch(path, part)
    net(torch.empty(1, 3, resolution, resolution))
    return seen


@torch.no_grad()
def check_against_module(name: str, alpha: float, resolution: int, padding: str) -> None:
    net = models.build(name, alpha, 11, padding).eval()
    seen = hooked_layers(net, resolution)
    cost = cost_of(name, alpha, resolution, 11)
    counted = [(row.name, row.in_shape, row.out_shape, row.macs, row.weight_params) for row in cost.layers]
    assert counted == seen
    assert cost.params == sum(p.numel() for p in net.parameters())
    ops = op_counts(name, alpha)
    types = Counter(type(part) for part in net.modules())
    gates = types[SqueezeExcite]
    convs = [(path, part) for path, part in net.named_modules() if isinstance(part, nn.Conv2d)]
    depthwise = sum("depthwise" in path for path, _ in convs)
    assert (ops.squeeze_excites, ops.depthwise_convs) == (gates, depthwise)
    assert ops.dense_convs == len(convs) - depthwise - 2 * gates
    generators = 2 * types[DynamicShiftMax]
    assert (ops.hard_swishes, ops.fully_connected) == (types[nn.Hardswish], types[nn.Linear] - generators)
    assert ops.shift_maxes == types[DynamicShiftMax]
    assert ops.residual_adds == sum(
        part.has_shortcut for part in net.modules() if isinstance(part, InvertedResidual | Lite | Regular)
    )


@pytest.mark.parametrize("padding", models.PADDINGS)
@pytest.mark.parametrize("name", models.MODELS)
def test_every_layer_as_the_module_runs_it(name: str, padding: str) -> None:
    check_against_module(name, 0.35, 97, padding)


@pytest.mark.parametrize("name", models.MODELS)
def test_total_at_224_as_torch_counts_it(name: str) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        models.build(name).eval()(torch.empty(1, 3, 224, 224))
    assert cost_of(name).macs == counter.get_total_flops() // 2


@settings(deadline=None, max_examples=10)
@given(
    name=st.sampled_from(sorted(models.MODELS)),
    alpha=st.floats(0, 2, exclude_min=True),
    resolution=st.integers(32, 80),
    padding=st.sampled_from(sorted(models.PADDINGS)),
)
def test_any_alpha_and_resolution_as_the_module_runs_it(
    name: str, alpha: float, resolution: int, padding: str
) -> None:
    check_against_module(name, alpha, resolution, padding)


@pytest.mark.parametrize("name", models.MODELS)
def test_terms_of_the_law_are_a_partition_of_the_mult_adds(name: str) -> None:
    cost = cost_of(name)
    assert (
        set(cost.macs_by_kind())
        == set(LAW_TERMS)
        == {layer.kind for layer in cost.layers} | {"squeeze_excite", "shift_max"}
    )
    assert sum(cost.macs_by_kind().values()) == sum(cost.macs_by_term().values()) == cost.macs


@pytest.mark.parametrize("name", models.MODELS)
def test_terms_follow_rho(name: str) -> None:
    at_224, at_448 = (cost_of(name, 1.0, resolution).macs_by_term() for resolution in (224, 448))
    assert at_448 == {**{term: 4 * macs for term, macs in at_224.items()}, "constant": at_224["constant"]}


def test_terms_follow_alpha_where_no_width_is_rounded() -> None:
    full, half = (cost_of("v1", alpha).macs_by_term() for alpha in (1.0, 0.5))
    assert (full["linear"], full["quadratic"]) == (2 * half["linear"], 4 * half["quadratic"])


def test_op_counts_of_the_papers_networks() -> None:
    v2, small = op_counts("v2"), op_counts("v3_small")
    assert (v2.dense_convs, v2.depthwise_convs, v2.residual_adds, v2.fully_connected) == (35, 17, 10, 1)
    assert (small.squeeze_excites, small.residual_adds, small.hard_swishes, small.fully_connected) == (
        9,
        6,
        19,
        2,
    )


def test_requests_out_of_range_are_refused() -> None:
    for arguments in (("v9", 1.0, 224, 10), ("v1", 3.0, 224, 10), ("v1", 1.0, 16, 10), ("v1", 1.0, 224, 0)):
        with pytest.raises(AlpharhoError):
            cost_of(*arguments)
