"""The simulator against the runtime, tensor by tensor."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from export.graph import Graph
from export.run import Program
from export.write_tflite import write_tflite
from quantize.int8 import Io
from quantize.recipes import RECIPES, quantize
from tests.quantize.networks import images, inverted_residuals, pixels, squeezed

GRAPHS = {"relu6": inverted_residuals(), "relu": inverted_residuals("RELU"), "squeezed": squeezed()}
WITHIN_ONE_STEP = 0.99


def _runtime(graph: Graph, path: Path) -> Interpreter:
    path.write_bytes(write_tflite(graph))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # preserving tensors warns that it is for debugging
        interpreter = Interpreter(str(path), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    return interpreter


def _seen(program: Program, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    program(image[None], lambda name, values: found.update({name: values.numpy().copy()}))
    return found


@pytest.mark.parametrize("recipe", ["int8", "int8_full", "int8_per_tensor", "int8_min_max"])
@pytest.mark.parametrize("name", GRAPHS)
def test_every_int8_tensor_is_the_runtimes_to_one_step(name: str, recipe: str, tmp_path: Path) -> None:
    graph = quantize(GRAPHS[name], [images(32)], RECIPES[recipe], Io()).graph
    interpreter = _runtime(graph, tmp_path / "int8.tflite")
    index = {detail["name"]: detail["index"] for detail in interpreter.get_tensor_details()}
    program = Program(graph)
    for picture, image in zip(pixels(4, seed=9), images(4, seed=9), strict=True):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture[None])
        interpreter.invoke()
        seen = _seen(program, image)
        for tensor, grid in program.grids.items():
            if tensor not in seen or tensor == graph.inputs[0]:
                continue
            stored = interpreter.get_tensor(index[tensor]).astype(np.float64)
            quantization = graph.tensors[tensor].quantization
            assert quantization is not None
            found = stored - quantization.zero_point[0]
            steps = np.abs(found - np.round(seen[tensor] / grid.scale))
            assert (steps <= 1).mean() >= WITHIN_ONE_STEP, f"{tensor} is off by up to {steps.max()} steps"


@pytest.mark.parametrize("name", GRAPHS)
def test_logits_of_the_full_integer_graph_are_the_runtimes(name: str, tmp_path: Path) -> None:
    graph = quantize(GRAPHS[name], [images(32)], RECIPES["int8_full"], Io(output="int8")).graph
    path = tmp_path / "int8.tflite"
    path.write_bytes(write_tflite(graph))
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    expected = Program(graph)(images(16, seed=5))
    grid = graph.tensors["logits"].quantization
    assert grid is not None
    for picture, logits in zip(pixels(16, seed=5), expected, strict=True):
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture[None])
        interpreter.invoke()
        found = grid.dequantize(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
        assert np.abs(found - logits).max() <= grid.scale[0] * 1.01
