"""Layers kept in float compute in the file as the simulator says, inside the one delegate partition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export.check import audit_delegate, check_delegate
from export.graph import Graph
from export.run import Program
from export.runtime import load_tflite_predictor
from export.write_tflite import write_tflite
from pipeline.data import normalise
from quantize.int8 import Io
from quantize.recipes import RECIPES, quantize
from tests.quantize.networks import images, inverted_residuals, pixels, squeezed

WITHIN_ONE_STEP = 0.99
CASES: dict[str, tuple[Callable[[], Graph], set[str]]] = {
    "a dense layer": (inverted_residuals, {"second/expand"}),
    "a depthwise layer": (inverted_residuals, {"second/depthwise"}),
    "a block": (inverted_residuals, {"second/expand", "second/depthwise", "second/project"}),
    "a gate": (squeezed, {"squeeze", "reduce", "gate"}),
    "a layer and its hard-swish": (squeezed, {"last", "last/swish"}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_file_gives_the_simulators_logits(case: str, tmp_path: Path) -> None:
    make, kept = CASES[case]
    graph: Graph = quantize(make(), [images(32)], RECIPES["int8_min_max"], Io(), kept).graph
    path = tmp_path / "int8.tflite"
    path.write_bytes(write_tflite(graph))
    check_delegate(audit_delegate(path), path)
    found = load_tflite_predictor(path, normalise)(pixels(16, seed=5))
    grid = Program(graph).grids["logits/int8"]
    steps = np.abs(found - Program(graph)(images(16, seed=5))) / float(grid.scale)
    assert (steps <= 1.01).mean() >= WITHIN_ONE_STEP, f"off by up to {steps.max():.1f} steps"
