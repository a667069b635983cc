"""Random small CNNs: the float file is ONNX Runtime's result, the int8 file the simulator's."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from export.graph import Graph
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.run import Program
from export.runtime import invoke, run_onnx_as_it_is
from export.write_tflite import write_tflite
from quantize.half import prepared
from quantize.int8 import Io, to_int8
from quantize.ranges import narrowed_to_use, observe, observe_ranges
from tests.export.graphs import node, onnx_model

EXAMPLES = (
    500 if os.environ.get("CI") else int(os.environ.get("ALPHARHO_EXAMPLES", "40"))
)  # of the float and of the int8 test each
FLOAT_TOLERANCE = 1e-4  # of the output's range
STEPS = 2
AGREEING = 0.99  # of the networks' values together
BATCH = 8

ACTIVATIONS = ("Relu", "HardSwish", "Sigmoid", "LeakyRelu", "Tanh", "HardSigmoid", "Elementwise", "None")


@dataclass
class Net:
    """An ONNX graph in the making; `shape` is that of the value `x`, NCHW."""

    generator: np.random.Generator
    shape: tuple[int, int, int, int]
    x: str = "x"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def constant(self, value: NDArray[np.generic]) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def random(self, *shape: int) -> str:
        fan_in = max(int(np.prod(shape[1:])), 1)
        return self.constant((self.generator.normal(size=shape) / np.sqrt(fan_in)).astype(np.float32))

    def add(self, op: str, *others: str, x: str | None = None, **attributes: object) -> str:
        result = f"v{len(self.nodes)}"
        self.nodes.append(node(op, x or self.x, *others, output=result, **attributes))
        self.x = result
        return result


def convolve(net: Net, draw: st.DrawFn) -> None:
    batch, channels, height, width = net.shape
    depthwise = draw(st.booleans())
    outputs = channels if depthwise else draw(st.sampled_from([3, 4, 6, 8]))
    kernel = [draw(st.sampled_from([k for k in (1, 2, 3, 5) if k <= size])) for size in (height, width)]
    stride = [draw(st.sampled_from([1, 2])) for _ in range(2)]
    pads = [draw(st.integers(0, k - 1)) for k in (*kernel, *kernel)]
    weights = net.random(outputs, 1 if depthwise else channels, *kernel)
    group = channels if depthwise else 1
    net.add("Conv", weights, net.random(outputs), group=group, strides=stride, pads=pads)
    sizes = [
        (size + pads[i] + pads[i + 2] - kernel[i]) // stride[i] + 1 for i, size in enumerate((height, width))
    ]
    net.shape = (batch, outputs, sizes[0], sizes[1])


def activate(net: Net, draw: st.DrawFn) -> None:
    kind = draw(st.sampled_from(ACTIVATIONS))
    if kind == "Elementwise":
        bounds = [net.constant(np.array(bound, np.float32)) for bound in (0, draw(st.sampled_from([1, 6])))]
        net.add("Clip", *bounds)
    elif kind == "HardSigmoid":
        net.add(kind, alpha=1 / 6)
    elif kind != "None":
        net.add(kind)


def normalise(net: Net, draw: st.DrawFn) -> None:
    channels = net.shape[1]
    scale = net.constant(net.generator.uniform(0.5, 1.5, channels).astype(np.float32))
    variance = net.constant(net.generator.uniform(0.5, 1.5, channels).astype(np.float32))
    net.add("BatchNormalization", scale, net.random(channels), net.random(channels), variance)


def pool(net: Net, draw: st.DrawFn) -> None:
    batch, channels, height, width = net.shape
    if min(height, width) < 3:
        return
    op, ceil = draw(st.sampled_from(["MaxPool", "AveragePool"])), draw(st.booleans())
    net.add(op, kernel_shape=[2, 3], strides=[2, 1], ceil_mode=int(ceil))
    net.shape = (batch, channels, (height - 2 + ceil) // 2 + 1, width - 2)


def branch(net: Net, draw: st.DrawFn) -> None:
    """A residual sum or a concatenation with a convolved copy."""
    source, channels = net.x, net.shape[1]
    net.add("Conv", net.random(channels, channels, 1, 1), net.random(channels))
    if draw(st.booleans()):
        net.add("Add", source)
    else:
        net.add("Concat", source, axis=1)
        net.shape = (net.shape[0], 2 * channels, *net.shape[2:])


def excite(net: Net, draw: st.DrawFn) -> None:
    source, channels = net.x, net.shape[1]
    net.add("GlobalAveragePool")
    net.add("Conv", net.random(channels, channels, 1, 1), net.random(channels))
    net.add("HardSigmoid", alpha=1 / 6)
    net.add("Mul", source)


def rearrange(net: Net, draw: st.DrawFn) -> None:
    batch, channels, height, width = net.shape
    kind = draw(st.sampled_from(["Slice", "Pad", "Resize"]))
    if kind == "Slice" and height > 2:
        first, last, axis = (net.constant(np.array([value], np.int64)) for value in (1, height, 2))
        net.add("Slice", first, last, axis)
        net.shape = (batch, channels, height - 1, width)
    elif kind == "Pad":
        net.add("Pad", net.constant(np.array([0, 0, 1, 0, 0, 0, 0, 2], np.int64)))
        net.shape = (batch, channels, height + 1, width + 2)
    elif kind == "Resize":
        scales = net.constant(np.array([1, 1, 2, 2], np.float32))
        net.add("Resize", "", scales, mode=draw(st.sampled_from(["nearest", "linear"])))
        net.shape = (batch, channels, 2 * height, 2 * width)


BLOCKS = (convolve, activate, normalise, pool, branch, excite, rearrange)


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """A classifier of up to eight blocks on images whose dimensions all differ."""
    shape = (1, draw(st.integers(2, 4)), draw(st.integers(5, 9)), draw(st.integers(10, 13)))
    net = Net(np.random.default_rng(draw(st.integers(0, 2**32 - 1))), shape)
    convolve(net, draw)
    for block in draw(st.lists(st.sampled_from(BLOCKS), max_size=7)):
        if max(net.shape[1:]) < 40:
            block(net, draw)
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.nodes.append(node("Gemm", net.x, net.random(5, net.shape[1]), net.random(5), transB=1))
    return onnx_model(net.nodes, net.constants, shape)


def images_for(model: onnx.ModelProto) -> NDArray[np.float32]:
    sizes = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(1).uniform(-1, 1, (BATCH, *sizes[1:])).astype(np.float32)


def converted(model: onnx.ModelProto) -> Graph:
    return run_passes(read_onnx(model), FLOAT_PASSES)


def run_file(graph: Graph, images: NDArray[Any]) -> NDArray[Any]:
    interpreter = Interpreter(model_content=write_tflite(graph), num_threads=1)
    interpreter.allocate_tensors()
    return invoke(interpreter, images)


common = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def described(model: onnx.ModelProto) -> str:
    """One line per node, for the message of a failure."""
    lines = []
    for entry in model.graph.node:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in entry.attribute}
        lines.append(f"{entry.output[0]} = {entry.op_type}({', '.join(entry.input)}) {attributes}")
    return "\n".join(lines)


@pytest.mark.slow
@common
@given(networks())
def test_a_random_network_gives_what_onnx_runtime_gives(model: onnx.ModelProto) -> None:
    images = images_for(model)
    expected = run_onnx_as_it_is(model.SerializeToString(), images)
    rows = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    graph = converted(model)
    limit = FLOAT_TOLERANCE * max(float(np.abs(expected).max()), 1.0)
    half = prepared(graph, observe(graph, [rows]))
    for found in (run_file(graph, rows), Program(graph)(rows), run_file(half, rows)):
        np.testing.assert_allclose(found, expected, atol=limit, rtol=0, err_msg=described(model))


@pytest.mark.slow
def test_a_random_int8_network_is_what_the_simulator_says() -> None:
    distances: list[NDArray[np.float64]] = []

    @common
    @given(networks())
    def collect(model: onnx.ModelProto) -> None:
        rows = np.ascontiguousarray(images_for(model).transpose(0, 2, 3, 1))
        graph = converted(model)
        ranges = narrowed_to_use(graph, observe_ranges(graph, [rows]))
        quantised = to_int8(graph, ranges, Io(input="int8", output="int8"))
        door, result = (quantised.tensors[names[0]] for names in (quantised.inputs, quantised.outputs))
        assert door.quantization is not None and result.quantization is not None
        stored = np.clip(np.round(rows / door.quantization.scale) + door.quantization.zero_point, -128, 127)
        stored = stored.astype(np.int8)
        step = float(result.quantization.scale[0])
        real = result.quantization.dequantize(run_file(quantised, stored))
        simulated = Program(quantised)(door.quantization.dequantize(stored))
        distances.append(np.abs(real - simulated).astype(np.float64).ravel() / step)

    collect()
    together = np.concatenate(distances)
    assert len(distances) >= EXAMPLES
    assert (together <= STEPS + 1e-3).mean() >= AGREEING
