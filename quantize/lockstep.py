"""Runs a float graph and its 8-bit twin side by side, and settles the 8-bit layers one after the other.

When a layer's turn comes, everything before it is final, so its input is what the 8-bit model will really
see. A `Layer` carries a sample of that input, and of the float graph's results, to the treatments in
`rounding` and `bias`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import accumulate, takewhile

import numpy as np
import torch
from numpy.typing import NDArray

from export.graph import WEIGHTED, Graph, Node, Tensor, channel_axis, is_ungrouped
from export.parallel import ahead, pieces, without_gradients, workers
from export.run import Program, activated
from quantize.affine import WEIGHT_MAX, along, layer_factors, quantize_bias
from quantize.samples import Samples

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
        if rounded.shape[1] > 1:
            return torch.baddbmm(self.bias[:, None], self.inputs, rounded.transpose(1, 2))
        sums = self.bias.repeat(1, self.inputs.shape[1])
        for tap, weight in zip(self.inputs.unbind(2), rounded.unbind(2), strict=True):
            sums.addcmul_(tap, weight)  # a depthwise layer has too little for a matrix product
        return sums[..., None]

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
    images = np.concatenate(batches)
    program, reference = Program(rough), _Reference(Program(exact), rough, images)
    twins = _twins(rough, exact)
    with workers(program.device) as pool:
        walk = _Walk(program, images, pool)
        pairs = [(node, twins[node.output]) for node in rough.nodes if node.output in twins]
        with closing(ahead(reference.turn, pairs)) as turns:
            for node in rough.nodes:
                if node.output in twins:
                    walk.settle(node, next(turns), treatments)
                walk.run(node)
    return program.graph


@dataclass(frozen=True, slots=True)
class _Turn:
    """A layer to settle: its node in the float graph, its wanted weights and where it is looked at.

    `sums` are what the float graph has there before the activation, on the scale of `weights`, [samples, O].
    """

    twin: Node
    weights: NDArray[np.float32]
    samples: Samples
    sums: torch.Tensor


def _twins(rough: Graph, exact: Graph) -> dict[str, Node]:
    """The float graph's nodes for the layers to settle, by the name of the 8-bit node, in execution order."""
    readers = exact.consumers()
    twins = {
        node.inputs[1]: node
        for node in exact.nodes
        if _is_matrix(exact, node) and len(readers[node.inputs[1]]) == 1
    }
    integer = [node for node in rough.nodes if _has_integer_weights(rough, node)]
    return {node.output: twins[node.inputs[1]] for node in integer if node.inputs[1] in twins}


def _has_integer_weights(graph: Graph, node: Node) -> bool:
    return node.op in WEIGHTED and graph.tensors[node.inputs[1]].quantization is not None


State = tuple[int, dict[str, torch.Tensor]]
"""Of a few images: the number of the first, and the values that are there."""


def _opened(program: Program, images: NDArray[np.float32]) -> list[State]:
    parts = pieces(images)
    firsts = accumulate((len(part) for part in parts), initial=0)
    return [(first, program.open(part)) for first, part in zip(firsts, parts, strict=False)]


class _Reference:
    """The float graph on all images, from layer to layer."""

    def __init__(self, program: Program, rough: Graph, images: NDArray[np.float32]) -> None:
        self.program, self.rough, self.images = program, rough, len(images)
        self.states = _opened(program, images)
        self.pending = iter(program.graph.nodes)
        self.generator = torch.Generator().manual_seed(SEED)

    @without_gradients
    def turn(self, pair: tuple[Node, Node]) -> _Turn:
        """Run up to the second node, the first's twin, and through it."""
        node, twin = pair
        graph = self.program.graph
        samples = Samples.drawn(graph, twin, self.images, self.generator, self.program.device)
        weights = graph.tensors[twin.inputs[1]].real()
        factors = layer_factors(self.rough, node, weights)
        wanted = (weights * along(factors, weights.ndim, channel_axis(node))).astype(np.float32)
        for before in takewhile(lambda other: other is not twin, self.pending):
            for _, values in self.states:
                self.program.run(before, values)
                self.program.forget(before, values)
        sums = torch.cat([self._through(twin, samples, *state) for state in self.states])
        return _Turn(
            twin, wanted, samples, sums.mul_(torch.from_numpy(factors).to(sums.device, torch.float32))
        )

    def _through(
        self, twin: Node, samples: Samples, first: int, values: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        sums = self.program.sums(twin, values)
        found = samples.of_output(sums, first)
        values[twin.output] = activated(sums, twin.attributes)
        self.program.forget(twin, values)
        return found


class _Walk:
    """The 8-bit graph on all images, node by node."""

    def __init__(self, program: Program, images: NDArray[np.float32], pool: Executor) -> None:
        self.program, self.pool = program, pool
        self.states = _opened(program, images)

    def run(self, node: Node) -> None:
        """Run a node on all images."""

        @without_gradients
        def run(state: State) -> None:
            _, values = state
            self.program.run(node, values)
            self.program.forget(node, values)

        list(self.pool.map(run, self.states))

    @without_gradients
    def settle(self, node: Node, turn: _Turn, treatments: Sequence[Treatment]) -> None:
        """Give the node the weights and bias that the treatments choose."""
        layer = self.layer(node, turn)
        for treatment in treatments:
            layer = treatment(layer)
        self.program.replace_constants(self.constants(node, layer))

    def inputs(self, name: str, samples: Samples) -> torch.Tensor:
        """The real values that the drawn positions see, [samples, taps, C]."""

        @without_gradients
        def seen(state: State) -> torch.Tensor:
            first, values = state
            return samples.of_input(values[name], first)

        found = torch.cat(list(self.pool.map(seen, self.states)))
        grid = self.program.grids.get(name)
        return found if grid is None else found.mul_(float(grid.scale))

    def layer(self, node: Node, turn: _Turn) -> Layer:
        """The node as matrices, with a sample of its inputs."""
        weights, bias = (self.program.graph.tensors[name] for name in node.inputs[1:])
        assert weights.data is not None and weights.quantization is not None
        matrix = _as_matrix(node, turn.weights)
        shape, device = matrix.shape[:2], self.program.device
        scales = np.array(np.broadcast_to(weights.quantization.scale, shape[0] * shape[1]), np.float32)
        inputs = self.inputs(node.inputs[0], turn.samples)
        return Layer(
            name=turn.twin.output,
            op=node.op,
            inputs=_by_group(node, inputs),
            targets=_by_group(node, turn.sums[:, None]),
            weights=matrix.to(device),
            bias=torch.from_numpy(bias.real()).reshape(shape).to(device),
            scales=torch.from_numpy(scales).reshape(shape).to(device),
            steps=_as_matrix(node, weights.data.astype(np.float32)).to(device),
            one_scale=weights.quantization.axis is None,
            bounds=BOUNDS[str(turn.twin.attributes["fused_activation_function"])],
        )

    def constants(self, node: Node, layer: Layer) -> dict[str, Tensor]:
        """The layer's weights and bias as the node's constants."""
        weight_name, bias_name = node.inputs[1:]
        old = self.program.graph.tensors[weight_name]
        assert old.quantization is not None
        steps = layer.steps.clamp(-WEIGHT_MAX, WEIGHT_MAX).cpu().numpy()
        data = _from_matrix(node, steps, old.shape).astype(np.int8)
        scales = layer.scales.flatten().cpu().numpy()[: len(old.quantization.scale)]
        grid = replace(old.quantization, scale=scales)
        bias = layer.bias.flatten().cpu().numpy()
        source = self.program.grids.get(node.inputs[0])
        if source is None:
            return {weight_name: Tensor.constant(data, grid), bias_name: Tensor.constant(bias)}
        bias_grid = replace(grid, scale=grid.scale * source.scale, axis=None if grid.axis is None else 0)
        stored = quantize_bias(bias, bias_grid)
        return {weight_name: Tensor.constant(data, grid), bias_name: Tensor.constant(stored, bias_grid)}


def _is_matrix(graph: Graph, node: Node) -> bool:
    """Whether a layer can be settled: ungrouped, an activation that is a clamp."""
    if node.op not in MATRICES or node.attributes.get("fused_activation_function") not in BOUNDS:
        return False
    is_flat = len(graph.tensors[node.inputs[0]].shape) == 2
    return is_ungrouped(graph, node) and (node.op != "FULLY_CONNECTED" or is_flat)


def _as_matrix(node: Node, weights: NDArray[np.float32]) -> torch.Tensor:
    """OHWI or OI to [1, O, K]; 1HWC to [C, 1, K]."""
    if node.op == "DEPTHWISE_CONV_2D":
        return torch.from_numpy(weights.reshape(-1, 1, weights.shape[3]).transpose(2, 1, 0).copy())
    return torch.from_numpy(weights.reshape(1, len(weights), -1).copy())


def _by_group(node: Node, inputs: torch.Tensor) -> torch.Tensor:
    """[samples, taps, C] to [1, samples, K]; of a depthwise layer to [C, samples, K], by taps in memory."""
    if node.op == "DEPTHWISE_CONV_2D":
        by_tap = inputs.flatten(1).t().contiguous().view(*inputs.shape[1:], -1)
        return by_tap.permute(1, 2, 0)
    return inputs.flatten(1)[None]


def _from_matrix(node: Node, matrix: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if node.op == "DEPTHWISE_CONV_2D":
        return np.ascontiguousarray(matrix.transpose(2, 1, 0)).reshape(shape)
    return matrix.reshape(shape)
