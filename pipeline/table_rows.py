"""The papers' cost tables, row for row: what is printed, and how it is counted here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch

import models
from models import detectors, heads
from models.comparators import GOOGLENET
from models.cost import Cost, LayerCost, cost_of, network_cost
from models.count import Count, counted
from models.layer_table import Conv, Layer, Parallel, table_network

NOT_BUILT = "not built here: its table is not in these papers"
IN_HOUSE = "not built here: in-house, never published"
NO_WIDTHS = "not built here: the paper keeps the cost by widths that it does not print"
PLANET_PARAMS = 52.0
MILLION = 1e6

Ours = Callable[[], Count]


@dataclass(frozen=True, slots=True)
class Row:
    """Printed million Mult-Adds and parameters of a network, None where the paper has none, and our count."""

    label: str
    macs: float | None
    params: float | None
    ours: Ours | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One table of a paper."""

    title: str
    rows: tuple[Row, ...]
    note: str = ""


def classifier(name: str, alpha: float = 1.0, resolution: int = 224, classes: int = 1000) -> Count:
    """The whole network, batch norms among the parameters."""
    cost = cost_of(name, alpha, resolution, classes)
    return Count(cost.macs, cost.params)


def folded(name: str, alpha: float = 1.0, resolution: int = 224) -> Count:
    """The whole network, parameters without batch norms."""
    cost = cost_of(name, alpha, resolution)
    return Count(cost.macs, cost.weight_params)


def body(name: str, alpha: float = 1.0, resolution: int = 224) -> Count:
    """The network without its classifier."""
    return _sum(layer for layer in cost_of(name, alpha, resolution).layers if layer.kind != "classifier")


def with_multiplies(cost: Cost) -> Count:
    """MicroNet's way to count: Mult-Adds and the multiplications of Dynamic Shift-Max."""
    return Count(cost.macs + cost.multiplies, cost.params)


def micro(name: str) -> Count:
    """A MicroNet, counted as its paper does."""
    return with_multiplies(cost_of(name))


def ablation(name: str) -> Count:
    """A variant of M2, counted as its paper does."""
    return with_multiplies(cost_of(f"micronet_m2_{name}"))


def googlenet_with_5x5() -> Count:
    """GoogLeNet with the 5x5 branches of its paper, which the released networks have as 3x3."""
    table = tuple(_as_printed(layer) for layer in GOOGLENET)
    cost = network_cost(table_network(1.0, table, smallest=32))
    return Count(cost.macs, cost.params)


def planet() -> Count:
    """Inception V3 with as many classes as make the printed parameters: the paper does not say how many."""
    stem, width = body("inception_v3", 1.0, 299), 2048
    classes = round((PLANET_PARAMS * MILLION - stem.params) / (width + 1))
    return classifier("inception_v3", 1.0, 299, classes)


@cache
def detector(kind: str, name: str, resolution: int, classes: int, alpha: float = 1.0) -> Count:
    """A detector; `classes` with the background."""
    with torch.device("meta"):
        made = detectors.detector(kind, name, models.build(name, alpha), classes, alpha)
        return counted(made, resolution)


def _narrow(name: str, alpha: float) -> Count:
    """SSDLite at 320 on a backbone whose last convolution narrows too."""
    return detector("ssdlite", f"{name}_narrow", 320, 81, alpha)


@cache
def detector_head(kind: str, name: str, resolution: int, classes: int) -> Count:
    """What a detector adds to its backbone: further maps and predictions."""
    with torch.device("meta"):
        made = detectors.detector(kind, name, models.build(name), classes)
        whole, backbone = counted(made, resolution), counted(made.body, resolution)
    return Count(whole.macs - backbone.macs, whole.params - backbone.params)


@cache
def faster_rcnn(name: str, resolution: int) -> Count:
    """Faster-RCNN: the first stage once, the second for each of its proposals."""
    with torch.device("meta"):
        first, second = detectors.faster_rcnn(name, models.build(name))
        channels = detectors.traced(first.features).shape[1]
        once, each = counted(first, resolution), counted(second, detectors.CROP, channels)
    return Count(once.macs + detectors.PROPOSALS * each.macs, once.params + each.params)


@cache
def labels(count: int, alpha: float, resolution: int) -> Count:
    """Face attributes on V1."""
    with torch.device("meta"):
        backbone = models.build("v1", alpha)
        return counted(heads.MultiLabel(backbone, heads.last_width(backbone), count), resolution)


def layer(separable: bool, alpha: float = 1.0, size: int = 14) -> Count:
    """A 3x3 layer of 512 channels (V1 section 3.4), dense or depthwise separable, without batch norm."""
    channels = round(512 * alpha)
    weights = 9 * channels + channels**2 if separable else 9 * channels**2
    return Count(weights * size**2, weights)


def _as_printed(layer: Layer) -> Layer:
    if not isinstance(layer, Parallel):
        return layer
    one, three, (squeeze, five), pooled = layer.branches
    assert isinstance(five, Conv)
    return Parallel((one, three, (squeeze, replace(five, kernel=5, padding=2)), pooled))


def _sum(layers: Iterator[LayerCost]) -> Count:
    found = list(layers)
    return Count(sum(layer.macs for layer in found), sum(layer.params for layer in found))


def _network(alpha_resolutions: Sequence[tuple[float, int, float, float]], note: str = "") -> Iterator[Row]:
    for alpha, resolution, macs, params in alpha_resolutions:
        ours = partial(classifier, "v1", alpha, resolution)
        yield Row(f"{alpha:g} MobileNet-{resolution}", macs, params, ours, note)


_TRUNCATED = "printed truncated"
_ATTRIBUTES = "ours with 40 labels"
_SAME_WIDTHS = "same widths, not the same cost: not the paper's network"
_OFF = "**misprint**: V1's Tables 5 and 10 have 325 at 224 and 239 at 192"
_INCEPTION_V3 = "printed as Inception's own paper rounds it; 23.8 M parameters with 1000 classes"
_SSD = "six maps and the anchors of all others here"
_NARROW = "alpha narrows the last convolution and the extra maps too"
_UNPRINTED_WIDTHS = "not the paper's network: our widths are multiples of 8, at least 8"
_HASH = "not built here: narrower in a way that the paper does not print"
_KEYPOINTS = "not built here: the paper does not print the head"
_EMBEDDING = "ours: body; the paper does not specify the embedding"

# fmt: off
SECTIONS: tuple[Section, ...] = (
    Section("V1, Table 3: one layer, 14x14x512, rows are cumulative", (
        Row("Convolution", 462, 2.36, partial(layer, False)),
        Row("Depthwise separable", 52.3, 0.27, partial(layer, True)),
        Row("alpha = 0.75", 29.6, 0.15, partial(layer, True, 0.75)),
        Row("rho = 0.714", 15.1, 0.15, partial(layer, True, 0.75, 10)),
    )),
    Section("V1, Table 4: separable or full convolutions", (
        Row("Conv MobileNet", 4866, 29.3, partial(classifier, "v1_full_conv"),
            "printed without the classifier's 1.0 M"),
        Row("MobileNet", 569, 4.2, partial(classifier, "v1")),
    )),
    Section("V1, Table 5: narrow or shallow", (
        Row("0.75 MobileNet", 325, 2.6, partial(classifier, "v1", 0.75)),
        Row("Shallow MobileNet", 307, 2.9, partial(classifier, "v1_shallow")),
    )),
    Section("V1, Table 6: width multiplier", (
        *_network(((1.0, 224, 569, 4.2), (0.75, 224, 325, 2.6))),
        *_network(((0.5, 224, 149, 1.3),), _TRUNCATED),
        *_network(((0.25, 224, 41, 0.5),)),
    )),
    Section("V1, Table 7: resolution", (
        *_network(((1.0, 224, 569, 4.2), (1.0, 192, 418, 4.2))),
        *_network(((1.0, 160, 290, 4.2),), _TRUNCATED),
        *_network(((1.0, 128, 186, 4.2),)),
    )),
    Section("V1, Table 8: popular networks", (
        *_network(((1.0, 224, 569, 4.2),)),
        Row("GoogLeNet", 1550, 6.8, partial(classifier, "googlenet"), "as released, 3x3 for 5x5"),
        Row("GoogLeNet", 1550, 6.8, googlenet_with_5x5, "with the 5x5 of its paper"),
        Row("VGG 16", 15300, 138, partial(classifier, "vgg16"),
            "15347 M without the fully connected layers"),
    )),
    Section("V1, Table 9: small networks", (
        *_network(((0.5, 160, 76, 1.32),), "1.32 M without batch norms; Mult-Adds truncated"),
        Row("SqueezeNet", 1700, 1.25, partial(classifier, "squeezenet", 1.0, 227),
            "**misprint**: about twice the Mult-Adds; 818.9 M at 224"),
        Row("AlexNet", 720, 60, partial(classifier, "alexnet"), "single tower"),
    )),
    Section("V1, Table 10: Stanford Dogs, 120 classes", (
        Row("Inception V3", 5000, 23.2, partial(classifier, "inception_v3", 1.0, 299, 120), _INCEPTION_V3),
        *(Row(f"{alpha:g} MobileNet-{size}", macs, params, partial(classifier, "v1", alpha, size, 120),
              "Mult-Adds printed for 1000 classes")
          for alpha, size, macs, params in ((1.0, 224, 569, 3.3), (0.75, 224, 325, 1.9),
                                            (1.0, 192, 418, 3.3), (0.75, 192, 239, 1.9))),
    )),
    Section("V1, Table 11 and section 4.4: PlaNet", (
        Row("PlaNet", 5740, 52, planet, "Inception V3 with as many classes as make 52 M parameters"),
        Row("PlaNet MobileNet", 580, 13, partial(classifier, "v1", 1.0, 224, 9756),
            "**misprint**: text says 0.58 million for billion; ours with as many classes as 10 M weights of "
            "the last layer make"),
    )),
    Section("V1, Table 12: face attributes", (
        Row("1.0 MobileNet-224", 568, 3.2, partial(labels, 40, 1.0, 224), _ATTRIBUTES),
        Row("0.5 MobileNet-224", 149, 0.8, partial(labels, 40, 0.5, 224), _ATTRIBUTES),
        Row("0.25 MobileNet-224", 45, 0.2, partial(labels, 40, 0.25, 224), "**misprint**: Table 6 has 41"),
        Row("1.0 MobileNet-128", 185, 3.2, partial(labels, 40, 1.0, 128), _ATTRIBUTES),
        Row("0.5 MobileNet-128", 48, 0.8, partial(labels, 40, 0.5, 128), _ATTRIBUTES),
        Row("0.25 MobileNet-128", 15, 0.2, partial(labels, 40, 0.25, 128), "**misprint**: the body is 13.3"),
        Row("Baseline", 1600, 7.5, None, IN_HOUSE + "; the text says 75 M parameters, the table 7.5"),
    )),
    Section("V1, Table 13: COCO detection", (
        Row("SSD 300, deeplab-VGG", 34900, 33.1, partial(detector, "ssd_full", "vgg16_atrous", 300, 91),
            "3x3 predictors as SSD's own paper; anchors as all others here"),
        Row("SSD 300, Inception V2", 3800, 13.7, partial(detector, "ssd", "inception_v2", 300, 91)),
        Row("SSD 300, MobileNet", 1200, 6.8, partial(detector, "ssd", "v1", 300, 91)),
        Row("Faster-RCNN 300, VGG", 64300, 138.5, partial(faster_rcnn, "vgg16", 300)),
        Row("Faster-RCNN 300, Inception V2", 118200, 13.3, partial(faster_rcnn, "inception_v2", 300),
            "no misprint: 381 M for each of 300 proposals, at any resolution"),
        Row("Faster-RCNN 300, MobileNet", 25200, 6.1, partial(faster_rcnn, "v1", 300)),
        Row("Faster-RCNN 600, VGG", 149600, 138.5, partial(faster_rcnn, "vgg16", 600)),
        Row("Faster-RCNN 600, Inception V2", 129600, 13.3, partial(faster_rcnn, "inception_v2", 600)),
        Row("Faster-RCNN 600, MobileNet", 30500, 6.1, partial(faster_rcnn, "v1", 600)),
    ), "SSD with the extra maps of the authors' detection code. Faster-RCNN proposes on the map of stride 16 "
       "and runs what is left of the backbone on 300 crops of 14x14."),
    Section("V1, Table 14: face embeddings", (
        Row("FaceNet", 1600, 7.5, None, "not built here: the paper does not say which of FaceNet's networks"),
        Row("1.0 MobileNet-160", 286, 4.9, partial(body, "v1", 1.0, 160), _EMBEDDING),
        Row("1.0 MobileNet-128", 185, 5.5, partial(body, "v1", 1.0, 128), _EMBEDDING),
        Row("0.75 MobileNet-160", 166, 3.4, partial(body, "v1", 0.75, 160),
            "**misprint**: labelled 0.75-128, which is the next row"),
        Row("0.75 MobileNet-128", 108, 3.8, partial(body, "v1", 0.75, 128), _EMBEDDING),
    )),
    Section("V1, the released grid", tuple(
        Row(f"{alpha:g} MobileNet-{size}", macs, params, partial(classifier, "v1", alpha, size, 1001), note)
        for alpha, params, points in (
            (1.0, 4.24, ((224, 569, ""), (192, 418, ""), (160, 291, ""), (128, 186, ""))),
            (0.75, 2.59, ((224, 317, _OFF), (192, 233, _OFF), (160, 162, _OFF), (128, 104, _OFF))),
            (0.5, 1.34, ((224, 150, ""), (192, 110, ""), (160, 77, ""), (128, 49, ""))),
            (0.25, 0.47, ((224, 41, ""), (192, 34, "**misprint**: V1's Figure 4 has 30"), (160, 21, ""),
                          (128, 14, ""))),
        )
        for size, macs, note in points
    ), "Of 1001 classes; printed parameters count three vectors of each batch norm, ours the two trained."),
    Section("V2, Table 4: ImageNet", (
        Row("MobileNetV1", 575, 4.2, partial(classifier, "v1"), "V1's own paper prints 569"),
        Row("MobileNetV2", 300, 3.4, partial(classifier, "v2"), "3.47 M without batch norms"),
        Row("MobileNetV2 1.4", 585, 6.9, partial(classifier, "v2", 1.4),
            "**misprint**: the released network has 6.1 M"),
        Row("ShuffleNet 1.5", 292, 3.4, None, NOT_BUILT),
        Row("ShuffleNet x2", 524, 5.4, None, NOT_BUILT),
        Row("NasNet-A", 564, 5.3, None, NOT_BUILT),
    )),
    Section("V2, Table 5: the detectors' own part, on V2 at 320, 80 classes", (
        Row("SSD", 1250, 14.8, partial(detector_head, "ssd_full", "v2", 320, 81)),
        Row("SSDLite", 350, 2.1, partial(detector_head, "ssdlite", "v2", 320, 81),
            "not reproduced: Table 6's 800 leaves 190 beside V2's 611 at 320"),
    ), "Extra maps and predictions, without the backbone."),
    Section("V2, the released grid", tuple(
        Row(f"{alpha:g} MobileNetV2-{size}", macs, params, partial(folded, "v2", alpha, size))
        for alpha, params, points in (
            (1.4, 6.06, ((224, 582),)),
            (1.3, 5.34, ((224, 509),)),
            (1.0, 3.47, ((224, 300), (192, 221), (160, 154), (128, 99), (96, 56))),
            (0.75, 2.61, ((224, 209), (192, 153), (160, 107), (128, 69), (96, 39))),
            (0.5, 1.95, ((224, 97), (192, 71), (160, 50), (128, 32), (96, 18))),
            (0.35, 1.66, ((224, 59), (192, 43), (160, 30), (128, 20), (96, 11))),
        )
        for size, macs in points
    ), "Printed Mult-Adds are truncated; parameters, printed and ours, are without batch norms."),
    Section("V2, Table 6: COCO detection, 80 classes; MobileNets at 320", (
        Row("SSD300", 35200, 36.1, partial(detector, "ssd_full", "vgg16_atrous", 300, 81), _SSD),
        Row("SSD512", 99500, 36.1, partial(detector, "ssd_full", "vgg16_atrous", 512, 81), _SSD),
        Row("YOLOv2", 17500, 50.7, None, NOT_BUILT),
        Row("V1 + SSDLite", 1300, 5.1, partial(detector, "ssdlite", "v1", 320, 81)),
        Row("V2 + SSDLite", 800, 4.3, partial(detector, "ssdlite", "v2", 320, 81)),
    )),
    Section("V3, Table 3 and the released networks", (
        Row("V3-Large 1.0", 219, 5.4, partial(classifier, "v3_large"), "the released table prints 217"),
        Row("V3-Large 0.75", 155, 4.0, partial(classifier, "v3_large", 0.75)),
        Row("V3-Small 1.0", 66, 2.9, partial(classifier, "v3_small"),
            "**misprint**: no released network has it; 56.9 / 2.95 with the 1280 of Table 2"),
        Row("V3-Small 0.75", 44, 2.4, partial(classifier, "v3_small", 0.75), "2.4 M with 1280 too"),
        Row("MnasNet-A1", 315, 3.9, partial(classifier, "mnasnet_a1")),
        Row("Proxyless", 320, 4.0, None, NOT_BUILT),
        Row("Mnas-small", 65.1, 1.9, partial(classifier, "mnasnet_small"), "as released"),
        Row("V2 1.0", 300, 3.4, partial(classifier, "v2")),
        Row("V2 0.35", 59.2, 1.6, partial(classifier, "v2", 0.35)),
        Row("V3-Large minimalistic", 209, 3.9, partial(classifier, "v3_large_minimalistic")),
        Row("V3-Small minimalistic", 65, 2.0, partial(classifier, "v3_small_minimalistic"),
            "**misprint** of the Mult-Adds"),
    )),
    Section("V3, Table 6: COCO detection at 320", (
        Row("V1", 1300, 5.1, partial(detector, "ssdlite", "v1", 320, 81)),
        Row("V2", 800, 4.3, partial(detector, "ssdlite", "v2", 320, 81)),
        Row("MnasNet", 840, 4.88, partial(detector, "ssdlite", "mnasnet_a1", 320, 81)),
        Row("V3", 620, 4.97, partial(detector, "ssdlite", "v3_large", 320, 81)),
        Row("V3, channels halved", 510, 3.22, partial(detector, "ssdlite", "v3_large_halved", 320, 81)),
        Row("V2 0.35", 160, 0.93, partial(_narrow, "v2", 0.35), _NARROW),
        Row("V2 0.5", 270, 1.54, partial(_narrow, "v2", 0.5), _NARROW),
        Row("MnasNet 0.35", 180, 1.02, partial(_narrow, "mnasnet_a1", 0.35), _NARROW),
        Row("MnasNet 0.5", 290, 1.68, partial(_narrow, "mnasnet_a1", 0.5), _NARROW),
        Row("V3-Small", 210, 2.49, partial(detector, "ssdlite", "v3_small", 320, 81)),
        Row("V3-Small, channels halved", 160, 1.77, partial(detector, "ssdlite", "v3_small_halved", 320, 81)),
    ), "Extra layers as V2's; the paper does not print its own. Halved are the channels after the last map "
       "of stride 16."),
    Section("MicroNet, Table 7", (
        Row("MobileNetV3 0.15x", 4, 1.0, partial(classifier, "v3_small", 0.15), _UNPRINTED_WIDTHS),
        Row("M0", 4, 1.0, partial(micro, "micronet_m0")),
        Row("MobileNetV3 0.2x", 6, 1.2, partial(classifier, "v3_small", 0.2), _UNPRINTED_WIDTHS),
        Row("M1#", 5, 1.2, None, _HASH),
        Row("M1", 6, 1.8, partial(micro, "micronet_m1")),
        Row("ShuffleNetV1 0.25x", 13, None, None, NOT_BUILT),
        Row("MobileNetV3 0.35x", 12, 1.4, partial(classifier, "v3_small", 0.35)),
        Row("HBONet at 96", 12, None, None, NOT_BUILT),
        Row("MobileNetV3+BFT 0.5x", 15, None, None, NOT_BUILT),
        Row("M2#", 11, 1.4, None, _HASH),
        Row("M2", 12, 2.4, partial(micro, "micronet_m2")),
        Row("HBONet at 128", 21, None, None, NOT_BUILT),
        Row("ShuffleNetV2+BFT", 21, None, None, NOT_BUILT),
        Row("MobileNetV3 0.5x", 21, 1.6, partial(classifier, "v3_small", 0.5)),
        Row("TinyNet-E", 24, 2.0, None, NOT_BUILT),
        Row("M3#", 20, 1.6, None, _HASH),
        Row("M3", 21, 2.6, partial(micro, "micronet_m3"),
            "**misprint** in Table 1: two kernels printed 3 are 5 in the released network"),
    ), "MicroNets are met only with the multiplications of Dynamic Shift-Max, which ours include. "
       "MobileNetV3 is V3-Small."),
    Section("MicroNet, Table 2: from MobileNet to MicroNet, by M2", (
        Row("MobileNet baseline", 10.6, 1.3, partial(ablation, "mobilenet"), _SAME_WIDTHS),
        Row("+ Micro-Factorized depthwise", 10.6, 1.7, partial(ablation, "dw"), _SAME_WIDTHS),
        Row("+ Micro-Factorized pointwise", 10.6, 1.7, partial(ablation, "dw_pw"), _SAME_WIDTHS),
        Row("+ lite combination", 10.5, 1.8, partial(ablation, "relu")),
        Row("+ static Shift-Max", 11.8, 1.9, partial(ablation, "static_shift_max")),
        Row("+ dynamic Shift-Max", 12.4, 2.4, partial(micro, "micronet_m2")),
    ), "The paper holds the cost by widths that it does not print; ours are the widths of M2 in every row."),
    Section("MicroNet, Table 3: groups, and where the lite combination stands", (
        *(Row(f"G = {groups}", macs, params, None, NO_WIDTHS)
          for groups, macs, params in ((1, 10.6, 1.3), (2, 10.5, 1.5), (4, 10.6, 1.7), (8, 10.6, 1.7))),
        Row("G = sqrt(C / R), lambda = 1", 10.5, 1.8, partial(ablation, "relu")),
        *(Row(f"lambda = {factor:g}", macs, params, None, NO_WIDTHS)
          for factor, macs, params in ((0.25, 10.5, 1.5), (0.5, 10.6, 1.7), (2, 10.5, 2.1), (4, 10.7, 2.2))),
        Row("lite nowhere", 10.6, 1.7, partial(ablation, "dw_pw"), _SAME_WIDTHS),
        Row("lite in low rows", 10.5, 1.8, partial(ablation, "relu")),
        Row("lite in low and high rows", 10.6, 2.0, None, NO_WIDTHS),
    )),
    Section("MicroNet, Tables 4 to 6: activations of M2", (
        Row("ReLU", 10.5, 1.8, partial(ablation, "relu")),
        Row("SE + ReLU, J = K = 1", 10.9, 2.1, partial(ablation, "se_relu")),
        Row("Dynamic ReLU", 11.8, 2.4, partial(ablation, "dynamic_relu"), "Table 6 prints 11.2 and 2.2"),
        Row("after depthwise", 11.3, 2.1, partial(ablation, "after_depthwise")),
        Row("after squeeze", 10.6, 2.0, partial(ablation, "after_squeeze")),
        Row("after expand", 11.2, 2.1, partial(ablation, "after_expand")),
        Row("after depthwise and squeeze", 11.5, 2.2, partial(ablation, "after_depthwise_and_squeeze")),
        Row("after depthwise and expand", 12.2, 2.3, partial(ablation, "after_depthwise_and_expand")),
        Row("after squeeze and expand", 11.4, 2.2, partial(ablation, "after_squeeze_and_expand")),
        Row("all three, J = 2, K = 2", 12.4, 2.4, partial(micro, "micronet_m2")),
        Row("J = 1, K = 2", 11.2, 2.2, partial(ablation, "dynamic_relu"), "dynamic ReLU"),
        Row("J = 2, K = 1", 11.8, 2.2, partial(ablation, "j2_k1")),
        Row("J = 2, K = 3", 13.8, 2.6, partial(ablation, "j2_k3")),
        Row("J = 3, K = 2", 14.2, 2.6, partial(ablation, "j3_k2")),
        Row("J = 3, K = 3", 15.3, 2.8, partial(ablation, "j3_k3")),
    ), "The paper does not print these networks; ours are M2 with the released generators' widths, and the "
       "last expansion has what a squeeze has."),
    Section("MicroNet, Table 8: backbones of detectors, at 224", (
        Row("MobileNetV3 1.0x", 56, None, partial(classifier, "v3_small")),
        Row("M2", 12, None, partial(micro, "micronet_m2")),
        Row("M3", 21, None, partial(micro, "micronet_m3")),
    )),
    Section("MicroNet, Table 9: keypoints", (
        Row("MobileNetV3 1.0x", 726.9, 2.1, None, _KEYPOINTS),
        Row("M2", 116.8, 1.8, None, _KEYPOINTS),
        Row("M3", 163.2, 2.2, None, _KEYPOINTS),
    )),
)
# fmt: on
