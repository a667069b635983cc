"""Executes a Graph in PyTorch: the reference for float graphs, and the simulator of quantised ones.

Values are float32, batched, channels last. An 8-bit tensor is held as centred integers (stored - zero point),
and operators whose operands are 8-bit compute on them as the delegate does: the result is the runtime's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from export.graph import INPUT_TIE, WEIGHTED, Graph, Node, Tensor, same_pads
from export.integer import (
    Grid,
    added,
    dynamically_quantized,
    is_on_grid,
    quantized,
    requantization_ratio,
    requantized,
)
from export.parallel import chosen_device, full_precision, pieces, without_gradients, workers
from export.resize import bilinear_points, nearest_pixels
from pipeline.artifacts import AlpharhoError

Observer = Callable[[str, torch.Tensor], None]
Operands = list[torch.Tensor]
Kernel = Callable[[Operands, Mapping[str, Any]], torch.Tensor]
Step = Callable[[Operands], torch.Tensor]


class Program:
    """A Graph ready to run on `device` (`chosen_device()` unless given); constants are converted once."""

    def __init__(self, graph: Graph, device: str | torch.device | None = None) -> None:
        if unknown := sorted({node.op for node in graph.nodes} - set(KERNELS)):
            raise AlpharhoError(
                f"the simulator has no kernel for {', '.join(unknown)}; it has {', '.join(KERNELS)}"
            )
        self.graph = graph
        self.device = chosen_device() if device is None else torch.device(device)
        self.grids = {name: Grid.of(tensor) for name, tensor in graph.tensors.items() if is_on_grid(tensor)}
        self._readers = graph.consumers()
        self._steps = {node.output: self._step(node) for node in graph.nodes}
        self._constants = {
            name: self._held(name, tensor)
            for name, tensor in graph.tensors.items()
            if tensor.data is not None
        }
        self._last_reader = {name: node.output for node in graph.nodes for name in node.inputs}

    def __call__(self, images: NDArray[np.float32], observe: Observer | None = None) -> NDArray[np.float32]:
        """First output, float32, for `images` float32 of shape [N, *input shape without batch].

        `observe(name, value)` sees the graph input and every computed tensor, real values [N, ...], before
        the next node runs; all images are then run at once, else a few, on every core.
        """
        if observe is not None:
            with full_precision(self.device):
                return self._result(images, observe)
        with workers(self.device) as pool:
            return np.concatenate(list(pool.map(self._result, pieces(images) or [images])))

    @without_gradients
    def _result(self, images: NDArray[np.float32], observe: Observer | None = None) -> NDArray[np.float32]:
        values = self.open(images)
        if observe is not None:
            observe(self.graph.inputs[0], self.real(self.graph.inputs[0], values))
        for node in self.graph.nodes:
            self.run(node, values)
            if observe is not None:
                observe(node.output, self.real(node.output, values))
            self.forget(node, values)
        return np.asarray(self.real(self.graph.outputs[0], values).cpu().numpy(), np.float32)

    def open(self, images: NDArray[np.float32]) -> dict[str, torch.Tensor]:
        """The values before the first node: the graph input's."""
        name = self.graph.inputs[0]
        value = torch.from_numpy(images).to(self.device)
        if name in self.grids:
            grid = self.grids[name]
            value = torch.ceil(value / float(grid.scale) - (0.5 + INPUT_TIE)).clamp_(grid.low, grid.high)
        return {name: value}

    def run(self, node: Node, values: dict[str, torch.Tensor]) -> None:
        """Compute the node's output from `values`, into them."""
        values[node.output] = self._steps[node.output](self._operands(node, values))

    def sums(self, node: Node, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What a float node computes before its fused activation."""
        return KERNELS[node.op](self._operands(node, values), node.attributes)

    def _operands(self, node: Node, values: Mapping[str, torch.Tensor]) -> Operands:
        return [values[name] if name in values else self._constants[name] for name in node.inputs if name]

    def replace_constants(self, tensors: Mapping[str, Tensor]) -> None:
        """Let the program go on with other constants, of the same shapes."""
        self.graph = self.graph.with_nodes(self.graph.nodes, tensors)
        self._constants.update({name: self._held(name, tensor) for name, tensor in tensors.items()})
        for node in {reader.output: reader for name in tensors for reader in self._readers[name]}.values():
            self._steps[node.output] = self._step(node)

    def forget(self, node: Node, values: dict[str, torch.Tensor]) -> None:
        """Drop from `values` what `node` was the last to read."""
        for name in node.inputs:
            if name not in self.graph.outputs and self._last_reader[name] == node.output:
                values.pop(name, None)

    def real(self, name: str, values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The real values of a computed tensor."""
        grid = self.grids.get(name)
        return values[name] if grid is None else values[name] * float(grid.scale)

    def _step(self, node: Node) -> Step:
        """The node's computation on values as they are held: integers if result and operand are 8-bit."""
        attributes, target, source = (
            node.attributes,
            self.grids.get(node.output),
            self.grids.get(node.inputs[0]),
        )
        kernel = KERNELS[node.op]
        if target is None:
            if source is not None:
                return lambda operands: operands[0] * float(source.scale)
            if node.op in WEIGHTED and self.graph.tensors[node.inputs[1]].dtype == np.int8:
                return self._dynamic(node, kernel)
            return lambda operands: activated(kernel(operands, attributes), attributes)
        if source is None:
            return lambda operands: quantized(operands[0], target)
        if node.op in WEIGHTED:
            return self._integer_weighted(node, source, target)
        if node.op in SAME_GRID:
            return lambda operands: kernel(operands, attributes)
        return self._integer_elementwise(node, target)

    def _integer_weighted(self, node: Node, source: Grid, target: Grid) -> Step:
        weights = self.graph.tensors[node.inputs[1]].quantization
        assert weights is not None
        kernel, attributes = KERNELS[node.op], node.attributes
        ratio = requantization_ratio(source, weights, target).to(self.device)
        clamped = target.clamped(_activation(node))
        return lambda operands: requantized(kernel(operands, attributes), ratio, clamped)

    def _integer_elementwise(self, node: Node, target: Grid) -> Step:
        kernel, attributes = KERNELS[node.op], node.attributes
        scales = [float(self.grids[name].scale) for name in node.inputs if name in self.grids]
        clamped = target.clamped(_activation(node))
        if node.op in ADDITIONS:
            ratios = (scales[0] / float(target.scale), ADDITIONS[node.op] * scales[1] / float(target.scale))
            return lambda operands: added(operands[0], operands[1], ratios, clamped)
        if node.op in PRODUCTS:
            ratio = float(np.float32(np.prod(np.array(scales, np.float32)) / target.scale))
            return lambda operands: requantized(kernel(operands, attributes), ratio, clamped)

        def through_real(operands: Operands) -> torch.Tensor:
            real = [operand * scale for operand, scale in zip(operands, scales, strict=False)]
            return quantized(kernel([*real, *operands[len(scales) :]], attributes), clamped)

        return through_real

    def _dynamic(self, node: Node, kernel: Kernel) -> Step:
        """Float activations times int8 weights: the delegate rounds the activations to 8 bits first.

        Per row of channels before a matrix product, which a 1x1 convolution of stride 1 is, else per image.
        """
        attributes, shape = node.attributes, self.graph.tensors[node.inputs[1]].shape
        by_row = len(shape) == 2 or (shape[1:3] == (1, 1) and _pair(attributes, "stride") == (1, 1))
        axes = (-1,) if by_row else (1, 2, 3)

        def step(operands: Operands) -> torch.Tensor:
            rounded = dynamically_quantized(operands[0], axes)
            return activated(kernel([rounded, *operands[1:]], attributes), attributes)

        return step

    def _held(self, name: str, tensor: Tensor) -> torch.Tensor:
        """A constant as its readers want it: integers where they compute on integers, else real values."""
        assert tensor.data is not None
        values: NDArray[Any] = tensor.data
        if tensor.quantization is not None or tensor.dtype == np.float16:
            values = tensor.real()
            if any(node.output in self.grids for node in self._readers[name]):
                values = tensor.data.astype(np.float32)
                values -= float(tensor.quantization.zero_point[0]) if tensor.quantization is not None else 0.0
        return torch.from_numpy(np.array(values)).to(self.device)


# --- kernels, one per TFLite operator: operands are channels last -------------------------------------------


def _convolution(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    x, weights, bias = operands
    if (
        weights.shape[1:3] == (1, 1)
        and _pair(attributes, "stride") == (1, 1)
        and weights.shape[3] == x.shape[3]
    ):
        return functional.linear(x, weights[:, 0, 0], bias)
    return _convolve(x, weights.permute(0, 3, 1, 2), bias, attributes, x.shape[3] // weights.shape[3])


def _depthwise_convolution(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    x, weights, bias = operands
    return _convolve(x, weights.permute(3, 0, 1, 2), bias, attributes, x.shape[3])


def _convolve(
    x: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor, attributes: Mapping[str, Any], groups: int
) -> torch.Tensor:
    stride, dilation = _pair(attributes, "stride"), _pair(attributes, "dilation", "_factor")
    x = x.permute(0, 3, 1, 2)
    top, left, bottom, right = _pads(x, weights.shape[2:], stride, dilation, attributes)
    if (top, left) != (bottom, right):
        x, top, left = functional.pad(x, (left, right, top, bottom)), 0, 0
    return functional.conv2d(x, weights, bias, stride, (top, left), dilation, groups).permute(0, 2, 3, 1)


def _fully_connected(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    x, weights, bias = operands
    return functional.linear(x, weights, bias)


def _average_pool(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    """Mean over the window's part inside the image, as TFLite."""
    total = _pool(operands[0], attributes, 0.0, _sum_pool)
    return total / _pool(torch.ones_like(operands[0]), attributes, 0.0, _sum_pool)


def _max_pool(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    return _pool(operands[0], attributes, float("-inf"), functional.max_pool2d)


def _sum_pool(x: torch.Tensor, kernel: tuple[int, int], stride: tuple[int, int]) -> torch.Tensor:
    return functional.avg_pool2d(x, kernel, stride) * (kernel[0] * kernel[1])


def _pool(
    x: torch.Tensor, attributes: Mapping[str, Any], fill: float, reduce: Callable[..., torch.Tensor]
) -> torch.Tensor:
    kernel, stride = (attributes["filter_height"], attributes["filter_width"]), _pair(attributes, "stride")
    x = x.permute(0, 3, 1, 2)
    top, left, bottom, right = _pads(x, kernel, stride, (1, 1), attributes)
    return reduce(functional.pad(x, (left, right, top, bottom), value=fill), kernel, stride).permute(
        0, 2, 3, 1
    )


def _mean(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    x, axes = operands
    return x.mean(tuple(axes.tolist()), keepdim=attributes["keep_dims"])


def _reshape(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    return operands[0].reshape(operands[0].shape[0], *attributes["new_shape"][1:])


def _pad(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    x, paddings = operands
    return functional.pad(x, [int(amount) for pair in reversed(paddings.tolist()) for amount in pair])


def _transpose(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    return operands[0].permute(*operands[1].tolist())


def _concatenation(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    batch = max(len(operand) for operand in operands)  # a constant part has one row for all images
    return torch.cat(
        [operand.expand(batch, *operand.shape[1:]) for operand in operands], dim=attributes["axis"]
    )


def _leaky_relu(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    return functional.leaky_relu(operands[0], attributes["alpha"])


def _prelu(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    x, slopes = operands
    return torch.where(x >= 0, x, x * slopes)


def _resize_bilinear(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    x, size = operands
    for axis, result in zip((1, 2), size.tolist(), strict=True):
        low, high, part = _between(x.shape[axis], result, attributes)
        part = part.to(x).reshape([-1 if other == axis else 1 for other in range(4)])
        below, above = (x.index_select(axis, index.to(x.device)) for index in (low, high))
        x = below + (above - below) * part
    return x


def _resize_nearest(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    x, size = operands
    for axis, result in zip((1, 2), size.tolist(), strict=True):
        points = nearest_pixels(
            x.shape[axis], result, attributes["align_corners"], attributes["half_pixel_centers"]
        )
        x = x.index_select(axis, torch.from_numpy(points).long().to(x.device))
    return x


def _between(
    size: int, result: int, attributes: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    points = torch.from_numpy(
        bilinear_points(size, result, attributes["align_corners"], attributes["half_pixel_centers"])
    )
    low = points.floor().long()
    return low, (low + 1).clamp_(max=size - 1), points - low


def _slice(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    x, begin, size = operands
    stops = (begin + size).tolist()
    return x[(slice(None), *(slice(a, b) for a, b in zip(begin.tolist()[1:], stops[1:], strict=True)))]


def _strided_slice(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    x, *parts = operands
    cuts = zip(x.shape, *(part.tolist() for part in parts), strict=True)
    for axis, (size, begin, end, step) in list(enumerate(cuts))[1:]:
        chosen = torch.tensor(range(begin, end if end >= 0 else end + size, step))
        x = x.index_select(axis, chosen.to(x.device))
    return x


def _transposed_convolution(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    x, weights, bias = operands
    stride, kernel = _pair(attributes, "stride"), weights.shape[1:3]
    full = functional.conv_transpose2d(
        x.permute(0, 3, 1, 2), weights.permute(3, 0, 1, 2), bias, stride
    ).permute(0, 2, 3, 1)
    if attributes["padding"] == "VALID":
        return full
    height, width = x.shape[1] * stride[0], x.shape[2] * stride[1]
    top, left, _, _ = same_pads((height, width), kernel, stride, (1, 1))
    return full[:, top : top + height, left : left + width]


def _hard_swish(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    return functional.hardswish(operands[0])


def _binary(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda operands, attributes: function(operands[0], operands[1])


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda operands, attributes: function(operands[0])


KERNELS: dict[str, Kernel] = {
    "ADD": _binary(torch.add),
    "AVERAGE_POOL_2D": _average_pool,
    "BATCH_MATMUL": _binary(torch.matmul),
    "CONCATENATION": _concatenation,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise_convolution,
    "DEQUANTIZE": _unary(lambda x: x),
    "DIV": _binary(torch.div),
    "FULLY_CONNECTED": _fully_connected,
    "HARD_SWISH": _hard_swish,
    "LEAKY_RELU": _leaky_relu,
    "LOGISTIC": _unary(torch.sigmoid),
    "MAXIMUM": _binary(torch.maximum),
    "MAX_POOL_2D": _max_pool,
    "MEAN": _mean,
    "MINIMUM": _binary(torch.minimum),
    "MUL": _binary(torch.mul),
    "PAD": _pad,
    "PRELU": _prelu,
    "QUANTIZE": _unary(lambda x: x),
    "RELU": _unary(functional.relu),
    "RELU6": _unary(functional.relu6),
    "RESHAPE": _reshape,
    "RESIZE_BILINEAR": _resize_bilinear,
    "RESIZE_NEAREST_NEIGHBOR": _resize_nearest,
    "SLICE": _slice,
    "SOFTMAX": _unary(lambda x: torch.softmax(x, -1)),
    "STRIDED_SLICE": _strided_slice,
    "SUB": _binary(torch.sub),
    "TANH": _unary(torch.tanh),
    "TRANSPOSE": _transpose,
    "TRANSPOSE_CONV": _transposed_convolution,
}


CLAMPS: dict[str, tuple[float, float | None]] = {"RELU": (0.0, None), "RELU6": (0.0, 6.0)}
SAME_GRID = frozenset(
    {
        "CONCATENATION",
        "MAX_POOL_2D",
        "PAD",
        "RESHAPE",
        "RESIZE_NEAREST_NEIGHBOR",
        "SLICE",
        "STRIDED_SLICE",
        "TRANSPOSE",
    }
)
PRODUCTS = frozenset({"MEAN", "MUL"})  # one float32 ratio, then rounded half to even
ADDITIONS = {"ADD": 1.0, "SUB": -1.0}  # fixed point


def _activation(node: Node) -> str:
    return str(node.attributes.get("fused_activation_function", "NONE"))


def activated(values: torch.Tensor, attributes: Mapping[str, Any]) -> torch.Tensor:
    """The fused activation of `values`, which a kernel has just made and which are overwritten."""
    activation = attributes.get("fused_activation_function", "NONE")
    return values if activation == "NONE" else values.clamp_(*CLAMPS[activation])


def _pair(attributes: Mapping[str, Any], key: str, tail: str = "") -> tuple[int, int]:
    return attributes[f"{key}_h{tail}"], attributes[f"{key}_w{tail}"]


def _pads(
    x: torch.Tensor,
    kernel: tuple[int, ...] | torch.Size,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    attributes: Mapping[str, Any],
) -> tuple[int, int, int, int]:
    if attributes["padding"] == "VALID":
        return (0, 0, 0, 0)
    return same_pads(x.shape[2:], kernel, stride, dilation)
