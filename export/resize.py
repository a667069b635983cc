"""Resizing of images: where ONNX reads them, where TFLite does, and the lowering where both agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from export.builder import MOST_JOINED, Builder
from export.graph import Attribute
from export.registry import Layout, OnnxNode, Rules
from export.resampling import interpolated, resize_matrix

RULES = Rules()


RESIZE_OPS = {"linear": "RESIZE_BILINEAR", "nearest": "RESIZE_NEAREST_NEIGHBOR"}
MODES = (*RESIZE_OPS, "cubic")
MOST_REPEATED = MOST_JOINED**2
COORDINATES = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "tf_half_pixel_for_nn",
    "asymmetric",
    "align_corners",
)
MOST_PRODUCTS = 64  # a result, for which FULLY_CONNECTED is better than leaving the delegate's partition
SAME = 1e-5  # between the weights of two samplings that agree


@RULES.lowers("Resize", Layout.ANCHOR)
def lower_resize(node: OnnxNode, out: Builder) -> None:
    """RESIZE_BILINEAR; nearest by whole factors is CONCATENATION or SLICE; all else FULLY_CONNECTED."""
    source, target = out.shape(node.inputs[0]), node.output_shapes[0]
    if len(source) == 3:
        _resize_line(node, out)
        return
    if len(source) != 4 or source[0] != target[0] or source[3] != target[3]:
        raise node.unsupported("only height and width of an image can be resized")
    _check_attributes(node)
    mode = node.attributes.get("mode", "nearest")
    if mode == "nearest" and _picked(node, out):
        return
    found = resize_sampling(node, source[1:3], target[1:3]) if mode in RESIZE_OPS else None
    products = source[1] * source[2] / target[2] + source[2]
    if found is None or (mode == "nearest" and products <= MOST_PRODUCTS):
        interpolated(node, out)
        return
    size = out.constant(f"{node.outputs[0]}/size", np.array(target[1:3], np.int32))
    out.emit(RESIZE_OPS[mode], (node.inputs[0], size), node.outputs[0], target, **found)


def _check_attributes(node: OnnxNode) -> None:
    """UnsupportedOp for attributes that no form of it here honours."""
    supported: dict[str, Sequence[str]] = {
        "mode": MODES,
        "coordinate_transformation_mode": COORDINATES,
        "keep_aspect_ratio_policy": ("stretch",),
    }
    for key, values in supported.items():
        if node.attributes.get(key, values[0]) not in values:
            raise node.unsupported(
                f"{key} {node.attributes[key]} is not supported", f"use one of {', '.join(values)}"
            )


def _resize_line(node: OnnxNode, out: Builder) -> None:
    """[N, L, C] as an image of height 1."""
    name, (batch, length, channels) = node.outputs[0], node.output_shapes[0]
    image = out.unique(f"{name}/image")
    source = out.shape(node.inputs[0])
    flat = out.reshape(node.inputs[0], (batch, 1, *source[1:]), out.unique(f"{name}/unit_axis"))
    axes = node.attributes.get("axes")
    line = replace(
        node,
        inputs=(flat, *node.inputs[1:]),
        outputs=(image,),
        attributes={**node.attributes, **({"axes": [a % 3 + a % 3 // 2 for a in axes]} if axes else {})},
        constants=tuple(c if c is None or c.size != 3 else np.insert(c, 2, 1) for c in node.constants),
        output_shapes=((batch, 1, length, channels),),
        axes=(0, 3, 1, 2),
    )
    lower_resize(line, out)
    out.reshape(image, (batch, length, channels), name)


def _picked(node: OnnxNode, out: Builder) -> bool:
    """Nearest neighbours by whole steps or whole factors: cut out or copied, if both axes are such."""
    x, name, target = node.inputs[0], node.outputs[0], node.output_shapes[0]
    places = [
        resize_matrix(node, axis, size, result).argmax(axis=1)
        for axis, size, result in zip((2, 3), out.shape(x)[1:3], target[1:3], strict=True)
    ]
    factors = [_repeats(found, size) for found, size in zip(places, out.shape(x)[1:3], strict=True)]
    steps = [_step(found) for found in places]
    if not all(factor or step for factor, step in zip(factors, steps, strict=True)):
        return False
    for axis, (found, factor, step) in enumerate(zip(places, factors, steps, strict=True), start=1):
        if factor:
            x = _repeated(x, axis, factor, name, out)
        else:
            x = out.every(x, axis, int(found[0]), step, len(found), name)
    out.reshape(x, target, name)
    return True


def _repeats(places: NDArray[np.int64], size: int) -> int:
    """How often every pixel is repeated; 0 where that differs, or is too often."""
    factor = len(places) // size
    return factor if factor <= MOST_REPEATED and np.array_equal(places, np.arange(size).repeat(factor)) else 0


def _step(places: NDArray[np.int64]) -> int:
    """The distance of the places, if it is the same for all and not 0, else 0."""
    steps = set(np.diff(places).tolist()) or {1}
    return steps.pop() if len(steps) == 1 else 0


def _repeated(x: str, axis: int, factor: int, name: str, out: Builder) -> str:
    """NHWC `x` with rows or pixels repeated: XNNPACK joins copies, but has no nearest-neighbour kernel."""
    batch, height, width, channels = out.shape(x)
    places, inner = (height, width * channels) if axis == 1 else (height * width, channels)
    flat = out.reshape(x, (batch, places, 1, inner), out.unique(f"{name}/places_{axis}"))
    copies = out.concatenate([flat] * factor, 2, out.unique(f"{name}/copies_{axis}"))
    shape = tuple(n * factor if at == axis else n for at, n in enumerate((batch, height, width, channels)))
    return out.reshape(copies, shape, out.unique(f"{name}/repeated_{axis}"))


def resize_sampling(
    node: OnnxNode, source: Sequence[int], target: Sequence[int]
) -> dict[str, Attribute] | None:
    """The attributes of TFLite's resize that reads the same source positions on both axes, None without."""
    if node.attributes.get("antialias", 0):
        return None
    nearest = node.attributes.get("mode", "nearest") == "nearest"
    matrix_of = _nearest_matrix if nearest else _bilinear_matrix
    axes = list(zip((2, 3), source, target, strict=True))
    wanted = [resize_matrix(node, axis, size, result) for axis, size, result in axes]
    for align, half in ((False, False), (False, True), (True, False)):
        found = [matrix_of(size, result, align, half) for _, size, result in axes]
        if all(np.allclose(a, b, atol=SAME) for a, b in zip(found, wanted, strict=True)):
            return {"align_corners": align, "half_pixel_centers": half}
    return None


def _nearest_matrix(size: int, result: int, align: bool, half: bool) -> NDArray[np.float64]:
    return np.asarray(np.eye(size)[nearest_pixels(size, result, align, half).astype(int)])


def _bilinear_matrix(size: int, result: int, align: bool, half: bool) -> NDArray[np.float64]:
    points = bilinear_points(size, result, align, half)
    low = np.floor(points).astype(int)
    part, one = (points - low)[:, None], np.eye(size)
    return np.asarray(one[low] * (1 - part) + one[np.minimum(low + 1, size - 1)] * part)


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
