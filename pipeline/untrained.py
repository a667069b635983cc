"""Files for latency, which needs no trained weights: seeded ones, batch norms calibrated on real images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import models
from device_bench.records import read_json, write_json
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.to_onnx import OUTPUTS, to_onnx
from pipeline import manifest
from pipeline.artifacts import locked, write_bytes
from pipeline.convert import Calibration, convert_graph
from pipeline.data import normalise, open_fashion_mnist_sample
from pipeline.source_digest import CONVERTING, source_digest
from pipeline.variant import IMAGENET_CLASSES, IMAGENET_RESOLUTION, PRECISIONS, Variant
from quantize.int8 import Io
from quantize.recipes import RECIPES

IMAGES = 8
SEED = 0
RECORD = "untrained.json"
MADE_BY = ("models", *CONVERTING)  # the folders whose code decides what a file holds
NAMES = (*models.NAMES, *models.HEADED)
"""What can be exported without training: every network, and those with a head."""


def base_resolution(model: str) -> int:
    """Side of the images at rho 1: that of ImageNet, of a head the one that its paper counts at."""
    return models.HEADED[model].resolution if model in models.HEADED else IMAGENET_RESOLUTION


def file_of(variant: Variant, precision: str, build: Path) -> Path:
    """`build/<variant>/<precision>.tflite`: the one that `export` made, else with untrained weights.

    An untrained file that other code made is made anew.
    """
    folder = build / variant.name
    path = folder / f"{precision}.tflite"
    if not (path.is_file() and ((folder / manifest.FILE_NAME).is_file() or _is_of_this_code(folder))):
        _export(variant, folder)
    return path


def _is_of_this_code(folder: Path) -> bool:
    record = folder / RECORD
    return record.is_file() and read_json(record) == _record()


def _record() -> dict[str, object]:
    return {"code": source_digest(MADE_BY)}


def _export(variant: Variant, folder: Path) -> None:
    """The three files of the variant, classifiers of 1,000 classes, and a record of the code."""
    torch.manual_seed(SEED)
    pixels, _ = open_fashion_mnist_sample().calibration.take(range(IMAGES), variant.resolution)
    images = normalise(pixels)
    module, outputs = _network(variant)
    calibrate_norms(module, images)
    exported = models.deployed(module) if isinstance(module, models.MobileNet) else module
    graph = run_passes(read_onnx(to_onnx(exported, variant.resolution, outputs)), FLOAT_PASSES)
    calibration = Calibration([images], RECIPES["int8"], Io())
    with locked(folder):
        for precision in PRECISIONS:
            converted = convert_graph(precision, graph, calibration)
            write_bytes(folder / f"{precision}.tflite", converted.content)
        write_json(folder / RECORD, _record())


def _network(variant: Variant) -> tuple[nn.Module, tuple[str, ...]]:
    """The module of the variant and the names of its outputs."""
    if variant.model in models.HEADED:
        outputs = models.HEADED[variant.model].outputs
        return models.build_headed(variant.model, variant.alpha), outputs
    return models.build(variant.model, variant.alpha, IMAGENET_CLASSES), OUTPUTS


def calibrate_norms(module: nn.Module, images: NDArray[np.float32]) -> None:
    """Give every batch norm the mean and variance of real images, without which deep activations vanish.

    `images` is [N, H, W, 3], normalised.
    """
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # a plain average over the batches
            layer.reset_running_stats()
    with torch.no_grad():
        module.train()(torch.from_numpy(images).permute(0, 3, 1, 2))
    module.eval()
