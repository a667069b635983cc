"""Which operators the delegate has an int8 kernel for, asked of the delegate itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from export import write_tflite as writer
from export.check import audit_delegate
from export.graph import Attribute, Graph, Node, Quantization, Tensor
from export.write_tflite import write_tflite
from quantize.affine import per_tensor
from quantize.grids import FIXED_OUTPUTS
from quantize.int8 import LIMITED_INT8_KERNEL, NO_INT8_KERNEL

GRID, SYMMETRIC = per_tensor(0.05, 3), per_tensor(0.05, 0)
MAP, ROW = (1, 6, 6, 8), (1, 10)
PLAIN: Mapping[str, Attribute] = {"fused_activation_function": "NONE"}
POOL: Mapping[str, Attribute] = {
    "padding": "VALID",
    "stride_h": 2,
    "stride_w": 2,
    "filter_height": 2,
    "filter_width": 2,
    **PLAIN,
}
FIXED = {**FIXED_OUTPUTS, "SOFTMAX": per_tensor(1 / 256, -128), "L2_NORMALIZATION": per_tensor(1 / 128, 0)}


def _graph(
    op: str,
    attributes: Mapping[str, Attribute] | None = None,
    shape: tuple[int, ...] = MAP,
    result: tuple[int, ...] = (),
    other: Tensor | None = None,
    scale: float = 0.0,
) -> Graph:
    """One int8 node that reads `x` and, where there is one, `other`."""
    grid = per_tensor(scale, 0) if scale else FIXED.get(op, GRID)
    tensors = {
        "x": Tensor(shape, np.dtype(np.int8), quantization=GRID),
        "y": Tensor(result or shape, np.dtype(np.int8), quantization=grid),
    }
    others = {} if other is None else {"other": other}
    inputs = ("x", *(name for name in others if others[name].data is None))
    node = Node(op, ("x", *others), ("y",), attributes or {})
    return Graph({**tensors, **others}, (node,), inputs, ("y",))


def _constant(*shape: int, grid: Quantization = GRID) -> Tensor:
    return Tensor.constant(np.full(shape, 5, np.int8), grid)


def _computed(*shape: int, grid: Quantization) -> Tensor:
    return Tensor(shape, np.dtype(np.int8), quantization=grid)


AXES = Tensor.constant(np.array([1, 2], np.int32))
MATRICES: Mapping[str, Attribute] = {"adj_x": False, "adj_y": False}
CASES = {
    "ADD": _graph("ADD", PLAIN, other=_constant(8)),
    "AVERAGE_POOL_2D": _graph("AVERAGE_POOL_2D", POOL, result=(1, 3, 3, 8)),
    "DIV": _graph("DIV", PLAIN, other=_constant(8)),
    "HARD_SWISH": _graph("HARD_SWISH"),
    "L2_NORMALIZATION": _graph("L2_NORMALIZATION", PLAIN, ROW),
    "LOGISTIC": _graph("LOGISTIC"),
    "MAXIMUM": _graph("MAXIMUM", other=_constant(8)),
    "MAX_POOL_2D": _graph("MAX_POOL_2D", POOL, result=(1, 3, 3, 8)),
    "MEAN": _graph("MEAN", {"keep_dims": True}, result=(1, 1, 1, 8), other=AXES),
    "MINIMUM": _graph("MINIMUM", other=_constant(8)),
    "MUL": _graph("MUL", PLAIN, other=_constant(8)),
    "PRELU": _graph("PRELU", other=_constant(1, 1, 8)),
    "RELU": _graph("RELU"),
    "RELU6": _graph("RELU6"),
    "SOFTMAX": _graph("SOFTMAX", {"beta": 1.0}, ROW),
    "SUB": _graph("SUB", PLAIN, other=_constant(8)),
    "TANH": _graph("TANH"),
}
WITHIN_LIMITS = {
    "BATCH_MATMUL": _graph(
        "BATCH_MATMUL", MATRICES, (1, 3, 8), (1, 3, 4), _computed(1, 8, 4, grid=SYMMETRIC)
    ),
    "LEAKY_RELU": _graph("LEAKY_RELU", {"alpha": 0.1}),
}
BEYOND_LIMITS = {
    "BATCH_MATMUL": _graph("BATCH_MATMUL", MATRICES, (1, 3, 8), (1, 3, 4), _computed(1, 8, 4, grid=GRID)),
    "LEAKY_RELU": _graph("LEAKY_RELU", {"alpha": 0.001}),
}


@pytest.fixture(autouse=True)
def _writes_foreign_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(writer.OPTIONS, "L2_NORMALIZATION", "L2NormOptions")


def _is_taken(graph: Graph, folder: Path) -> bool:
    path = folder / "one.tflite"
    path.write_bytes(write_tflite(graph))
    return audit_delegate(path).partitions == 1


@pytest.mark.parametrize("op", CASES)
def test_the_list_of_missing_int8_kernels_is_the_delegates(op: str, tmp_path: Path) -> None:
    assert _is_taken(CASES[op], tmp_path) is (op not in NO_INT8_KERNEL)


@pytest.mark.parametrize("op", sorted(LIMITED_INT8_KERNEL))
def test_the_delegate_has_a_limited_kernel(op: str, tmp_path: Path) -> None:
    assert _is_taken(WITHIN_LIMITS[op], tmp_path)
    assert not _is_taken(BEYOND_LIMITS[op], tmp_path)


def test_every_operator_of_the_lists_is_asked_for() -> None:
    assert CASES.keys() >= NO_INT8_KERNEL
    assert WITHIN_LIMITS.keys() == BEYOND_LIMITS.keys() == LIMITED_INT8_KERNEL
