"""Sliding windows: their padding by ONNX's rules and by TFLite's, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.builder import Builder
from export.graph import NO_ACTIVATION, Attribute, same_pads
from export.registry import OnnxNode

Pads = tuple[int, int, int, int]  # top, left, bottom, right as in ONNX
NO_PADS = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window over height and width; `pads` is (top, left, bottom, right) as in ONNX."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: Pads
    padding: str  # VALID, SAME (TFLite's own amounts) or EXPLICIT
    margins: Pads = NO_PADS  # of `pads`, what ceil_mode did not add

    @property
    def skips(self) -> bool:
        """Whether it steps over pixels that no place of it sees."""
        return any(s > k for s, k in zip(self.stride, self.kernel, strict=True))

    def conv_attributes(self) -> dict[str, Attribute]:
        """Attributes of CONV_2D and DEPTHWISE_CONV_2D."""
        return {
            "padding": "SAME" if self.padding == "SAME" else "VALID",
            "stride_h": self.stride[0],
            "stride_w": self.stride[1],
            "dilation_h_factor": self.dilation[0],
            "dilation_w_factor": self.dilation[1],
            **NO_ACTIVATION,
        }

    def pool_attributes(self) -> dict[str, Attribute]:
        """Attributes of the pooling operators."""
        return {
            "padding": self.padding,
            "stride_h": self.stride[0],
            "stride_w": self.stride[1],
            "filter_height": self.kernel[0],
            "filter_width": self.kernel[1],
            **NO_ACTIVATION,
        }


def window_of(node: OnnxNode, shape: Sequence[int], kernel: Sequence[int]) -> Window:
    """The node's window over an NHWC input of `shape`, with its padding named as TFLite would name it."""
    if len(kernel) != 2 or len(shape) != 4:
        raise node.unsupported(f"it slides over {len(kernel)} axes, only one or two are supported")
    stride, dilation = (tuple(node.attributes.get(key, (1, 1))) for key in ("strides", "dilations"))
    same = same_pads(shape[1:3], kernel, stride, dilation)
    pads = margins = _declared_pads(node, same)
    if node.attributes.get("ceil_mode", 0):
        needed = [
            max((result - 1) * s + (k - 1) * d + 1 - size - before, 0)
            for result, s, k, d, size, before in zip(
                node.output_shapes[0][1:3], stride, kernel, dilation, shape[1:3], pads, strict=False
            )
        ]
        pads = (pads[0], pads[1], needed[0], needed[1])
    if pads == same and tuple(-(-n // s) for n, s in zip(shape[1:3], stride, strict=True)) == tuple(
        node.output_shapes[0][1:3]
    ):
        padding = "SAME"
    else:
        padding = "VALID" if not any(pads) else "EXPLICIT"
    return Window((kernel[0], kernel[1]), stride, dilation, pads, padding, margins)


def _declared_pads(node: OnnxNode, same: Pads) -> Pads:
    """The node's pads as ONNX means them, without what ceil_mode adds."""
    by_mode = {"VALID": NO_PADS, "SAME_UPPER": same, "SAME_LOWER": (same[2], same[3], same[0], same[1])}
    declared = tuple(node.attributes.get("pads", NO_PADS))
    return by_mode.get(
        node.attributes.get("auto_pad", "NOTSET"), (declared[0], declared[1], declared[2], declared[3])
    )


def pool_window(node: OnnxNode, out: Builder) -> Window:
    """The window of a pool; UnsupportedOp where some of its places lie wholly in the padding."""
    source = out.shape(node.inputs[0])
    window = window_of(node, source, node.attributes["kernel_shape"])
    if window.dilation != (1, 1) and node.attributes.get("auto_pad", "NOTSET").startswith("SAME"):
        raise node.unsupported(
            "ONNX and its runtime disagree on auto_pad with dilations", "give explicit pads"
        )
    if not all(counts.all() for counts in _inside(window, source, node.output_shapes[0], NO_PADS)):
        raise node.unsupported(
            "some of its windows see nothing but padding", "use smaller pads, or ceil_mode=0"
        )
    return window


def inside_correction(
    window: Window, source: Sequence[int], target: Sequence[int], margins: Pads
) -> NDArray[np.float32]:
    """Window size over the number of its pixels inside the image and its `margins`, [1, H, W, 1]."""
    size = window.kernel[0] * window.kernel[1]
    counts = np.outer(*_inside(window, source, target, margins))
    return (size / counts)[None, :, :, None].astype(np.float32)


def _inside(
    window: Window, source: Sequence[int], target: Sequence[int], margins: Pads
) -> list[NDArray[np.int64]]:
    """For height and width: how many rows of each window lie inside the image and its `margins`."""
    counts = []
    for side in range(2):
        starts = np.arange(target[1 + side]) * window.stride[side] - window.pads[side]
        rows = starts[:, None] + np.arange(window.kernel[side]) * window.dilation[side]
        inside = (rows >= -margins[side]) & (rows < source[1 + side] + margins[side + 2])
        counts.append(inside.sum(axis=1))
    return counts


def phases(size: int, before: int, after: int, dilation: int) -> list[int]:
    """For places from -before to size + after - 1 the nearest pixel that is a multiple of `dilation` away.

    Where a window with that dilation reaches a place outside, it also holds that pixel.
    """
    nearest = [
        place % dilation
        if place < 0
        else size - 1 - (size - 1 - place) % dilation
        if place >= size
        else place
        for place in range(-before, size + after)
    ]
    return [min(max(place, 0), size - 1) for place in nearest]


def dense_transposed_weights(node: OnnxNode) -> NDArray[np.float32]:
    """Weights of a ConvTranspose, IOHW per group, as OHWI of one group with its dilation written out."""
    weights = node.floats(1, "the weight W")
    if weights.ndim != 4:
        raise node.unsupported(
            f"its weights have {weights.ndim} dimensions, only one or two axes are supported"
        )
    group = node.attributes.get("group", 1)
    inputs, outputs = weights.shape[0], weights.shape[1] * group
    dilation = node.attributes.get("dilations", (1, 1))
    kernel = [(k - 1) * d + 1 for k, d in zip(weights.shape[2:], dilation, strict=True)]
    dense = np.zeros((outputs, *kernel, inputs), np.float32)
    for index in range(group):
        rows = slice(index * inputs // group, (index + 1) * inputs // group)
        columns = slice(index * outputs // group, (index + 1) * outputs // group)
        dense[columns, :: dilation[0], :: dilation[1], rows] = weights[rows].transpose(1, 2, 3, 0)
    return dense


def transposed_pads(node: OnnxNode, full: Sequence[int], target: Sequence[int]) -> tuple[int, int]:
    """What a ConvTranspose cuts off at top and left of the `full` result."""
    if (
        "pads" in node.attributes
        and node.attributes.get("auto_pad", "NOTSET") == "NOTSET"
        and ("output_shape" not in node.attributes)
    ):
        return node.attributes["pads"][0], node.attributes["pads"][1]
    totals = [whole - size for whole, size in zip(full, target, strict=True)]
    upper = node.attributes.get("auto_pad", "NOTSET") == "SAME_UPPER"
    first, second = (max(total // 2 if upper else total - total // 2, 0) for total in totals)
    return first, second
