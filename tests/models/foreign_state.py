"""State dicts with the keys and shapes of other projects' networks, and drawn values.

`data/foreign_*.csv` list keys and, by network, shapes; `data/foreign_logits.json` holds what the projects'
own networks answer with the drawn values. `make_foreign.py` wrote both.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.models.published import rows

CLASSES = 10
SIDES = (64, 53)  # of the two images; an odd side tells paddings apart


@dataclass(frozen=True, slots=True)
class Foreign:
    """A network of another project: its table, which of ours it is, its source, and its file's name."""

    table: str
    model: str
    alpha: float
    source: str
    file: str


# fmt: off
FOREIGN = {
    "mobilenetv1_100": Foreign("timm_v1", "v1", 1.0, "timm_half", "mobilenetv1_100.ra4_e3600_r224_in1k.pth"),
    "mobilenetv1_125": Foreign("timm_v1", "v1", 1.25, "timm_half", "mobilenetv1_125.ra4_e3600_r224_in1k.pth"),
    "mobilenetv2_035": Foreign("timm_v2", "v2", 0.35, "timm", "mobilenetv2_035.pth"),
    "mobilenetv2_050": Foreign("timm_v2", "v2", 0.5, "timm", "mobilenetv2_050-3d30d450.pth"),
    "mobilenetv2_075": Foreign("timm_v2", "v2", 0.75, "timm", "mobilenetv2_075.pth"),
    "mobilenetv2_100": Foreign("timm_v2", "v2", 1.0, "timm", "mobilenetv2_100_ra-b33bc2c4.pth"),
    "mobilenetv2_140": Foreign("timm_v2", "v2", 1.4, "timm", "mobilenetv2_140_ra-21a4e913.pth"),
    "mobilenetv3_small_075": Foreign("timm_v3_small", "v3_small", 0.75, "timm",
                                     "mobilenetv3_small_075_lambc-384766db.pth"),
    "mobilenetv3_small_100": Foreign("timm_v3_small", "v3_small", 1.0, "timm",
                                     "mobilenetv3_small_100_lamb-266a294c.pth"),
    "mobilenetv3_large_075": Foreign("timm_v3_large", "v3_large", 0.75, "timm",
                                     "mobilenetv3_large_075.ra_in1k.pth"),
    "mobilenetv3_large_100": Foreign("timm_v3_large", "v3_large", 1.0, "timm_unit",
                                     "mobilenetv3_large_100_1k_miil_78_0-66471c13.pth"),
    "tf_mobilenetv3_small_075": Foreign("timm_v3_small", "v3_small", 0.75, "timm_tf",
                                        "tf_mobilenetv3_small_075-da427f52.pth"),
    "tf_mobilenetv3_small_100": Foreign("timm_v3_small", "v3_small", 1.0, "timm_tf",
                                        "tf_mobilenetv3_small_100-37f49e2b.pth"),
    "tf_mobilenetv3_small_minimal_100": Foreign("timm_v3_small", "v3_small_minimalistic", 1.0, "timm_tf",
                                                "tf_mobilenetv3_small_minimal_100-922a7843.pth"),
    "tf_mobilenetv3_large_075": Foreign("timm_v3_large", "v3_large", 0.75, "timm_tf",
                                        "tf_mobilenetv3_large_075-150ee8b0.pth"),
    "tf_mobilenetv3_large_100": Foreign("timm_v3_large", "v3_large", 1.0, "timm_tf",
                                        "tf_mobilenetv3_large_100-427764d5.pth"),
    "tf_mobilenetv3_large_minimal_100": Foreign("timm_v3_large", "v3_large_minimalistic", 1.0, "timm_tf",
                                                "tf_mobilenetv3_large_minimal_100-8596ae28.pth"),
    "micronet_m0": Foreign("micronet", "micronet_m0", 1.0, "micronet", "m0.pth"),
    "micronet_m1": Foreign("micronet", "micronet_m1", 1.0, "micronet", "m1.pth"),
    "micronet_m2": Foreign("micronet", "micronet_m2", 1.0, "micronet", "m2.pth"),
    "micronet_m3": Foreign("micronet", "micronet_m3", 1.0, "micronet", "m3.pth"),
}
# fmt: on


def foreign_state(name: str) -> dict[str, Tensor]:
    """Keys and shapes of the network of that name, with drawn values."""
    table = rows(f"foreign_{FOREIGN[name].table}")
    shapes = {row["key"]: row[name] for row in table if row[name] != "-"}
    return drawn({key: tuple(map(int, shape.split("x"))) for key, shape in shapes.items()})


def drawn(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Values that depend on nothing but the key, the shape and numpy's generator.

    Variances of batch norms go down to 0.002, where an epsilon of 1e-3 and one of 1e-5 are far apart.
    """
    generators = {key: np.random.default_rng([7, zlib.crc32(key.encode())]) for key in shapes}
    return {key: torch.from_numpy(_draw(key, shape, generators[key])) for key, shape in shapes.items()}


def images() -> list[Tensor]:
    """Two images as networks take them, [1, 3, side, side]."""
    random = np.random.default_rng(8)
    return [torch.from_numpy(random.standard_normal((1, 3, side, side), np.float32)) for side in SIDES]


def _draw(key: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if key.endswith("running_var"):
        return np.exp(random.uniform(np.log(0.002), np.log(1.0), shape)).astype(np.float32)
    if key.endswith("weight") and len(shape) == 1:
        return random.uniform(0.2, 0.8, shape).astype(np.float32)
    if key.endswith("weight"):
        return random.standard_normal(shape, np.float32) * np.float32(0.3 / np.sqrt(np.prod(shape[1:])))
    return random.uniform(-0.3, 0.3, shape).astype(np.float32)
