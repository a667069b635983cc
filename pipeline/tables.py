"""The papers' cost tables with our counts beside the printed ones, as one Markdown page with pictures."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from models.cost import cost_of
from pipeline.artifacts import write_bytes, write_text
from pipeline.markdown import markdown_table
from pipeline.table_counts import DEVICE, load_counts
from pipeline.table_measured import Counts, measured_sections
from pipeline.table_pictures import PICTURES, picture
from pipeline.table_rows import MILLION, SECTIONS, Row, Section, layer

PAGE = Path("docs") / "tables.md"
FOLDER = "tables"  # of the pictures, beside the page

MISSING = (
    "Rows without a count say why. Tables of accuracy and of latency are not repeated, nor those of the "
    "first version of MicroNet's paper (arXiv:2011.12289)."
)


COUNTED = (
    f"# Instructions\n\nOne inference on {DEVICE}, counted by `python -m pipeline.table_counts` from files "
    "with untrained weights and 1,000 classes (`python -m pipeline bench MODEL --device ...` counts any "
    "other). A count is not a time: it knows no caches and no pipelines."
)


def page(counts: Counts) -> str:
    """The whole page; the same text for the same tables and instruction counts."""
    parts = [
        "# The papers' cost tables, counted again",
        "Made by `python -m pipeline tables`; do not edit. Millions of Mult-Adds (multiply-accumulates of "
        "convolutions and fully connected layers, one image) and of parameters, printed and counted from the "
        "networks of this repository; the ratio is ours / printed. V1 is arXiv:1704.04861, V2 1801.04381, V3 "
        "1905.02244, MicroNet 2108.05894.",
        *(f"![{caption}]({FOLDER}/{name})\n\n{caption}." for name, (_, caption) in PICTURES.items()),
        _shares(),
        _arithmetic(),
        *(_section(section) for section in SECTIONS),
        MISSING,
        COUNTED,
        *measured_sections(counts),
    ]
    return "\n\n".join(parts) + "\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `tables`."""
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """The verb `tables`: writes the page and its pictures."""
    for name in PICTURES:
        write_bytes(arguments.out.parent / FOLDER / name, picture(name))
    write_text(arguments.out, page(load_counts()))
    print(f"{arguments.out}: {sum(len(section.rows) for section in SECTIONS)} rows")
    return 0


def _section(section: Section) -> str:
    head = ("", "Mult-Adds printed", "ours", "ratio", "params printed", "ours", "ratio", "")
    lines = [f"## {section.title}", ""]
    lines += [section.note, ""] if section.note else []
    table = markdown_table(head, [_cells(row) for row in section.rows], text_columns=(0, -1))
    return "\n".join((*lines, table))


def _cells(row: Row) -> tuple[str, ...]:
    ours = row.ours() if row.ours else None
    macs, params = (None, None) if ours is None else (ours.macs / MILLION, ours.params / MILLION)
    return (row.label, *_compared(row.macs, macs, 1), *_compared(row.params, params, 2), row.note)


def _compared(printed: float | None, ours: float | None, digits: int) -> tuple[str, str, str]:
    return (
        "" if printed is None else f"{printed:,g}",
        "" if ours is None else f"{ours:,.{digits}f}",
        "" if printed is None or ours is None else f"{ours / printed:.3f}",
    )


def _shares() -> str:
    """V1, Table 2: shares of the kinds of layers."""
    cost = cost_of("v1")
    printed = {
        "pointwise": ("Conv 1x1", 94.86, 74.59, ""),
        "depthwise": ("Conv DW 3x3", 3.06, 1.06, ""),
        "stem": ("Conv 3x3", 1.19, 0.02, "**misprint**: 1.91, with which the column sums to 100"),
        "classifier": ("Fully connected", 0.18, 24.33, ""),
    }
    rows = []
    for kind, (label, macs, params, note) in printed.items():
        weights = sum(layer.weight_params for layer in cost.layers if layer.kind == kind)
        found = (100 * cost.macs_by_kind()[kind] / cost.macs, 100 * weights / cost.weight_params)
        rows.append((label, f"{macs:.2f}", f"{found[0]:.2f}", f"{params:.2f}", f"{found[1]:.2f}", note))
    head = ("", "Mult-Adds % printed", "ours", "params % printed", "ours", "")
    table = markdown_table(head, rows, text_columns=(0, -1))
    return f"## V1, Table 2: where the cost is\n\n{table}"


def _arithmetic() -> str:
    """V1 sections 3.1 and 3.4: the reduction formula, and the example of 28x28x3 by 5x5x64."""
    kernel, inputs, outputs, side = 5, 3, 64, 28
    full = side**2 * kernel**2 * inputs * outputs
    separable = side**2 * (kernel**2 * inputs + inputs * outputs)
    reduction = 1 / outputs + 1 / kernel**2
    assert math.isclose(separable / full, reduction)
    table_3 = 1 / 512 + 1 / 9
    return "\n".join(
        (
            "## V1, section 3.1: what separating saves",
            "",
            "A depthwise separable convolution with N outputs and kernel D_K costs 1/N + 1/D_K^2 of a full.",
            "",
            f"- {side}x{side}x{inputs} by {kernel}x{kernel}x{outputs}: {full:,} Mult-Adds "
            f"against {separable:,}, 1/{outputs} + 1/{kernel**2} = {reduction:.4f}.",
            f"- The layer of Table 3, 3x3 to 512 channels: 1/512 + 1/9 = {table_3:.4f}, counted "
            f"{layer(True).macs / layer(False).macs:.4f}.",
        )
    )
