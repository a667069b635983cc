"""A PyTorch module to model.onnx: batch 1, batch norms folded, everything named by module path."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper
from torch import Tensor, nn

from export.trace import Call, Constant, Trace, Value, trace
from export.trace_folds import folded
from pipeline.artifacts import AlpharhoError

OPSET = 20
IR_VERSION = 10
COMPARED_BYTES = 4096  # of a constant, up to which it is compared with all others: large ones are not equal
INPUT, OUTPUTS = "image", ("logits",)


def to_onnx(module: nn.Module, resolution: int, outputs: Sequence[str] = OUTPUTS) -> onnx.ModelProto:
    """The ONNX model of a network: `image` float32 [1, 3, R, R] to `outputs`, opset 20.

    A classifier has one output, `logits` [1, classes]; the names of others are given in their order. The same
    module gives the same bytes: no paths, times or stack traces of this machine are in them. AlpharhoError
    names an operator that cannot be exported, and the module that calls it.
    """
    traced = folded(trace(module.eval(), (1, 3, resolution, resolution)))
    if len(traced.results) != len(outputs):
        raise AlpharhoError(
            f"{type(module).__name__} has {len(traced.results)} outputs, {len(outputs)} names are given "
            f"({', '.join(outputs)}); name each one"
        )
    doors = [_door(name, result) for name, result in zip(outputs, traced.results, strict=True)]
    graph = helper.make_graph([], type(module).__name__, [_door(INPUT, traced.image)], doors)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="alpharho",
    )
    writer = _Writer(model.graph, traced, outputs)
    for call in traced.calls:
        writer.write(call)
    onnx.checker.check_model(model, full_check=True)
    return model


def _door(name: str, tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, tuple(tensor.shape))


class _Writer:
    """Appends to an ONNX graph in place, since every message that is put into another one is copied."""

    def __init__(self, graph: onnx.GraphProto, traced: Trace, outputs: Sequence[str]) -> None:
        self.graph = graph
        self.names = {id(traced.image): INPUT}
        self.names.update((id(result), name) for result, name in zip(traced.results, outputs, strict=True))
        self.taken = {INPUT, *outputs}
        self.constants: dict[object, str] = {}
        self.written: dict[object, str] = {}

    def write(self, call: Call) -> None:
        """Append the node of a call whose operands have been written, unless an equal one has been."""
        inputs = [self._operand(value) for value in call.inputs]
        is_output = id(call.result) in self.names
        what = (call.op, tuple(inputs), repr(sorted(call.attributes.items())))
        equal = inputs[0] if call.op == "Identity" else self.written.get(what)
        if equal and not is_output:
            self.names[id(call.result)] = equal
            return
        name = self.names[id(call.result)] if is_output else self._free(call.path)
        self.names[id(call.result)] = self.written[what] = name
        self.graph.node.append(helper.make_node(call.op, inputs, [name], name=name, **call.attributes))

    def _operand(self, value: Value) -> str:
        if isinstance(value, Constant):
            return self._initializer(value)
        return self.names[id(value)]

    def _initializer(self, constant: Constant) -> str:
        """The name of the constant, which the graph holds once: the same memory, or small and equal."""
        data = constant.data
        what = data.tobytes() if data.nbytes <= COMPARED_BYTES else data.ctypes.data
        key = (data.dtype.str, data.shape, what)
        if key not in self.constants:
            self.constants[key] = self._free(constant.name or "constant")
            self.graph.initializer.add(
                name=self.constants[key],
                dims=data.shape,
                data_type=helper.np_dtype_to_tensor_dtype(data.dtype),
                raw_data=data.tobytes(),
            )
        return self.constants[key]

    def _free(self, name: str) -> str:
        candidate, suffix = name, 0
        while candidate in self.taken:
            suffix += 1
            candidate = f"{name}_{suffix}"
        self.taken.add(candidate)
        return candidate
