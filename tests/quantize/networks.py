"""Small networks of the family's parts, as float graphs with random weights, and images for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from export.graph import Graph, Node, Tensor

RESOLUTION, CLASSES = 24, 7


@dataclass
class Draft:
    """A graph under construction; every method adds a node and returns its output's name."""

    seed: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.tensors["image"] = Tensor((1, RESOLUTION, RESOLUTION, 3))

    def _weights(self, name: str, shape: tuple[int, ...], fan_in: int, channels: int) -> tuple[str, str]:
        weights = self.random.normal(size=shape) * np.sqrt(2 / fan_in)
        axis = 3 if shape[0] == 1 and shape[3:] == (channels,) else 0
        spread = np.exp(
            self.random.normal(0, 0.7, channels)
        )  # channels differ, as folded batch norms make them
        weights *= np.expand_dims(spread, [i for i in range(len(shape)) if i != axis])
        self.tensors[f"{name}/weight"] = Tensor.constant(weights.astype(np.float32))
        self.tensors[f"{name}/bias"] = Tensor.constant(
            self.random.normal(0, 0.3, channels).astype(np.float32)
        )
        return f"{name}/weight", f"{name}/bias"

    def add(
        self, op: str, inputs: tuple[str, ...], name: str, shape: tuple[int, ...], **attributes: object
    ) -> str:
        self.tensors[name] = Tensor(shape)
        self.nodes.append(Node(op, inputs, (name,), attributes))  # type: ignore[arg-type]
        return name

    def conv(self, x: str, name: str, channels: int, kernel: int, stride: int, activation: str) -> str:
        _, height, width, c_in = self.tensors[x].shape
        weights = self._weights(name, (channels, kernel, kernel, c_in), kernel * kernel * c_in, channels)
        shape = (1, -(-height // stride), -(-width // stride), channels)
        return self.add("CONV_2D", (x, *weights), name, shape, **_window(stride, activation))

    def depthwise(self, x: str, name: str, stride: int, activation: str) -> str:
        _, height, width, channels = self.tensors[x].shape
        weights = self._weights(name, (1, 3, 3, channels), 9, channels)
        shape = (1, -(-height // stride), -(-width // stride), channels)
        attributes = {**_window(stride, activation), "depth_multiplier": 1}
        return self.add("DEPTHWISE_CONV_2D", (x, *weights), name, shape, **attributes)

    def mean(self, x: str, name: str, keep_dims: bool) -> str:
        channels = self.tensors[x].shape[3]
        self.tensors[f"{name}/axes"] = Tensor.constant(np.array([1, 2], np.int32))
        shape = (1, 1, 1, channels) if keep_dims else (1, channels)
        return self.add("MEAN", (x, f"{name}/axes"), name, shape, keep_dims=keep_dims)

    def logits(self, x: str) -> Graph:
        weights = self._weights("logits", (CLASSES, self.tensors[x].shape[1]), 8, CLASSES)
        self.add("FULLY_CONNECTED", (x, *weights), "logits", (1, CLASSES), fused_activation_function="NONE")
        graph = Graph(self.tensors, tuple(self.nodes), ("image",), ("logits",))
        graph.check()
        return graph


def _window(stride: int, activation: str) -> dict[str, object]:
    return {
        "padding": "SAME",
        "stride_h": stride,
        "stride_w": stride,
        "dilation_h_factor": 1,
        "dilation_w_factor": 1,
        "fused_activation_function": activation,
    }


def inverted_residuals(activation: str = "RELU6", seed: int = 0) -> Graph:
    """V2's parts: stem, a linear bottleneck, a residual one, last convolution, mean, logits."""
    draft = Draft(seed)
    x = draft.conv("image", "stem", 8, 3, 2, activation)
    x = draft.conv(draft.depthwise(x, "first/depthwise", 1, activation), "first/project", 6, 1, 1, "NONE")
    y = draft.conv(x, "second/expand", 24, 1, 1, activation)
    y = draft.depthwise(y, "second/depthwise", 1, activation)
    y = draft.conv(y, "second/project", 6, 1, 1, "NONE")
    x = draft.add("ADD", (x, y), "second/add", draft.tensors[x].shape, fused_activation_function="NONE")
    x = draft.conv(x, "last", 20, 1, 1, activation)
    return draft.logits(draft.mean(x, "pooled", False))


def squeezed(seed: int = 0) -> Graph:
    """V3's parts: hard-swish and a squeeze-and-excite gate."""
    draft = Draft(seed)
    x = draft.conv("image", "stem", 8, 3, 2, "NONE")
    x = draft.add("HARD_SWISH", (x,), "stem/swish", draft.tensors[x].shape)
    x = draft.depthwise(x, "depthwise", 2, "RELU")
    gate = draft.conv(draft.mean(x, "squeeze", True), "reduce", 4, 1, 1, "RELU")
    gate = draft.conv(gate, "gate", 8, 1, 1, "RELU6")
    shape = draft.tensors[x].shape
    x = draft.add("MUL", (x, gate), "excited", shape, fused_activation_function="NONE")
    x = draft.conv(x, "project", 6, 1, 1, "NONE")
    x = draft.conv(x, "last", 20, 1, 1, "NONE")
    x = draft.add("HARD_SWISH", (x,), "last/swish", draft.tensors[x].shape)
    return draft.logits(draft.mean(x, "pooled", False))


def pixels(count: int, seed: int = 1) -> NDArray[np.uint8]:
    """Pictures with large and small structure, uint8 [count, R, R, 3]."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 255, (count, 4, 4, 3)).repeat(RESOLUTION // 4, 1).repeat(RESOLUTION // 4, 2)
    noise = random.normal(0, 20, (count, RESOLUTION, RESOLUTION, 3))
    return np.clip(coarse + noise, 0, 255).astype(np.uint8)


def images(count: int, seed: int = 1) -> NDArray[np.float32]:
    """The same as float32 in [-1, 1]."""
    return ((pixels(count, seed).astype(np.float32) - 127.5) / 127.5).astype(np.float32)
