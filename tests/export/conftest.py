"""Real networks, exported once for all tests: narrow and of low resolution, batch norms as if trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import models
from export.graph import Graph
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.to_onnx import to_onnx

RESOLUTION = 64
ALPHA = 0.25
CLASSES = 7


@dataclass(frozen=True, slots=True)
class Exported:
    """A module, its ONNX model and its float graph."""

    module: models.MobileNet
    onnx: onnx.ModelProto
    graph: Graph


@cache
def exported(name: str, padding: str = "tf") -> Exported:
    torch.manual_seed(0)
    module = models.build(name, ALPHA, CLASSES, padding).eval()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]  # batch norms here track their mean
                layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.3)
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(0, 0.2)
    model = to_onnx(module, RESOLUTION)
    return Exported(module, model, run_passes(read_onnx(model), FLOAT_PASSES))


@pytest.fixture(scope="session")
def export_model() -> Callable[..., Exported]:
    """`export_model(name, padding="tf")`, made once a session."""
    return exported


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    """Twelve random pictures, uint8 NHWC, smooth enough to differ in more than noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    return coarse.repeat(RESOLUTION // 8, axis=1).repeat(RESOLUTION // 8, axis=2)
