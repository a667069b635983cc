"""Where an 8-bit model loses what its float model knows: error by layer, ranges by channel, and advice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from export.graph import Graph
from export.run import Program

Values = Mapping[str, NDArray[np.float32]]

LOSSY_DB, CLIPPED_SHARE, UNEVEN, SHIFTED = 20.0, 0.001, 8.0, 0.1
EPSILON = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One tensor of the 8-bit model against the float model's, all errors upstream included.

    `sqnr_db` is of all values; `clipped` the share of float values beyond the grid; `shift` the size of the
    channels' mean errors, of the size of the values; `unevenness` the widest channel's range over the
    median's.
    """

    name: str
    op: str
    sqnr_db: float
    clipped: float
    shift: float
    unevenness: float


@dataclass(frozen=True, slots=True)
class Advice:
    """A symptom that a layer shows, what causes it, and what helps."""

    symptom: str
    cause: str
    remedy: str
    shows: Callable[[LayerReport], bool]


ADVICE = (
    Advice(
        "many float values lie beyond the 8-bit grid",
        "the calibration images do not show what the test images do, or the range rule cuts",
        "calibrate on more and more varied images; use min/max ranges",
        lambda layer: layer.clipped > CLIPPED_SHARE,
    ),
    Advice(
        "a few channels are much wider than the others",
        "one scale has to serve all channels of the tensor",
        "use a recipe with the pass equalize",
        lambda layer: layer.unevenness > UNEVEN and layer.sqnr_db < LOSSY_DB,
    ),
    Advice(
        "channel means are off",
        "weight rounding and clipping push whole channels to one side",
        "use a recipe with bias_correction",
        lambda layer: layer.shift > SHIFTED,
    ),
    Advice(
        "the residual sum is noisy",
        "every addition rounds the stream once more",
        "add residual_sums to the recipe's float parts",
        lambda layer: layer.op == "ADD" and layer.sqnr_db < LOSSY_DB,
    ),
    Advice(
        "the squeeze-and-excite product is noisy",
        "the gate's error multiplies the whole map",
        "add gates to the recipe's float parts",
        lambda layer: layer.op == "MUL" and layer.sqnr_db < LOSSY_DB,
    ),
)


def diagnose(exact: Graph, quantized: Graph, images: NDArray[np.float32]) -> list[LayerReport]:
    """A report for every 8-bit tensor that the float graph computes too, in execution order.

    `exact` is the float graph that `quantized` was made from (after equalisation), `images` float32
    [N, H, W, C].
    """
    wanted, found = (_values(graph, images) for graph in (exact, quantized))
    grids, readers = Program(quantized).grids, exact.consumers()
    reports = []
    for node in exact.nodes:
        name = next((name for name in (node.output, f"{node.output}/int8") if name in grids), None)
        if name is not None and name in found:
            grid = grids[name]
            bounds = grid.low * float(grid.scale), grid.high * float(grid.scale)
            values = wanted[node.output]
            if {reader.op for reader in readers[node.output]} == {"HARD_SWISH"}:
                values = np.maximum(values, np.float32(bounds[0]))  # cut on purpose: it is zero from there
            reports.append(_report(node.output, node.op, values, found[name], bounds))
    return reports


def _values(graph: Graph, images: NDArray[np.float32]) -> Values:
    seen: dict[str, NDArray[np.float32]] = {}
    Program(graph)(images, lambda name, values: seen.update({name: values.cpu().numpy().copy()}))
    return seen


def _report(
    name: str,
    op: str,
    wanted: NDArray[np.float32],
    found: NDArray[np.float32],
    bounds: tuple[float, float],
) -> LayerReport:
    rows, others = (values.reshape(-1, values.shape[-1]).astype(np.float64) for values in (wanted, found))
    error = others - rows
    signal = float(np.square(rows).mean())
    step = (bounds[1] - bounds[0]) / 255
    widths = np.ptp(rows, axis=0)
    alive = widths[widths > 0]
    return LayerReport(
        name=name,
        op=op,
        sqnr_db=float(10 * np.log10((signal + EPSILON) / (np.square(error).mean() + EPSILON))),
        clipped=float(((rows < bounds[0] - step) | (rows > bounds[1] + step)).mean()),
        shift=float(np.sqrt(np.square(error.mean(0)).mean() / (signal + EPSILON))),
        unevenness=float(alive.max() / np.median(alive)) if len(alive) else 1.0,
    )


def worst(reports: list[LayerReport], count: int = 5) -> list[LayerReport]:
    """The layers at which most is lost: largest falls of the SQNR from the layer before, largest first."""
    falls = {after.name: before.sqnr_db - after.sqnr_db for before, after in pairwise(reports)}
    return sorted(reports[1:], key=lambda report: -falls[report.name])[:count]


def advise(reports: list[LayerReport]) -> list[tuple[Advice, list[str]]]:
    """Every row of ADVICE that applies, with the names of the layers that show its symptom."""
    found = [(advice, [report.name for report in reports if advice.shows(report)]) for advice in ADVICE]
    return [(advice, names) for advice, names in found if names]


def range_picture(before: Graph, after: Graph, images: NDArray[np.float32]) -> str:
    """An SVG: for every layer the channels' activation ranges before (grey) and after equalisation (blue).

    One row a layer, one line from the 10th to the 90th percentile of the channels' widths, in parts of the
    widest channel of the layer, with a mark at the median.
    """
    columns = [_widths(graph, images) for graph in (before, after)]
    names = [name for name in columns[0] if name in columns[1]]
    rows = [_row(i, name, columns[0][name], columns[1][name]) for i, name in enumerate(names)]
    height = ROW * len(names) + 2 * ROW
    return "\n".join(
        (f'<svg xmlns="http://www.w3.org/2000/svg" width="640" height="{height}" {FONT}>', *rows, "</svg>\n")
    )


ROW, LEFT, WIDTH = 14, 280, 340
FONT = 'font-family="sans-serif" font-size="10"'


def _widths(graph: Graph, images: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    found = {}
    for name, values in _values(graph, images).items():
        widths = np.ptp(values.reshape(-1, values.shape[-1]), axis=0).astype(np.float64)
        found[name] = widths / max(float(widths.max()), EPSILON)
    return found


def _row(i: int, name: str, before: NDArray[np.float64], after: NDArray[np.float64]) -> str:
    y = ROW * (i + 1)
    text = name.replace("&", "&amp;").replace("<", "&lt;")
    parts = [f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{text}</text>']
    for offset, colour, values in ((-2, "#888", before), (2, "#1f6feb", after)):
        low, middle, high = (LEFT + WIDTH * part for part in np.quantile(values, (0.1, 0.5, 0.9)))
        line = y + offset
        parts.append(
            f'<path d="M{low:.1f} {line}H{high:.1f}M{middle:.1f} {line - 2}V{line + 2}" stroke="{colour}"/>'
        )
    return "".join(parts)
