"""Detectors on any backbone, the smallest definitions that count and export: SSD, SSDLite, Faster-RCNN.

Outputs are raw: no anchors, no non-maximum suppression.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.blocks import BLOCKS, PADDINGS, ConvNormAct, InvertedResidual, Layers, MobileNet, SeparableRow
from pipeline.artifacts import AlpharhoError

ANCHORS = (3, 6, 6, 6, 6, 6)  # boxes per position of each of SSD's six maps, as the authors' detection code
EXTRA_CHANNELS = (512, 256, 256, 128)
LEAST_EXTRA = 16
BOX_SIDES = 4
TRACED = 224  # side of the image whose maps tell the backbone's widths
RPN_ANCHORS, RPN_CHANNELS = 12, 512
PROPOSALS, CROP = 300, 14  # boxes that the second stage classifies (V1 section 4.6), and the side of each


@dataclass(frozen=True, slots=True)
class Tap:
    """A feature map for the detector: the output of a row, or of a row's expansion."""

    row: int
    inside: str = ""


SSD_TAPS: dict[str, tuple[Tap, Tap]] = {
    "v1": (Tap(11), Tap(13)),
    "v2": (Tap(14, "expand"), Tap(18)),
    "v3_small": (Tap(9, "expand"), Tap(12)),
    "v3_large": (Tap(13, "expand"), Tap(16)),
    "v3_small_halved": (Tap(9, "expand"), Tap(12)),
    "v3_large_halved": (Tap(13, "expand"), Tap(16)),
    "v2_narrow": (Tap(14, "expand"), Tap(18)),
    "mnasnet_a1": (Tap(13, "expand"), Tap(17)),
    "mnasnet_a1_narrow": (Tap(13, "expand"), Tap(17)),
    "inception_v2": (Tap(0), Tap(2)),
    "vgg16_atrous": (Tap(0), Tap(2)),
}
"""Backbone to its maps of stride 16 and 32 (VGG: 8 and 16): V2 and V3 section 6.2 take the expansion before
stride 32."""

RPN_CUTS: dict[str, int] = {"v1": 12, "inception_v2": 2, "vgg16": 2}
"""Backbone to how many of its rows make the map of stride 16 from which Faster-RCNN proposes."""


class _Body(nn.Module):
    """The backbone as a source of the tapped maps; rows after the last tap are left out."""

    def __init__(self, backbone: MobileNet, taps: tuple[Tap, Tap]) -> None:
        super().__init__()
        self.rows = nn.Sequential(*list(backbone.features)[: taps[-1].row + 1])
        self.taps = {tap.row: tap.inside for tap in taps}

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, row in enumerate(self.rows):
            if self.taps.get(index):
                inner, x = _through(row, self.taps[index], x)
                maps.append(inner)
                continue
            x = row(x)
            if index in self.taps:
                maps.append(x)
        return maps


def _through(block: nn.Module, inside: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """The tapped map inside the block, and the block's output."""
    assert isinstance(block, InvertedResidual) and not block.has_shortcut
    inner = x
    for name, stage in block.named_children():
        x = stage(x)
        inner = x if name == inside else inner
    return inner, x


class SSD(nn.Module):
    """Single-shot detector on six maps: [N, 3, H, W] to boxes [N, A, 4] and scores [N, A, classes], both raw.

    `classes` counts the background. A position's anchors are neighbours along A, maps follow each other.
    """

    def __init__(
        self,
        backbone: MobileNet,
        taps: tuple[Tap, Tap],
        widths: tuple[int, int],
        parts: Parts,
        classes: int,
        alpha: float,
    ) -> None:
        """`widths` are the channels of the tapped maps; alpha is of the maps that the detector adds."""
        super().__init__()
        layers = _layers(backbone)
        self.body, self.classes = _Body(backbone, taps), classes
        ins, extras = widths[-1], []
        widths_added = [max(LEAST_EXTRA, int(width * alpha)) for width in EXTRA_CHANNELS]
        for width in widths_added:
            extras.append(parts.extra(layers, ins, width))
            ins = width
        self.extras = nn.ModuleList(extras)
        maps = list(zip((*widths, *widths_added), ANCHORS, strict=True))
        self.boxes = nn.ModuleList(parts.predictor(layers, w, count * BOX_SIDES) for w, count in maps)
        self.scores = nn.ModuleList(parts.predictor(layers, w, count * classes) for w, count in maps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Box offsets and class logits of every anchor."""
        maps = self.body(x)
        for extra in self.extras:
            maps.append(extra(maps[-1]))
        return _rows(self.boxes, maps, BOX_SIDES), _rows(self.scores, maps, self.classes)


def _rows(predictors: nn.ModuleList, maps: list[Tensor], size: int) -> Tensor:
    """Predictions [N, A * size, h, w] of all maps as [N, all A, size]."""
    made = (_by_anchor(predict(each), size) for predict, each in zip(predictors, maps, strict=True))
    return torch.cat(list(made), 1)


@dataclass(frozen=True, slots=True)
class Parts:
    """How a detector makes its smaller maps and its predictions, from (layers, c_in, c_out)."""

    extra: Callable[[Layers, int, int], nn.Module]
    predictor: Callable[[Layers, int, int], nn.Module]


def _dense_extra(layers: Layers, c_in: int, c_out: int) -> nn.Module:
    halve = ConvNormAct(layers, c_in, c_out // 2, act=nn.ReLU6)
    shrink = ConvNormAct(layers, c_out // 2, c_out, kernel=3, stride=2, act=nn.ReLU6)
    return nn.Sequential(OrderedDict(halve=halve, shrink=shrink))


def _separable_extra(layers: Layers, c_in: int, c_out: int) -> nn.Module:
    halve = ConvNormAct(layers, c_in, c_out // 2, act=nn.ReLU6)
    shrink = BLOCKS[SeparableRow](layers, c_out // 2, SeparableRow(c_out, 3, 2, nn.ReLU6))
    return nn.Sequential(OrderedDict(halve=halve, shrink=shrink))


def _dense_predictor(layers: Layers, c_in: int, c_out: int) -> nn.Module:
    return nn.Conv2d(c_in, c_out, 1)


def _full_predictor(layers: Layers, c_in: int, c_out: int) -> nn.Module:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def _separable_predictor(layers: Layers, c_in: int, c_out: int) -> nn.Module:
    depthwise = ConvNormAct(layers, c_in, c_in, kernel=3, groups=c_in, act=nn.ReLU6)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=nn.Conv2d(c_in, c_out, 1)))


DETECTORS: dict[str, Parts] = {
    "ssd": Parts(_dense_extra, _dense_predictor),
    "ssd_full": Parts(_dense_extra, _full_predictor),
    "ssdlite": Parts(_separable_extra, _separable_predictor),
}
"""`ssd` has 1x1 predictors, as the authors' detection code for V1; `ssd_full` 3x3 ones, as SSD's paper;
`ssdlite` is V2 section 6.2."""


def detector(kind: str, name: str, backbone: MobileNet, classes: int = 91, alpha: float = 1.0) -> SSD:
    """`kind` of DETECTORS on `backbone`, `models.build(name, alpha, ...)`. AlpharhoError for others."""
    if kind not in DETECTORS or name not in SSD_TAPS:
        raise AlpharhoError(
            f"no {kind} on {name}; choose one of {', '.join(DETECTORS)} on one of {', '.join(SSD_TAPS)}"
        )
    taps = SSD_TAPS[name]
    widths = [each.shape[1] for each in traced(_Body(backbone, taps))]
    return SSD(backbone, taps, (widths[0], widths[1]), DETECTORS[kind], classes, alpha)


class Proposer(nn.Module):
    """First stage of Faster-RCNN (arXiv:1506.01497): [N, 3, H, W] to box offsets, objectness, feature map.

    Offsets are [N, A, 4], objectness logits [N, A, 2]; the map, [N, h, w, C], is what is cropped.
    """

    def __init__(self, backbone: MobileNet, rows: int) -> None:
        """The first `rows` of the backbone make the map of stride 16."""
        super().__init__()
        layers = _layers(backbone)
        self.features = nn.Sequential(*list(backbone.features)[:rows])
        channels = traced(self.features).shape[1]
        self.window = ConvNormAct(layers, channels, RPN_CHANNELS, kernel=3, act=nn.ReLU6)
        self.boxes = nn.Conv2d(RPN_CHANNELS, RPN_ANCHORS * BOX_SIDES, 1)
        self.objectness = nn.Conv2d(RPN_CHANNELS, RPN_ANCHORS * 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All of it raw."""
        features = self.features(x)
        windows = self.window(features)
        return (
            _by_anchor(self.boxes(windows), BOX_SIDES),
            _by_anchor(self.objectness(windows), 2),
            features.permute(0, 2, 3, 1),
        )


class BoxClassifier(nn.Module):
    """Second stage: crops of the map, [R, C, 14, 14], to box offsets [R, 4 (classes - 1)] and scores."""

    def __init__(self, backbone: MobileNet, rows: int, classes: int) -> None:
        """The backbone after its first `rows`; `classes` counts the background."""
        super().__init__()
        self.features = nn.Sequential(*list(backbone.features)[rows:])
        width = traced(backbone.features).shape[1]
        self.boxes = nn.Linear(width, (classes - 1) * BOX_SIDES)
        self.scores = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw boxes and scores of each crop."""
        pooled = self.features(x).mean((2, 3))
        return self.boxes(pooled), self.scores(pooled)


def faster_rcnn(name: str, backbone: MobileNet, classes: int = 91) -> tuple[Proposer, BoxClassifier]:
    """Both stages on `backbone`, which is `models.build(name, ...)`; the app crops between them.

    AlpharhoError for a backbone without a cut.
    """
    if name not in RPN_CUTS:
        raise AlpharhoError(f"no Faster-RCNN on {name}; choose one of {', '.join(RPN_CUTS)}")
    return Proposer(backbone, RPN_CUTS[name]), BoxClassifier(backbone, RPN_CUTS[name], classes)


def _by_anchor(made: Tensor, size: int) -> Tensor:
    """Predictions [N, A * size, h, w] as [N, all A, size]."""
    return made.permute(0, 2, 3, 1).reshape(made.shape[0], -1, size)


def _layers(backbone: MobileNet) -> Layers:
    """What a head's own layers are made with: the backbone's convolutions, the authors' batch norms."""
    return Layers(PADDINGS[backbone.padding], 1e-3, 0.03)


def traced(module: nn.Module) -> Any:
    """What the module makes of an image, on the meta device: shapes only."""
    bare = copy.deepcopy(module).to("meta").eval()
    return bare(torch.empty(1, 3, TRACED, TRACED, device="meta"))
