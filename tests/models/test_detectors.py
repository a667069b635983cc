from __future__ import annotations

import pytest
import torch

import models
from models import detectors, heads
from models.blocks import BottleneckRow, MobileNet
from models.count import counted
from models.registry import build, network
from pipeline.artifacts import AlpharhoError
from pipeline.table_rows import faster_rcnn


def backbone(name: str, alpha: float = 1.0) -> MobileNet:
    return build(name, alpha, 7)


@pytest.mark.parametrize(
    ("kind", "name", "resolution", "classes", "billions", "params"),
    [
        ("ssd", "v1", 300, 91, 1.2, 6.8),  # V1 Table 13
        ("ssdlite", "v1", 320, 81, 1.3, 5.1),  # V2 Table 6
        ("ssdlite", "v2", 320, 81, 0.8, 4.3),
        ("ssd", "inception_v2", 300, 91, 3.9, 13.8),  # V1 Table 13: 3.8 and 13.7
    ],
)
def test_detectors_cost_what_the_papers_print(
    kind: str, name: str, resolution: int, classes: int, billions: float, params: float
) -> None:
    with torch.device("meta"):
        found = counted(detectors.detector(kind, name, backbone(name), classes), resolution)
    assert (round(found.macs / 1e9, 1), round(found.params / 1e6, 1)) == (billions, params)


@torch.no_grad()
@pytest.mark.parametrize("name", ["v1", "v2", "v3_small_halved", "v3_large", "mnasnet_a1"])
def test_detector_has_raw_boxes_and_scores_of_every_anchor(name: str) -> None:
    net = detectors.detector("ssdlite", name, backbone(name, 0.25), 4).eval()
    boxes, scores = net(torch.randn(1, 3, 96, 96))
    anchors = sum(count * side**2 for count, side in zip(detectors.ANCHORS, (6, 3, 2, 1, 1, 1), strict=True))
    assert boxes.shape == (1, anchors, 4) and scores.shape == (1, anchors, 4)
    assert scores.std() > 0


@torch.no_grad()
def test_tapped_expansion_is_the_one_inside_the_block() -> None:
    net = backbone("v2", 0.25).eval()
    found = detectors.detector("ssdlite", "v2", net, 4).eval()
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
    with pytest.raises(AlpharhoError, match="ssd, ssd_full, ssdlite"):
        detectors.detector("yolo", "v1", backbone("v1", 0.25))


@pytest.mark.parametrize(
    ("name", "resolution", "billions", "params"),
    [("v1", 300, 25.2, 6.1), ("v1", 600, 30.5, 6.1), ("inception_v2", 300, 118.4, 13.3)],
)
def test_faster_rcnn_costs_what_v1_prints(name: str, resolution: int, billions: float, params: float) -> None:
    found = faster_rcnn(name, resolution)
    assert (round(found.macs / 1e9, 1), round(found.params / 1e6, 1)) == (billions, params)


@torch.no_grad()
def test_faster_rcnn_classifies_crops_of_the_map_that_it_proposes_on() -> None:
    first, second = detectors.faster_rcnn("v1", backbone("v1", 0.25), 5)
    boxes, objectness, features = first.eval()(torch.randn(1, 3, 96, 96))
    assert boxes.shape == (1, 36 * 12, 4) and objectness.shape == (1, 36 * 12, 2)
    assert features.shape == (1, 6, 6, 128)
    crops = torch.nn.functional.interpolate(features.permute(0, 3, 1, 2), (14, 14)).repeat(3, 1, 1, 1)
    offsets, scores = second.eval()(crops)
    assert offsets.shape == (3, 16) and scores.shape == (3, 5)
    with pytest.raises(AlpharhoError, match="v1, inception_v2, vgg16"):
        detectors.faster_rcnn("v2", backbone("v2", 0.25))


def test_halved_networks_keep_the_expansion_before_stride_32() -> None:
    whole, half = network("v3_large"), network("v3_large_halved")
    assert whole.rows[:13] == half.rows[:13] and half.rows[-1].channels == 480
    first, rest = half.rows[13], half.rows[14:16]
    assert isinstance(first, BottleneckRow) and (first.expanded, first.channels) == (672, 80)
    assert [row.channels for row in rest] == [80, 80]


@torch.no_grad()
@pytest.mark.parametrize("name", ["v2_ssdlite", "v1_rpn", "v3_small_attributes", "v1_embedding"])
def test_headed_networks_have_the_outputs_that_they_name(name: str) -> None:
    made = models.build_headed(name, 0.25).eval()(torch.randn(1, 3, 64, 64))
    assert len(made if isinstance(made, tuple) else (made,)) == len(models.HEADED[name].outputs)
    assert models.backbone_of(name) in models.NAMES and models.backbone_of("v2") == "v2"


def test_alpha_of_a_headed_detector_is_the_whole_networks() -> None:
    with torch.device("meta"):
        found = counted(models.build_headed("v2_ssdlite", 0.35), 320)
    assert found.macs == pytest.approx(160e6, rel=0.02)  # V3 Table 6
