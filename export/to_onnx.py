"""A PyTorch module to model.onnx: dynamo exporter, batch 1, batch norms folded, named by module path."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence

import onnx
import torch
from torch import nn

from pipeline.artifacts import AlpharhoError

OPSET = 20
INPUT, OUTPUTS = "image", ("logits",)


def to_onnx(module: nn.Module, resolution: int, outputs: Sequence[str] = OUTPUTS) -> onnx.ModelProto:
    """The ONNX model of a network: `image` float32 [1, 3, R, R] to `outputs`, opset 20.

    A classifier has one output, `logits` [1, classes]; the names of others are given in their order. The same
    module gives the same bytes: no paths, times or stack traces of this machine are kept.
    """
    module = module.eval().cpu()
    image = torch.zeros(1, 3, resolution, resolution)
    with _quiet():
        program = torch.onnx.export(
            module,
            (image,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise AlpharhoError(f"the ONNX exporter gave no program for {type(module).__name__}")
    model = _named_by_module(program.model_proto, module)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on torchvision and its own deprecations, which no user can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _named_by_module(model: onnx.ModelProto, module: nn.Module) -> onnx.ModelProto:
    """The model with nodes and values named `features/0/conv`, and nothing of the exporting machine in it."""
    leaves = {path for path, child in module.named_modules() if not any(child.children())}
    fixed = {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    names: dict[str, str] = {}
    for node in model.graph.node:
        path = _module_path(node, leaves)
        for value in node.output:
            names[value] = value if value in fixed else _unique(path, {*names.values(), *fixed})
        node.name = names[node.output[0]]
        node.input[:] = [names.get(value, value) for value in node.input]
        node.output[:] = [names[value] for value in node.output]
        node.doc_string = ""
        del node.metadata_props[:]
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    model.graph.name = type(module).__name__
    return model


def _module_path(node: onnx.NodeProto, leaves: set[str]) -> str:
    """`features/0/conv`: the owner of the node's weight, else the leaf module, else module and operation."""
    for value in node.input:
        owner, _, parameter = value.rpartition(".")
        if parameter == "weight" and owner in leaves:
            return str(owner.replace(".", "/"))
    scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
    *modules, operation = ast.literal_eval(scopes) or ["", node.op_type.lower()]
    owner = modules[-1] if modules else ""
    operation = operation.rstrip("0123456789").rstrip("_")
    path: str = owner if owner in leaves else f"{owner}.{operation}".lstrip(".")
    return path.replace(".", "/")


def _unique(name: str, taken: set[str]) -> str:
    candidate, suffix = name, 0
    while candidate in taken:
        suffix += 1
        candidate = f"{name}_{suffix}"
    return candidate
