"""The page of supported ONNX operators, made from the registry: `python -m export.supported`."""

from __future__ import annotations

import inspect
from pathlib import Path

from export.lowerings import LOWERINGS
from export.read_onnx import OPSETS, PASS_THROUGH
from export.registry import Layout
from pipeline.artifacts import write_text

PAGE = Path("docs") / "supported_ops.md"
LAYOUTS = {
    Layout.ANCHOR: "channels last",
    Layout.FOLLOW: "either",
    Layout.REMAP: "either, axes renumbered",
    Layout.BARRIER: "ONNX's order",
}


def page() -> str:
    """The page's Markdown text."""
    rows = [
        f"| {op} | {_first_line(rule.lower)} | {LAYOUTS[rule.layout]} |"
        for op, rule in sorted(LOWERINGS.items())
    ]
    return "\n".join(
        (
            "# Supported ONNX operators",
            "",
            f"Opset {OPSETS[0]} to {OPSETS[-1]}, float32, one input with a batch of 1, one output. This page "
            "is made by `python -m export.supported`.",
            "",
            f"{', '.join(sorted(PASS_THROUGH))} vanish. Whatever depends on constants and shapes alone is "
            "folded, whichever operator it is. Weights may be initializers or Constant nodes. "
            "Models in float16, bfloat16 and float64 are read as float32.",
            "Hard-swish, hard-sigmoid, ReLU and ReLU6 are recognised where an exporter wrote them out as "
            "Add, Mul, Div, Clip, Min and Max.",
            "",
            "| ONNX | TFLite | layout |",
            "|---|---|---|",
            *rows,
            "",
            "`python -m pipeline convert MODEL.onnx --explain` lists every node of a file that cannot be "
            "converted, with the reason and a remedy.",
            "",
        )
    )


def _first_line(lowering: object) -> str:
    return (inspect.getdoc(lowering) or "").splitlines()[0]


if __name__ == "__main__":
    write_text(PAGE, page())
