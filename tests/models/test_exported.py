"""Factorised forms, ablations, heads and comparators as files: three precisions, one partition each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from torch import nn

import models
from export.check import audit_delegate, check_delegate
from export.graph import Graph
from export.passes import FLOAT_PASSES, run_passes
from export.read_onnx import read_onnx
from export.to_onnx import OUTPUTS, to_onnx
from models.cost import cost_of
from models.count import counted
from models.micronet_blocks import StaticShiftMax
from pipeline.budget import op_budget
from pipeline.convert import Calibration, convert_graph
from pipeline.variant import PRECISIONS, Variant
from quantize.int8 import Io
from quantize.recipes import RECIPES

SIZE, ALPHA, CLASSES = 64, 0.25, 5
IO = Io(input="float32", output="float32")
LEAST_COSINE = {"float32": 0.99999, "float16": 0.99, "int8": 0.7}  # to PyTorch's result; random weights


@torch.no_grad()
def as_if_trained(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            part.reset_running_stats()
            part.momentum = None
        if isinstance(part, nn.Linear):
            part.weight.normal_(0, 0.1)
    module.train()(torch.rand(4, 3, SIZE, SIZE) * 2 - 1)
    return module.eval()


def outputs_of(content: bytes, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The outputs of a file, by name."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    results = interpreter.get_signature_runner()(image=image)
    return [results[name] for name in sorted(results)]


def check(module: nn.Module, deployed: nn.Module, names: tuple[str, ...], folder: Path) -> Graph:
    """Every precision is near PyTorch's result and one partition; the float graph."""
    graph = run_passes(read_onnx(to_onnx(deployed, SIZE, names)), FLOAT_PASSES)
    images = np.random.default_rng(1).uniform(-1, 1, (4, SIZE, SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        made = module(torch.from_numpy(images[:1].transpose(0, 3, 1, 2)))
    wanted = dict(zip(names, made if isinstance(made, tuple) else (made,), strict=True))
    for precision in PRECISIONS:
        content = convert_graph(precision, graph, Calibration([images], RECIPES["int8_min_max"], IO)).content
        path = folder / f"{precision}.tflite"
        path.write_bytes(content)
        check_delegate(audit_delegate(path), path)
        for name, found in zip(sorted(names), outputs_of(content, images[:1]), strict=True):
            want = wanted[name].numpy()
            assert found.shape == want.shape
            cosine = (found * want).sum() / (np.linalg.norm(found) * np.linalg.norm(want))
            assert cosine > LEAST_COSINE[precision], (name, precision)
    return graph


@pytest.mark.parametrize("name", ["v1_flattened", "v1_low_rank", "v1_shallow"])
def test_forms_of_v1(name: str, tmp_path: Path) -> None:
    module = as_if_trained(models.build(name, ALPHA, CLASSES))
    graph = check(module, module, OUTPUTS, tmp_path)
    budget = op_budget(Variant(name, ALPHA, SIZE), "tf")
    assert {op: graph.op_counts().get(op, 0) for op in budget} == budget


@pytest.mark.slow
@pytest.mark.parametrize("name", ["micronet_m0", "micronet_m3", "mnasnet_a1", "v3_large_halved"])
def test_widths_between_the_papers(name: str, tmp_path: Path) -> None:
    module = as_if_trained(models.build(name, 0.75, CLASSES))
    assert isinstance(module, models.MobileNet)
    check(module, models.deployed(module), OUTPUTS, tmp_path)


@pytest.mark.parametrize("name", ["static_shift_max", "j3_k3", "se_relu"])
def test_ablations_of_m2(name: str, tmp_path: Path) -> None:
    module = as_if_trained(models.build(f"micronet_m2_{name}", 0.5, CLASSES))
    assert isinstance(module, models.MobileNet)
    graph = check(module, models.deployed(module), OUTPUTS, tmp_path)
    assert not {"TRANSPOSE", "GATHER", "MAXIMUM"} & set(graph.op_counts())


@pytest.mark.parametrize(
    "name", ["v1_ssd", "v3_small_halved_ssdlite", "v1_rpn", "v1_embedding", "v2_attributes"]
)
def test_networks_with_a_head(name: str, tmp_path: Path) -> None:
    module = as_if_trained(models.build_headed(name, ALPHA))
    graph = check(module, module, models.HEADED[name].outputs, tmp_path)
    assert "TRANSPOSE" not in graph.op_counts()


@pytest.mark.parametrize("name", ["squeezenet", "googlenet", "inception_v2", "mnasnet_small"])
def test_comparators(name: str, tmp_path: Path) -> None:
    module = as_if_trained(models.build(name, ALPHA, CLASSES))
    check(module, module, OUTPUTS, tmp_path)


def exported(name: str, alpha: float) -> tuple[Graph, str]:
    """The graph that is written of a network with weights of any value, and its padding."""
    module = models.build(name, alpha, CLASSES).eval()
    for part in module.modules():
        if isinstance(part, StaticShiftMax):
            torch.nn.init.normal_(part.weight, 1, 0.1)  # a 1 or a 0 would be left out
    size = max(SIZE, models.network(name, alpha).least_resolution)
    return run_passes(read_onnx(to_onnx(models.deployed(module), size)), FLOAT_PASSES), module.padding


def off_budget(name: str, alpha: float) -> dict[str, tuple[int, int]]:
    graph, padding = exported(name, alpha)
    budget, found = op_budget(Variant(name, alpha, SIZE), padding), graph.op_counts()
    return {op: (count, found.get(op, 0)) for op, count in budget.items() if count != found.get(op, 0)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in models.NAMES if name not in ("alexnet", "vgg16")])
def test_every_network_has_the_operators_that_its_table_promises(name: str) -> None:
    assert not off_budget(name, 0.5)


@pytest.mark.parametrize("name", ["static_shift_max", "j3_k3", "se_relu"])
def test_ablations_have_the_operators_that_their_tables_promise(name: str) -> None:
    assert not off_budget(f"micronet_m2_{name}", 1.0)


@pytest.mark.parametrize("resolution", [224, 227, 256])
@pytest.mark.parametrize("name", [name for name in models.NAMES if name not in models.MODELS])
def test_counting_a_variants_module_agrees_with_counting_its_table(name: str, resolution: int) -> None:
    with torch.device("meta"):
        found = counted(models.build(name, 0.5), resolution)
    cost = cost_of(name, 0.5, resolution)
    assert (found.macs, found.params) == (cost.macs, cost.params)
