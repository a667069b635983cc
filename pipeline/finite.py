"""Numbers that are not finite, told where they come in and not where they come out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.graph import WEIGHTED, Array, Graph
from pipeline.artifacts import AlpharhoError


def check_weights(graph: Graph, source: Path) -> None:
    """AlpharhoError that names the first layer of a network from `source` with NaN or infinite weights."""
    for node in graph.nodes:
        constants = (graph.constant(name) for name in node.inputs if node.op in WEIGHTED)
        if any(data is not None and not _finite(data) for data in constants):
            raise AlpharhoError(
                f"{source}: {node.op} {node.output!r} has weights or biases that are not finite (NaN or "
                "infinite); export the network again from a checkpoint of before its training diverged"
            )


def check_inputs(array: Array, source: Path) -> None:
    """AlpharhoError that names the first input of `array` [N, ...] with a NaN or infinite value."""
    bad = [number for number, row in enumerate(array) if not _finite(row)]
    if bad:
        raise AlpharhoError(
            f"{source}: {len(bad)} of {len(array)} inputs have values that are not finite (NaN or infinite), "
            f"the first is number {bad[0]}; leave them out"
        )


def _finite(values: Array) -> bool:
    return bool(np.isfinite(values.astype(np.float32)).all())
