from __future__ import annotations

import pytest
import torch

import models
from models import heads
from models.blocks import MobileNet
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


def backbone(name: str, alpha: float = 1.0) -> MobileNet:
    return build(name, alpha, 7)


@pytest.mark.parametrize(
    ("kind", "name", "resolution", "classes", "billions", "params"),
    [
        ("ssd", "v1", 300, 91, 1.2, 6.8),  # V1 Table 13
        ("ssdlite", "v1", 320, 81, 1.3, 5.1),  # V2 Table 6
        ("ssdlite", "v2", 320, 81, 0.8, 4.3),
    ],
)
def test_detectors_cost_what_the_papers_print(
    kind: str, name: str, resolution: int, classes: int, billions: float, params: float
) -> None:
    with torch.device("meta"):
        found = counted(heads.detector(kind, name, backbone(name), classes), resolution)
    assert (round(found.macs / 1e9, 1), round(found.params / 1e6, 1)) == (billions, params)


@torch.no_grad()
@pytest.mark.parametrize("name", heads.SSD_TAPS)
def test_detector_has_raw_boxes_and_scores_of_every_anchor(name: str) -> None:
    net = heads.detector("ssdlite", name, backbone(name, 0.25), 4).eval()
    boxes, scores = net(torch.randn(1, 3, 96, 96))
    anchors = sum(count * side**2 for count, side in zip(heads.ANCHORS, (6, 3, 2, 1, 1, 1), strict=True))
    assert boxes.shape == (1, anchors, 4) and scores.shape == (1, anchors, 4)
    assert scores.std() > 0


@torch.no_grad()
def test_tapped_expansion_is_the_one_inside_the_block() -> None:
    net = backbone("v2", 0.25).eval()
    found = heads.detector("ssdlite", "v2", net, 4).eval()
    x = torch.randn(1, 3, 64, 64)
    inner, last = found.body(x)
    torch.testing.assert_close(last, net.features(x))
    before = net.features[:14](x)
    torch.testing.assert_close(inner, net.get_submodule("features.14.expand")(before))


@torch.no_grad()
def test_attributes_and_embeddings_stand_on_the_mean_of_the_last_map() -> None:
    net, x = backbone("v1", 0.25).eval(), torch.randn(2, 3, 64, 64)
    width = heads.last_width(net)
    assert width == 256 and heads.MultiLabel(net, width, 40).eval()(x).shape == (2, 40)
    embed = heads.Embedding(net, width, 32).eval()
    torch.testing.assert_close(embed(x).norm(dim=1), torch.ones(2))
    torch.testing.assert_close(embed(x), embed.raw(x) / embed.raw(x).norm(dim=1, keepdim=True))


def test_detector_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(AlpharhoError, match="ssd, ssdlite"):
        heads.detector("yolo", "v1", backbone("v1", 0.25))
