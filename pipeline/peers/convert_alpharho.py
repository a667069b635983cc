"""This project's own way from the module to the files, in a process like the peers'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from export.graph import Graph
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.to_onnx import to_onnx
from pipeline.convert import Calibration, convert_graph
from pipeline.evaluate import batched
from pipeline.peers import protocol
from pipeline.peers.network import load_network
from quantize.int8 import Io
from quantize.recipes import RECIPES


def convert(request: Mapping[str, Any]) -> dict[str, Any]:
    """Module to ONNX to float32 and int8 by `request["recipe"]`, timed in two parts; float16 afterwards."""
    module, resolution = load_network(request), int(request["resolution"])
    images = np.load(request["calibration"], allow_pickle=False)
    calibration = Calibration(batched(images), RECIPES[request["recipe"]], Io())
    models: list[onnx.ModelProto] = []
    graphs: list[Graph] = []

    def write(precision: str) -> None:
        content = convert_graph(precision, graphs[0], calibration).content
        (Path(request["out"]) / f"{precision}.tflite").write_bytes(content)

    def both() -> None:
        graphs.append(run_passes(read_onnx(models[0]), FLOAT_PASSES))
        write("float32")
        write("int8")

    onnx_seconds, onnx_cpu_seconds = protocol.timed(lambda: models.append(to_onnx(module, resolution)))
    seconds, cpu_seconds = protocol.timed(both)
    peak = protocol.peak_bytes()
    write("float16")
    found = protocol.versions("torch", "onnx")
    return {
        "onnx_seconds": onnx_seconds,
        "onnx_cpu_seconds": onnx_cpu_seconds,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak,
        "versions": found,
    }


if __name__ == "__main__":
    protocol.serve(convert)
