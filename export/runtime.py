"""Runs the written files on this machine: ONNX with ONNX Runtime, TFLite with LiteRT and XNNPACK."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.graph import INPUT_TIE
from pipeline.artifacts import AlpharhoError

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is imported
import onnxruntime
from ai_edge_litert.interpreter import Interpreter

Pixels = NDArray[np.uint8]  # [N, H, W, 3]
Reals = NDArray[np.float32]  # [N, H, W, C]
Logits = NDArray[np.float32]  # [N, classes]
Predictor = Callable[[Pixels], Logits]
ORT_ERRORS = tuple(
    getattr(onnxruntime.capi.onnxruntime_pybind11_state, name)
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
)
STDERR = 2
DELEGATE_NOTE = b"Created TensorFlow Lite XNNPACK delegate for CPU"
Normalise = Callable[[Pixels], NDArray[np.float32]]


def load_session(
    path: Path | bytes,
    threads: int = 2,
    level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU for a file or its content; AlpharhoError if it cannot be loaded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = level
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (*ORT_ERRORS, RuntimeError, ValueError) as error:
        name = path if isinstance(path, Path) else "the model"
        raise AlpharhoError(f"{name}: ONNX Runtime cannot load it ({_first_line(error)})") from error


def load_interpreter(path: Path, threads: int = 1) -> Interpreter:
    """An allocated LiteRT interpreter with the XNNPACK delegate; AlpharhoError if the file cannot be run."""
    try:
        with _without_delegate_note():
            interpreter = Interpreter(str(path), num_threads=threads)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise AlpharhoError(f"{path}: the TFLite runtime cannot load it ({_first_line(error)})") from error
    return interpreter


def run_onnx(path: Path, images: Reals) -> Logits:
    """First output of a batch-1 .onnx file for float32 NHWC images in the model's own scale."""
    return _run_session(load_session(path), images)


def load_plain_session(model: Path | bytes) -> onnxruntime.InferenceSession:
    """As `load_session`, without rewrites: ONNX Runtime 1.31 folds a zero Pad wrongly into a MaxPool."""
    return load_session(model, level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)


def run_onnx_as_it_is(model: Path | bytes, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """First output of a batch-1 ONNX model for float32 inputs [N, ...] in its own layout and scale."""
    session = load_plain_session(model)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])


def run_tflite(path: Path, images: Reals) -> Logits:
    """First output of a .tflite file for float32 NHWC images in the model's scale, put on its input grid."""
    interpreter = load_interpreter(path, threads=2)
    door = interpreter.get_input_details()[0]
    if door["dtype"] == np.float32:
        return _dequantised(interpreter, invoke(interpreter, images))
    scale, zero_point = door["quantization"]
    limits = np.iinfo(door["dtype"])
    stored = np.clip(np.ceil(images / scale - (0.5 + INPUT_TIE)) + zero_point, limits.min, limits.max)
    return _dequantised(interpreter, invoke(interpreter, stored.astype(door["dtype"])))


def load_onnx_predictor(path: Path, normalise: Normalise) -> Predictor:
    """A predictor over uint8 NHWC pixels from a batch-1 .onnx file; AlpharhoError if it cannot be loaded."""
    session = load_session(path)
    return lambda pixels: _run_session(session, normalise(pixels))


def load_tflite_predictor(path: Path, normalise: Normalise) -> Predictor:
    """A predictor over uint8 NHWC pixels from a .tflite file whose input is float32, uint8 or int8.

    A byte input takes the pixels as they are (int8: minus 128). Integer outputs are dequantised.
    """
    interpreter = load_interpreter(path, threads=2)
    convert = _conversion(interpreter, normalise)
    return lambda pixels: _dequantised(interpreter, invoke(interpreter, convert(pixels)))


def input_values(path: Path, pixels: Pixels, normalise: Normalise) -> NDArray[Any]:
    """uint8 NHWC pixels as the values that the input of a .tflite file takes, in its type."""
    return _conversion(load_interpreter(path), normalise)(pixels)


def dequantised(path: Path, stored: NDArray[Any]) -> Logits:
    """Raw first outputs of a .tflite file as real values, float32."""
    return _dequantised(load_interpreter(path), stored)


def _conversion(interpreter: Interpreter, normalise: Normalise) -> Callable[[Pixels], NDArray[Any]]:
    conversions: dict[Any, Callable[[Pixels], NDArray[Any]]] = {
        np.float32: normalise,
        np.uint8: lambda pixels: pixels,
        np.int8: lambda pixels: (pixels.astype(np.int16) - 128).astype(np.int8),
    }
    return conversions[interpreter.get_input_details()[0]["dtype"]]


def _dequantised(interpreter: Interpreter, stored: NDArray[Any]) -> Logits:
    if stored.dtype == np.float32:
        return stored
    scale, zero_point = interpreter.get_output_details()[0]["quantization"]
    real: Logits = ((stored.astype(np.float32) - zero_point) * scale).astype(np.float32)
    return real


@contextlib.contextmanager
def _without_delegate_note() -> Iterator[None]:
    """Drop the runtime's note that it made its delegate; all else that it writes to stderr is passed on."""
    sys.stderr.flush()
    real = os.dup(STDERR)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(real, STDERR)
            os.close(real)
            log.seek(0)
            os.write(STDERR, b"".join(line for line in log if DELEGATE_NOTE not in line))


def _run_session(session: onnxruntime.InferenceSession, images: Reals) -> Logits:
    name = session.get_inputs()[0].name
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in planes])


def invoke(interpreter: Interpreter, stored: NDArray[Any]) -> NDArray[Any]:
    """First outputs as they are stored, for inputs in the model's input type, one after the other."""
    door, exit_ = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    results = []
    for image in stored:
        interpreter.set_tensor(door["index"], image[None])
        interpreter.invoke()
        results.append(interpreter.get_tensor(exit_["index"])[0])
    return np.stack(results)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
