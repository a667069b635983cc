"""The pictures of docs/tables.md, as SVG; the same tables give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from models.cost import cost_of
from models.micronet_blocks import LastRow, RegularRow
from models.registry import network
from pipeline.plots import FAINT, INK, MARKERS, svg
from pipeline.table_rows import MILLION, classifier

# Told apart also by the colour-blind and in grey (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
FAMILIES: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "V1": ("v1", (0.25, 0.5, 0.75, 1.0)),
    "V2": ("v2", (0.35, 0.5, 0.75, 1.0, 1.4)),
    "V3-Large": ("v3_large", (0.5, 0.75, 1.0, 1.25)),
    "V3-Small": ("v3_small", (0.35, 0.5, 0.75, 1.0, 1.25)),
}
NOTES = {"v1": (-6, 3), "v2": (-6, -1), "v3_large": (-6, 4), "v3_small": (5, -6)}
"""Where a point's alpha is written: points to the right of its mark, and up."""

MICRONETS = tuple(f"micronet_m{size}" for size in range(4))
COMPARED = {"alexnet": "AlexNet", "squeezenet": "SqueezeNet", "googlenet": "GoogLeNet", "vgg16": "VGG 16"}
REDUCTION = 6  # R of M1 to M3


def cost_picture() -> Figure:
    """Mult-Adds against parameters at 224: a line a family, its points the widths."""
    figure, axes = _drawing(7.2, 4.6)
    for number, (label, (name, alphas)) in enumerate(FAMILIES.items()):
        costs = [cost_of(name, alpha) for alpha in alphas]
        points = [(cost.params / MILLION, cost.macs / MILLION) for cost in costs]
        _line(axes, points, label, number)
        for alpha, point in zip(alphas, points, strict=True):
            _note(axes, f"{alpha:g}", point, NOTES[name])
    costs = [cost_of(name) for name in MICRONETS]
    points = [(cost.params / MILLION, cost.macs / MILLION) for cost in costs]
    _line(axes, points, "MicroNet", len(FAMILIES))
    for name, point in zip(MICRONETS, points, strict=True):
        _note(axes, name[-2:].upper(), point, (6, -3))
    others = {label: classifier(name) for name, label in COMPARED.items()}
    params = [count.params / MILLION for count in others.values()]
    axes.plot(
        params, [count.macs / MILLION for count in others.values()], "x", color=INK, label="compared with"
    )
    for label, count in others.items():
        _note(axes, label, (count.params / MILLION, count.macs / MILLION), (-7, 1))
    axes.set(xscale="log", yscale="log", xlabel="parameters, millions", ylabel="Mult-Adds at 224, millions")
    _plain_numbers(axes, (0.5, 1, 2, 5, 10, 20, 50, 100), (5, 10, 20, 50, 100, 200, 500, 1000, 5000, 15000))
    axes.set_xlim(0.3, 250)
    axes.legend(loc="lower right", frameon=False)
    return figure


def connectivity_picture() -> Figure:
    """Channels C and connectivity E of a factorised pointwise convolution of fixed cost, over its groups.

    At a cost of O = 2 C^2 / (R G), C = sqrt(O R G / 2) grows and E = O / (2 G) falls with G; they meet at
    G = sqrt(C / R). The dots are the pairs that M1 to M3 have.
    """
    figure, axes = _drawing(7.2, 4.4)
    cost = 2 * (meeting := 768.0) ** 2 / (REDUCTION * math.sqrt(meeting / REDUCTION))
    groups = [2 ** (step / 8) for step in range(8 * 5 + 1)]
    channels = [math.sqrt(cost * REDUCTION * each / 2) for each in groups]
    axes.plot(groups, channels, color=COLOURS[0], label="channels C")
    axes.plot(groups, [cost / (2 * each) for each in groups], color=COLOURS[1], label="connectivity E")
    best = math.sqrt(meeting / REDUCTION)
    axes.plot([best], [meeting], "o", color=INK, markersize=7)
    axes.annotate(
        f"C = E = {meeting:g} at G = √(C/R) = {best:.1f}",
        (best, meeting),
        (-14, 0),
        textcoords="offset points",
        ha="right",
        va="center",
    )
    design = [each for each in groups if 4 <= each <= 20]
    axes.plot(
        design, [REDUCTION * each**2 for each in design], ":", color="#666666", label="C = R G², where E = C"
    )
    rows = sorted({pair for name in MICRONETS[1:] for pair in _pairs(name)})
    axes.plot(*zip(*rows, strict=True), MARKERS[1], color=COLOURS[2], label="rows of M1 to M3, G = √(G1 G2)")
    axes.set(xscale="log", yscale="log", xlabel="groups G", ylabel="channels, or inputs that an output sees")
    _plain_numbers(axes, (1, 2, 4, 8, 16, 32), (200, 500, 1000, 2000, 5000))
    axes.set_ylim(130, 10000)
    axes.legend(loc="upper right", frameon=False, fontsize=8.5)
    return figure


PICTURES: Mapping[str, tuple[Callable[[], Figure], str]] = {
    "cost.svg": (cost_picture, "Mult-Adds against parameters of all families at 224"),
    "connectivity.svg": (
        connectivity_picture,
        "Channels and connectivity over the number of groups, at the cost of M2's last row",
    ),
}
"""File name to the maker of the picture and what it shows."""


def picture(name: str) -> bytes:
    """The SVG file of a picture of PICTURES."""
    return svg(PICTURES[name][0]())


def _pairs(name: str) -> list[tuple[float, int]]:
    """Of every regular squeeze and the expansion after it: the mean of their groups, and the channels."""
    found = []
    for row, after in pairwise(network(name).rows):
        if isinstance(row, RegularRow) and isinstance(after, RegularRow):
            found.append((math.sqrt(row.squeeze_groups * after.expand_groups), after.expanded))
        if isinstance(row, RegularRow) and isinstance(after, LastRow):
            found.append((math.sqrt(row.squeeze_groups * after.groups), after.channels))
    return found


def _plain_numbers(axes: Axes, horizontal: Sequence[float], vertical: Sequence[float]) -> None:
    for axis, ticks in ((axes.xaxis, horizontal), (axes.yaxis, vertical)):
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())


def _drawing(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(which="major", color=FAINT, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(axes: Axes, points: list[tuple[float, float]], label: str, number: int) -> None:
    axes.plot(
        [x for x, _ in points],
        [y for _, y in points],
        MARKERS[number],
        color=COLOURS[number],
        label=label,
        linestyle="-",
        linewidth=1,
        markersize=5,
    )


def _note(axes: Axes, text: str, point: tuple[float, float], offset: tuple[int, int]) -> None:
    side = "left" if offset[0] > 0 else "right"
    axes.annotate(
        text, point, offset, textcoords="offset points", fontsize=7, color="#555555", ha=side, va="center"
    )
