from __future__ import annotations

import pytest
import torch

import models
from models.cost import cost_of
from models.count import counted
from models.registry import build
from pipeline.artifacts import AlpharhoError
from tests.models.published import rows


@pytest.mark.parametrize("row", rows("reference_cost"), ids=lambda row: f"{row['model']}_{row['resolution']}")
def test_counts_are_those_of_the_released_networks(row: dict[str, str]) -> None:
    with torch.device("meta"):
        found = counted(models.build(row["model"]), int(row["resolution"]))
    assert round(found.macs / 1e6, 1) == float(row["macs_M"])
    assert round(found.params / 1e6, 4) == float(row["params_M"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["squeezenet", "googlenet", "v1_full_conv", "v1_shallow"])
def test_small_pictures_give_logits_that_depend_on_them(name: str) -> None:
    logits = models.build(name, 1.0, 5).eval()(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 5) and (logits[0] - logits[1]).abs().max() > 0


@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_large_networks_give_logits_at_224(name: str) -> None:
    with torch.device("meta"):
        assert models.build(name, 1.0, 5).eval()(torch.empty(2, 3, 224, 224)).shape == (2, 5)


@pytest.mark.parametrize(("name", "classes"), [("resnet", 10), ("alexnet", 0)])
def test_requests_out_of_range_are_refused(name: str, classes: int) -> None:
    with pytest.raises(AlpharhoError):
        models.build(name, 1.0, classes)


@pytest.mark.parametrize("name", ["v1", "v3_small", "micronet_m1"])
def test_counting_a_module_agrees_with_counting_its_table(name: str) -> None:
    with torch.device("meta"):
        found = counted(build(name, 0.5), 96)
    cost = cost_of(name, 0.5, 96)
    assert (found.macs, found.params) == (cost.macs, cost.params)
