"""Collects the nodes and tensors of a Graph while ONNX nodes are lowered one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from export.graph import NO_ACTIVATION, Array, Attribute, Node, Tensor

Parts = tuple[list[str], list[str]]
Ends = Callable[[str, int, int, int], Parts]
"""Parts to put before and after a tensor along an axis: of (tensor, axis, count before, count after)."""

MOST_JOINED = 4  # operands of a CONCATENATION that XNNPACK takes, since tflite-runtime 2.14


class Builder:
    """Collects graph nodes and tensors while ONNX nodes are lowered one after the other."""

    def __init__(self, reserved: Iterable[str] = ()) -> None:
        self.reserved = set(reserved)  # names of results to come, which no other tensor may take
        self.tensors: dict[str, Tensor] = {}
        self.nodes: list[Node] = []

    def constant(self, name: str, data: Array) -> str:
        """Add a constant and return its name, made unique."""
        name = self.unique(name)
        self.tensors[name] = Tensor.constant(np.ascontiguousarray(data))
        return name

    def unique(self, name: str) -> str:
        """`name`, or `name_1`, `name_2` ... if it is taken."""
        candidate, suffix = name, 0
        while candidate in self.tensors or candidate in self.reserved:
            suffix += 1
            candidate = f"{name}_{suffix}"
        return candidate

    def emit(
        self, op: str, inputs: Sequence[str], output: str, shape: Sequence[int], **attributes: Attribute
    ) -> str:
        """Add a float32 node with one output and return the output's name."""
        self.tensors[output] = Tensor(tuple(shape))
        self.nodes.append(Node(op, tuple(inputs), (output,), attributes))
        return output

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor already in the graph."""
        return self.tensors[name].shape

    def reshape(self, x: str, shape: Sequence[int], name: str) -> str:
        """`x` in another shape, by RESHAPE."""
        operand = self.constant(f"{name}/shape", np.array(shape, np.int32))
        return self.emit("RESHAPE", (x, operand), name, shape, new_shape=tuple(shape))

    def permute(self, x: str, order: Sequence[int], name: str) -> str:
        """`x` with its axes in `order`, by TRANSPOSE unless they are already."""
        if list(order) == sorted(order):
            return x
        operand = self.constant(f"{name}/permutation", np.array(order, np.int32))
        shape = [self.shape(x)[axis] for axis in order]
        return self.emit("TRANSPOSE", (x, operand), self.unique(name), shape)

    def slice(self, x: str, begin: Sequence[int], shape: Sequence[int], name: str) -> str:
        """The part of `x` that starts at `begin` and has `shape`."""
        first = self.constant(f"{name}/begin", np.array(begin, np.int32))
        size = self.constant(f"{name}/size", np.array(shape, np.int32))
        return self.emit("SLICE", (x, first, size), name, shape)

    def zero_pad(self, x: str, pads: tuple[int, int, int, int], name: str) -> str:
        """The NHWC image `x` behind a PAD by (top, left, bottom, right)."""
        top, left, bottom, right = pads
        batch, height, width, channels = self.shape(x)
        paddings = self.constant(
            f"{name}/paddings", np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        )
        shape = (batch, height + top + bottom, width + left + right, channels)
        return self.emit("PAD", (x, paddings), self.unique(f"{name}/pad"), shape)

    def concatenate(self, parts: Sequence[str], axis: int, name: str) -> str:
        """The parts joined by CONCATENATION, by several where the delegate would not take one."""
        if len(parts) == 1:
            return self.reshape(parts[0], self.shape(parts[0]), name)
        if len(parts) > MOST_JOINED:
            groups = [parts[at : at + MOST_JOINED] for at in range(0, len(parts), MOST_JOINED)]
            joined = [self.concatenate(group, axis, self.unique(f"{name}/part")) for group in groups]
            return self.concatenate(joined, axis, name)
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        return self.emit("CONCATENATION", parts, name, shape, axis=axis, **NO_ACTIVATION)

    def surround(self, x: str, amounts: Sequence[tuple[int, int, int]], ends: Ends, name: str) -> str:
        """`x` with `ends` put before and after it along each (axis, before, after), one by one."""
        wanted = [(axis, before, after) for axis, before, after in amounts if before or after]
        if not wanted:
            return self.reshape(x, self.shape(x), name)
        for position, (axis, before, after) in enumerate(wanted):
            first, last = ends(x, axis, before, after)
            result = name if position == len(wanted) - 1 else self.unique(f"{name}/along_{axis}")
            x = self.concatenate((*first, x, *last), axis, result)
        return x

    def part(self, x: str, axis: int, start: int, size: int, name: str) -> str:
        """`size` slices of `x` along `axis` from `start` on."""
        shape = list(self.shape(x))
        shape[axis] = size
        begin = [start if other == axis else 0 for other in range(len(shape))]
        return self.slice(x, begin, shape, self.unique(f"{name}/{axis}_{start}"))

    def parts(self, x: str, axis: int, places: Sequence[int], name: str) -> list[str]:
        """Slices of `x` along `axis` that hold `places` in this order, neighbours in one."""
        starts = [at for at, place in enumerate(places) if at == 0 or place != places[at - 1] + 1]
        ends = [*starts[1:], len(places)][: len(starts)]
        return [self.part(x, axis, places[at], end - at, name) for at, end in zip(starts, ends, strict=True)]

    def every(self, x: str, axis: int, begin: int, step: int, count: int, name: str) -> str:
        """`count` slices of `x` along `axis`, from `begin` on, `step` apart.

        By RESHAPE and SLICE, since XNNPACK has no STRIDED_SLICE.
        """
        size = self.shape(x)[axis]
        if step == 1:
            return x if (begin, count) == (0, size) else self.part(x, axis, begin, count, name)
        if count * step > size:
            x, size = self._lengthened(x, axis, count * step - size, name), count * step
        start = min(begin, size - count * step)
        if count * step < size:
            x = self.part(x, axis, start, count * step, name)
        before, after = self.shape(x)[:axis], (*self.shape(x)[axis + 1 :], 1)
        wide = (*before, count, step * after[0], *after[1:])
        groups = self.reshape(x, wide, self.unique(f"{name}/by_{step}"))
        chosen = self.part(groups, axis + 1, (begin - start) * after[0], after[0], name)
        return self.reshape(chosen, (*before, count, *after[:-1]), self.unique(f"{name}/every_{step}"))

    def _lengthened(self, x: str, axis: int, more: int, name: str) -> str:
        shape = list(self.shape(x))
        table = np.zeros((len(shape), 2), np.int32)
        table[axis, 1] = more
        shape[axis] += more
        paddings = self.constant(f"{name}/paddings", table)
        return self.emit("PAD", (x, paddings), self.unique(f"{name}/lengthened"), shape)

    def edges(self, name: str) -> Ends:
        """Ends that repeat the first and the last slice."""

        def ends(x: str, axis: int, before: int, after: int) -> Parts:
            last = self.shape(x)[axis] - 1
            first = [self.part(x, axis, 0, 1, f"{name}/edge")] * before if before else []
            return first, [self.part(x, axis, last, 1, f"{name}/edge")] * after if after else []

        return ends
