"""What stands on a backbone for other tasks than one label, by name: detection, attributes, embeddings.

The smallest definitions that count and export, with raw outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models import registry
from models.blocks import MobileNet
from models.detectors import RPN_CUTS, Proposer, detector, traced


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


class RawEmbedding(nn.Module):
    """An Embedding without its normalisation: images to [N, size]."""

    def __init__(self, embedding: Embedding) -> None:
        """The weights are shared."""
        super().__init__()
        self.embedding = embedding

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings of any length."""
        return self.embedding.raw(x)


@dataclass(frozen=True, slots=True)
class Headed:
    """A head on a backbone: the names of its outputs, its usual resolution, and how it is put on.

    `make` takes the backbone's module, its name and alpha.
    """

    backbone: str
    outputs: tuple[str, ...]
    resolution: int
    make: Callable[[MobileNet, str, float], nn.Module]


ATTRIBUTES, EMBEDDED = 40, 128  # labels of face attributes; components of a face embedding
SSD_CLASSES, SSDLITE_CLASSES = 91, 81  # of COCO with the background, as V1's and V2's papers count


def attributes(backbone: MobileNet, name: str, alpha: float) -> MultiLabel:
    """Face attributes on `backbone`."""
    return MultiLabel(backbone, last_width(backbone), ATTRIBUTES)


def embedding(backbone: MobileNet, name: str, alpha: float) -> RawEmbedding:
    """A face embedding on `backbone`, before its normalisation."""
    return RawEmbedding(Embedding(backbone, last_width(backbone), EMBEDDED))


def proposer(backbone: MobileNet, name: str, alpha: float) -> Proposer:
    """First stage of Faster-RCNN on `backbone`."""
    return Proposer(backbone, RPN_CUTS[name])


def _detector(kind: str, classes: int, backbone: MobileNet, name: str, alpha: float) -> nn.Module:
    return detector(kind, name, backbone, classes, alpha)


_SSD = ("boxes", "scores"), 300, partial(_detector, "ssd", SSD_CLASSES)
_SSDLITE = ("boxes", "scores"), 320, partial(_detector, "ssdlite", SSDLITE_CLASSES)
_FAMILIES = ("v1", "v2", "v3_small", "v3_large")
_NARROWED = {"v2": "v2_narrow"}  # in a detector alpha narrows the last convolution too

HEADED: dict[str, Headed] = {
    **{f"{name}_ssd": Headed(_NARROWED.get(name, name), *_SSD) for name in _FAMILIES},
    **{f"{name}_ssdlite": Headed(_NARROWED.get(name, name), *_SSDLITE) for name in _FAMILIES},
    **{f"{name}_ssdlite": Headed(name, *_SSDLITE) for name in ("v3_small_halved", "v3_large_halved")},
    "v1_rpn": Headed("v1", ("boxes", "objectness", "features"), 300, proposer),
    **{f"{name}_attributes": Headed(name, ("logits",), 224, attributes) for name in _FAMILIES},
    **{f"{name}_embedding": Headed(name, ("embedding",), 160, embedding) for name in _FAMILIES},
}
"""Networks with a head by name, for example `v2_ssdlite`; they are exported with untrained weights."""


def backbone_of(name: str) -> str:
    """The name that the registry knows: the backbone of a headed network, else `name` itself."""
    return HEADED[name].backbone if name in HEADED else name


def build_headed(name: str, alpha: float = 1.0, padding: str = "tf") -> nn.Module:
    """The module of a name of HEADED: float32 NCHW images in, its raw outputs out.

    AlpharhoError as `models.build`.
    """
    head = HEADED[name]
    return head.make(registry.build(head.backbone, alpha, padding=padding), head.backbone, alpha)


def last_width(backbone: MobileNet) -> int:
    """Channels of the backbone's last map."""
    return int(traced(backbone.features).shape[1])
