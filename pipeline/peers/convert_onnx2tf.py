"""onnx2tf: an ONNX file to float32, int8 and float16 .tflite files. Runs in the environment `onnx2tf`."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.peers import protocol

# It runs every network on these before it converts, from the web unless they lie in the working folder.
SAMPLE_IMAGES = "calibration_image_sample_data_20x128x128x3_float32.npy"
RESULTS = {"float32": "model_float32", "float16": "model_float16", "int8": "model_integer_quant"}


def convert(request: Mapping[str, Any]) -> dict[str, Any]:
    """All precisions in one call, as its users make it; float16 comes along with float32."""
    onnx2tf = importlib.import_module("onnx2tf")
    out, work = Path(request["out"]), Path(request["out"]) / "onnx2tf"
    shutil.rmtree(work, ignore_errors=True)
    np.save(SAMPLE_IMAGES, np.random.default_rng(0).uniform(0, 1, (20, 128, 128, 3)).astype(np.float32))

    def all_precisions() -> None:
        onnx2tf.convert(
            input_onnx_file_path=request["onnx"],
            output_folder_path=str(work),
            output_integer_quantized_tflite=True,
            quant_type="per-channel",
            # The calibration array holds what the network sees, so nothing is left to subtract or divide by.
            custom_input_op_name_np_data_path=[["image", request["calibration"], [[[[0.0]]]], [[[[1.0]]]]]],
            non_verbose=True,
            verbosity="error",
        )

    seconds, cpu_seconds = protocol.timed(all_precisions)
    peak = protocol.peak_bytes()
    for precision, name in RESULTS.items():
        (work / f"{name}.tflite").replace(out / f"{precision}.tflite")
    shutil.rmtree(work)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak,
        "versions": protocol.versions("onnx2tf", "tensorflow"),
    }


if __name__ == "__main__":
    protocol.serve(convert)
