"""The frozen graph between ONNX and TFLite: TFLite's operators on channels-last tensors.

Operators carry TFLite's builtin names (`CONV_2D`, `HARD_SWISH`), attributes the snake_case names of the
TFLite schema's option fields (`stride_h`, `padding`). Weights of a convolution are OHWI, of a depthwise one
1HWO, of a fully connected layer OI. Everything is immutable; a pass returns a new Graph that shares the
arrays.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import AlpharhoError

Array = NDArray[np.generic]
Attribute = int | float | bool | str | tuple[int, ...]

NO_ACTIVATION = {"fused_activation_function": "NONE"}
WEIGHTED = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
INPUT_TIE = 1e-3  # of a step: camera bytes lie halfway between levels of a symmetric input grid, and round up


class GraphError(AlpharhoError):
    """The graph is not well formed: names the node and the tensor."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """Affine parameters: real = scale[c] * (stored - zero_point[c]).

    `scale` is float32 of shape (1,) or (channels,), `zero_point` int64 of the same shape; `axis` is the
    channel axis, or None for one scale per tensor.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int64]
    axis: int | None = None

    def dequantize(self, stored: Array) -> NDArray[np.float32]:
        """Real values, float32, of `stored` integers; same shape."""
        shape = [1] * stored.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        real = (stored.astype(np.float64) - self.zero_point.reshape(shape)) * self.scale.astype(
            np.float64
        ).reshape(shape)
        return real.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value of the graph; `data` is set for constants only."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic] = field(default_factory=lambda: np.dtype(np.float32))
    data: Array | None = None
    quantization: Quantization | None = None

    @classmethod
    def constant(cls, data: Array, quantization: Quantization | None = None) -> Tensor:
        """A constant that holds `data`."""
        return cls(tuple(data.shape), data.dtype, data, quantization)

    def real(self) -> NDArray[np.float32]:
        """The constant's real values, float32; an error of ours if it is not constant."""
        assert self.data is not None
        if self.quantization is None:
            return self.data.astype(np.float32)
        return self.quantization.dequantize(self.data)


@dataclass(frozen=True, slots=True)
class Node:
    """One operator application. An absent optional input is the empty string."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    @property
    def output(self) -> str:
        """Name of the first output, by which a node is known."""
        return self.outputs[0]

    def renamed(self, names: Mapping[str, str]) -> Node:
        """The node with every tensor name that `names` maps replaced."""
        return replace(
            self,
            inputs=tuple(names.get(name, name) for name in self.inputs),
            outputs=tuple(names.get(name, name) for name in self.outputs),
        )


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in execution order over named tensors."""

    tensors: Mapping[str, Tensor]
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def consumers(self) -> dict[str, list[Node]]:
        """For every tensor name, the nodes that read it, in execution order."""
        readers: dict[str, list[Node]] = {name: [] for name in self.tensors}
        for node in self.nodes:
            for name in dict.fromkeys(filter(None, node.inputs)):
                readers[name].append(node)
        return readers

    def producers(self) -> dict[str, Node]:
        """For every computed tensor name, the node that writes it."""
        return {name: node for node in self.nodes for name in node.outputs}

    def constant(self, name: str) -> Array | None:
        """The constant's stored array, or None when `name` is absent or computed."""
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.data

    def op_counts(self) -> dict[str, int]:
        """How often each operator occurs, by name."""
        return dict(sorted(Counter(node.op for node in self.nodes).items()))

    def with_nodes(self, nodes: Iterable[Node], tensors: Mapping[str, Tensor] | None = None) -> Graph:
        """The graph with other nodes and added or replaced tensors; unused tensors are dropped."""
        nodes = tuple(nodes)
        merged = {**self.tensors, **(tensors or {})}
        used = {name for node in nodes for name in (*node.inputs, *node.outputs)} | {
            *self.inputs,
            *self.outputs,
        }
        kept = {name: tensor for name, tensor in merged.items() if name in used}
        return replace(self, nodes=nodes, tensors=kept)

    def without_dead_nodes(self) -> Graph:
        """The graph without nodes whose results nothing reads."""
        alive = set(self.outputs)
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if alive.intersection(node.outputs):
                kept.append(node)
                alive.update(node.inputs)
        return self.with_nodes(reversed(kept))

    def check(self) -> None:
        """Raise GraphError unless every tensor is defined once, before it is read, with a static shape."""
        known = {name for name, tensor in self.tensors.items() if tensor.data is not None} | set(self.inputs)
        for node in self.nodes:
            for name in filter(None, node.inputs):
                if name not in self.tensors:
                    raise GraphError(
                        f"{node.op} {node.output!r} reads {name!r}, which the graph does not hold"
                    )
                if name not in known:
                    raise GraphError(f"{node.op} {node.output!r} reads {name!r} before it is computed")
            for name in node.outputs:
                if name in known or name not in self.tensors:
                    raise GraphError(f"{node.op} writes {name!r}, which is already defined or has no shape")
                known.add(name)
        if missing := [name for name in self.outputs if name not in known]:
            raise GraphError(f"graph outputs {missing} are never computed")
        for name, tensor in self.tensors.items():
            if any(size < 1 for size in tensor.shape):
                raise GraphError(
                    f"tensor {name!r} has shape {list(tensor.shape)}; every size must be at least 1"
                )


def added_operators(before: Graph, after: Graph) -> dict[str, int]:
    """How many more of each operator `after` has than `before`; those alike in number are left out."""
    counts = before.op_counts()
    return {op: more for op, count in after.op_counts().items() if (more := count - counts.get(op, 0))}


def channel_axis(node: Node) -> int:
    """The axis of a weighted node's weights along which its output channels lie."""
    return 3 if node.op == "DEPTHWISE_CONV_2D" else 0


def is_ungrouped(graph: Graph, node: Node) -> bool:
    """Whether a weighted node's weights have one place for every channel of its input, and no more."""
    source, weights = (graph.tensors[name].shape for name in node.inputs[:2])
    return source[-1] == weights[-1]


def strides_and_dilations(node: Node) -> tuple[tuple[int, int], tuple[int, int]]:
    """The (H, W) strides and dilations of a convolution, from its attributes."""
    stride, dilation = (
        (int(node.attributes[f"{key}_h{tail}"]), int(node.attributes[f"{key}_w{tail}"]))  # type: ignore[arg-type]  # integers
        for key, tail in (("stride", ""), ("dilation", "_factor"))
    )
    return stride, dilation


def same_pads(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """TensorFlow's SAME padding of an H, W input as (top, left, bottom, right): the odd pixel goes last."""
    totals = [
        max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
    ]
    before = [total // 2 for total in totals]
    return (before[0], before[1], totals[0] - before[0], totals[1] - before[1])
