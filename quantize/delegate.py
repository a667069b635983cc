"""The finished 8-bit graph in the form that the CPU delegate runs fastest; every value stays bit for bit.

The gains were counted as instructions on emulated cores, for MobileNetV2 at 224 x 224.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from export.graph import Graph, Node, Tensor, same_pads, strides_and_dilations

CHANNELS_AT_ONCE = 8  # of a pixel, in the delegate's int8 convolutions without dot products; 4 with them


def bytes_through_table(graph: Graph) -> Graph:
    """Camera bytes come in by DEQUANTIZE and QUANTIZE, which the delegate joins to one table look-up.

    A QUANTIZE from uint8 to int8 it leaves to the runtime, whose kernel takes four times as long.
    """
    nodes: list[Node] = []
    tensors: dict[str, Tensor] = {}
    for node in graph.nodes:
        if node.op == "QUANTIZE" and graph.tensors[node.inputs[0]].dtype == np.uint8:
            real = f"{node.output}/real"
            tensors[real] = Tensor(graph.tensors[node.output].shape)
            nodes.append(Node("DEQUANTIZE", node.inputs, (real,)))
            node = replace(node, inputs=(real,))
        nodes.append(node)
    return graph.with_nodes(nodes, tensors)


def pixels_in_pairs(graph: Graph) -> Graph:
    """Convolutions of few channels that step over two pixels read both as one pixel of twice the channels.

    The delegate fills a pixel's channels up with zeros: a 3x3 filter over three channels takes 3 x 8 products
    a row, over pairs 2 x 8. That is 29 % of the first layer on a core without dot products, 3 % with them.
    """
    nodes: list[Node] = []
    tensors: dict[str, Tensor] = {}
    for node in graph.nodes:
        nodes += _over_pairs(graph, node, tensors) if _gains_by_pairs(graph, node) else [node]
    return graph.with_nodes(nodes, tensors)


def _over_pairs(graph: Graph, node: Node, tensors: dict[str, Tensor]) -> list[Node]:
    """The convolution over pairs and what makes them; adds their tensors to `tensors`."""
    image, weight_name, bias = node.inputs
    source = graph.tensors[image]
    batch, height, width, channels = source.shape
    shape = (batch, height, width // 2, 2 * channels)
    pairs, sizes, weights = (f"{node.output}/{part}" for part in ("pairs", "pairs/shape", "pairs/weight"))
    tensors[pairs] = replace(source, shape=shape)
    tensors[sizes] = Tensor.constant(np.array(shape, np.int32))
    tensors[weights] = _paired(graph.tensors[weight_name])
    attributes = {**node.attributes, "stride_w": strides_and_dilations(node)[0][1] // 2}
    return [
        Node("RESHAPE", (image, sizes), (pairs,), {"new_shape": shape}),
        replace(node, inputs=(pairs, weights, bias), attributes=attributes),
    ]


def _paired(weights: Tensor) -> Tensor:
    """Integer OHWI weights with zeros up to an even width, two columns of them as one."""
    assert weights.data is not None
    outputs, height, width, channels = weights.shape
    widened = np.pad(weights.data, ((0, 0), (0, 0), (0, width % 2), (0, 0)))
    return Tensor.constant(widened.reshape(outputs, height, -1, 2 * channels), weights.quantization)


def _gains_by_pairs(graph: Graph, node: Node) -> bool:
    """Whether pairs take fewer products, and the same pixels meet the same weights."""
    if node.op != "CONV_2D":
        return False
    source, weights = (graph.tensors[name] for name in node.inputs[:2])
    if source.dtype != np.int8 or weights.data is None or source.shape[3] != weights.shape[3]:
        return False
    stride, dilation = strides_and_dilations(node)
    if stride[1] % 2 or dilation[1] != 1 or source.shape[2] % 2:
        return False
    size, kernel = source.shape[1:3], weights.shape[1:3]
    paired = (kernel[0], math.ceil(kernel[1] / 2))
    if _products(paired[1], 2 * weights.shape[3]) >= _products(kernel[1], weights.shape[3]):
        return False
    if node.attributes["padding"] != "SAME":
        return True
    left = same_pads(size, kernel, stride, dilation)[1]
    left_in_pairs = same_pads((size[0], size[1] // 2), paired, (stride[0], stride[1] // 2), dilation)[1]
    return left == 2 * left_in_pairs


def _products(taps: int, channels: int) -> int:
    """What a row of a filter takes of the delegate, for one value of one channel."""
    return taps * math.ceil(channels / CHANNELS_AT_ONCE) * CHANNELS_AT_ONCE
