"""A small data set and a small network for tests of the whole pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from models.weights import save_weights
from pipeline import data
from pipeline.job import Request, export

RHO = 4 / 7  # 32 pixels
TEST_IMAGES = 120


@pytest.fixture(scope="session")
def small_idx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of IDX files with real images: 500 to train and calibrate on, 120 to test on."""
    folder = tmp_path_factory.mktemp("idx")
    for source, prefix, count in (("calibration", "train", 500), ("t10k", "t10k", TEST_IMAGES)):
        split = data.read_idx_split(data.SAMPLE_DIR, source, 10)
        data.write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", split.images[:count])
        data.write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", split.labels[:count].astype(np.uint8))
    return folder


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of v1 at alpha 0.25 for ten classes: not trained, but with logits that tell images apart."""
    torch.manual_seed(0)
    module = models.build("v1", 0.25, 10)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.normal_(0, 0.3)
    path = tmp_path_factory.mktemp("weights") / "v1.safetensors"
    save_weights(module, path, {"model": "v1", "alpha": "0.25"})
    return path


@pytest.fixture(scope="session")
def small_job(small_idx: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished main job on the small network."""
    out = tmp_path_factory.mktemp("build") / "v1"
    request = Request(model="v1", alpha=0.25, rho=RHO, dataset=str(small_idx), weights=small_weights, out=out)
    export(request, say=lambda _: None)
    return out
