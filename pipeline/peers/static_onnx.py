"""ONNX Runtime's static quantisation, which comes with the project's own ONNX Runtime."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Images:
    """Images [N, 3, H, W] one by one, as ONNX Runtime's calibrator asks for them."""

    def __init__(self, name: str, images: NDArray[np.float32]) -> None:
        self._feeds = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        raise NotImplementedError("these images are read in order, once")


def quantize_static(source: Path, target: Path, images: NDArray[np.float32]) -> None:
    """QDQ form, all signed bytes, weights per channel, ranges by min/max of `images` [N, H, W, 3]."""
    quantization: Any = importlib.import_module("onnxruntime.quantization")
    logging.getLogger().setLevel(logging.ERROR)
    prepared = target.with_suffix(".prepared.onnx")
    quantization.shape_inference.quant_pre_process(str(source), str(prepared))
    reader = _Images("image", np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    quantization.quantize_static(
        str(prepared),
        str(target),
        reader,
        quant_format=quantization.QuantFormat.QDQ,
        calibrate_method=quantization.CalibrationMethod.MinMax,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
    )
    prepared.unlink()
