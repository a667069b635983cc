"""Accuracy of a network at any stage: PyTorch module, .onnx file or .tflite file, on the same test images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from export.read_onnx import input_shape, load_onnx
from export.runtime import Logits, Predictor, load_interpreter, load_onnx_predictor, load_tflite_predictor
from pipeline.artifacts import AlpharhoError
from pipeline.data import Dataset, Labels, Split, normalise, open_dataset
from pipeline.manifest import Accuracy

BATCH = 64
Value = TypeVar("Value", bound=np.generic)
Real = TypeVar("Real", bound=np.floating[Any])


def batched(rows: NDArray[Value], size: int = BATCH) -> list[NDArray[Value]]:
    """The rows in batches of `size`, the last one smaller where they do not divide."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def predict(predictor: Predictor, split: Split, resolution: int, what: str) -> tuple[Logits, Labels]:
    """Logits `[N, classes]` and labels `[N]` over the whole split, with a progress bar on a terminal."""
    logits, labels = [], []
    with tqdm(total=len(split), desc=what, unit="image", leave=False, disable=None) as bar:
        for pixels, truth in split.batches(BATCH, resolution):
            logits.append(predictor(pixels))
            labels.append(truth)
            bar.update(len(truth))
    return np.concatenate(logits), np.concatenate(labels)


def accuracy_of(logits: Logits, labels: Labels) -> Accuracy:
    """Top-1 and top-5 in percent; with five classes or fewer top-5 is 100."""
    ranked = np.argsort(-logits, axis=1, kind="stable")[:, :5] == labels[:, None]
    top1, top5 = 100 * ranked[:, 0].mean(), 100 * ranked.any(axis=1).mean()
    return Accuracy(top1=round(float(top1), 4), top5=round(float(top5), 4), samples=len(labels))


def agreement_of(logits: Logits, reference: Logits) -> float:
    """Percent of images for which both give the same first class."""
    return round(100 * float((logits.argmax(1) == reference.argmax(1)).mean()), 4)


def softmax(logits: NDArray[Real]) -> NDArray[Real]:
    """Probabilities over the last axis, in the type of the logits."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def module_predictor(module: nn.Module) -> Predictor:
    """A predictor over uint8 NHWC pixels from a PyTorch module."""
    module = module.eval()

    def predict_pixels(pixels: NDArray[np.uint8]) -> Logits:
        images = torch.from_numpy(normalise(pixels)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return np.asarray(module(images).numpy(), np.float32)

    return predict_pixels


def file_predictor(path: Path) -> tuple[Predictor, int]:
    """A predictor for a .tflite or .onnx file, and the resolution of its square RGB input."""
    if not path.is_file():
        raise AlpharhoError(f"{path}: no such file; give a .tflite or .onnx file")
    if path.suffix == ".tflite":
        door = load_interpreter(path).get_input_details()[0]
        return load_tflite_predictor(path, normalise), _square(
            [int(size) for size in door["shape"][1:]], path
        )
    if path.suffix == ".onnx":
        _, channels, height, width = input_shape(load_onnx(path))
        return load_onnx_predictor(path, normalise), _square([height, width, channels], path)
    raise AlpharhoError(
        f"{path}: {path.suffix or 'a file without suffix'} is not evaluated; .tflite and .onnx are"
    )


def _square(shape: list[int], path: Path) -> int:
    if len(shape) != 3 or shape[0] != shape[1] or shape[2] != 3:
        raise AlpharhoError(
            f"{path}: takes images of shape {shape}; only square RGB images [R, R, 3] are evaluated"
        )
    return shape[0]


def check_classes(logits: Logits, dataset: Dataset, path: Path) -> None:
    """AlpharhoError unless the network has one logit for every class of the data set."""
    if logits.shape[1] != len(dataset.classes):
        raise AlpharhoError(
            f"{path}: gives {logits.shape[1]} classes, {dataset.name} has {len(dataset.classes)}; "
            "name the data set it was trained on with --dataset"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `evaluate`."""
    parser.add_argument("file", type=Path, metavar="FILE", help=".tflite or .onnx")
    parser.add_argument(
        "--dataset", default="fashion_mnist", help="a data set's name or a folder of pictures (%(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """The verb `evaluate`: prints top-1 and top-5 of a file on the data set's test images."""
    predictor, resolution = file_predictor(arguments.file)
    dataset = open_dataset(arguments.dataset)
    logits, labels = predict(predictor, dataset.test, resolution, arguments.file.name)
    check_classes(logits, dataset, arguments.file)
    found = accuracy_of(logits, labels)
    print(
        f"{arguments.file}: top-1 {found.top1:.2f} %, top-5 {found.top5:.2f} % of {found.samples} test images"
    )
    return 0
