"""model.onnx to a Graph: constants folded, channels last, transposes only where element order matters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from export.builder import Builder
from export.graph import Array, Graph, GraphError, Tensor
from export.lowerings import LOWERINGS
from export.registry import REPLACE_OP, Layout, OnnxNode, UnsupportedOp
from export.to_float32 import to_float32
from pipeline.artifacts import AlpharhoError

PASS_THROUGH = ("Identity", "Dropout", "Cast")  # a Cast of what is float32 to float32
OPSETS = range(10, 24)
SHAPE_SIZED = 64  # elements of what may be a shape, axes or pads
QUANTISED = ("uantizeLinear", "QLinear", "Integer")  # in the names of operators on integers
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomUniform")


def load_onnx(path: Path) -> onnx.ModelProto:
    """The checked model of `path`, in float32; AlpharhoError if it is missing, cut off or not valid ONNX."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(str(path))
    except FileNotFoundError:
        raise AlpharhoError(f"{path}: no such file; make it with 'python -m pipeline export'") from None
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise AlpharhoError(f"{path} is not a readable ONNX model ({reason}); export it again") from error
    if not model.graph.node:
        raise AlpharhoError(f"{path} holds no ONNX graph (is the file empty or cut off?); export it again")
    return to_float32(model)


def with_shape(model: onnx.ModelProto, shape: Sequence[int] | None) -> onnx.ModelProto:
    """The model with its one input fixed to `shape`; None fixes nothing but a dynamic batch, to 1.

    GraphError if another size is dynamic, if `shape` has another rank, or if the batch is not 1.
    """
    door = image_input(model)
    found = [size.dim_value or size.dim_param or "?" for size in door.type.tensor_type.shape.dim]
    wanted = list(shape) if shape is not None else ([1, *found[1:]] if found[:1] != [1] else found)
    shown = f"input {door.name!r} has shape {found}"
    if shape is None and isinstance(found[0] if found else None, int) and found[0] != 1:
        raise GraphError(f"{shown}; one image at a time is supported, give --shape with a first size of 1")
    if (
        len(wanted) != len(found)
        or wanted[:1] != [1]
        or not all(isinstance(n, int) and n > 0 for n in wanted)
    ):
        raise GraphError(
            f"{shown}; every size must be fixed and the first 1, give them with --shape, "
            f"for example --shape {','.join(str(n if isinstance(n, int) else 224) for n in [1, *found[1:]])}"
        )
    if wanted == found:
        return model
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for size, number in zip(image_input(fixed).type.tensor_type.shape.dim, wanted, strict=True):
        size.dim_value = number
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return fixed


def image_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The one input of the model that is not a weight; GraphError for several, or one that is not float32."""
    weights = {initializer.name for initializer in model.graph.initializer}
    doors: list[onnx.ValueInfoProto] = [value for value in model.graph.input if value.name not in weights]
    if len(doors) != 1:
        raise GraphError(
            f"the model has {len(doors)} inputs ({', '.join(value.name for value in doors) or 'none'}), one "
            "is supported; make the others constants in the source network"
        )
    kind = doors[0].type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(kind)
        raise GraphError(
            f"input {doors[0].name!r} is {name}, only FLOAT is supported; export the model in float32"
        )
    return doors[0]


def input_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    """Shape of the model's one input, in ONNX's order; GraphError if it is not static."""
    return tuple(
        int(size.dim_value) for size in image_input(with_shape(model, None)).type.tensor_type.shape.dim
    )


def input_order(model: onnx.ModelProto) -> tuple[int, ...]:
    """Permutation from the ONNX input's axes to those of the Graph's input."""
    door = image_input(model)
    rank = len(door.type.tensor_type.shape.dim)
    return channels_last(rank) if _is_channels_first(model, door.name, rank) else tuple(range(rank))


def read_onnx(model: onnx.ModelProto) -> Graph:
    """The Graph of an ONNX classifier: images become NHWC, weights OHWI / 1HWO / OI, every shape static.

    Raises UnsupportedOp that names the first node which cannot be converted, GraphError for a graph that is
    not well formed.
    """
    reader = _Reader(model)
    graph = reader.read()
    if reader.refused:
        raise reader.refused[0]
    return graph


def refusals(model: onnx.ModelProto) -> list[AlpharhoError]:
    """One error for every node that cannot be converted, in execution order, with a reason and a remedy."""
    reader = _Reader(model)
    try:
        reader.read()
    except GraphError as error:
        return [*reader.refused, error]
    return list(reader.refused)


def channels_last(rank: int) -> tuple[int, ...]:
    """The permutation from ONNX's NC... to N...C; nothing moves without a spatial axis."""
    return (0, *range(2, rank), 1) if rank > 2 else tuple(range(rank))


def _is_channels_first(model: onnx.ModelProto, name: str, rank: int) -> bool:
    """Whether input `name` is an image in ONNX's order, and not one that is first transposed to it."""
    readers = [node for node in model.graph.node if name in node.input]
    to_first = tuple(int(axis) for axis in np.argsort(channels_last(rank)))
    orders = [_attributes(node).get("perm") for node in readers if node.op_type == "Transpose"]
    if rank == 4:
        return not (
            readers and len(orders) == len(readers) and all(tuple(o or ()) == to_first for o in orders)
        )
    rules = (LOWERINGS.get(node.op_type) for node in readers)
    return rank == 3 and any(rule is not None and rule.layout is Layout.ANCHOR for rule in rules)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: _decoded(onnx.helper.get_attribute_value(a)) for a in node.attribute}


class _Reader:
    """State of one reading: for every ONNX value its constant, or whether its tensor is channels last."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.opset = next(
            (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0
        )
        if self.opset not in OPSETS:
            raise GraphError(
                f"the model is of opset {self.opset}, {OPSETS[0]} to {OPSETS[-1]} are supported; "
                "convert it with onnx.version_converter or export it again"
            )
        self.model = with_shape(model, None)
        self.constants: dict[str, Array] = {
            initializer.name: numpy_helper.to_array(initializer) for initializer in model.graph.initializer
        }
        self.shapes = _static_shapes(
            shape_inference.infer_shapes(_without_weights(self.model), data_prop=True)
        )
        self.alias: dict[str, str] = {}
        self.stored: dict[str, str] = {}  # the graph tensor of a value, where it has another name
        self.last: set[str] = set()
        self.leaning = _leads_to_images(model)
        self.out = Builder(value for node in model.graph.node for value in node.output)
        self.refused: list[UnsupportedOp] = []

    def read(self) -> Graph:
        """The graph; nodes in `refused` are left out of it, and then it is not complete."""
        door = image_input(self.model).name
        outputs = [value.name for value in self.model.graph.output]
        self._declare_input(door)
        for position, node in enumerate(self.model.graph.node):
            name = node.name or f"{node.op_type}_{position}"
            try:
                self._read_node(node, name)
            except UnsupportedOp as error:
                self.refused.append(error)
                self._stand_in(node)
        results = tuple(self._operand(name, last=False) for name in outputs)
        graph = Graph(self.out.tensors, tuple(self.out.nodes), (door,), results)
        if self.refused:
            return graph
        graph = graph.without_dead_nodes()
        graph.check()
        return graph

    def _stand_in(self, node: onnx.NodeProto) -> None:
        """Let reading go on after a node that cannot be converted, as if its results were there."""
        for value in filter(None, node.output):
            self._infer(node)
            self.out.tensors[value] = Tensor(self._shape(value))

    def _declare_input(self, name: str) -> None:
        shape = self._shape(name)
        if _is_channels_first(self.model, name, len(shape)):
            self.last.add(name)
            shape = _permuted(shape, channels_last(len(shape)))
        self.out.tensors[name] = Tensor(shape)

    def _read_node(self, node: onnx.NodeProto, name: str) -> None:
        attributes = _attributes(node)
        if self._fold(node, attributes):
            return
        if (
            node.op_type in PASS_THROUGH
            and attributes.get("to", onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT
        ):
            self.alias[node.output[0]] = self._resolved(node.input[0])
            return
        self._infer(node)
        if node.op_type == "Transpose" and self._view(node, attributes):
            return
        rule = LOWERINGS.get(node.op_type)
        if rule is None or node.domain not in ("", "ai.onnx"):
            raise UnsupportedOp(
                f"ONNX node {name!r} ({node.op_type}) cannot be converted: {_why_not(node.op_type)}"
            )
        self._lower(node, name, attributes, rule.layout)

    def _infer(self, node: onnx.NodeProto) -> None:
        """Shapes of the node's results from what is folded so far, where ONNX's inference found none."""
        if all(value in self.shapes for value in node.output if value):
            return
        operands = [self._resolved(value) for value in node.input]
        if any(value and value not in self.constants and value not in self.shapes for value in operands):
            return
        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        alone.input[:] = operands
        held = [
            numpy_helper.from_array(self.constants[v], v)
            for v in dict.fromkeys(operands)
            if v in self.constants
        ]
        doors = [
            onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, self.shapes[value])
            for value in dict.fromkeys(operands)
            if value and value not in self.constants
        ]
        results = [onnx.helper.make_value_info(value, onnx.TypeProto()) for value in node.output if value]
        graph = onnx.helper.make_graph([alone], "alone", doors, results, held)
        model = onnx.helper.make_model(graph, opset_imports=self.model.opset_import)
        self.shapes.update(_static_shapes(shape_inference.infer_shapes(model, data_prop=True)))

    def _view(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        """Take a Transpose between channels first and last as another view of its tensor, if it is one."""
        value, result = self._resolved(node.input[0]), node.output[0]
        rank = len(self._shape(value))
        order = tuple(attributes.get("perm", reversed(range(rank))))
        to_last = channels_last(rank)
        to_first = tuple(int(axis) for axis in np.argsort(to_last))
        if rank < 3 or order != (to_last if value in self.last else to_first):
            return False
        self.stored[result] = self.stored.get(value, value)
        if value not in self.last:
            self.last.add(result)
        return True

    def _fold(self, node: onnx.NodeProto, attributes: dict[str, Any]) -> bool:
        """Evaluate a node of constants (and Shape of anything static) at once; whether it was one."""
        if node.op_type in ("Shape", "Size"):
            shape = np.array(self._shape(node.input[0]), np.int64)
            part = shape[slice(attributes.get("start"), attributes.get("end"))]
            self.constants[node.output[0]] = part if node.op_type == "Shape" else shape.prod()
            return True
        names = [self._resolved(name) for name in node.input if name]
        if any(name not in self.constants for name in names) or node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in RANDOM or any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
            return False
        values = {name: self.constants[self._resolved(name)] for name in node.input if name}
        results: Any = ReferenceEvaluator(_single_node_model(node, self.opset)).run(None, values)
        self.constants.update(zip(node.output, map(np.asarray, results), strict=True))
        self.out.reserved.difference_update(node.output)
        return True

    def _lower(self, node: onnx.NodeProto, name: str, attributes: dict[str, Any], layout: Layout) -> None:
        values = [self._resolved(value) for value in node.input]
        last = self._wants_channels_last(layout, values)
        follows = layout is Layout.FOLLOW
        ranks = [len(self._shape(value)) for value in values if value]
        rank = max(ranks) if follows else ranks[0]
        if follows:
            values = [self._with_rank(value, rank, name, node.op_type) for value in values]
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
            opset=self.opset,
        )
        LOWERINGS[node.op_type].lower(lowered, self.out)
        self.last.update(value for value, is_last in zip(lowered.outputs, results, strict=True) if is_last)

    def _wants_channels_last(self, layout: Layout, values: Sequence[str]) -> bool:
        computed = [value for value in values if value and value not in self.constants]
        if layout is Layout.ANCHOR:
            return True
        if layout is Layout.BARRIER:
            return False
        return any(value in self.last or value in self.leaning for value in computed)

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
            return self.stored.get(value, value)
        return self._transposed(value, last)

    def _constant_operand(self, value: str, last: bool, rank: int) -> str:
        array = self._constant(value, rank, last and rank > 0)
        assert array is not None
        if array.dtype in (np.float64, np.float16):
            array = array.astype(np.float32)
        return self.out.constant(value, np.atleast_1d(array)) if rank else value

    def _with_rank(self, value: str, rank: int, name: str, op: str) -> str:
        """A computed value with as many axes as the operand that it is combined with, by RESHAPE."""
        if not value or value in self.constants or len(self._shape(value)) == rank:
            return value
        shape = self._shape(value)
        if shape[:1] != (1,):
            raise UnsupportedOp(
                f"ONNX node {name!r} ({op}) cannot be converted: its operand {value!r} of shape "
                f"{list(shape)} has no batch axis; unsqueeze it to {rank} axes"
            )
        wide = f"{value}/of_{rank}_axes"
        if wide not in self.shapes:
            self.shapes[wide] = (*(1,) * (rank - len(shape)), *shape)
            self.out.reshape(self._operand(value, last=False), self.shapes[wide], wide)
        return wide

    def _transposed(self, value: str, last: bool) -> str:
        name = f"{value}/{'channels_last' if last else 'channels_first'}"
        if name in self.out.tensors:
            return name
        source = self.stored.get(value, value)
        shape = self.out.shape(source)
        order = channels_last(len(shape))
        if not last:
            order = tuple(int(axis) for axis in np.argsort(order))
        target = _permuted(shape, order)
        if _keeps_element_order(shape, order):
            operand = self.out.constant(f"{name}/shape", np.array(target, np.int32))
            return self.out.emit("RESHAPE", (source, operand), name, target, new_shape=target)
        operand = self.out.constant(f"{name}/permutation", np.array(order, np.int32))
        return self.out.emit("TRANSPOSE", (source, operand), name, target)

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
                f"the shape of {value!r} is not static; export the model with fixed sizes, or simplify it"
            )
        return self.shapes[value]


def _why_not(op: str) -> str:
    """Reason and remedy for an operator that has no lowering."""
    if any(part in op for part in QUANTISED):
        return (
            "the model is quantised already; convert the float32 model it was made from, int8 is made of that"
        )
    reason = "it computes no float32" if op in PASS_THROUGH else "no such operator is supported"
    return f"{reason}; {REPLACE_OP} (docs/supported_ops.md lists those that are)"


def _leads_to_images(model: onnx.ModelProto) -> set[str]:
    """Values of Reshapes and their like that are images again further on, so better channels last at once."""
    wanted: set[str] = set()
    leaning: set[str] = set()
    for node in reversed(model.graph.node):
        rule = LOWERINGS.get(node.op_type)
        layout = Layout.FOLLOW if node.op_type in PASS_THROUGH else rule.layout if rule is not None else None
        leads = any(value in wanted for value in node.output)
        if layout is Layout.ANCHOR:
            wanted.update(node.input[:1])
        elif leads and layout in (Layout.FOLLOW, Layout.REMAP):
            wanted.update(node.input)
        elif leads and layout is Layout.BARRIER:
            leaning.update(node.output)
    return leaning & wanted


def _static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(size.HasField("dim_value") for size in sizes):
            shapes[value.name] = tuple(size.dim_value for size in sizes)
    return shapes


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large initializers as inputs: the same shapes, inferred without copying weights."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    known = {value.name for value in model.graph.input}
    for weight in model.graph.initializer:
        if math.prod(weight.dims) <= SHAPE_SIZED:
            light.graph.initializer.append(weight)
        elif weight.name not in known:
            door = onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
            light.graph.input.append(door)
    return light


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
