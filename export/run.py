"""Executes a Graph in PyTorch: the reference for float graphs, and the simulator of quantised ones.

Values are float32, batched, channels last. A tensor that carries a quantisation is rounded onto its grid right after
it is computed, constants are read back from their integers, and accumulation is exact enough that the result is the
one of TFLite's integer kernels but for ties.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from export.graph import Graph, Node, Quantization, Tensor
from export.lowerings import same_pads
from pipeline.artifacts import AlpharhoError

Observer = Callable[[str, torch.Tensor], None]
Operands = list[torch.Tensor]

INTEGER_BOUNDS = {np.dtype(np.int8): (-128, 127), np.dtype(np.uint8): (0, 255)}


class Program:
    """A Graph ready to run; constants are converted once. Use `device` to run on a GPU."""

    def __init__(self, graph: Graph, device: str | torch.device = "cpu") -> None:
        if unknown := sorted({node.op for node in graph.nodes} - set(KERNELS)):
            raise AlpharhoError(f"the simulator has no kernel for {', '.join(unknown)}; it has {', '.join(KERNELS)}")
        self.graph = graph
        self.device = torch.device(device)
        self._constants = {
            name: torch.from_numpy(np.array(_constant_values(tensor))).to(self.device)
            for name, tensor in graph.tensors.items()
            if tensor.data is not None
        }
        self._last_reader = {name: node.output for node in graph.nodes for name in node.inputs}

    def __call__(self, images: NDArray[np.float32], observe: Observer | None = None) -> NDArray[np.float32]:
        """First output, float32, for `images` float32 of shape [N, *input shape without batch].

        `observe(name, value)` sees the graph input and every computed tensor, [N, ...], before the next node runs.
        """
        with torch.inference_mode():
            values = dict(self._constants)
            name = self.graph.inputs[0]
            values[name] = _on_grid(torch.from_numpy(images).to(self.device), self.graph.tensors[name])
            if observe is not None:
                observe(name, values[name])
            for node in self.graph.nodes:
                self._execute(node, values, observe)
            return np.asarray(values[self.graph.outputs[0]].cpu().numpy(), np.float32)

    def _execute(self, node: Node, values: dict[str, torch.Tensor], observe: Observer | None) -> None:
        operands = [values[name] for name in node.inputs if name]
        result = _clamped(KERNELS[node.op](operands, node.attributes), node.attributes)
        values[node.output] = _on_grid(result, self.graph.tensors[node.output])
        if observe is not None:
            observe(node.output, values[node.output])
        for name in node.inputs:
            if name not in self.graph.outputs and self._last_reader[name] == node.output:
                values.pop(name, None)


def quantize_to_grid(values: torch.Tensor, quantization: Quantization, bounds: tuple[int, int]) -> torch.Tensor:
    """`values` rounded half to even onto the integers of `quantization`, clamped to `bounds`, as real numbers."""
    scale = torch.as_tensor(quantization.scale, device=values.device)
    zero_point = torch.as_tensor(quantization.zero_point, device=values.device)
    stored = torch.clamp(torch.round(values / scale) + zero_point, *bounds)
    return (stored - zero_point) * scale


def _on_grid(values: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    if tensor.quantization is None or tensor.dtype not in INTEGER_BOUNDS:
        return values
    return quantize_to_grid(values, tensor.quantization, INTEGER_BOUNDS[tensor.dtype])


def _constant_values(tensor: Tensor) -> NDArray[Any]:
    assert tensor.data is not None
    if tensor.quantization is not None or tensor.dtype == np.float16:
        return tensor.real()
    return tensor.data


# --- kernels, one per TFLite operator: operands are channels last -----------------------------------------------------


def _convolution(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    x, weights, bias = operands
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


def _pool(x: torch.Tensor, attributes: Mapping[str, Any], fill: float, reduce: Callable[..., torch.Tensor]) -> torch.Tensor:
    kernel, stride = (attributes["filter_height"], attributes["filter_width"]), _pair(attributes, "stride")
    x = x.permute(0, 3, 1, 2)
    top, left, bottom, right = _pads(x, kernel, stride, (1, 1), attributes)
    return reduce(functional.pad(x, (left, right, top, bottom), value=fill), kernel, stride).permute(0, 2, 3, 1)


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
    return torch.cat(operands, dim=attributes["axis"])


def _hard_swish(operands: Operands, attributes: Mapping[str, Any]) -> torch.Tensor:
    return functional.hardswish(operands[0])


def _binary(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda operands, attributes: function(operands[0], operands[1])


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda operands, attributes: function(operands[0])


KERNELS: dict[str, Callable[[Operands, Mapping[str, Any]], torch.Tensor]] = {
    "ADD": _binary(torch.add),
    "AVERAGE_POOL_2D": _average_pool,
    "CONCATENATION": _concatenation,
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise_convolution,
    "DEQUANTIZE": _unary(lambda x: x),
    "DIV": _binary(torch.div),
    "FULLY_CONNECTED": _fully_connected,
    "HARD_SWISH": _hard_swish,
    "LOGISTIC": _unary(torch.sigmoid),
    "MAXIMUM": _binary(torch.maximum),
    "MAX_POOL_2D": _max_pool,
    "MEAN": _mean,
    "MINIMUM": _binary(torch.minimum),
    "MUL": _binary(torch.mul),
    "PAD": _pad,
    "QUANTIZE": _unary(lambda x: x),
    "RELU": _unary(functional.relu),
    "RELU6": _unary(functional.relu6),
    "RESHAPE": _reshape,
    "SOFTMAX": _unary(lambda x: torch.softmax(x, -1)),
    "SUB": _binary(torch.sub),
    "TRANSPOSE": _transpose,
}


def _clamped(values: torch.Tensor, attributes: Mapping[str, Any]) -> torch.Tensor:
    activation = attributes.get("fused_activation_function", "NONE")
    return {"NONE": lambda x: x, "RELU": functional.relu, "RELU6": functional.relu6}[activation](values)


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
