"""What exporters really write: every supported operator in the forms of opset 11 to 23, as small graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tests.export.graphs import SHAPE, node, onnx_model, random


def integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def scalar(value: float) -> NDArray[np.float32]:
    return np.array(value, np.float32)


def made(
    op: str, *inputs: str, opset: int = 20, given: Mapping[str, Any] | None = None, **attributes: Any
) -> onnx.ModelProto:
    """One operator from `x` to `y` with its constants."""
    return onnx_model([node(op, *inputs, **attributes)], given, opset=opset)


def conv(
    outputs: int, group: int, kernel: tuple[int, int], opset: int = 20, **attributes: Any
) -> onnx.ModelProto:
    weights = {"w": random(outputs, SHAPE[1] // group, *kernel, seed=1) / 3}
    return made("Conv", "x", "w", group=group, opset=opset, given=weights, **attributes)


def transposed(outputs: int, group: int, kernel: tuple[int, int], **attributes: Any) -> onnx.ModelProto:
    given = {"w": random(SHAPE[1], outputs // group, *kernel, seed=1) / 3, "b": random(outputs, seed=2)}
    return made("ConvTranspose", "x", "w", "b", group=group, given=given, **attributes)


def line(op: str, *shape: int, **attributes: Any) -> onnx.ModelProto:
    """An operator over one axis, on [1, 6, 63]."""
    given = {"w": random(*shape, seed=1) / 3} if shape else {}
    nodes = [
        node("Reshape", "x", "rows", output="l"),
        node(op, "l", *given, output="k", **attributes),
        node("Flatten", "k"),
    ]
    return onnx_model(nodes, {"rows": integers(1, 6, 63), **given})


def resize(
    size: tuple[int, int] | None = None,
    scales: tuple[float, float] | None = None,
    opset: int = 20,
    **attributes: Any,
) -> onnx.ModelProto:
    """A Resize of height and width, by size or by scales."""
    if size is not None:
        return made(
            "Resize", "x", "", "", "z", opset=opset, given={"z": integers(1, SHAPE[1], *size)}, **attributes
        )
    assert scales is not None
    given = {"roi": np.zeros(0, np.float32), "s": np.array((1, 1, *scales), np.float32)}
    return made("Resize", "x", "roi", "s", opset=opset, given=given, **attributes)


def binary(op: str, *shape: int, swapped: bool = False) -> onnx.ModelProto:
    """An operator with a constant of the shape, on either side."""
    order = ("c", "x") if swapped else ("x", "c")
    return made(op, *order, given={"c": np.abs(random(*shape, seed=3)) + 0.7})


def gate(alpha: float, beta: float, high: float, clip: str = "Clip") -> onnx.ModelProto:
    """X * clip(alpha x + beta, 0, high) written out."""
    given = {"a": scalar(alpha), "b": scalar(beta), "lo": scalar(0), "hi": scalar(high)}
    nodes = [node("Mul", "x", "a", output="m"), node("Add", "m", "b", output="s")]
    if clip == "Clip":
        nodes.append(node("Clip", "s", "lo", "hi", output="g"))
    else:
        nodes += [node("Max", "lo", "s", output="t"), node("Min", "t", "hi", output="g")]
    return onnx_model([*nodes, node("Mul", "x", "g")], given)


def pooled(*tail: onnx.NodeProto, opset: int = 20, **given: Any) -> onnx.ModelProto:
    """Nodes behind a pooled value `p` of [1, 6, 1, 1]."""
    return onnx_model([node("GlobalAveragePool", output="p"), *tail], given, opset=opset)


def computed_twice(op: str, *reshape: int) -> onnx.ModelProto:
    """`x` with a computed operand of another shape."""
    nodes = [
        node("ReduceMean", "x", "axes", output="m", keepdims=1),
        node("Reshape", "m", "to", output="r"),
        node(op, "x", "r"),
    ]
    return onnx_model(nodes, {"axes": integers(1), "to": integers(*reshape)})


def resized_line(scales: tuple[float, ...], **attributes: Any) -> onnx.ModelProto:
    """A Resize of [1, 6, 63] along its last axis."""
    nodes = [
        node("Reshape", "x", "rows", output="l"),
        node("Resize", "l", "", "s", output="k", **attributes),
        node("Flatten", "k"),
    ]
    return onnx_model(nodes, {"rows": integers(1, 6, 63), "s": np.array(scales, np.float32)})


def attention() -> onnx.ModelProto:
    """Channels that attend to each other: softmax(x x') x."""
    nodes = [
        node("Reshape", "x", "rows", output="q"),
        node("Transpose", "q", output="k", perm=[0, 2, 1]),
        node("MatMul", "q", "k", output="l"),
        node("Mul", "l", "scale", output="m"),
        node("Softmax", "m", output="p", axis=-1),
        node("MatMul", "p", "q", output="o"),
        node("Reshape", "o", "image"),
    ]
    given = {"rows": integers(1, 6, 63), "scale": scalar(1 / 8), "image": integers(1, 6, 9, 7)}
    return onnx_model(nodes, given)


def from_shapes() -> onnx.ModelProto:
    """Flatten as older exporters write it: Reshape to a shape that Shape, Gather and Concat compute."""
    nodes = [
        node("Shape", output="s"),
        node("Gather", "s", "zero", output="n", axis=0),
        node("Unsqueeze", "n", "first", output="u"),
        node("Concat", "u", "rest", output="t", axis=0),
        node("Reshape", "x", "t", output="f"),
        node("Gemm", "f", "w", "b", transB=1),
    ]
    given = {
        "zero": np.array(0, np.int64),
        "first": integers(0),
        "rest": integers(-1),
        "w": random(5, 6 * 9 * 7) / 9,
        "b": random(5),
    }
    return onnx_model(nodes, given, opset=13)


def from_constant_nodes() -> onnx.ModelProto:
    """Weights, bounds and pads in Constant nodes."""
    tensors: dict[str, NDArray[Any]] = {
        "w": random(4, 6, 3, 3) / 3,
        "lo": scalar(-0.25),
        "p": integers(0, 0, 1, 2, 0, 0, 0, 1),
    }
    held = [
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
        for name, array in tensors.items()
    ]
    held.append(helper.make_node("Constant", [], ["hi"], value_float=0.75))
    return onnx_model(
        [
            *held,
            node("Pad", "x", "p", output="q"),
            node("Conv", "q", "w", output="k"),
            node("Clip", "k", "lo", "hi"),
        ]
    )


def channels_last_convolution() -> onnx.ModelProto:
    """As tf2onnx writes it: the input is NHWC, every convolution stands between two Transposes."""
    nodes = [
        node("Transpose", output="a", perm=[0, 3, 1, 2]),
        node("Pad", "a", "p", output="b"),
        node("Conv", "b", "v", "c", output="d", strides=[2, 2]),
        node("Transpose", "d", output="e", perm=[0, 2, 3, 1]),
        node("Relu", "e", output="f"),
        node("Transpose", "f", output="g", perm=[0, 3, 1, 2]),
        node("Conv", "g", "w", output="h", auto_pad="SAME_UPPER", group=4),
        node("Transpose", "h", output="i", perm=[0, 2, 3, 1]),
        node("Add", "i", "f", output="j"),
        node("ReduceMean", "j", output="k", axes=[1, 2], keepdims=0),
        node("MatMul", "k", "m"),
    ]
    given = {
        "p": integers(0, 0, 0, 0, 0, 0, 1, 1),
        "v": random(4, 7, 3, 3) / 5,
        "c": random(4),
        "w": random(4, 1, 3, 3),
        "m": random(4, 5),
    }
    return onnx_model(nodes, given, opset=13)


def shuffled(groups: int) -> onnx.ModelProto:
    """A channel shuffle between two convolutions."""
    nodes = [
        node("Conv", "x", "v", output="a"),
        node("Reshape", "a", "apart", output="b"),
        node("Transpose", "b", output="c", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "c", "together", output="d"),
        node("Conv", "d", "w"),
    ]
    given = {
        "v": random(6, 6, 1, 1),
        "w": random(4, 6, 3, 3),
        "apart": integers(1, groups, 6 // groups, 9, 7),
        "together": integers(1, 6, 9, 7),
    }
    return onnx_model(nodes, given)


# fmt: off
VARIANTS: dict[str, onnx.ModelProto] = {
    "Add from the left":           binary("Add", 6, 1, 1, swapped=True),
    "Add image":                   binary("Add", 1, 6, 9, 7),
    "Add one row to all":          binary("Add", 1, 9, 1),
    "Add of lower rank":           computed_twice("Add", 1, 9, 7),
    "Mul of lower rank":           computed_twice("Mul", 1, 9, 7),
    "Mul from the left":           binary("Mul", 1, 6, 1, 1, swapped=True),
    "Mul channel and image":       onnx_model([node("GlobalAveragePool", output="p"), node("Mul", "p", "x")]),
    "Sub row":                     binary("Sub", 7),
    "Sub computed both ways":      onnx_model([node("GlobalAveragePool", output="p"), node("Sub", "p", "x")]),
    "Div image":                   binary("Div", 6, 9, 7),
    "Div from the left":           onnx_model([node("Sigmoid", output="s"), node("Div", "c", "s")], {"c": random(6, 1, 1)}),
    "Div computed":                onnx_model([node("Sigmoid", output="s"), node("Div", "x", "s")]),
    "AveragePool ceil counted":    made("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, ceil_mode=1, count_include_pad=1),
    "AveragePool ceil padded":     made("AveragePool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0], ceil_mode=1),
    "AveragePool SAME_UPPER":      made("AveragePool", kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    "AveragePool SAME_LOWER":      made("AveragePool", kernel_shape=[2, 3], strides=[1, 2], auto_pad="SAME_LOWER"),
    "AveragePool over one axis":   line("AveragePool", kernel_shape=[3], strides=[2], pads=[1, 0]),
    "BatchNormalization opset 11": made("BatchNormalization", "x", "s", "b", "m", "v", opset=11, given={k: np.abs(random(6, seed=i)) + 0.2 for i, k in enumerate("sbmv")}, epsilon=1e-3),
    "Clip above only":             made("Clip", "x", "", "hi", given={"hi": scalar(0.3)}),
    "Clip below only":             made("Clip", "x", "lo", given={"lo": scalar(-0.3)}),
    "Clip everything":             made("Clip"),
    "Clip symmetric":              made("Clip", "x", "lo", "hi", given={"lo": scalar(-1), "hi": scalar(1)}, opset=11),
    "Clip positive":               made("Clip", "x", "lo", "hi", given={"lo": scalar(0.25), "hi": scalar(3)}),
    "Clip from Constants":         from_constant_nodes(),
    "Concat of three":             onnx_model([node("Relu", output="r"), node("Tanh", output="t"), node("Concat", "x", "r", "t", axis=3)]),
    "Concat of many":              onnx_model([node("Relu", output="r"), node("Concat", *["x", "r"] * 6, output="j", axis=2), node("Relu", "j")]),
    "Concat of gate and values":   onnx_model([node("Sigmoid", output="s"), node("Mul", "x", "c", output="m"), node("Concat", "m", "s", "x", axis=1)], {"c": scalar(5)}),
    "Concat of one":               onnx_model([node("Relu", output="r"), node("Concat", "r", axis=1)]),
    "Concat twice the same":       made("Concat", "x", "x", axis=1),
    "Concat constant first":       made("Concat", "c", "x", axis=2, given={"c": random(1, 6, 2, 7)}),
    "Conv opset 11":               conv(4, 1, (3, 3), opset=11, pads=[1] * 4),
    "Conv opset 23":               conv(4, 1, (3, 3), opset=23, pads=[1] * 4),
    "Conv tall":                   conv(4, 1, (7, 1), pads=[3, 0, 3, 0]),
    "Conv wide depthwise":         conv(6, 6, (1, 5), pads=[0, 2, 0, 2], strides=[1, 2]),
    "Conv asymmetric pads":        conv(4, 1, (3, 3), pads=[0, 1, 2, 0], strides=[2, 2]),
    "Conv SAME_UPPER even":        conv(4, 1, (4, 2), auto_pad="SAME_UPPER", strides=[1, 2]),
    "Conv SAME_LOWER strided":     conv(6, 6, (3, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    "Conv VALID":                  conv(4, 1, (3, 3), auto_pad="VALID", strides=[2, 1]),
    "Conv three groups":           conv(9, 3, (3, 3), pads=[1] * 4),
    "Conv grouped and dilated":    conv(4, 2, (3, 3), dilations=[2, 1], pads=[2, 1, 2, 1]),
    "Conv depthwise dilated":      conv(6, 6, (3, 3), dilations=[2, 2], pads=[2] * 4),
    "Conv depthwise multiplied":   conv(18, 6, (3, 3), pads=[1, 0, 1, 0], strides=[2, 2]),
    "Conv dilated and strided":    conv(4, 1, (2, 2), dilations=[3, 2], strides=[2, 1]),
    "Conv over one axis":          line("Conv", 4, 6, 5, strides=[3], pads=[2, 1], dilations=[2]),
    "Conv depthwise over one axis": line("Conv", 6, 1, 3, group=6, auto_pad="SAME_UPPER"),
    "ConvTranspose plain":         transposed(4, 1, (2, 2)),
    "ConvTranspose groups":        transposed(6, 3, (3, 2), strides=[2, 3], pads=[1, 0, 0, 1]),
    "ConvTranspose depthwise":     transposed(6, 6, (4, 4), strides=[2, 2], pads=[1] * 4),
    "ConvTranspose output_padding": transposed(4, 1, (3, 3), strides=[2, 2], pads=[1] * 4, output_padding=[1, 1]),
    "ConvTranspose beyond":        transposed(4, 1, (2, 2), strides=[3, 3], output_padding=[1, 1]),
    "ConvTranspose output_shape":  transposed(4, 1, (3, 3), strides=[2, 2], output_shape=[18, 14]),
    "ConvTranspose SAME_LOWER":    transposed(4, 1, (3, 2), strides=[2, 2], auto_pad="SAME_LOWER"),
    "ConvTranspose SAME_UPPER":    transposed(4, 1, (3, 4), strides=[2, 2], auto_pad="SAME_UPPER"),
    "ConvTranspose stride above kernel": transposed(4, 1, (1, 2), strides=[2, 3]),
    "ConvTranspose without bias":  made("ConvTranspose", "x", "w", given={"w": random(6, 5, 2, 3)}),
    "ConvTranspose over one axis": line("ConvTranspose", 6, 4, 4, strides=[2], pads=[1, 1]),
    "Dropout and Identity":        onnx_model([node("Identity", output="i"), node("Dropout", "i", output="d"), node("Relu", "d", output="r"), node("Identity", "r")]),
    "Flatten last axes":           made("Flatten", axis=1),
    "Flatten negative axis":       made("Flatten", axis=-3),
    "Gemm":                        pooled(node("Flatten", "p", output="f"), node("Gemm", "f", "w"), w=random(6, 5)),
    "Gemm scalar bias":            pooled(node("Flatten", "p", output="f"), node("Gemm", "f", "w", "c", alpha=0.5, beta=2.0), w=random(6, 5), c=random(1)),
    "Gemm bias row":               pooled(node("Flatten", "p", output="f"), node("Gemm", "f", "w", "c", transB=1), w=random(5, 6), c=random(1, 5)),
    "GlobalMaxPool over one axis": line("GlobalMaxPool"),
    "HardSigmoid of ONNX":         onnx_model([node("HardSigmoid", output="h"), node("Mul", "x", "h")]),
    "HardSigmoid steep":           made("HardSigmoid", alpha=0.7, beta=0.1),
    "HardSwish opset 14":          made("HardSwish", opset=14),
    "hard-swish written out":      gate(1 / 6, 0.5, 1.0),
    "hard-swish with Min and Max": gate(1 / 6, 0.5, 1.0, clip="Max"),
    "almost hard-swish":           gate(0.2, 0.5, 1.0),
    "another gate":                gate(0.25, 0.4, 0.8, clip="Max"),
    "LeakyRelu steep":             made("LeakyRelu", alpha=0.3, opset=11),
    "LeakyRelu default":           made("LeakyRelu"),
    "MatMul then Add":             pooled(node("Flatten", "p", output="f"), node("MatMul", "f", "w", output="m"), node("Add", "m", "c"), w=random(6, 5), c=random(5)),
    "MatMul of a Transpose":       pooled(node("Flatten", "p", output="f"), node("Transpose", "w", output="t", perm=[1, 0]), node("MatMul", "f", "t"), w=random(5, 6)),
    "MatMul of four axes":         made("MatMul", "x", "w", given={"w": random(7, 5)}),
    "MatMul of itself":            onnx_model([node("Transpose", output="t", perm=[0, 1, 3, 2]), node("MatMul", "x", "t")]),
    "MatMul of other ranks":       onnx_model([node("ReduceMean", "x", "a", output="m", keepdims=0), node("Transpose", "m", output="t", perm=[0, 2, 1]), node("MatMul", "x", "t")], {"a": integers(1)}),
    "MatMul of constant matrices": made("MatMul", "x", "w", given={"w": random(6, 7, 5)}),
    "MatMul of one matrix in four axes": made("MatMul", "x", "w", given={"w": random(1, 1, 7, 5)}),
    "MatMul from the left":        made("MatMul", "w", "x", given={"w": random(5, 9)}),
    "MatMul of matrices from the left": made("MatMul", "w", "x", given={"w": random(1, 6, 5, 9)}),
    "attention":                   attention(),
    "Max of computed":             onnx_model([node("Tanh", output="t"), node("Max", "t", "x")]),
    "Max of scalars":              made("Max", "c", "x", given={"c": scalar(0.2)}),
    "Min of three":                onnx_model([node("Tanh", output="t"), node("Min", "t", "x", "c")], {"c": random(6, 1, 1)}),
    "Min of one":                  onnx_model([node("Relu", output="r"), node("Min", "r")]),
    "MaxPool ceil padded":         made("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[0, 1, 0, 1], ceil_mode=1),
    "MaxPool opset 11":            made("MaxPool", kernel_shape=[2, 2], strides=[2, 2], opset=11),
    "MaxPool SAME_UPPER":          made("MaxPool", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
    "MaxPool SAME_LOWER":          made("MaxPool", kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
    "MaxPool over one axis":       line("MaxPool", kernel_shape=[3], strides=[2], pads=[1, 1]),
    "MaxPool dilated":             made("MaxPool", kernel_shape=[3, 2], dilations=[2, 2]),
    "MaxPool dilated padded":      made("MaxPool", kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 1, 2, 0], strides=[2, 1]),
    "MaxPool dilated ceil":        made("MaxPool", kernel_shape=[3, 2], dilations=[2, 2], pads=[1, 1, 2, 0], strides=[2, 2], ceil_mode=1),
    "MaxPool dilated on one axis": line("MaxPool", kernel_shape=[3], dilations=[4], pads=[2, 1]),
    "MaxPool of one pixel":        made("MaxPool", kernel_shape=[1, 1], strides=[2, 2]),
    "MaxPool skips":               made("MaxPool", kernel_shape=[3, 2], strides=[2, 3], auto_pad="SAME_LOWER"),
    "AveragePool skips":           made("AveragePool", kernel_shape=[3, 1], strides=[2, 3], pads=[1, 0, 1, 0]),
    "AveragePool dilated":         made("AveragePool", kernel_shape=[3, 2], dilations=[2, 3], pads=[2, 1, 2, 1], strides=[2, 1]),
    "AveragePool dilated counts pads": made("AveragePool", kernel_shape=[3, 2], dilations=[2, 3], pads=[1, 1, 2, 1], strides=[2, 2], count_include_pad=1, ceil_mode=1, opset=22),
    "PRelu per image axis":        made("PRelu", "x", "s", given={"s": np.abs(random(6, 9, 1))}),
    "PRelu of a vector":           pooled(node("Flatten", "p", output="f"), node("PRelu", "f", "s"), s=np.abs(random(6))),
    "Pad channels":                made("Pad", "x", "p", given={"p": integers(0, 1, 0, 0, 0, 2, 0, 0)}),
    "Pad a value":                 made("Pad", "x", "p", "v", given={"p": integers(0, 0, 1, 2, 0, 0, 0, 1), "v": scalar(0.75)}),
    "Pad reflect":                 made("Pad", "x", "p", mode="reflect", given={"p": integers(0, 0, 1, 2, 0, 0, 3, 1)}),
    "Pad wrap":                    made("Pad", "x", "p", mode="wrap", given={"p": integers(0, 0, 1, 2, 0, 0, 0, 1)}),
    "Pad wider than the image":    made("Pad", "x", "p", mode="edge", given={"p": integers(0, 0, 2, 8, 0, 0, 0, 1)}),
    "Pad crops":                   made("Pad", "x", "p", given={"p": integers(0, 0, -1, 2, 0, 0, 0, -1)}),
    "Pad nothing":                 made("Pad", "x", "p", given={"p": integers(*[0] * 8)}),
    "ReduceMean all":              onnx_model([node("ReduceMean", axes=[1, 2, 3], keepdims=1)], opset=13),
    "ReduceMean kept":             made("ReduceMean", "x", "a", keepdims=1, given={"a": integers(-1, -2)}),
    "ReduceMean dropped":          made("ReduceMean", "x", "a", keepdims=0, given={"a": integers(3, 2)}),
    "ReduceMean one row":          made("ReduceMean", "x", "a", keepdims=1, given={"a": integers(3)}),
    "ReduceMean of nothing":       onnx_model([node("Relu", output="r"), node("ReduceMean", "r", noop_with_empty_axes=1)]),
    "ReduceMean two of three":     made("ReduceMean", "x", "a", keepdims=0, given={"a": integers(1, 3)}),
    "Reshape by zero and -1":      made("Reshape", "x", "s", given={"s": integers(0, -1, 7)}),
    "Reshape from shapes":         from_shapes(),
    "Resize half_pixel_symmetric": resize(size=(5, 11), mode="linear", coordinate_transformation_mode="half_pixel_symmetric"),
    "Resize tf_half_pixel_for_nn": resize(scales=(2, 3), opset=11, mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor"),
    "Resize opset 11":             resize(scales=(2, 2), opset=11, mode="linear", coordinate_transformation_mode="asymmetric"),
    "Resize opset 10":             onnx_model([node("Resize", "x", "s", mode="nearest")], {"s": np.array((1, 1, 2.0, 1.5), np.float32)}, opset=10),
    "Resize down nearest":         resize(scales=(1 / 3, 1), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "Resize down linear":          resize(size=(3, 4), mode="linear"),
    "Resize aligned nearest":      resize(size=(5, 13), mode="nearest", coordinate_transformation_mode="align_corners", nearest_mode="round_prefer_ceil"),
    "Resize aligned down":         resize(size=(4, 4), mode="linear", coordinate_transformation_mode="align_corners"),
    "Resize to one pixel":         resize(size=(1, 1), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    "Resize by axes":              made("Resize", "x", "", "s", axes=[2, 3], mode="nearest", given={"s": np.array((2, 2), np.float32)}),
    "Resize by a seventh":         resize(scales=(7, 1), mode="nearest"),
    "Resize nearest by its own scale": resize(scales=(1.3, 0.7), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="ceil"),
    "Resize nearest aligned floor": resize(scales=(2, 2), mode="nearest", coordinate_transformation_mode="align_corners", nearest_mode="floor"),
    "Resize nearest shifted":      resize(scales=(2, 3), mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="ceil"),
    "Resize nearest of a large image": onnx_model([node("Resize", "x", "", "", "z", mode="nearest")], {"z": integers(1, 2, 100, 81)}, shape=(1, 2, 90, 70)),
    "Resize nearest symmetric":    resize(scales=(1 / 3, 0.5), mode="nearest", coordinate_transformation_mode="half_pixel_symmetric", nearest_mode="floor"),
    "Resize linear by its own scale": resize(scales=(1.3, 0.7), mode="linear"),
    "Resize cubic":                resize(size=(14, 5), mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    "Resize cubic opset 11":       made("Resize", "x", "r", "s", opset=11, mode="cubic", given={"r": np.zeros(0, np.float32), "s": np.array((1, 1, 2, 1.5), np.float32)}),
    "Resize antialiased":          resize(size=(4, 3), mode="linear", antialias=1),
    "Resize one axis":             resized_line((1, 1, 2), mode="nearest"),
    "Resize one axis linear":      resized_line((1.5,), mode="linear", axes=[2]),
    "Slice from the end":          made("Slice", "x", "b", "e", "a", given={"b": integers(-3, 1), "e": integers(-1, -2), "a": integers(-1, -2)}),
    "Slice steps from the end":    made("Slice", "x", "b", "e", "a", "t", given={"b": integers(-6, 1), "e": integers(2**62, 6), "a": integers(-1, 1), "t": integers(2, 2)}),
    "Slice backwards":             made("Slice", "x", "b", "e", "a", "t", given={"b": integers(-1, 5), "e": integers(-(2**62), 1), "a": integers(3, 2), "t": integers(-1, -2)}),
    "Slice channels":              made("Slice", "x", "b", "e", "a", given={"b": integers(2), "e": integers(5), "a": integers(1)}, opset=11),
    "Slice without axes":          made("Slice", "x", "b", "e", given={"b": integers(0, 1), "e": integers(1, 4)}),
    "Softmax last":                made("Softmax", axis=-1),
    "Softmax opset 11":            onnx_model([node("GlobalAveragePool", output="p"), node("Flatten", "p", output="f"), node("Softmax", "f")], opset=11),
    "Softmax default":             made("Softmax"),
    "Split evenly":                onnx_model([helper.make_node("Split", ["x"], ["p", "q", "r"], axis=1, num_outputs=3, name="split"), node("Concat", "r", "p", "q", axis=1)]),
    "Split unevenly by number":    onnx_model([helper.make_node("Split", ["x"], ["p", "q"], axis=3, num_outputs=2, name="split"), node("Concat", "q", "p", axis=3)]),
    "Split opset 11":              onnx_model([helper.make_node("Split", ["x"], ["p", "q"], axis=-3, split=[2, 4], name="split"), node("Concat", "q", "p", axis=1)], opset=11),
    "Split and use one":           onnx_model([helper.make_node("Split", ["x"], ["p", "q"], axis=2, split=[4, 5], name="split"), node("Relu", "q")], opset=11),
    "Squeeze all":                 onnx_model([node("ReduceMean", "x", "a", output="m"), node("Squeeze", "m", "a")], {"a": integers(1)}),
    "Squeeze opset 11":            onnx_model([node("GlobalAveragePool", output="p"), node("Squeeze", "p", axes=[2, 3])], opset=11),
    "Unsqueeze opset 11":          onnx_model([node("Flatten", output="f"), node("Unsqueeze", "f", axes=[1])], opset=11),
    "Transpose rows":              made("Transpose", perm=[0, 2, 1, 3]),
    "shuffle of two groups":       shuffled(2),
    "shuffle of three groups":     shuffled(3),
    "channels last":               channels_last_convolution(),
}
# fmt: on
