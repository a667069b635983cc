"""Which positions of a layer's result are looked at, and what the layer sees there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from export.graph import Graph, Node, same_pads, strides_and_dilations

POSITIONS = {"CONV_2D": 64, "DEPTHWISE_CONV_2D": 16, "FULLY_CONNECTED": 1}  # per image


@dataclass(frozen=True, slots=True)
class Samples:
    """Positions of one layer, other ones in every image, as indices into the image's pixels.

    `outputs` are those of the result, [images, positions]; `inputs` the pixels that these see, [images,
    positions, taps]; where `inside`, of that shape, is 0 they lie in the padding (None: nowhere).
    """

    outputs: torch.Tensor
    inputs: torch.Tensor
    inside: torch.Tensor | None

    @classmethod
    def drawn(
        cls, graph: Graph, node: Node, images: int, generator: torch.Generator, device: torch.device
    ) -> Samples:
        """At most POSITIONS of every image; all of a small one's."""
        source, target = (graph.tensors[name].shape for name in (node.inputs[0], node.output))
        if len(source) == 2:
            first = torch.zeros(images, 1, dtype=torch.long, device=device)
            return cls(first, first[..., None], None)
        size = target[1] * target[2]
        chosen = torch.randperm(size, generator=generator)[: POSITIONS[node.op]]
        outputs = (chosen + torch.randint(size, (images, 1), generator=generator)) % size
        taps = _taps(graph, node)
        rows = (outputs // target[2] * taps.stride[0] - taps.pads[0])[..., None] + taps.rows
        columns = (outputs % target[2] * taps.stride[1] - taps.pads[1])[..., None] + taps.columns
        inside = (rows >= 0) & (rows < source[1]) & (columns >= 0) & (columns < source[2])
        inputs = rows.clamp(0, source[1] - 1) * source[2] + columns.clamp(0, source[2] - 1)
        return cls(
            outputs.to(device), inputs.to(device), None if inside.all() else inside.to(device, torch.float32)
        )

    def of_output(self, values: torch.Tensor, first: int) -> torch.Tensor:
        """The drawn pixels of a result [N, H, W, C], whose images begin with number `first`: [samples, C]."""
        return _pixels(values, self.outputs[first : first + len(values)])

    def of_input(self, values: torch.Tensor, first: int) -> torch.Tensor:
        """What they see of the layer's input [N, H, W, C]: [samples, taps, C]."""
        images = slice(first, first + len(values))
        chosen = self.inputs[images]
        taken = _pixels(values, chosen).view(-1, chosen.shape[2], values.shape[-1])
        return taken if self.inside is None else taken.mul_(self.inside[images].flatten(0, 1)[..., None])


@dataclass(frozen=True, slots=True)
class _Taps:
    rows: torch.Tensor
    columns: torch.Tensor
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]


def _taps(graph: Graph, node: Node) -> _Taps:
    """Where a layer's weights lie from the first pixel of their window, row by row."""
    stride, dilation = strides_and_dilations(node)
    size, kernel = graph.tensors[node.inputs[0]].shape[1:3], graph.tensors[node.inputs[1]].shape[1:3]
    same = node.attributes["padding"] == "SAME"
    pads = same_pads(size, kernel, stride, dilation) if same else (0, 0, 0, 0)
    rows, columns = (torch.arange(kernel[i]) * dilation[i] for i in (0, 1))
    return _Taps(rows.repeat_interleave(kernel[1]), columns.repeat(kernel[0]), stride, pads)


def _pixels(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Rows of `values` [N, ..., C] that `chosen` [N, ...] numbers within each image; [chosen, C]."""
    pixels = values.reshape(len(values), -1, values.shape[-1])
    starts = torch.arange(len(values), device=values.device) * pixels.shape[1]
    rows = chosen + starts.view(-1, *[1] * (chosen.ndim - 1))
    return pixels.flatten(0, 1).index_select(0, rows.flatten())
