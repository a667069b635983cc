"""litert-torch and litert-quantizer: a module to .tflite files. Runs in the environment `litert_torch`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.peers import protocol
from pipeline.peers.network import load_network

Quantised = Callable[[str, Any], Any]
"""Path of a float32 file and images [N, H, W, 3] to the result that has the int8 file."""


def convert(request: Mapping[str, Any]) -> dict[str, Any]:
    """Channels-last input as its guide advises; float32 and int8 are timed, float16 is made afterwards."""
    litert_torch: Any = importlib.import_module("litert_torch")
    quantizer: Any = importlib.import_module("litert_quantizer.quantizer")
    module, out = load_network(request), Path(request["out"])
    images = np.load(request["calibration"], allow_pickle=False)
    calibrated = CALIBRATIONS[request.get("calibrated", "default")]

    def both() -> None:
        channels_last = litert_torch.to_channel_last_io(module, args=[0])
        sample = (torch.from_numpy(images[:1]),)
        litert_torch.convert(channels_last, sample).export(str(out / "float32.tflite"))
        calibrated(str(out / "float32.tflite"), images).export_model(str(out / "int8.tflite"), overwrite=True)

    seconds, cpu_seconds = protocol.timed(both)
    peak = protocol.peak_bytes()
    half = quantizer.Quantizer(str(out / "float32.tflite"))
    half.add_weight_only_config(".*", "*", num_bits=16, algorithm_key="float_casting")
    half.quantize(enable_progress_report=False).export_model(str(out / "float16.tflite"), overwrite=True)
    found = protocol.versions("litert-torch", "litert-quantizer", "torch")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak,
        "versions": found,
    }


def default_calibration(path: str, images: Any) -> Any:
    """`static_wi8_ai8` as it comes: a moving average of the samples' smallest and largest values."""
    quantizer = _static_quantizer(path)
    return _quantised(quantizer, quantizer.calibrate(_samples(path, images), num_threads=2))


def min_max_calibration(path: str, images: Any) -> Any:
    """The same recipe on the smallest and largest values of all samples, which has no public call."""
    calibrator: Any = importlib.import_module("litert_quantizer.calibrator")
    update = importlib.import_module("litert_quantizer.utils.qsv_utils").min_max_update
    quantizer = _static_quantizer(path)
    observer = calibrator.Calibrator(path, num_threads=2, qsv_update_func=update)
    observer.calibrate(_samples(path, images), quantizer._recipe_manager)
    return _quantised(quantizer, observer.get_model_qsvs())


def _static_quantizer(path: str) -> Any:
    recipe: Any = importlib.import_module("litert_quantizer.recipe")
    quantizer: Any = importlib.import_module("litert_quantizer.quantizer")
    return quantizer.Quantizer(path, recipe.static_wi8_ai8())


def _quantised(quantizer: Any, ranges: Any) -> Any:
    return quantizer.quantize(ranges, enable_progress_report=False)


def _samples(path: str, images: Any) -> dict[str, list[dict[str, Any]]]:
    interpreter: Any = importlib.import_module("ai_edge_litert.interpreter").Interpreter(path)
    ((key, signature),) = interpreter.get_signature_list().items()
    return {key: [{signature["inputs"][0]: image[None]} for image in images]}


CALIBRATIONS: Mapping[str, Quantised] = {"default": default_calibration, "min_max": min_max_calibration}


if __name__ == "__main__":
    protocol.serve(convert)
