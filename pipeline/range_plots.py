"""The picture of a diagnosis: every channel's share of its tensor's range, before and after equalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts import AlpharhoError
from quantize.diagnose import LayerReport

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise AlpharhoError(
        "matplotlib is missing, and draws the ranges; install it with: pip install 'alpharho[report]'"
    ) from error

BEFORE, AFTER, SUM = "#9a9a9a", "#0072B2", "#D55E00"
ROW_INCHES, WIDTH_INCHES, EDGE_INCHES = 0.27, 13.0, 1.8
LOWEST = -9.0  # bits; a channel narrower than a level of 8 bits is drawn there
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "legend.frameon": False,
    "svg.hashsalt": "alpharho",
}

Widths = Mapping[str, NDArray[np.float64]]  # per channel, by the name of the node


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of weights and of activations per channel, before and after the exact rewrites of a recipe."""

    weights: tuple[Widths, Widths]
    activations: tuple[Widths, Widths]


def range_figure(title: str, reports: Sequence[LayerReport], ranges: Ranges) -> Figure:
    """A row for every layer with weights: a mark per channel at the bits it lacks, and the layer's error.

    A channel at 0 uses all levels of the tensor's one scale, at -3 an eighth of them. Grey is before
    equalisation, blue after.
    """
    names = [report.name for report in reports if len(ranges.weights[0].get(report.name, ()))]
    rows = {name: len(names) - 1 - i for i, name in enumerate(names)}
    with matplotlib.rc_context(_STYLE):
        height = EDGE_INCHES + ROW_INCHES * len(names)
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 0.8))
        titles = ("range of the weights, per output channel", "range of the results, per channel")
        for axes, kind, what in zip(panels, (ranges.weights, ranges.activations), titles, strict=False):
            for widths, colour, offset in zip(kind, (BEFORE, AFTER), (0.19, -0.19), strict=True):
                _draw_channels(axes, widths, rows, colour, offset)
            axes.set_title(what)
            axes.set_xlabel("bits below the widest channel")
            axes.set_xlim(LOWEST - 0.3, 0.3)
        _draw_errors(panels[2], reports, rows)
        panels[0].set_yticks(list(rows.values()), [name.replace("/", ".") for name in rows])
        panels[0].set_ylim(-0.7, len(names) - 0.3)
        for axes in panels:
            axes.grid(color="#e4e4e4", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.tick_params(axis="y", length=0)
        figure.suptitle(f"{title}: ranges before (grey) and after (blue) equalisation", x=0.01, ha="left")
        return figure


def _draw_channels(axes: Axes, widths: Widths, rows: Mapping[str, int], colour: str, offset: float) -> None:
    """A small upright mark for every channel, and a dot at the median."""
    for name, row in rows.items():
        alive = widths[name][widths[name] > 0] if name in widths else np.empty(0)
        if not len(alive):
            continue
        bits = np.maximum(np.log2(alive / alive.max()), LOWEST)
        axes.plot(
            bits,
            np.full(len(bits), row + offset),
            "|",
            color=colour,
            alpha=0.35,
            markersize=6,
            markeredgewidth=0.8,
            rasterized=True,
        )
        axes.plot(np.median(bits), row + offset, "o", color=colour, markersize=3.6, markeredgecolor="white")


def _draw_errors(axes: Axes, reports: Sequence[LayerReport], rows: Mapping[str, int]) -> None:
    """Each layer's SQNR, alone in 8 bits and with everything before it."""
    shown = [report for report in reports if report.name in rows]
    places = [rows[report.name] for report in shown]
    axes.plot(
        [r.alone_db for r in shown],
        places,
        "o",
        color=AFTER,
        markersize=4,
        label="this layer alone in 8 bits",
    )
    axes.plot(
        [r.sqnr_db for r in shown],
        places,
        "D-",
        color=SUM,
        markersize=4,
        linewidth=0.8,
        label="with all before it",
    )
    axes.set_title("error of each layer")
    axes.set_xlabel("SQNR, dB (more is better)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0 + 0.9 / len(rows)))
