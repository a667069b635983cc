"""Operators that cut, join and rearrange without computing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from export.builder import Builder, Ends, Parts
from export.registry import Layout, OnnxNode, Rules

RULES = Rules()


@RULES.lowers("Concat", Layout.REMAP)
def lower_concat(node: OnnxNode, out: Builder) -> None:
    """CONCATENATION along the renumbered axis."""
    axis = node.axes[node.attributes["axis"]]
    if axis == 0:
        raise node.unsupported("it joins along the batch axis")
    order = np.argsort(node.axes)
    operands = [
        value if constant is None else out.constant(value, constant.astype(np.float32).transpose(order))
        for value, constant in zip(node.inputs, node.constants, strict=True)
    ]
    out.concatenate(operands, axis, node.outputs[0])


@RULES.lowers("Flatten", Layout.BARRIER)
def lower_flatten(node: OnnxNode, out: Builder) -> None:
    """RESHAPE."""
    _reshape(node, out)


@RULES.lowers("Pad", Layout.REMAP)
def lower_pad(node: OnnxNode, out: Builder) -> None:
    """PAD with zeros (merged into a convolution where it can), else CONCATENATION; SLICE to crop."""
    rank, mode, name = len(node.axes), node.attributes.get("mode", "constant"), node.outputs[0]
    value = float(np.asarray(node.constant(2, "the pad value")).item()) if node.has(2) else 0.0
    axes = node.integers(3, "axes") or range(rank)
    table = np.zeros((rank, 2), np.int32)
    table[[node.axes[axis] for axis in axes]] = np.reshape(node.integers(1, "pads") or [], (2, -1)).T
    if table[0].any():
        raise node.unsupported("it pads the batch axis")
    if not np.isfinite(value):
        raise node.unsupported(f"its value is {value}", "give the pads to the MaxPool after it instead")
    x = _cropped(node.inputs[0], table, name, out)
    table = table.clip(0)
    if mode == "constant" and value == 0.0:
        paddings = out.constant(f"{name}/paddings", table)
        out.emit("PAD", (x, paddings), name, node.output_shapes[0])
        return
    amounts = [(axis, int(before), int(after)) for axis, (before, after) in enumerate(table)]
    out.surround(x, amounts, _ends(node, mode, value, out), name)


def _cropped(x: str, table: NDArray[np.int32], name: str, out: Builder) -> str:
    """`x` without what the negative amounts of a Pad cut off."""
    if (table >= 0).all():
        return x
    begin = -table[:, 0].clip(max=0)
    shape = np.array(out.shape(x)) - begin + table[:, 1].clip(max=0)
    return out.slice(x, begin.tolist(), shape.tolist(), out.unique(f"{name}/cropped"))


def _ends(node: OnnxNode, mode: str, value: float, out: Builder) -> Ends:
    """What a Pad of this mode puts before and after a tensor."""
    name = node.outputs[0]

    def constant(x: str, axis: int, before: int, after: int) -> Parts:
        def filled(count: int) -> list[str]:
            size = [count if other == axis else n for other, n in enumerate(out.shape(x))]
            return [out.constant(f"{name}/value", np.full(size, value, np.float32))] if count else []

        return filled(before), filled(after)

    def reflect(x: str, axis: int, before: int, after: int) -> Parts:
        last = out.shape(x)[axis] - 1
        first = [out.part(x, axis, at, 1, name) for at in range(before, 0, -1)]
        return first, [out.part(x, axis, at, 1, name) for at in range(last - 1, last - after - 1, -1)]

    def wrap(x: str, axis: int, before: int, after: int) -> Parts:
        size = out.shape(x)[axis]
        first = [out.part(x, axis, size - before, before, name)] if before else []
        return first, [out.part(x, axis, 0, after, name)] if after else []

    modes: dict[str, Ends] = {"constant": constant, "edge": out.edges(name), "reflect": reflect, "wrap": wrap}
    if mode not in modes:
        raise node.unsupported(f"mode {mode} is not supported", f"use one of {', '.join(modes)}")
    return modes[mode]


@RULES.lowers("Reshape", Layout.BARRIER)
def lower_reshape(node: OnnxNode, out: Builder) -> None:
    """RESHAPE to the inferred static shape."""
    _reshape(node, out)


@RULES.lowers("Slice", Layout.REMAP)
def lower_slice(node: OnnxNode, out: Builder) -> None:
    """SLICE, with RESHAPE around it where a step is above one; STRIDED_SLICE backwards."""
    starts, ends = node.integers(1, "starts") or [], node.integers(2, "ends") or []
    axes = node.integers(3, "axes") or range(len(starts))
    steps = node.integers(4, "steps") or [1] * len(starts)
    source, name, shape = out.shape(node.inputs[0]), node.outputs[0], node.output_shapes[0]
    begin, step, stop = [0] * len(source), [1] * len(source), list(source)
    for start, end, axis, stride in zip(starts, ends, axes, steps, strict=True):
        position = node.axes[axis]
        cut = slice(start, end, stride).indices(source[position])
        begin[position], stop[position], step[position] = cut
    if begin[0] or stop[0] != source[0] or step[0] != 1:
        raise node.unsupported("it cuts the batch axis")
    if set(step) == {1}:
        out.slice(node.inputs[0], begin, shape, name)
        return
    if min(step) > 0:
        x = node.inputs[0]
        for axis, (first, stride, count) in enumerate(zip(begin, step, shape, strict=True)):
            x = out.every(x, axis, first, stride, count, name)
        out.reshape(x, shape, name)
        return
    stop = [end if end >= 0 else -1 - size for end, size in zip(stop, source, strict=True)]  # -1 is the last
    parts = {"begin": begin, "end": stop, "strides": step}
    operands = [out.constant(f"{name}/{key}", np.array(part, np.int32)) for key, part in parts.items()]
    out.emit("STRIDED_SLICE", (node.inputs[0], *operands), name, shape)


@RULES.lowers("Split", Layout.REMAP)
def lower_split(node: OnnxNode, out: Builder) -> None:
    """One SLICE per output."""
    axis = node.axes[node.attributes.get("axis", 0)]
    if axis == 0:
        raise node.unsupported("it cuts the batch axis")
    begin = [0] * len(node.axes)
    for name, shape in zip(node.outputs, node.output_shapes, strict=True):
        out.slice(node.inputs[0], begin, shape, name)
        begin[axis] += shape[axis]


@RULES.lowers("Squeeze", Layout.BARRIER)
def lower_squeeze(node: OnnxNode, out: Builder) -> None:
    """RESHAPE without the axes of size one."""
    _reshape(node, out)


@RULES.lowers("Transpose", Layout.BARRIER)
def lower_transpose(node: OnnxNode, out: Builder) -> None:
    """TRANSPOSE; none where it only changes between channels first and channels last."""
    order = node.attributes.get("perm", tuple(reversed(range(len(node.axes)))))
    if order[0] != 0:
        raise node.unsupported("it moves the batch axis")
    operand = out.constant(f"{node.outputs[0]}/permutation", np.array(order, np.int32))
    out.emit("TRANSPOSE", (node.inputs[0], operand), node.outputs[0], node.output_shapes[0])


@RULES.lowers("Unsqueeze", Layout.BARRIER)
def lower_unsqueeze(node: OnnxNode, out: Builder) -> None:
    """RESHAPE with new axes of size one."""
    _reshape(node, out)


def _reshape(node: OnnxNode, out: Builder) -> None:
    source, shape = out.shape(node.inputs[0]), node.output_shapes[0]
    if not shape or shape[0] != source[0]:
        raise node.unsupported(
            f"from {list(source)} to {list(shape)} it gives up the batch axis", "keep the first axis as it is"
        )
    out.reshape(node.inputs[0], shape, node.outputs[0])
