"""Every network by name, and how to build one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from models import (
    comparators,
    factorised,
    micronet,
    mnasnet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
)
from models.blocks import PADDINGS, MobileNet, Network, module_of
from pipeline.artifacts import AlpharhoError

MAX_ALPHA = 2.0

MODELS: dict[str, Callable[[float], Network]] = {
    "v1": mobilenet_v1.network,
    "v1_flattened": factorised.flattened,
    "v1_low_rank": factorised.low_rank,
    "v2": mobilenet_v2.network,
    "v3_small": partial(mobilenet_v3.network, table=mobilenet_v3.SMALL),
    "v3_large": partial(mobilenet_v3.network, table=mobilenet_v3.LARGE),
    "v3_small_minimalistic": partial(
        mobilenet_v3.network, table=mobilenet_v3.minimalistic(mobilenet_v3.SMALL)
    ),
    "v3_large_minimalistic": partial(
        mobilenet_v3.network, table=mobilenet_v3.minimalistic(mobilenet_v3.LARGE)
    ),
    "micronet_m0": partial(micronet.network, table=micronet.M0),
    "micronet_m1": partial(micronet.network, table=micronet.M1),
    "micronet_m2": partial(micronet.network, table=micronet.M2),
    "micronet_m3": partial(micronet.network, table=micronet.M3),
}
"""The families; alpha is what their papers scale."""

VARIANTS: dict[str, Callable[[float], Network]] = {
    **comparators.COMPARATORS,
    "mnasnet_a1": partial(mobilenet_v2.network, table=mnasnet.A1),
    "mnasnet_a1_narrow": partial(mobilenet_v2.network, table=mnasnet.A1, least_last=0.0),
    "mnasnet_small": partial(mobilenet_v2.network, table=mnasnet.SMALL),
    "v2_narrow": partial(mobilenet_v2.network, least_last=0.0),
    "v3_small_halved": partial(mobilenet_v3.network, table=mobilenet_v3.halved(mobilenet_v3.SMALL)),
    "v3_large_halved": partial(mobilenet_v3.network, table=mobilenet_v3.halved(mobilenet_v3.LARGE)),
    **{
        f"micronet_m2_{name}": partial(micronet.network, table=table)
        for name, table in micronet.ABLATIONS.items()
    },
}
"""What the papers compare with, V3 narrowed for detection, and MicroNet M2 with one thing changed."""

_NETWORKS = {**MODELS, **VARIANTS}
NAMES = tuple(_NETWORKS)
"""Everything that `build` takes."""


def network(name: str, alpha: float = 1.0) -> Network:
    """The rows of `name` at width `alpha`. AlpharhoError for an unknown name or an alpha outside (0, 2]."""
    if name not in NAMES:
        raise AlpharhoError(f"unknown model {name!r}; choose one of {', '.join(NAMES)}")
    if not 0 < alpha <= MAX_ALPHA:
        raise AlpharhoError(f"alpha is {alpha}; choose a width multiplier above 0 and at most {MAX_ALPHA:g}")
    return _NETWORKS[name](alpha)


def build(
    name: str,
    alpha: float = 1.0,
    num_classes: int = 1000,
    padding: str = "tf",
    dropout: float | None = None,
) -> MobileNet:
    """The module of `name`: float32 NCHW `[N, 3, H, W]` in, logits `[N, num_classes]` out, any resolution.

    `padding` is `tf` (SAME, the odd pixel last) or `torch` (symmetric, for imported weights); tables of
    layers, as VGG 16's, have their own and take either. `dropout` None means the authors' rate.
    AlpharhoError for an argument outside its range.
    """
    rows = network(name, alpha)
    if num_classes < 1:
        raise AlpharhoError(f"num_classes is {num_classes}; a classifier needs at least 1")
    if padding not in PADDINGS:
        raise AlpharhoError(f"unknown padding {padding!r}; choose one of {', '.join(PADDINGS)}")
    rate = rows.dropout if dropout is None else dropout
    if not 0 <= rate < 1:
        raise AlpharhoError(f"dropout is {rate}; choose a rate of at least 0 and below 1")
    return module_of(rows, num_classes, padding, rate)


def check_resolution(name: str, resolution: int) -> None:
    """AlpharhoError unless `resolution` is at least the network's total stride (32 for every MobileNet).

    Below it the last stages would see less than one pixel of picture and only padding beside it.
    """
    minimum = network(name).least_resolution
    if resolution < minimum:
        raise AlpharhoError(f"resolution {resolution} is too small for {name}; {minimum} is the minimum")
