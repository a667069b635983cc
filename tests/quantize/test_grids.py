"""Scales that operators share or that the delegate limits: one partition, and nothing clipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.check import audit_delegate, check_delegate
from export.graph import Graph, Tensor
from export.run import Program
from export.runtime import run_tflite
from export.write_tflite import write_tflite
from quantize.int8 import Io
from quantize.recipes import RECIPES, quantize
from tests.quantize.networks import Draft, images

RECIPE_NAMES = ("int8", "int8_full", "int8_min_max")
NO_ACTIVATION = {"fused_activation_function": "NONE"}


def _scaled(draft: Draft, name: str, factor: float) -> None:
    """Make a convolution's results `factor` times as large."""
    for part in ("weight", "bias"):
        data = draft.tensors[f"{name}/{part}"].real() * np.float32(factor)
        draft.tensors[f"{name}/{part}"] = Tensor.constant(data.astype(np.float32))


def _finished(draft: Draft, x: str) -> Graph:
    return draft.logits(draft.mean(draft.conv(x, "last", 6, 1, 1, "RELU"), "pooled", False))


def _with_branches(op: str, factor: float) -> Graph:
    """Two convolutions of one picture, the second's result `factor` times as large, joined by `op`."""
    draft = Draft()
    a, b = (draft.conv("image", name, 4, 3, 2, "NONE") for name in ("a", "b"))
    _scaled(draft, "b", factor)
    return _finished(draft, draft.add(op, (a, b), "joined", draft.tensors[a].shape, **NO_ACTIVATION))


def _cancelling() -> Graph:
    """A sum that is a thousandth of its operands."""
    draft = Draft()
    a, b = (draft.conv("image", name, 4, 3, 2, "NONE") for name in ("a", "b"))
    for part in ("weight", "bias"):
        draft.tensors[f"b/{part}"] = Tensor.constant(-1.001 * draft.tensors[f"a/{part}"].real())
    return _finished(draft, draft.add("ADD", (a, b), "joined", draft.tensors[a].shape, **NO_ACTIVATION))


def _never_together() -> Graph:
    """A product of two factors of which one is always zero."""
    draft = Draft()
    a, b = (draft.conv("image", name, 4, 3, 2, "RELU") for name in ("a", "b"))
    for part in ("weight", "bias"):
        draft.tensors[f"b/{part}"] = Tensor.constant(-draft.tensors[f"a/{part}"].real())
    return _finished(draft, draft.add("MUL", (a, b), "joined", draft.tensors[a].shape, **NO_ACTIVATION))


def _small_constant() -> Graph:
    draft = Draft()
    a = draft.conv("image", "a", 4, 3, 2, "NONE")
    draft.tensors["offset"] = Tensor.constant(np.full((1, 1, 1, 4), 1e-5, np.float32))
    shape = draft.tensors[a].shape
    return _finished(draft, draft.add("ADD", (a, "offset"), "joined", shape, **NO_ACTIVATION))


LIMITED = {
    "a small term": _with_branches("ADD", 1e-5),
    "a large term": _with_branches("ADD", 1e5),
    "no term at all": _with_branches("ADD", 0.0),
    "a small subtrahend": _with_branches("SUB", 1e-5),
    "a small factor": _with_branches("MUL", 1e-6),
    "a sum that cancels": _cancelling(),
    "factors that are never together": _never_together(),
    "a small constant": _small_constant(),
}


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
@pytest.mark.parametrize("case", LIMITED)
def test_scales_far_apart_stay_in_the_delegates_partition(case: str, recipe: str, tmp_path: Path) -> None:
    graph = LIMITED[case]
    found = _runtime_logits(graph, recipe, tmp_path / "int8.tflite")
    assert np.isfinite(found).all()
    if case != "a sum that cancels":  # what is left of it is below its operands' steps
        assert _error(graph, found) < 0.1


def _joined_with(op: str) -> Graph:
    """A squashed and a plain map side by side."""
    draft = Draft(seed=2)
    a, b = (draft.conv("image", name, 4, 3, 1, "NONE") for name in ("a", "b"))
    _scaled(draft, "b", 3.0)
    a = draft.add(op, (a,), "squashed", draft.tensors[a].shape)
    return _finished(draft, _side_by_side(draft, a, b))


def _side_by_side(draft: Draft, a: str, b: str) -> str:
    *rest, first = draft.tensors[a].shape
    shape = (*rest, first + draft.tensors[b].shape[-1])
    return draft.add("CONCATENATION", (a, b), "joined", shape, axis=3, **NO_ACTIVATION)


def _joined_with_the_picture() -> Graph:
    draft = Draft(seed=2)
    b = draft.conv("image", "b", 4, 3, 1, "NONE")
    return _finished(draft, _side_by_side(draft, "image", b))


JOINED = {
    "LOGISTIC": _joined_with("LOGISTIC"),
    "TANH": _joined_with("TANH"),
    "the picture": _joined_with_the_picture(),
}


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
@pytest.mark.parametrize("case", JOINED)
def test_a_grid_that_is_prescribed_does_not_clip_what_lies_beside(
    case: str, recipe: str, tmp_path: Path
) -> None:
    graph = JOINED[case]
    assert _error(graph, _runtime_logits(graph, recipe, tmp_path / "int8.tflite")) < 0.08


def test_two_prescribed_grids_need_no_conversion() -> None:
    draft = Draft(seed=2)
    a, b = (
        draft.add(
            "LOGISTIC", (draft.conv("image", name, 4, 3, 1, "NONE"),), f"{name}/squashed", (1, 24, 24, 4)
        )
        for name in ("a", "b")
    )
    graph = quantize(
        _finished(draft, _side_by_side(draft, a, b)), [images(8)], RECIPES["int8_full"], Io()
    ).graph
    grid = graph.tensors["joined"].quantization
    assert grid is not None and float(grid.scale[0]) == 1 / 256
    assert graph.op_counts()["QUANTIZE"] == 1  # the picture's


def _runtime_logits(graph: Graph, recipe: str, path: Path) -> np.ndarray:
    path.write_bytes(write_tflite(quantize(graph, [images(16)], RECIPES[recipe], Io()).graph))
    check_delegate(audit_delegate(path), path)
    return run_tflite(path, images(16)[:8])


def _error(graph: Graph, found: np.ndarray) -> float:
    """Largest error of a logit, of the largest logit."""
    expected = Program(graph)(images(16)[:8])
    return float(np.abs(found - expected).max() / np.abs(expected).max())
