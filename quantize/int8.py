"""Float Graph and ranges to the full-integer Graph that one delegate partition takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from export.graph import WEIGHTED, Graph, Node, Quantization, Tensor, channel_axis
from pipeline.artifacts import AlpharhoError
from quantize.affine import (
    SMALLEST_SCALE,
    activation_quantization,
    along,
    delegate_factors,
    per_channel,
    per_tensor,
    quantize_bias,
    quantize_weights,
    weight_scales,
)
from quantize.grids import JOINERS, Grids, grids_of
from quantize.ranges import Range

INT8, UINT8, FLOAT32 = (np.dtype(kind) for kind in (np.int8, np.uint8, np.float32))
IO_TYPES = {"int8": INT8, "uint8": UINT8, "float32": FLOAT32}

# XNNPACK has no int8 kernel for the former, and for the latter one within limits only: of the scales and the
# slope, and with a second operand whose zero point is 0. Between DEQUANTIZE and QUANTIZE they stay in the
# partition, and unary ones become one table look-up.
NO_INT8_KERNEL = frozenset(
    {
        "AVERAGE_POOL_2D",
        "DIV",
        "HARD_SWISH",
        "L2_NORMALIZATION",
        "MAXIMUM",
        "MINIMUM",
        "PRELU",
        "RELU",
        "RELU6",
        "SOFTMAX",
    }
)
LIMITED_INT8_KERNEL = frozenset({"BATCH_MATMUL", "LEAKY_RELU"})
FLOAT_ISLANDS = NO_INT8_KERNEL | LIMITED_INT8_KERNEL
DYNAMIC = frozenset(
    {"CONV_2D", "FULLY_CONNECTED"}
)  # float activations, rounded per image, times int8 weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Io:
    """The types at the model's doors and the real values of input byte 0 and 255."""

    input: str = "uint8"
    output: str = "float32"
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        for kind in (self.input, self.output):
            if kind not in IO_TYPES:
                raise AlpharhoError(f"model input and output can be {', '.join(IO_TYPES)}, not {kind!r}")

    def input_quantization(self) -> Quantization:
        """The grid of the int8 input.

        Camera bytes have 256 levels from `low` to `high`, and zero lies between two of them when the range is
        symmetric: the zero point is then half a level off, which `input_offset` puts right. A float input is
        rounded onto a grid with an exact zero and without that tie.
        """
        if self.input == "float32":
            return (
                per_tensor(max(-self.low, self.high) / 127, 0)
                if self.low < 0
                else activation_quantization(0, self.high)
            )
        scale = (self.high - self.low) / 255
        return per_tensor(scale, int(np.floor(-self.low / scale + 0.5)) - 128)

    def input_offset(self) -> float:
        """Real value that the grid of a byte input is too low by, everywhere."""
        if self.input == "float32":
            return 0.0
        grid = self.input_quantization()
        return self.low + (int(grid.zero_point[0]) + 128) * float(grid.scale[0])


def _one_scale(scales: NDArray[np.float64], axis: int) -> Quantization:
    return per_tensor(float(scales.max()), 0)


WeightForm = Callable[[NDArray[np.float64], int], Quantization]
WEIGHT_FORMS: Mapping[str, WeightForm] = {"per_channel": per_channel, "per_tensor": _one_scale}


def to_int8(
    graph: Graph,
    ranges: Mapping[str, Range],
    io: Io | None = None,
    float_nodes: Set[str] = frozenset(),
    weights: str = "per_channel",
) -> Graph:
    """The 8-bit graph: int8 activations and weights (by `weights` of WEIGHT_FORMS), int32 biases, `io` doors.

    `ranges` holds an interval for every computed tensor of the float `graph`. Nodes named in `float_nodes`
    compute on real values instead (with int8 weights), still inside the one delegate partition.
    """
    io = io or Io()
    grids = grids_of(graph, ranges, io.input_quantization(), float_nodes)
    return _Int8Builder(graph, grids, io, float_nodes, WEIGHT_FORMS[weights]).build()


class _Int8Builder:
    def __init__(
        self,
        graph: Graph,
        grids: Grids,
        io: Io,
        float_nodes: Set[str],
        weight_form: WeightForm,
    ) -> None:
        self.graph = graph
        self.grids, self.brought = grids.of, grids.brought
        self.io = io
        self.float_nodes = float_nodes
        self.weight_form = weight_form
        self.real: dict[str, str] = {}  # the float tensor that an int8 one was rounded from
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []
        self.door: dict[str, str] = {}

    def build(self) -> Graph:
        name = self.graph.inputs[0]
        self._open_input(name)
        for node in self.graph.nodes:
            self._convert(node.renamed(self.door))
        for name in self.graph.outputs:
            self._open_output(name)
        return self.graph.with_nodes(self.nodes, self.tensors).without_dead_nodes()

    def _convert(self, node: Node) -> None:
        if node.output in self.float_nodes:
            self.real[node.output] = self._island(self._with_int8_weights(node))
            return
        if node.op in FLOAT_ISLANDS:
            self._island(node)
            return
        if node.op in WEIGHTED:
            node = self._weighted(node)
        else:
            node = self._with_operands_brought(self._with_constant_operands(node))
        self.tensors[node.output] = self._activation(node.output)
        self.nodes.append(node)

    def _activation(self, name: str, dtype: np.dtype[np.generic] = INT8) -> Tensor:
        return Tensor(self.graph.tensors[name].shape, dtype, quantization=self.grids[name])

    def _grid(self, name: str) -> Quantization:
        tensor = self.tensors[name]
        assert tensor.quantization is not None
        return tensor.quantization

    def _weighted(self, node: Node) -> Node:
        source, weight_name, bias_name = node.inputs
        weights, bias = (self.graph.tensors[name].real() for name in (weight_name, bias_name))
        axis = channel_axis(node)
        if source == self.door.get(self.graph.inputs[0], self.graph.inputs[0]):
            others = tuple(other for other in range(weights.ndim) if other != axis)
            bias = bias + weights.sum(axis=others) * np.float32(self.io.input_offset())
        scale_in, scale_out = float(self._grid(source).scale[0]), float(self.grids[node.output].scale[0])
        factors = delegate_factors(weights, axis, scale_in / scale_out)
        weights = (weights * along(factors, weights.ndim, axis)).astype(np.float32)
        bias = (bias * factors).astype(np.float32)
        scales = _workable_scales(weight_scales(weights, axis), bias, scale_in, scale_out)
        grid = self.weight_form(scales, axis)
        bias_grid = replace(
            grid, scale=grid.scale * np.float32(scale_in), axis=None if grid.axis is None else 0
        )
        self.tensors[weight_name] = Tensor.constant(quantize_weights(weights, grid), grid)
        self.tensors[bias_name] = Tensor.constant(quantize_bias(bias, bias_grid), bias_grid)
        return node

    def _with_constant_operands(self, node: Node) -> Node:
        """Constant real operands of ADD, MUL and their like on an int8 grid."""
        names = {}
        for name in node.inputs:
            constant = self.graph.tensors.get(name)
            if constant is None or constant.data is None or constant.dtype != FLOAT32:
                continue
            grid = self.grids[node.output if node.op in JOINERS else name]
            steps = np.round(constant.real() / grid.scale) + grid.zero_point
            names[name] = f"{node.output}/{name}"
            self.tensors[names[name]] = Tensor.constant(np.clip(steps, -128, 127).astype(np.int8), grid)
        return node.renamed(names)

    def _with_operands_brought(self, node: Node) -> Node:
        """Operands that are not on the grid that the node needs, brought there."""
        operands = list(node.inputs)
        for at, name in enumerate(node.inputs):
            grid = self.brought.get((node.output, at))
            if grid is not None:
                real, operands[at] = (f"{node.output}/{part}/{at}" for part in ("real", "brought"))
                shape = self.tensors[name].shape
                self.tensors |= {real: Tensor(shape), operands[at]: Tensor(shape, INT8, quantization=grid)}
                self.nodes += [
                    Node("DEQUANTIZE", (name,), (real,)),
                    Node("QUANTIZE", (real,), (operands[at],)),
                ]
        return replace(node, inputs=tuple(operands))

    def _with_int8_weights(self, node: Node) -> Node:
        """Weights of a float node as int8 per channel, where the delegate multiplies floats with them."""
        if node.op in DYNAMIC:
            weights = self.graph.tensors[node.inputs[1]].real()
            grid = per_channel(np.maximum(weight_scales(weights, 0), SMALLEST_SCALE), 0)
            self.tensors[node.inputs[1]] = Tensor.constant(quantize_weights(weights, grid), grid)
        return node

    def _island(self, node: Node) -> str:
        """Add the node as a float one between DEQUANTIZE and QUANTIZE; the name of its float result."""
        operands = [self._real_operand(node, position) for position in range(len(node.inputs))]
        result = f"{node.output}/float"
        self.tensors[result] = Tensor(self.graph.tensors[node.output].shape)
        self.nodes.append(replace(node, inputs=tuple(operands), outputs=(result,)))
        self.tensors[node.output] = self._activation(node.output)
        self.nodes.append(Node("QUANTIZE", (result,), (node.output,)))
        return result

    def _real_operand(self, node: Node, position: int) -> str:
        name = node.inputs[position]
        tensor = self.tensors.get(name)
        if name in self.real or tensor is None or tensor.dtype != INT8 or tensor.data is not None:
            return self.real.get(name, name)
        real = f"{node.output}/dequantized/{position}"
        self.tensors[real] = Tensor(tensor.shape)
        self.nodes.append(Node("DEQUANTIZE", (name,), (real,)))
        return real

    def _open_input(self, name: str) -> None:
        if self.io.input == "int8":
            self.tensors[name] = self._activation(name)
            return
        inner = f"{name}/int8"
        self.door[name] = inner
        grid = self.grids[name]
        self.tensors[inner] = self._activation(name)
        self.tensors[name] = Tensor(self.graph.tensors[name].shape)
        if self.io.input == "uint8":
            self.tensors[name] = replace(self.tensors[name], dtype=UINT8, quantization=_as_uint8(grid))
        self.nodes.append(Node("QUANTIZE", (name,), (inner,)))

    def _open_output(self, name: str) -> None:
        if self.io.output == "int8":
            return
        if self.io.output == "float32" and name in self.real:
            self._let_out(self.real[name], name)
            return
        inner = f"{name}/int8"
        self.nodes = [node.renamed({name: inner}) for node in self.nodes]
        self.tensors[inner] = self.tensors[name]
        self.tensors[name] = Tensor(self.graph.tensors[name].shape)
        if self.io.output == "float32":
            self.nodes.append(Node("DEQUANTIZE", (inner,), (name,)))
            return
        self.tensors[name] = replace(
            self.tensors[name], dtype=UINT8, quantization=_as_uint8(self._grid(inner))
        )
        self.nodes.append(Node("QUANTIZE", (inner,), (name,)))

    def _let_out(self, real: str, name: str) -> None:
        """Make the float tensor `real` the graph output `name`, unrounded."""
        inner = f"{name}/int8"
        names = {name: inner, real: name}
        self.nodes = [node.renamed(names) for node in self.nodes]
        self.tensors[inner] = self.tensors[name]
        self.tensors[name] = self.tensors[real]


def _as_uint8(grid: Quantization) -> Quantization:
    return replace(grid, zero_point=grid.zero_point + 128)


def _workable_scales(
    scales: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    bias: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    scale_in: float,
    scale_out: float,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Weight scales raised where a nearly dead channel's would overflow its bias or the delegate's limits.

    The delegate asks for input x weight / output scale in [2^-32, 2^8).
    """
    for_bias = np.abs(bias.astype(np.float64)) / (scale_in * 2.0**30)
    for_ratio = scale_out * 2.0**-30 / scale_in
    return np.maximum(np.maximum(scales, for_bias), max(for_ratio, SMALLEST_SCALE))
