"""What a lowering is: an ONNX node in, TFLite operators out, and how its operator reacts to NHWC.

A lowering never moves data: it declares a `Layout`, and `read_onnx` hands it operands that already are in
that layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.builder import Builder
from export.graph import Array, Attribute
from pipeline.artifacts import AlpharhoError

REPLACE_OP = "replace it in the source network and export again"
SIMPLIFY = "run the file through an ONNX simplifier, or export with fixed shapes"


class Layout(Enum):
    """How an operator reacts to the change from NCHW to NHWC."""

    ANCHOR = auto()  # its tensors are channels last: Conv, pools
    FOLLOW = auto()  # any layout, the same on all its tensors: Add, HardSwish
    REMAP = auto()  # follows, but its axes are renumbered: Concat, ReduceMean
    BARRIER = auto()  # element order matters: back to ONNX's order


class UnsupportedOp(AlpharhoError):
    """An ONNX node that cannot be lowered: names the node, the reason and a remedy."""


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One ONNX node with decoded attributes and its operands in the layout that its lowering declares.

    `inputs` are graph tensor names ("" if absent), `constants` the arrays of those that are constant, already
    in the layout of the node; `axes[i]` is the graph axis of ONNX axis i of the first input, `output_shapes`
    the shapes that the lowering must produce.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    constants: tuple[Array | None, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    axes: tuple[int, ...]
    opset: int

    def constant(self, position: int, what: str) -> Array:
        """The constant at `position`, or an UnsupportedOp that says `what` must be constant."""
        value = self.optional_constant(position)
        if value is None:
            raise self.unsupported(f"{what} is computed, only a constant is supported", SIMPLIFY)
        return value

    def integers(self, position: int, key: str) -> list[int] | None:
        """Integers that newer opsets take as the operand at `position`, older ones as attribute `key`."""
        if self.has(position):
            return [int(value) for value in np.asarray(self.constant(position, key)).reshape(-1)]
        return [int(value) for value in self.attributes[key]] if key in self.attributes else None

    def floats(self, position: int, what: str) -> NDArray[np.float32]:
        """The constant at `position` as float32; UnsupportedOp as `constant`."""
        return self.constant(position, what).astype(np.float32)

    def optional_constant(self, position: int) -> Array | None:
        """The constant at `position`, None if the operand is absent or computed."""
        return self.constants[position] if position < len(self.constants) else None

    def has(self, position: int) -> bool:
        """Whether the optional operand at `position` is given."""
        return position < len(self.inputs) and self.inputs[position] != ""

    def unsupported(self, reason: str, remedy: str = REPLACE_OP) -> UnsupportedOp:
        """The error that names this node, and what the user can do."""
        return UnsupportedOp(f"ONNX node {self.name!r} ({self.op}) cannot be converted: {reason}; {remedy}")


Lowering = Callable[[OnnxNode, Builder], None]


@dataclass(frozen=True, slots=True)
class Rule:
    """How one ONNX operator is lowered; the first line of `lower.__doc__` documents it."""

    layout: Layout
    lower: Lowering


class Rules(dict[str, Rule]):
    """The rules of one family of operators by ONNX name."""

    def lowers(self, op: str, layout: Layout) -> Callable[[Lowering], Lowering]:
        """Register a lowering; a second one for the same operator is an error of ours."""

        def register(lower: Lowering) -> Lowering:
            assert op not in self, f"{op} is lowered twice"
            self[op] = Rule(layout, lower)
            return lower

        return register


def renamed(tflite_op: str, **attributes: Attribute) -> Lowering:
    """A lowering for an operator that TFLite has with the same operands and no attributes."""

    def lower(node: OnnxNode, out: Builder) -> None:
        out.emit(tflite_op, node.inputs, node.outputs[0], node.output_shapes[0], **attributes)

    lower.__doc__ = f"{tflite_op}."
    return lower
