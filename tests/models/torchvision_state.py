"""State dicts with torchvision's keys and shapes, which `data/torchvision_*.csv` lists, and drawn values.

`data/torchvision_logits.json` holds what torchvision 0.28.0's own networks answer with these values.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.models.published import rows

CLASSES = 10
GAINS = {"v2": 1.8, "v3_small": 1.4, "v3_large": 1.2}  # keep the picture's share in the logits near one


def torchvision_state(name: str) -> dict[str, Tensor]:
    """Values depend on nothing but numpy's generator and the order of the rows."""
    random = np.random.default_rng(7)
    return {
        row["key"]: torch.from_numpy(_draw(row["key"], _shape(row["shape"]), random, GAINS[name]))
        for row in rows(f"torchvision_{name}")
    }


def image() -> Tensor:
    return torch.from_numpy(np.random.default_rng(8).standard_normal((2, 3, 64, 64), np.float32))


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x")) if text else ()


def _draw(key: str, shape: tuple[int, ...], random: np.random.Generator, gain: float) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.array(100)
    if key.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) > 1:
        return random.standard_normal(shape, np.float32) * np.float32(gain / np.sqrt(np.prod(shape[1:])))
    return random.uniform(-0.3, 0.3, shape).astype(np.float32) + np.float32(key.endswith("1.weight"))
