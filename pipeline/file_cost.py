"""What a .tflite file holds and what a run of it multiplies, from its shapes alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from export.read_tflite import TfliteFile, TfliteOperator, TfliteSubgraph

Shape = tuple[int, ...]
Product = Callable[[Shape, Shape, Shape], int]  # source, weights, result

DECODERS = ("DEQUANTIZE", "DENSIFY")  # of constants: float16 and sparse ones
WEIGHT_POSITIONS = {"TRANSPOSE_CONV": (1, 3)}  # weights and bias; 1 and 2 for the others
SOURCE_POSITIONS = {"TRANSPOSE_CONV": 2}  # 0 for the others


def _rows_by_columns(source: Shape, weights: Shape, result: Shape) -> int:
    """Matrices that may be stored transposed: what is summed over is what the result does not have."""
    return math.prod(result) * (source[-1] * source[-2] // result[-2])


PRODUCTS: dict[str, Product] = {
    "CONV_2D": lambda source, weights, result: math.prod(result) * math.prod(weights[1:]),
    "CONV_3D": lambda source, weights, result: math.prod(result) * math.prod(weights[:4]),
    "DEPTHWISE_CONV_2D": lambda source, weights, result: math.prod(result) * weights[1] * weights[2],
    "TRANSPOSE_CONV": lambda source, weights, result: math.prod(source) * math.prod(weights[:3]),
    "Convolution2DTransposeBias": lambda source, weights, result: math.prod(source) * math.prod(weights[:3]),
    "FULLY_CONNECTED": lambda source, weights, result: math.prod(result) * weights[-1],
    "BATCH_MATMUL": _rows_by_columns,
}
WEIGHTED = frozenset(PRODUCTS) - {"BATCH_MATMUL"}
UNCOUNTED = frozenset(  # which multiply too, or run other subgraphs
    {
        "BIDIRECTIONAL_SEQUENCE_LSTM",
        "BIDIRECTIONAL_SEQUENCE_RNN",
        "CALL",
        "CONV_3D_TRANSPOSE",
        "IF",
        "LSTM",
        "RFFT2D",
        "RNN",
        "STABLEHLO_COMPOSITE",
        "STABLEHLO_CONVOLUTION",
        "STABLEHLO_DOT_GENERAL",
        "SVDF",
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        "UNIDIRECTIONAL_SEQUENCE_RNN",
        "WHILE",
    }
)


def mult_adds(graph: TfliteSubgraph) -> int:
    """Multiply-adds of convolutions and matrix products for one run; 0 where a shape does not tell.

    Zeros of sparse weights count like other weights.
    """
    return sum(_mult_adds(graph, op) for op in graph.operators)


def uncounted(graph: TfliteSubgraph) -> dict[str, int]:
    """How many operators that may multiply are not in `mult_adds`, by name."""
    found = Counter(
        op.name
        for op in graph.operators
        if op.name in UNCOUNTED
        or (op.is_custom and op.name not in PRODUCTS)
        or (op.name in PRODUCTS and not _mult_adds(graph, op))
    )
    return dict(sorted(found.items()))


def unsized(graph: TfliteSubgraph) -> int:
    """How many operators count too little, because a size beside the batch is known only when they run."""
    return sum(
        any(size < 0 for size in graph.tensors[op.outputs[0]].signature[1:])
        for op in graph.operators
        if op.name in PRODUCTS and op.outputs
    )


def _mult_adds(graph: TfliteSubgraph, op: TfliteOperator) -> int:
    product, place = PRODUCTS.get(op.name), SOURCE_POSITIONS.get(op.name, 0)
    if product is None or len(op.inputs) <= max(1, place) or not op.outputs:
        return 0
    shapes = [
        graph.tensors[index].shape for index in (op.inputs[place], op.inputs[1], op.outputs[0]) if index >= 0
    ]
    if len(shapes) != 3 or min((size for shape in shapes for size in shape), default=0) < 1:
        return 0
    try:
        return product(*shapes)
    except IndexError:  # fewer axes than the operator has
        return 0


def decoded_constants(graph: TfliteSubgraph) -> dict[int, int]:
    """Tensors that are float16 or sparse constants made float32 or dense, and the constants behind them."""
    behind: dict[int, int] = {}
    for op in graph.operators:
        if op.name in DECODERS and op.inputs and op.outputs and op.inputs[0] >= 0:
            source = behind.get(op.inputs[0], op.inputs[0])
            if graph.tensors[source].constant_bytes:
                behind[op.outputs[0]] = source
    return behind


def size_by_part(file: TfliteFile) -> dict[str, int]:
    """Bytes of the file by what they are for; they add up to its size. A shared constant counts once."""
    parts = {"weights": 0, "biases": 0, "other constants": 0}
    sizes: dict[int, int] = {}
    roles: dict[int, str] = {}
    for graph in file.subgraphs:
        sizes |= {tensor.constants_at: tensor.constant_bytes for tensor in graph.tensors}
        roles = _roles(graph) | roles
    for place, size in sizes.items():
        parts[roles.get(place, "other constants")] += size
    parts["unused constants"] = file.constant_bytes - sum(parts.values()) - file.metadata_bytes
    parts |= {"metadata": file.metadata_bytes, "attached files": file.attached_bytes}
    return {**parts, "structure": file.bytes - sum(parts.values())}


def _roles(graph: TfliteSubgraph) -> dict[int, str]:
    """What the constants at a place of the file are for: weights or biases."""
    behind = decoded_constants(graph)
    roles: dict[int, str] = {}
    for op in graph.operators:
        positions = WEIGHT_POSITIONS.get(op.name, (1, 2)) if op.name in WEIGHTED else ()
        for position, role in zip(positions, ("weights", "biases"), strict=False):
            if position < len(op.inputs) and op.inputs[position] >= 0:
                index = op.inputs[position]
                roles.setdefault(graph.tensors[behind.get(index, index)].constants_at, role)
    return roles
