"""Runs a float graph and its 8-bit twin side by side, and settles the 8-bit layers one after the other.

When a layer's turn comes, everything before it is final, so its input is what the 8-bit model will really
see. A `Layer` carries a sample of that input, and of the float graph's results, to the treatments in
`rounding` and `bias`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from export.graph import WEIGHTED, Graph, Node, Quantization, Tensor, same_pads, strides_and_dilations
from export.run import Program
from quantize.affine import WEIGHT_MAX, along, delegate_factors, quantize_bias

POSITIONS_PER_IMAGE = 64
BATCH = 8
SEED = 20190611  # of the positions drawn; arXiv:1906.04721's date
MATRICES = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"})
BOUNDS = {"NONE": (-np.inf, np.inf), "RELU": (0.0, np.inf), "RELU6": (0.0, 6.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A weighted node whose turn has come, as matrices; G groups of O channels with K weights each.

    A dense layer is one group (G = 1), a depthwise one has a group for every channel (O = 1). All float32:
    `inputs` are the 8-bit model's, [G, samples, K], `targets` the float model's sums before the activation,
    [G, samples, O], `weights` the wanted weights [G, O, K], `bias` [G, O], `scales` the weights' grid [G, O],
    `steps` the weights on it [G, O, K]; with `one_scale` all channels must share it. `bounds` is the fused
    activation's clamp. Samples are in the order of the images.
    """

    name: str
    op: str
    inputs: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    bias: torch.Tensor
    scales: torch.Tensor
    steps: torch.Tensor
    one_scale: bool
    bounds: tuple[float, float]

    def found(self) -> torch.Tensor:
        """The 8-bit model's sums before the activation and the rounding, [G, samples, O]."""
        rounded = self.steps * self.scales[..., None]
        return torch.baddbmm(self.bias[:, None], self.inputs, rounded.transpose(1, 2))

    def clamped(self, sums: torch.Tensor) -> torch.Tensor:
        """`sums` after the activation."""
        return sums.clamp(*self.bounds)


Treatment = Callable[[Layer], Layer]


def settled(
    exact: Graph, rough: Graph, batches: Sequence[NDArray[np.float32]], treatments: Sequence[Treatment]
) -> Graph:
    """`rough`, the 8-bit form of `exact`, with weights and biases that the treatments chose, layer by layer.

    `batches` are float32 [N, H, W, C] in the graph input's own scale; all are held in memory at once.
    """
    walk = _Walk(exact, rough, batches)
    generator = torch.Generator().manual_seed(SEED)
    with torch.inference_mode():
        for node in rough.nodes:
            twin = walk.twins.get(node.inputs[1]) if _has_integer_weights(rough, node) else None
            if twin is not None:
                walk.advance(twin)
                layer = walk.layer(node, twin, generator)
                for treatment in treatments:
                    layer = treatment(layer)
                walk.program.replace_constants(walk.constants(node, layer))
            walk.run(node)
    return walk.program.graph


def _has_integer_weights(graph: Graph, node: Node) -> bool:
    return node.op in WEIGHTED and graph.tensors[node.inputs[1]].quantization is not None


class _Walk:
    """Where both programs stand: for every small batch, the values of the float and of the 8-bit graph."""

    def __init__(self, exact: Graph, rough: Graph, batches: Sequence[NDArray[np.float32]]) -> None:
        self.exact, self.program = Program(exact), Program(rough)
        small = [batch[i : i + BATCH] for batch in batches for i in range(0, len(batch), BATCH)]
        self.states = [(self.exact.open(batch), self.program.open(batch)) for batch in small]
        self.twins = {node.inputs[1]: node for node in exact.nodes if _is_matrix(exact, node)}
        self.position = 0

    def advance(self, twin: Node) -> None:
        """Run the float graph up to `twin`, whose input is then there."""
        nodes = self.exact.graph.nodes
        while nodes[self.position] is not twin:
            for values, _ in self.states:
                self.exact.run(nodes[self.position], values)
                self.exact.forget(nodes[self.position], values)
            self.position += 1

    def run(self, node: Node) -> None:
        """Run a node of the 8-bit graph."""
        for _, values in self.states:
            self.program.run(node, values)
            self.program.forget(node, values)

    def wanted(self, node: Node, twin: Node) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The float graph's weights and bias, brought within the delegate's limits as `int8` does."""
        weights, bias = (self.exact.graph.tensors[name].real() for name in twin.inputs[1:])
        source, target = (self.program.grids.get(name) for name in (node.inputs[0], node.output))
        if source is None or target is None:
            return weights, bias
        axis = 3 if node.op == "DEPTHWISE_CONV_2D" else 0
        factors = delegate_factors(weights, axis, float(source.scale) / float(target.scale))
        tamed = weights * along(factors, weights.ndim, axis), bias * factors
        return tamed[0].astype(np.float32), tamed[1].astype(np.float32)

    def layer(self, node: Node, twin: Node, generator: torch.Generator) -> Layer:
        """The node as matrices, with a sample of its inputs."""
        weights, bias = self.wanted(node, twin)
        rough_weights, rough_bias = (self.program.graph.tensors[name] for name in node.inputs[1:])
        assert rough_weights.data is not None and rough_weights.quantization is not None
        matrix = _as_matrix(node, weights)
        shape = matrix.shape[:2]
        found, exact = [], []
        for exact_values, values in self.states:
            window = _Window.drawn(node, exact_values[twin.inputs[0]], weights.shape, generator)
            exact.append(window.patches(exact_values[twin.inputs[0]]))
            found.append(window.patches(self.program.real(node.inputs[0], values)))
        inputs, exact_inputs = (torch.cat(part, 1) for part in (found, exact))
        exact_bias = torch.from_numpy(bias).reshape(shape)[:, None]
        return Layer(
            name=twin.output,
            op=node.op,
            inputs=inputs,
            targets=torch.baddbmm(exact_bias, exact_inputs, matrix.transpose(1, 2)),
            weights=matrix,
            bias=torch.from_numpy(rough_bias.real()).reshape(shape),
            scales=torch.from_numpy(_per_channel(rough_weights.quantization, matrix)).reshape(shape),
            steps=_as_matrix(node, rough_weights.data.astype(np.float32)),
            one_scale=rough_weights.quantization.axis is None,
            bounds=BOUNDS[str(twin.attributes["fused_activation_function"])],
        )

    def constants(self, node: Node, layer: Layer) -> dict[str, Tensor]:
        """The layer's weights and bias as the node's constants."""
        weight_name, bias_name = node.inputs[1:]
        old = self.program.graph.tensors[weight_name]
        assert old.quantization is not None
        steps = layer.steps.clamp(-WEIGHT_MAX, WEIGHT_MAX)
        data = _from_matrix(node, steps.numpy(), old.shape).astype(np.int8)
        grid = replace(old.quantization, scale=_stored_scales(old.quantization, layer.scales))
        bias = layer.bias.reshape(-1).numpy()
        source = self.program.grids.get(node.inputs[0])
        if source is None:
            return {weight_name: Tensor.constant(data, grid), bias_name: Tensor.constant(bias)}
        bias_grid = replace(grid, scale=grid.scale * source.scale, axis=None if grid.axis is None else 0)
        stored = quantize_bias(bias, bias_grid)
        return {weight_name: Tensor.constant(data, grid), bias_name: Tensor.constant(stored, bias_grid)}


def _is_matrix(graph: Graph, node: Node) -> bool:
    """Whether a layer can be settled: ungrouped, weights of its own, an activation that is a clamp."""
    if node.op not in MATRICES or node.attributes.get("fused_activation_function") not in BOUNDS:
        return False
    shape, weights = graph.tensors[node.inputs[0]].shape, graph.tensors[node.inputs[1]].shape
    alone = sum(node.inputs[1] in other.inputs for other in graph.nodes) == 1
    return alone and weights[-1] == shape[-1] and (node.op != "FULLY_CONNECTED" or len(shape) == 2)


def _per_channel(grid: Quantization, matrix: torch.Tensor) -> NDArray[np.float32]:
    return np.array(np.broadcast_to(grid.scale, matrix.shape[0] * matrix.shape[1]), np.float32)


def _stored_scales(grid: Quantization, scales: torch.Tensor) -> NDArray[np.float32]:
    flat = scales.reshape(-1).numpy().astype(np.float32)
    return flat[: len(grid.scale)]


def _as_matrix(node: Node, weights: NDArray[np.float32]) -> torch.Tensor:
    """OHWI or OI to [1, O, K]; 1HWC to [C, 1, K]."""
    if node.op == "DEPTHWISE_CONV_2D":
        return torch.from_numpy(weights.reshape(-1, 1, weights.shape[3]).transpose(2, 1, 0).copy())
    return torch.from_numpy(weights.reshape(1, len(weights), -1).copy())


def _from_matrix(node: Node, matrix: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if node.op == "DEPTHWISE_CONV_2D":
        return np.ascontiguousarray(matrix.transpose(2, 1, 0)).reshape(shape)
    return matrix.reshape(shape)


@dataclass(frozen=True, slots=True)
class _Window:
    """The input pixels that some output positions see: [positions, taps] indices into the padded input."""

    rows: torch.Tensor
    columns: torch.Tensor
    pads: tuple[int, int, int, int]
    depthwise: bool

    @classmethod
    def drawn(
        cls, node: Node, source: torch.Tensor, weights: tuple[int, ...], generator: torch.Generator
    ) -> _Window:
        """At most POSITIONS_PER_IMAGE output positions, drawn at random, of a layer that reads `source`."""
        if source.ndim == 2:
            nothing = torch.zeros(1, 1, dtype=torch.long)
            return cls(nothing, nothing, (0, 0, 0, 0), False)
        stride, dilation = strides_and_dilations(node)
        kernel = weights[1:3]
        same = node.attributes["padding"] == "SAME"
        pads = same_pads(source.shape[1:3], kernel, stride, dilation) if same else (0, 0, 0, 0)
        padded = (source.shape[1] + pads[0] + pads[2], source.shape[2] + pads[1] + pads[3])
        sizes = [(padded[i] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1 for i in (0, 1)]
        chosen = torch.randperm(sizes[0] * sizes[1], generator=generator)[:POSITIONS_PER_IMAGE]
        taps = [torch.arange(kernel[i]) * dilation[i] for i in (0, 1)]
        rows = (chosen // sizes[1] * stride[0])[:, None] + taps[0].repeat_interleave(kernel[1])
        columns = (chosen % sizes[1] * stride[1])[:, None] + taps[1].repeat(kernel[0])
        return cls(rows, columns, pads, node.op == "DEPTHWISE_CONV_2D")

    def patches(self, source: torch.Tensor) -> torch.Tensor:
        """What the positions see of `source`: [1, samples, K], of a depthwise layer [C, samples, K]."""
        if source.ndim == 2:
            return source[None]
        top, left, bottom, right = self.pads
        padded = functional.pad(source, (0, 0, left, right, top, bottom)) if any(self.pads) else source
        taken = padded[:, self.rows, self.columns].flatten(0, 1)
        return taken.permute(2, 0, 1).contiguous() if self.depthwise else taken.flatten(1)[None]
