"""The forms that the delegate likes better give the same bytes, and are as the delegate likes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from export.check import audit_delegate
from export.graph import Graph, Node, Tensor, same_pads
from export.run import Program
from export.write_tflite import write_tflite
from quantize.affine import per_channel, per_tensor
from quantize.delegate import bytes_through_table, pixels_in_pairs
from quantize.int8 import Io
from quantize.recipes import RECIPES, quantize
from tests.quantize.networks import images, inverted_residuals, pixels, squeezed

UINT8, INT8 = np.dtype(np.uint8), np.dtype(np.int8)


def _outputs(graph: Graph, path: Path, inputs: NDArray[np.generic]) -> NDArray[np.generic]:
    path.write_bytes(write_tflite(graph))
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    rows = []
    for row in inputs:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    return np.concatenate(rows)


@pytest.mark.parametrize("make", [inverted_residuals, squeezed])
@pytest.mark.parametrize(
    "passes", [(bytes_through_table,), (pixels_in_pairs,), (bytes_through_table, pixels_in_pairs)]
)
def test_the_network_gives_the_same_logits(
    make: Callable[[], Graph], passes: tuple[Callable[[Graph], Graph], ...], tmp_path: Path
) -> None:
    plain = replace(RECIPES["int8"], delegate_passes=())
    graph = quantize(make(), [images(16)], plain, Io()).graph
    fast = graph
    for one in passes:
        fast = one(fast)
        fast.check()
    assert fast.op_counts() != graph.op_counts()
    tested = pixels(6, seed=7)
    expected, found = (_outputs(g, tmp_path / "int8.tflite", tested) for g in (graph, fast))
    assert np.array_equal(expected, found)
    assert np.array_equal(Program(graph)(images(6, seed=7)), Program(fast)(images(6, seed=7)))


def test_every_byte_comes_through_the_table_as_it_was_and_nothing_is_left_outside(tmp_path: Path) -> None:
    grid = Io().input_quantization()
    outside = replace(grid, zero_point=grid.zero_point + 128)
    shape = (1, 16, 16, 1)
    graph = Graph(
        {"x": Tensor(shape, UINT8, quantization=outside), "y": Tensor(shape, INT8, quantization=grid)},
        (Node("QUANTIZE", ("x",), ("y",)),),
        ("x",),
        ("y",),
    )
    every = np.arange(256, dtype=np.uint8).reshape(shape)
    fast = bytes_through_table(graph)
    path = tmp_path / "door.tflite"
    assert np.array_equal(_outputs(fast, path, every).ravel(), np.arange(-128, 128))
    assert audit_delegate(path).partitions == 1
    assert audit_delegate(path).undelegated_ops == ()


def _convolution(
    size: tuple[int, int], channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: str
) -> Graph:
    random = np.random.default_rng(channels + 10 * kernel[1])
    strides = {"stride_h": stride[0], "stride_w": stride[1], "dilation_h_factor": 1, "dilation_w_factor": 1}
    pads = same_pads(size, kernel, stride, (1, 1)) if padding == "SAME" else (0, 0, 0, 0)
    height, width = ((size[i] + pads[i] + pads[i + 2] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    scales = random.uniform(0.005, 0.01, 5).astype(np.float32)
    weights = random.integers(-127, 128, (5, *kernel, channels)).astype(np.int8)
    return Graph(
        {
            "x": Tensor((1, *size, channels), INT8, quantization=per_tensor(0.02, 7)),
            "w": Tensor.constant(weights, per_channel(scales, 0)),
            "b": Tensor.constant(
                np.arange(5, dtype=np.int32) * 50, per_channel(scales * np.float32(0.02), 0)
            ),
            "y": Tensor((1, height, width, 5), INT8, quantization=per_tensor(0.3, -5)),
        },
        (
            Node(
                "CONV_2D",
                ("x", "w", "b"),
                ("y",),
                {"padding": padding, **strides, "fused_activation_function": "NONE"},
            ),
        ),
        ("x",),
        ("y",),
    )


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(9, 14), st.integers(9, 14)),
    channels=st.integers(1, 13),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    padding=st.sampled_from(["SAME", "VALID"]),
)
def test_pairs_never_change_a_value(
    tmp_path_factory: pytest.TempPathFactory,
    size: tuple[int, int],
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: str,
) -> None:
    graph = _convolution(size, channels, kernel, stride, padding)
    paired = pixels_in_pairs(graph)
    paired.check()
    path = tmp_path_factory.mktemp("pairs") / "conv.tflite"
    values = np.random.default_rng(3).integers(-128, 128, (2, *size, channels)).astype(np.int8)
    assert np.array_equal(_outputs(graph, path, values), _outputs(paired, path, values))


@pytest.mark.parametrize(
    ("size", "channels", "kernel", "stride", "padding", "is_paired"),
    [
        ((12, 12), 3, (3, 3), (2, 2), "SAME", True),
        ((13, 12), 3, (3, 3), (2, 2), "VALID", True),
        ((12, 12), 3, (7, 7), (2, 2), "SAME", True),
        ((12, 12), 3, (11, 11), (4, 4), "VALID", True),
        ((12, 13), 3, (3, 3), (2, 2), "SAME", False),  # an odd pixel is left
        ((12, 12), 3, (5, 5), (2, 2), "SAME", False),  # the pad on the left is one pixel
        ((12, 12), 3, (3, 3), (1, 1), "SAME", False),
        ((12, 12), 8, (3, 3), (2, 2), "SAME", False),  # full already
        ((12, 12), 3, (1, 1), (2, 2), "SAME", False),  # nothing to save
    ],
)
def test_pairs_are_made_where_they_save(
    size: tuple[int, int],
    channels: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: str,
    is_paired: bool,
) -> None:
    graph = _convolution(size, channels, kernel, stride, padding)
    assert ("RESHAPE" in pixels_in_pairs(graph).op_counts()) is is_paired
