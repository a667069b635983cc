"""What stands on a MobileNet backbone for other tasks than one label: detection, attributes, embeddings.

The smallest definitions that count and export, with raw outputs: no anchors, no non-maximum suppression.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.blocks import BLOCKS, ConvNormAct, InvertedResidual, Layers, MobileNet, SeparableRow
from pipeline.artifacts import AlpharhoError

ANCHORS = (3, 6, 6, 6, 6, 6)  # boxes per position of each of SSD's six maps, as the authors' detection code
EXTRA_CHANNELS = (512, 256, 256, 128)
BOX_SIDES = 4


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
}
"""Backbone to its maps of stride 16 and 32: V2 and V3 section 6.2 take the expansion before stride 32."""


class MultiLabel(nn.Module):
    """One logit per attribute, for sigmoid and cross-entropy (V1 section 4.5): images to [N, labels]."""

    def __init__(self, backbone: MobileNet, channels: int, labels: int) -> None:
        """`channels` is the width of the backbone's last map, whose classifier is left out."""
        super().__init__()
        self.features = backbone.features
        self.classifier = nn.Linear(channels, labels)

    def forward(self, x: Tensor) -> Tensor:
        """Raw logits."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class Embedding(nn.Module):
    """A vector of unit length (V1 section 4.7, after FaceNet): [N, 3, H, W] to [N, size]."""

    def __init__(self, backbone: MobileNet, channels: int, size: int = 128) -> None:
        """`channels` is the width of the backbone's last map, whose classifier is left out."""
        super().__init__()
        self.features = backbone.features
        self.project = nn.Linear(channels, size)

    def forward(self, x: Tensor) -> Tensor:
        """L2-normalised embeddings."""
        return F.normalize(self.raw(x))

    def raw(self, x: Tensor) -> Tensor:
        """Embeddings before normalisation, which an app does in its own code: what RawEmbedding exports."""
        made: Tensor = self.project(self.features(x).mean((2, 3)))
        return made


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
    ) -> None:
        """`widths` are the channels of the tapped maps."""
        super().__init__()
        layers = Layers(type(_first_conv(backbone)), 1e-3, 0.03)
        self.body, self.classes = _Body(backbone, taps), classes
        ins, extras = widths[-1], []
        for width in EXTRA_CHANNELS:
            extras.append(parts.extra(layers, ins, width))
            ins = width
        self.extras = nn.ModuleList(extras)
        maps = list(zip((*widths, *EXTRA_CHANNELS), ANCHORS, strict=True))
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
    made = [
        predict(each).permute(0, 2, 3, 1).reshape(each.shape[0], -1, size)
        for predict, each in zip(predictors, maps, strict=True)
    ]
    return torch.cat(made, 1)


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


def _separable_predictor(layers: Layers, c_in: int, c_out: int) -> nn.Module:
    depthwise = ConvNormAct(layers, c_in, c_in, kernel=3, groups=c_in, act=nn.ReLU6)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=nn.Conv2d(c_in, c_out, 1)))


DETECTORS: dict[str, Parts] = {
    "ssd": Parts(_dense_extra, _dense_predictor),
    "ssdlite": Parts(_separable_extra, _separable_predictor),
}
"""`ssd` with 1x1 predictors, as the authors' detection code for V1; `ssdlite` is V2 section 6.2."""


def detector(kind: str, name: str, backbone: MobileNet, classes: int = 91) -> SSD:
    """`kind` of DETECTORS on `backbone`, which is `models.build(name, ...)`. AlpharhoError for others."""
    if kind not in DETECTORS or name not in SSD_TAPS:
        raise AlpharhoError(
            f"no {kind} on {name}; choose one of {', '.join(DETECTORS)} on one of {', '.join(SSD_TAPS)}"
        )
    taps = SSD_TAPS[name]
    widths = (_width(backbone, taps[0]), _width(backbone, taps[1]))
    return SSD(backbone, taps, widths, DETECTORS[kind], classes)


class RawEmbedding(nn.Module):
    """An Embedding without its normalisation: images to [N, size]."""

    def __init__(self, embedding: Embedding) -> None:
        """The weights are shared."""
        super().__init__()
        self.embedding = embedding

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings of any length."""
        return self.embedding.raw(x)


RAW_OUTPUTS: dict[type[nn.Module], tuple[str, ...]] = {
    SSD: ("boxes", "scores"),
    MultiLabel: ("logits",),
    RawEmbedding: ("embedding",),
}
"""Names of the outputs that an exported head has, in order."""


def last_width(backbone: MobileNet) -> int:
    """Channels of the backbone's last map."""
    return _width(backbone, Tap(len(backbone.features) - 1))


def _width(backbone: MobileNet, tap: Tap) -> int:
    row = backbone.features[tap.row]
    inside = row.get_submodule(tap.inside) if tap.inside else row
    return [part for part in inside.modules() if isinstance(part, nn.Conv2d)][-1].out_channels


def _first_conv(backbone: MobileNet) -> nn.Conv2d:
    return next(part for part in backbone.modules() if isinstance(part, nn.Conv2d))
