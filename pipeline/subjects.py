"""Networks with trained weights and the images that quantisation is measured on, by name or by file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx

import models
from export.graph import Graph
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.to_onnx import to_onnx
from models.weights import load_weights, read_metadata
from pipeline import photographs
from pipeline.artifacts import AlpharhoError, UsageError
from pipeline.data import FASHION_MNIST_DIRS, Dataset, open_dataset
from pipeline.job import SHIPPED_WEIGHTS
from pipeline.photographs import CALIBRATION_CROPS, PHOTOGRAPHS, Split
from pipeline.variant import Variant

CALIBRATION_SEED = 0  # the main job's default
NEEDED_NOTES = ("model", "alpha", "resolution", "dataset", "num_classes")


@dataclass(frozen=True, slots=True)
class Subject:
    """A network with trained weights and the splits that it is measured on."""

    name: str
    images: str
    model: onnx.ModelProto
    splits: tuple[Split, ...]

    def graph(self) -> Graph:
        """The float graph after all exact rewrites."""
        return run_passes(read_onnx(self.model), FLOAT_PASSES)


def photographed() -> Subject:
    """MobileNetV2 with ImageNet weights on the three splits of the photographs; fetches what is missing."""
    photographs.fetch()
    splits = tuple(photographs.split(group) for group in range(len(PHOTOGRAPHS)))
    return Subject("v2_1.00_224", "ImageNet photographs", photographs.imagenet_network("v2"), splits)


def trained(path: Path) -> Subject:
    """A network that the verb `train` made, on its data set's test images.

    AlpharhoError where the file does not say what it holds.
    """
    noted = read_metadata(path)
    if missing := [name for name in NEEDED_NOTES if name not in noted]:
        raise AlpharhoError(
            f"{path}: does not say its {', '.join(missing)}; give a .safetensors file that 'train' wrote"
        )
    variant, classes = _variant(noted), int(noted["num_classes"])
    module = models.build(variant.model, variant.alpha, classes, noted.get("padding", "torch"))
    load_weights(module, path)
    model = to_onnx(models.deployed(module.eval()), variant.resolution)
    images, split = _split_of(noted["dataset"], variant.resolution)
    return Subject(variant.name, images, model, (split,))


def _variant(noted: Mapping[str, str]) -> Variant:
    return Variant(noted["model"], float(noted["alpha"]), int(noted["resolution"]))


@cache
def _split_of(dataset: str, resolution: int) -> tuple[str, Split]:
    """What the images are called, and the main job's calibration images beside all test images."""
    data = _largest(dataset)
    drawn = np.random.default_rng(CALIBRATION_SEED).permutation(len(data.calibration))[:CALIBRATION_CROPS]
    calibration, _ = data.calibration.take(np.sort(drawn), resolution)
    test, labels = data.test.take(range(len(data.test)), resolution)
    return f"{len(labels):,} test images of {data.name}", Split(calibration, test, labels)


def _largest(dataset: str) -> Dataset:
    """The data set; of Fashion-MNIST all of it where `make data` has put it."""
    there = any(folder.is_dir() for folder in FASHION_MNIST_DIRS)
    return open_dataset("fashion_mnist_full" if dataset == "fashion_mnist" and there else dataset)


def shipped() -> list[Path]:
    """The checkpoints of this repository."""
    return sorted(SHIPPED_WEIGHTS.glob("*.safetensors"))


def subject_named(name: str) -> Subject:
    """A network by name, `v2` for the ImageNet one, or by the path of a checkpoint.

    A shipped one goes by its model, its model and alpha (`v2_0.35`) or its variant. UsageError otherwise.
    """
    if name == "v2":
        return photographed()
    if name.endswith(".safetensors"):
        return trained(Path(name))
    variants = {path: _variant(read_metadata(path)) for path in shipped()}
    found = [path for path, variant in variants.items() if name in _names(variant)]
    if len(found) != 1:
        known = ", ".join(("v2", *(_names(variant)[1] for variant in variants.values())))
        raise UsageError(f"{name!r} is no network with weights; give one of {known} or a .safetensors file")
    return trained(found[0])


def _names(variant: Variant) -> tuple[str, str, str]:
    return (variant.model, f"{variant.model}_{variant.alpha:g}", variant.name)
