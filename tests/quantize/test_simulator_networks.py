"""The simulator predicts the logits of whole networks' int8 files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import models
from export.graph import Graph
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.run import Program
from export.runtime import load_tflite_predictor
from export.to_onnx import to_onnx
from export.write_tflite import write_tflite
from models.weights import load_weights
from pipeline.data import normalise, open_fashion_mnist_sample
from pipeline.subjects import shipped
from quantize.int8 import Io
from quantize.recipes import RECIPES, quantize

NETWORKS = {"v2": 0.35, "v3_small": 1.0, "micronet_m0": 1.0}
RESOLUTION, CLASSES, CALIBRATED, TESTED = 56, 10, 32, 48
WITHIN_ONE_STEP = 0.99


def _graph(model: str) -> Graph:
    """The float graph, with the shipped weights where there are some."""
    torch.manual_seed(0)
    path = next((path for path in shipped() if path.name.startswith(f"{model}_{NETWORKS[model]:.2f}_")), None)
    module = models.build(model, NETWORKS[model], CLASSES, "torch" if path is None else "tf")
    if path is not None:
        load_weights(module, path)
    return run_passes(read_onnx(to_onnx(models.deployed(module.eval()), RESOLUTION)), FLOAT_PASSES)


@pytest.mark.slow
@pytest.mark.parametrize("model", NETWORKS)
def test_logits_are_the_runtimes_to_one_step(model: str, tmp_path: Path) -> None:
    graph, sample = _graph(model), open_fashion_mnist_sample()
    calibration, _ = sample.calibration.take(range(0, 500, 500 // CALIBRATED), RESOLUTION)
    test, _ = sample.test.take(range(0, 2000, 2000 // TESTED), RESOLUTION)
    for recipe in ("int8", "int8_full"):
        rounded = quantize(graph, [normalise(calibration)], RECIPES[recipe], Io()).graph
        path = tmp_path / f"{recipe}.tflite"
        path.write_bytes(write_tflite(rounded))
        found, expected = load_tflite_predictor(path, normalise)(test), Program(rounded)(normalise(test))
        last = Program(rounded).grids.get(f"{graph.outputs[0]}/int8")
        step = float(np.ptp(expected) / 255) if last is None else float(last.scale)
        within = (np.abs(found - expected) <= 1.01 * step).mean()
        assert within >= WITHIN_ONE_STEP, f"{recipe}: {100 * within:.1f} % within a step"
