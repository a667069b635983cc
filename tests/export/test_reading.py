"""Files as other programs store them: other floats, weights beside the file, functions, quantised graphs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import load_onnx, read_onnx, refusals
from export.run import Program
from export.runtime import run_onnx_as_it_is
from export.to_float32 import to_float32
from pipeline.artifacts import AlpharhoError
from tests.export.graphs import SHAPE, node, onnx_model, random

WEIGHTS = {"w": random(5, 6, 3, 2, seed=1) / 4}


def convolution() -> onnx.ModelProto:
    return onnx_model(
        [node("Conv", "x", "w", output="c"), node("Relu", "c", output="r"), node("Flatten", "r")], WEIGHTS
    )


def doors(model: onnx.ModelProto) -> Iterable[onnx.ValueInfoProto]:
    return (*model.graph.input, *model.graph.output, *model.graph.value_info)


def stored_as(kind: int) -> onnx.ModelProto:
    """The convolution with all its values of another kind."""
    model, dtype = convolution(), helper.tensor_dtype_to_np_dtype(kind)
    for weight in model.graph.initializer:
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(dtype), weight.name))
    for value in doors(model):
        value.type.tensor_type.elem_type = kind
    return model


def between_casts() -> onnx.ModelProto:
    """Half precision inside, float32 at the doors."""
    model = stored_as(TensorProto.FLOAT16)
    model.graph.node[0].input[0], model.graph.node[-1].output[0] = "half", "result"
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16))
    model.graph.node.append(helper.make_node("Cast", ["result"], ["y"], to=TensorProto.FLOAT))
    del model.graph.value_info[:]
    for value in doors(model):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


@pytest.mark.parametrize(
    ("model", "limit"),
    [(stored_as(TensorProto.FLOAT16), 2e-3), (stored_as(TensorProto.DOUBLE), 1e-5), (between_casts(), 2e-3)],
)
def test_other_floats_become_float32(model: onnx.ModelProto, limit: float, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    read = load_onnx(tmp_path / "model.onnx")
    assert to_float32(read) is read
    images = random(2, *SHAPE[1:], seed=3)
    expected = run_onnx_as_it_is(convolution().SerializeToString(), images)
    found = Program(run_passes(read_onnx(read), FLOAT_PASSES))(images.transpose(0, 2, 3, 1).copy())
    np.testing.assert_allclose(found, expected, atol=limit)
    np.testing.assert_allclose(run_onnx_as_it_is(read.SerializeToString(), images), found, atol=1e-5)


def test_weights_beside_the_file_are_read_and_missed(tmp_path: Path) -> None:
    path, weights = tmp_path / "model.onnx", tmp_path / "weights.bin"
    onnx.save(convolution(), path, save_as_external_data=True, location=weights.name, size_threshold=0)
    assert numpy_helper.to_array(load_onnx(path).graph.initializer[0]).shape == WEIGHTS["w"].shape
    content = weights.read_bytes()
    weights.write_bytes(content[:40])
    with pytest.raises(AlpharhoError, match=r"not a readable ONNX model \(External data length"):
        load_onnx(path)
    weights.unlink()
    with pytest.raises(AlpharhoError, match=r"weights\.bin"):
        load_onnx(path)


def test_a_models_own_functions_are_written_out(tmp_path: Path) -> None:
    act = helper.make_function(
        "own", "Act", ["a"], ["b"], [node("Tanh", "a", output="b")], [helper.make_opsetid("", 20)]
    )
    model = onnx_model([node("Relu")])
    model.graph.node[0].op_type, model.graph.node[0].domain = "Act", "own"
    model.functions.append(act)
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, tmp_path / "model.onnx")
    assert read_onnx(load_onnx(tmp_path / "model.onnx")).op_counts()["TANH"] == 1


def test_a_quantised_model_is_refused_with_the_way_out() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("Conv", "d", "w"),
    ]
    model = onnx_model(nodes, {"s": np.float32(0.02), "z": np.int8(3), **WEIGHTS})
    found = [str(error) for error in refusals(model)]
    assert len(found) == 2
    assert all("quantised already; convert the float32 model" in line for line in found)


def test_quantised_weights_are_constants() -> None:
    stored = np.round(WEIGHTS["w"] * 50).astype(np.int8)
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), node("Conv", "x", "w")]
    graph = read_onnx(onnx_model(nodes, {"q": stored, "s": np.float32(0.02)}))
    name = next(step.inputs[1] for step in graph.nodes if step.op == "CONV_2D")
    expected = (stored * np.float32(0.02)).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(graph.tensors[name].real(), expected)


def test_a_branch_is_refused_even_where_its_condition_is_constant() -> None:
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, ["x"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE)],
        )
        for name, op in (("then", "Relu"), ("else", "Tanh"))
    }
    model = onnx_model([node("If", "c", **branches)], {"c": np.array(True)})
    assert "(If) cannot be converted: no such operator" in str(refusals(model)[0])
