"""model.onnx to a Graph: constants folded, channels last, transposes only where element order matters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from export.graph import Array, Graph, GraphError, Tensor
from export.lowerings import LOWERINGS, Builder, Layout, OnnxNode, UnsupportedOp
from pipeline.artifacts import AlpharhoError

PASS_THROUGH = ("Identity", "Dropout")


def load_onnx(path: Path) -> onnx.ModelProto:
    """The checked ONNX model of `path`; an AlpharhoError if it is missing, cut off or not valid ONNX."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except FileNotFoundError:
        raise AlpharhoError(f"{path}: no such file; make it with 'python -m pipeline export'") from None
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AlpharhoError(f"{path} is not a readable ONNX model ({reason}); export it again") from error
    if not model.graph.node:
        raise AlpharhoError(f"{path} holds no ONNX graph (is the file empty or cut off?); export it again")
    return model


def input_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    """Shape of the model's first input, in ONNX's order; GraphError if it is not static."""
    name = model.graph.input[0].name
    shape = _static_shapes(model).get(name)
    if shape is None or min(shape, default=0) < 1:
        raise GraphError(
            f"the shape of input {name!r} is not static; export the ONNX model with fixed input sizes"
        )
    return shape


def read_onnx(model: onnx.ModelProto) -> Graph:
    """The Graph of an ONNX classifier: 4-D inputs become NHWC, weights OHWI / 1HWO / OI, every shape static.

    Raises UnsupportedOp that names the node which cannot be converted, GraphError for a graph that is not
    well formed.
    """
    return _Reader(model).read()


def channels_last(rank: int) -> tuple[int, ...]:
    """The permutation from ONNX's NC... to N...C, for tensors with at least one spatial axis."""
    return (0, *range(2, rank), 1)


class _Reader:
    """State of one reading: for every ONNX value its constant, or whether its tensor is channels last."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = shape_inference.infer_shapes(model, data_prop=True)
        self.opset = next(
            (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
        )
        self.constants: dict[str, Array] = {
            initializer.name: numpy_helper.to_array(initializer) for initializer in model.graph.initializer
        }
        self.shapes = _static_shapes(self.model)
        self.alias: dict[str, str] = {}
        self.last: set[str] = set()
        self.out = Builder()

    def read(self) -> Graph:
        inputs = [value.name for value in self.model.graph.input if value.name not in self.constants]
        outputs = [value.name for value in self.model.graph.output]
        for name in inputs:
            self._declare_input(name)
        for position, node in enumerate(self.model.graph.node):
            self._read_node(node, node.name or f"{node.op_type}_{position}")
        results = tuple(self._operand(name, last=False) for name in outputs)
        graph = Graph(self.out.tensors, tuple(self.out.nodes), tuple(inputs), results)
        graph = graph.without_dead_nodes()
        graph.check()
        return graph

    def _declare_input(self, name: str) -> None:
        shape = self._shape(name)
        if len(shape) == 4:
            self.last.add(name)
            shape = _permuted(shape, channels_last(4))
        self.out.tensors[name] = Tensor(shape)

    def _read_node(self, node: onnx.NodeProto, name: str) -> None:
        attributes = {a.name: _decoded(onnx.helper.get_attribute_value(a)) for a in node.attribute}
        if self._fold(node):
            return
        if node.op_type in PASS_THROUGH:
            self.alias[node.output[0]] = self._resolved(node.input[0])
            return
        rule = LOWERINGS.get(node.op_type)
        if rule is None or node.domain not in ("", "ai.onnx"):
            known = ", ".join(sorted([*LOWERINGS, *PASS_THROUGH]))
            raise UnsupportedOp(
                f"ONNX node {name!r} ({node.op_type}) cannot be converted; supported are {known}"
            )
        self._lower(node, name, attributes, rule.layout)

    def _fold(self, node: onnx.NodeProto) -> bool:
        """Evaluate a node of constants (and Shape of anything static) at once; whether it was one."""
        if node.op_type == "Shape":
            self.constants[node.output[0]] = np.array(self._shape(node.input[0]), np.int64)
            return True
        names = [self._resolved(name) for name in node.input if name]
        if any(name not in self.constants for name in names):
            return False
        values = {name: self.constants[self._resolved(name)] for name in node.input if name}
        results: Any = ReferenceEvaluator(_single_node_model(node, self.opset)).run(None, values)
        self.constants.update(zip(node.output, results, strict=True))
        return True

    def _lower(self, node: onnx.NodeProto, name: str, attributes: dict[str, Any], layout: Layout) -> None:
        values = [self._resolved(value) for value in node.input]
        last = self._wants_channels_last(layout, values)
        follows = layout is Layout.FOLLOW
        ranks = [len(self._shape(value)) for value in values if value]
        rank = max(ranks) if follows else ranks[0]
        constants = tuple(self._constant(value, rank, last and follows) for value in values)
        operands = tuple(self._operand(value, last, rank if follows else 0) for value in values)
        shapes = tuple(self._shape(value) for value in node.output if value)
        order = channels_last(rank) if last else tuple(range(rank))
        results = [last and len(shape) == rank for shape in shapes]
        lowered = OnnxNode(
            op=node.op_type,
            name=name,
            inputs=operands,
            outputs=tuple(value for value in node.output if value),
            attributes=attributes,
            constants=constants,
            output_shapes=tuple(
                _permuted(shape, order) if is_last else shape
                for shape, is_last in zip(shapes, results, strict=True)
            ),
            axes=tuple(order.index(axis) for axis in range(rank)),
        )
        LOWERINGS[node.op_type].lower(lowered, self.out)
        self.last.update(value for value, is_last in zip(lowered.outputs, results, strict=True) if is_last)

    def _wants_channels_last(self, layout: Layout, values: Sequence[str]) -> bool:
        computed = [value for value in values if value and value not in self.constants]
        if layout is Layout.ANCHOR:
            return True
        return layout is not Layout.BARRIER and any(value in self.last for value in computed)

    def _constant(self, value: str, rank: int, last: bool) -> Array | None:
        """The constant in its node's layout: aligned to `rank`, permuted when the node is channels last."""
        array = self.constants.get(value)
        if array is None or not last or array.ndim == 0 or array.size == 1:
            return array
        return array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(channels_last(rank))

    def _operand(self, value: str, last: bool, rank: int = 0) -> str:
        """The graph tensor of a value in the wanted layout, transposed only where elements really move."""
        value = self._resolved(value)
        if value == "":
            return ""
        if value in self.constants:
            return self._constant_operand(value, last, rank)
        if len(self._shape(value)) < 3 or (value in self.last) == last:
            return value
        return self._transposed(value, last)

    def _constant_operand(self, value: str, last: bool, rank: int) -> str:
        array = self._constant(value, rank, last and rank > 0)
        assert array is not None
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return self.out.constant(value, np.atleast_1d(array)) if rank else value

    def _transposed(self, value: str, last: bool) -> str:
        name = f"{value}/{'channels_last' if last else 'channels_first'}"
        if name in self.out.tensors:
            return name
        shape = self.out.shape(value)
        order = channels_last(len(shape))
        if not last:
            order = tuple(int(axis) for axis in np.argsort(order))
        target = _permuted(shape, order)
        if _keeps_element_order(shape, order):
            operand = self.out.constant(f"{name}/shape", np.array(target, np.int32))
            return self.out.emit("RESHAPE", (value, operand), name, target, new_shape=target)
        operand = self.out.constant(f"{name}/permutation", np.array(order, np.int32))
        return self.out.emit("TRANSPOSE", (value, operand), name, target)

    def _resolved(self, value: str) -> str:
        while value in self.alias:
            value = self.alias[value]
        return value

    def _shape(self, value: str) -> tuple[int, ...]:
        value = self._resolved(value)
        if value in self.constants:
            return tuple(self.constants[value].shape)
        if value not in self.shapes:
            raise GraphError(
                f"the shape of {value!r} is not static; export the ONNX model with fixed input sizes"
            )
        return self.shapes[value]


def _static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in sizes):
            shapes[value.name] = tuple(size.dim_value for size in sizes)
    return shapes


def _single_node_model(node: onnx.NodeProto, opset: int) -> onnx.ModelProto:
    untyped = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.input if name]
    results = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.output]
    graph = onnx.helper.make_graph([node], "constant", untyped, results)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])


def _permuted(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in order)


def _keeps_element_order(shape: Sequence[int], order: Sequence[int]) -> bool:
    """Whether the permutation moves only axes of size one (a 1x1 image, say), so that a RESHAPE is enough."""
    moved = [axis for axis in order if shape[axis] != 1]
    return moved == sorted(moved)


def _decoded(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
