"""Resizing of images: where ONNX reads them, where TFLite does, and the lowering where both agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from export.builder import MOST_JOINED, Builder
from export.graph import Attribute
from export.registry import Layout, OnnxNode, Rules

RULES = Rules()


RESIZE_OPS = {"linear": "RESIZE_BILINEAR", "nearest": "RESIZE_NEAREST_NEIGHBOR"}


@RULES.lowers("Resize", Layout.ANCHOR)
def lower_resize(node: OnnxNode, out: Builder) -> None:
    """RESIZE_BILINEAR, RESIZE_NEAREST_NEIGHBOR, or CONCATENATION of copies for whole factors up to 5."""
    source, target, mode = (
        out.shape(node.inputs[0]),
        node.output_shapes[0],
        node.attributes.get("mode", "nearest"),
    )
    if len(source) != 4 or source[0] != target[0] or source[3] != target[3]:
        raise node.unsupported("only height and width of an image can be resized")
    if mode not in RESIZE_OPS or node.attributes.get("antialias", 0):
        raise node.unsupported(f"mode {mode} or antialias is not supported", "use nearest or linear")
    if mode == "nearest" and _repeats(node, source[1:3], target[1:3]):
        _repeated(node.inputs[0], source, target, node.outputs[0], out)
        return
    attributes = resize_sampling(node, source[1:3], target[1:3])
    size = out.constant(f"{node.outputs[0]}/size", np.array(target[1:3], np.int32))
    out.emit(RESIZE_OPS[mode], (node.inputs[0], size), node.outputs[0], target, **attributes)


def _repeats(node: OnnxNode, source: Sequence[int], target: Sequence[int]) -> bool:
    """Whether every pixel is repeated so often, as one CONCATENATION can."""
    factors = [result // size for size, result in zip(source, target, strict=True)]
    return max(factors) <= MOST_JOINED and all(
        result == size * factor
        and np.array_equal(_onnx_positions(node, axis, size, result), np.arange(size).repeat(factor))
        for axis, size, result, factor in zip((2, 3), source, target, factors, strict=True)
    )


def _repeated(x: str, source: Sequence[int], target: Sequence[int], name: str, out: Builder) -> None:
    """NHWC `x` with rows and pixels repeated: XNNPACK joins copies, but has no nearest-neighbour kernel."""
    (batch, height, width, channels), rows = source, target[1] // source[1]
    flat = out.reshape(x, (batch, height, 1, width * channels), out.unique(f"{name}/rows"))
    tall = out.concatenate([flat] * rows, 2, out.unique(f"{name}/tall"))
    flat = out.reshape(tall, (batch, height * rows * width, 1, channels), out.unique(f"{name}/pixels"))
    wide = out.concatenate([flat] * (target[2] // width), 2, out.unique(f"{name}/wide"))
    out.reshape(wide, target, name)


def resize_sampling(node: OnnxNode, source: Sequence[int], target: Sequence[int]) -> dict[str, Attribute]:
    """The attributes of TFLite's resize that reads the same source positions on both axes."""
    nearest = node.attributes.get("mode", "nearest") == "nearest"
    wanted = [
        _onnx_positions(node, axis, size, result)
        for axis, size, result in zip((2, 3), source, target, strict=True)
    ]
    for align, half in ((False, False), (False, True), (True, False)):
        sampling = bilinear_points if not nearest else nearest_pixels
        found = [sampling(size, result, align, half) for size, result in zip(source, target, strict=True)]
        if all(np.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True)):
            return {"align_corners": align, "half_pixel_centers": half}
    mode = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    raise node.unsupported(
        f"TFLite has no resize that samples as {mode} does from {list(source)} to {list(target)}",
        "use an integer factor, or linear with half_pixel, asymmetric or align_corners",
    )


def _onnx_positions(node: OnnxNode, axis: int, size: int, result: int) -> NDArray[np.float64]:
    """Where ONNX's Resize reads on one axis, in ONNX Runtime's float32: whole numbers for nearest."""
    points, scale = np.arange(result, dtype=np.float32), _onnx_scale(node, axis, size, result)
    half = (points + np.float32(0.5)) / scale
    rule = _coordinate_rule(node)
    positions = {
        "half_pixel": half - np.float32(0.5),
        "half_pixel_symmetric": half - np.float32(0.5) + np.float32(size / 2 * (1 - result / (scale * size))),
        "pytorch_half_pixel": half - np.float32(0.5) if result > 1 else np.zeros(result, np.float32),
        "tf_half_pixel_for_nn": half,
        "asymmetric": points / scale,
        "align_corners": points * np.float32(size - 1) / np.float32(max(result - 1, 1)),
    }
    if rule not in positions:
        raise node.unsupported(
            f"coordinate_transformation_mode {rule} is not supported", f"use one of {', '.join(positions)}"
        )
    found = positions[rule]
    if node.attributes.get("mode", "nearest") == "nearest":
        found = ROUNDINGS[_rounding(node)](found)
    return np.asarray(np.clip(found, 0, size - 1), np.float64)


ROUNDINGS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _coordinate_rule(node: OnnxNode) -> str:
    """The rule of an opset 10 Resize, which has no attribute for it, is asymmetric."""
    default = "half_pixel" if node.opset > 10 else "asymmetric"
    return str(node.attributes.get("coordinate_transformation_mode", default))


def _rounding(node: OnnxNode) -> str:
    return str(node.attributes.get("nearest_mode", "round_prefer_floor" if node.opset > 10 else "floor"))


def _onnx_scale(node: OnnxNode, axis: int, size: int, result: int) -> np.float32:
    """The given scale of an axis, or that of the sizes."""
    scales = node.optional_constant(2 if node.opset > 10 else 1)
    axes = [a % len(node.axes) for a in node.attributes.get("axes", range(len(node.axes)))]
    if scales is None or not scales.size or axis not in axes:
        return np.float32(result / size)
    return np.float32(scales.astype(np.float32)[axes.index(axis)])


def _tflite_scale(size: int, result: int, align: bool) -> float:
    return (size - 1) / (result - 1) if align and result > 1 else size / result


def bilinear_points(size: int, result: int, align: bool, half: bool) -> NDArray[np.float64]:
    """Where RESIZE_BILINEAR reads (reference kernel `ComputeInterpolationValues`)."""
    offset = 0.5 if half else 0.0
    points = (np.arange(result) + offset) * _tflite_scale(size, result, align) - offset
    return np.asarray(np.clip(points, 0, size - 1))


def nearest_pixels(size: int, result: int, align: bool, half: bool) -> NDArray[np.float64]:
    """Which pixels RESIZE_NEAREST_NEIGHBOR reads (reference kernel `GetNearestNeighbor`)."""
    points = (np.arange(result) + (0.5 if half else 0.0)) * _tflite_scale(size, result, align)
    return np.asarray(np.clip(np.floor(np.round(points + (0.5 if align else 0.0), 6)), 0, size - 1))
