"""Runs a .tflite file on whatever TFLite runtime this Python has; needs numpy besides."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from pipeline.peers import protocol

MODULES = {  # distribution: where its Interpreter is
    "ai-edge-litert": "ai_edge_litert.interpreter",
    "tflite-runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
}


def run(request: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs of a file for the rows of an .npy file, as an .npy file; `refused` says why there are none."""
    module = importlib.import_module(MODULES[request["runtime"]])
    answer = {"version": version(request["runtime"]), "numpy": np.__version__, "refused": ""}
    try:
        interpreter = module.Interpreter(request["model"], num_threads=1)
        interpreter.allocate_tensors()
        outputs = _outputs(interpreter, np.load(request["inputs"], allow_pickle=False))
    except (ValueError, RuntimeError) as error:
        return {**answer, "refused": " ".join(str(error).split())}
    np.save(request["outputs"], outputs, allow_pickle=False)
    return {**answer, "partitions": _partitions(interpreter)}


def _outputs(interpreter: Any, inputs: Any) -> Any:
    entry, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    collected = []
    for row in inputs:
        interpreter.set_tensor(entry["index"], row[None])
        interpreter.invoke()
        collected.append(interpreter.get_tensor(exit_["index"])[0])
    return np.stack(collected)


def _partitions(interpreter: Any) -> int:
    """How many nodes the delegate has taken the place of others with."""
    nodes = interpreter._get_ops_details()  # no runtime has a public call for it
    return sum(node["op_name"] == "DELEGATE" for node in nodes)


if __name__ == "__main__":
    protocol.serve(run)
