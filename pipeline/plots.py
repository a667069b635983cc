"""The drawings of a report: cost against Mult-Adds, the law, the alpha x rho grid, accuracy against cost."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from device_bench.curves import Curve, Fit, GridPoint, Unit
from pipeline.artifacts import AlpharhoError

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
except ImportError as error:
    raise AlpharhoError(
        "matplotlib is missing, and draws the report; install it with: pip install 'alpharho[report]'"
    ) from error

# Told apart also by the colour-blind and in grey (Okabe and Ito).
COLOURS = {"float32": "#0072B2", "float16": "#009E73", "int8": "#D55E00"}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, FAINT, FRONT = "#222222", "#dddddd", "#888888"
LABEL_GAP = 0.045  # least distance of two names, as a share of the range of accuracy
QUANTITY = {Unit.MILLISECONDS: "latency, ms", Unit.INSTRUCTIONS: "instructions of one inference, millions"}
PNG_DPI = 160

_STYLE: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "legend.frameon": False,
    "svg.hashsalt": "alpharho",  # the same figure gives the same bytes
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A measured file with its accuracy: `value` in the plot's unit, `top1` in percent."""

    variant: str
    precision: str
    value: float
    top1: float


def law_plot(curves: Sequence[Curve], fits: Sequence[Fit | None]) -> Figure:
    """Cost against Mult-Adds of one model under the same conditions: a colour a precision, a marker an alpha.

    A line joins what the law says of the points of one alpha; a curve without a fit has markers alone.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        axes = figure.add_subplot()
        alphas = sorted({point.alpha for curve in curves for point in curve.points}, reverse=True)
        for curve, fitted in zip(curves, fits, strict=True):
            for number, alpha in enumerate(alphas):
                points = sorted(
                    (point for point in curve.points if point.alpha == alpha),
                    key=lambda point: point.size.macs,
                )
                _draw_points(axes, curve, points, MARKERS[number % len(MARKERS)])
                if fitted and points:
                    _draw_law(axes, curve, points, fitted)
        _log_log(axes)
        axes.set_xlabel("Mult-Adds, millions")
        axes.set_ylabel(QUANTITY[curves[0].unit])
        _title(axes, f"{curves[0].model}: cost against Mult-Adds, lines are the fitted law", curves[0])
        _legends(axes, curves, alphas)
        return figure


def heat_map(curves: Sequence[Curve]) -> Figure:
    """Cost of every alpha and resolution of one model, a panel a precision, one colour scale for all."""
    with matplotlib.rc_context({**_STYLE, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(1.2 + 3.1 * len(curves), 3.3), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        values = [point.value for curve in curves for point in curve.points]
        norm = LogNorm(min(values), max(values) if max(values) > min(values) else min(values) * 1.01)
        for axes, curve in zip(panels, curves, strict=True):
            image = _draw_grid(axes, curve, norm)
            axes.set_title(curve.precision, color=COLOURS[curve.precision], fontweight="bold")
        bar = figure.colorbar(image, ax=list(panels), shrink=0.85, label=QUANTITY[curves[0].unit])
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(_plain))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        figure.suptitle(
            f"{curves[0].model} on {curves[0].device}, {curves[0].conditions}",
            x=0.01,
            ha="left",
            fontsize=10.5,
        )
        return figure


def accuracy_plot(scored: Sequence[Scored], unit: Unit, title: str) -> Figure:
    """Top-1 against cost, the Pareto front drawn through the files that no other beats in both."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 5.0), layout="constrained")
        axes = figure.add_subplot()
        front = pareto_front(scored)
        for item in scored:
            colour = COLOURS[item.precision]
            face = colour if item in front else "white"
            axes.plot(item.value, item.top1, "o", color=colour, markersize=6, markerfacecolor=face)
        _draw_front(axes, front)
        axes.margins(x=0.16, y=0.1)
        _log_axis(axes, "x")
        axes.set_xlabel(QUANTITY[unit])
        axes.set_ylabel("top-1, % of the test images")
        axes.set_title(title)
        axes.grid(color=FAINT, linewidth=0.6)
        present = {item.precision for item in scored}
        handles = [_handle(COLOURS[name], "o", name) for name in COLOURS if name in present]
        handles.append(Line2D([], [], color=FRONT, label="Pareto front, its points filled"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return figure


def pareto_front(scored: Sequence[Scored]) -> tuple[Scored, ...]:
    """The files that no other beats in cost and accuracy, cheapest first."""
    front: list[Scored] = []
    for item in sorted(scored, key=lambda item: (item.value, -item.top1)):
        if not front or item.top1 > front[-1].top1:
            front.append(item)
    return tuple(front)


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    return _saved(figure, "png", {"Software": None})


def svg(figure: Figure) -> bytes:
    """The figure as an SVG file, its letters as outlines."""
    return _saved(figure, "svg", {"Date": None, "Creator": None})


def _saved(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=metadata)
    return buffer.getvalue()


def _draw_front(axes: Axes, front: Sequence[Scored]) -> None:
    """The steps of the front, and names on the side where nothing is; not one on top of another."""
    costs, accuracies = [item.value for item in front], [item.top1 for item in front]
    axes.step(costs, accuracies, where="post", color=FRONT, linewidth=1.2, zorder=1)
    span = max(accuracies) - min(accuracies)
    lowest = math.inf
    for item in reversed(front):
        if item.top1 > lowest - LABEL_GAP * span:
            continue
        lowest = item.top1
        place = (item.value, item.top1)
        axes.annotate(
            item.variant,
            place,
            (-5, 4),
            textcoords="offset points",
            ha="right",
            fontsize=7.5,
            color="#555555",
        )


def _draw_points(axes: Axes, curve: Curve, points: Sequence[GridPoint], marker: str) -> None:
    values = np.array([point.value for point in points])
    below = values - [point.low for point in points]
    above = [point.high for point in points] - values
    axes.errorbar(
        [point.size.macs / 1e6 for point in points],
        values,
        yerr=np.maximum([below, above], 0),
        fmt=marker,
        color=COLOURS[curve.precision],
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        elinewidth=1,
        zorder=3,
    )


def _draw_law(axes: Axes, curve: Curve, points: Sequence[GridPoint], fitted: Fit) -> None:
    axes.plot(
        [point.size.macs / 1e6 for point in points],
        [fitted.predict(point.size) for point in points],
        color=COLOURS[curve.precision],
        linewidth=1.1,
        alpha=0.65,
    )


def _draw_grid(axes: Axes, curve: Curve, norm: LogNorm) -> matplotlib.image.AxesImage:
    alphas = sorted({point.alpha for point in curve.points}, reverse=True)
    resolutions = sorted({point.resolution for point in curve.points}, reverse=True)
    cells = np.full((len(alphas), len(resolutions)), np.nan)
    for point in curve.points:
        cells[alphas.index(point.alpha), resolutions.index(point.resolution)] = point.value
    image = axes.imshow(cells, norm=norm, cmap="YlGnBu", aspect="auto")
    for (row, column), value in np.ndenumerate(cells):
        dark = norm(value) > 0.55
        text = "–" if np.isnan(value) else f"{value:.3g}"
        axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else INK)
    axes.set_xticks(range(len(resolutions)), [str(resolution) for resolution in resolutions])
    axes.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    axes.tick_params(length=0)
    axes.set_xlabel("resolution (ρ)")
    axes.set_ylabel("width α")
    return image


def _log_log(axes: Axes) -> None:
    _log_axis(axes, "x")
    _log_axis(axes, "y")
    axes.grid(which="major", color=FAINT, linewidth=0.6)


def _log_axis(axes: Axes, which: str) -> None:
    """Logarithmic, with plain numbers at 1, 2 and 5 of every decade, at 1 alone when there are many."""
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axes.set(**{f"{which}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 2000 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float, position: int | None = None) -> str:
    return f"{value:g}"


def _title(axes: Axes, text: str, curve: Curve) -> None:
    axes.set_title(f"{text}\n{curve.device}, {curve.conditions}")


def _legends(axes: Axes, curves: Sequence[Curve], alphas: Sequence[float]) -> None:
    colours = [_handle(COLOURS[curve.precision], "o", curve.precision) for curve in curves]
    markers = [
        _handle("#666666", MARKERS[number % len(MARKERS)], f"α = {alpha:g}")
        for number, alpha in enumerate(alphas)
    ]
    axes.add_artist(axes.legend(handles=colours, loc="upper left"))
    axes.legend(handles=markers, loc="lower right")


def _handle(colour: str, marker: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="", markersize=6, label=label)
