"""Symptom, cause, remedy: what a diagnosis means, and what of the recipe is still untried against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantize.diagnose import LayerReport
from quantize.recipes import RECIPES, Recipe

LOSSY_DB, FINE_DB = 20.0, 30.0
CLIPPED_SHARE, UNEVEN, SHIFTED, FEW_LEVELS, DEAD_SHARE = 0.001, 8.0, 0.1, 32.0, 0.05
NAMED = 3  # layers that a row names
LISTED = 2  # recipes that a remedy names
RESCUE = "see with --rescue what keeping {layer} in float gains and costs"


@dataclass(frozen=True, slots=True)
class Remedy:
    """Something to do, and the entry of a recipe that does it already."""

    entry: str
    text: str


@dataclass(frozen=True, slots=True)
class Symptom:
    """What may be wrong with layers: how to see it and to say it, what causes it, what helps, best first."""

    title: str
    shows: Callable[[LayerReport], bool]
    figure: Callable[[LayerReport], str]
    cause: str
    remedies: tuple[Remedy, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A symptom that this network shows, on which layers (worst first), with the figures measured there."""

    symptom: str
    layers: tuple[str, ...]
    figures: str
    cause: str
    remedy: str


def _alone(report: LayerReport) -> str:
    return f"{report.alone_db:.1f} dB alone"


# fmt: off
SYMPTOMS = (
    Symptom(
        "float values lie beyond the 8-bit grid",
        lambda r: r.clipped > CLIPPED_SHARE and r.alone_db < FINE_DB,
        lambda r: f"{100 * r.clipped:.2f} % of values clipped",
        "the calibration images do not show what the test images do, or the range rule cuts",
        (Remedy("min_max", "use the range rule min_max"),
         Remedy("", "calibrate on more images, and on images like those that will be seen")),
    ),
    Symptom(
        "a few channels of the result are much wider than the others",
        lambda r: r.unevenness > UNEVEN and r.alone_db < FINE_DB and not r.in_float,
        lambda r: f"widest channel {r.unevenness:.0f} x the median, {_alone(r)}",
        "one scale has to serve all channels of the tensor, the narrow ones get few levels",
        (Remedy("equalize", "use a recipe with the pass equalize"),
         Remedy("equalize_fully", "the pass equalize has done what is exact here; " + RESCUE)),
    ),
    Symptom(
        "rounding the weights is the layer's main loss",
        lambda r: r.weights_db < FINE_DB and r.weights_db < r.alone_db + 3,
        lambda r: f"{r.weights_db:.1f} dB with the weights alone in 8 bits, {_alone(r)}",
        "few taps average nothing out, or one scale serves unlike channels",
        (Remedy("per_channel", "use weights per_channel"),
         Remedy("compensated_rounding", "use a recipe with compensated_rounding"),
         Remedy("", RESCUE)),
    ),
    Symptom(
        "channel means are off",
        lambda r: r.shift > SHIFTED,
        lambda r: f"mean error {100 * r.shift:.0f} % of the values' size",
        "weight rounding and clipping push whole channels to one side",
        (Remedy("bias_correction", "use a recipe with bias_correction"),
         Remedy("", "calibrate on more images; " + RESCUE)),
    ),
    Symptom(
        "the residual sum is noisy",
        lambda r: r.op == "ADD" and r.sqnr_db < LOSSY_DB,
        lambda r: f"{r.sqnr_db:.1f} dB with all before it, {_alone(r)}",
        "every addition rounds the stream once more and brings its block's errors",
        (Remedy("residual_sums", "add residual_sums to the recipe's float parts"),
         Remedy("", "the sums are in float already: mend the blocks that feed them, worst first")),
    ),
    Symptom(
        "the squeeze-and-excite product is noisy",
        lambda r: r.op == "MUL" and r.sqnr_db < LOSSY_DB,
        lambda r: f"{r.sqnr_db:.1f} dB with all before it, {_alone(r)}",
        "the gate's error multiplies the whole map",
        (Remedy("gates", "add gates to the recipe's float parts, or let --rescue choose among them"),
         Remedy("", "the gates are in float already: mend the map that they multiply")),
    ),
    Symptom(
        "hard-swish sees few levels where it bends",
        lambda r: r.lobe_levels is not None and r.lobe_levels < FEW_LEVELS,
        lambda r: f"{r.lobe_levels or 0:.0f} of 256 levels between -3 and 0",
        "a long positive tail stretches the grid of hard-swish's input",
        (Remedy("mse", "try the range rule mse, which cuts tails that cost more than they hold"),
         Remedy("", RESCUE)),
    ),
    Symptom(
        "channels are dead",
        lambda r: r.dead > DEAD_SHARE,
        lambda r: f"{100 * r.dead:.0f} % of channels never change on these images",
        "training or the images leave them unused; they cost time, not accuracy",
        (Remedy("", "none: int8 loses nothing by them"),),
    ),
    Symptom(
        "no layer is bad alone, the errors add up",
        lambda r: r.sqnr_db < LOSSY_DB and r.alone_db > FINE_DB and r.op in ("FULLY_CONNECTED", "MEAN"),
        lambda r: f"{r.sqnr_db:.1f} dB with all before it, {_alone(r)}",
        "the depth of the network: each rounding is small, their sum is not",
        (Remedy("residual_sums", "add residual_sums to the recipe's float parts"),
         Remedy("bias_correction", "use a recipe with bias_correction"),
         Remedy("", "mend the worst layers above; the last layer itself is not the cause")),
    ),
)
# fmt: on


def advise(reports: Sequence[LayerReport], recipe: Recipe) -> list[Advice]:
    """Every symptom that the layers show, with the first remedy that the recipe does not hold already."""
    used = entries_of(recipe)
    found = []
    for symptom in SYMPTOMS:
        layers = sorted(filter(symptom.shows, reports), key=lambda report: report.alone_db)
        if not layers:
            continue
        first = layers[0]
        remedy = next((r for r in symptom.remedies if r.entry not in used), symptom.remedies[-1])
        found.append(
            Advice(
                symptom=symptom.title,
                layers=tuple(report.module for report in layers),
                figures="; ".join(f"{r.module}: {symptom.figure(r)}" for r in layers[:NAMED]),
                cause=symptom.cause,
                remedy=remedy.text.format(layer=first.module) + _where(remedy),
            )
        )
    return found


def entries_of(recipe: Recipe) -> set[str]:
    """Every pass, rule and form that a recipe names."""
    passes = (*recipe.graph_passes, *recipe.float_parts, *recipe.layer_passes, *recipe.final_passes)
    return {*passes, recipe.ranges, recipe.weights}


def _where(remedy: Remedy) -> str:
    """How to get at an entry of a recipe: which recipes have it, or that none has."""
    if not remedy.entry or RESCUE in remedy.text:
        return ""
    names = [name for name, recipe in RECIPES.items() if remedy.entry in entries_of(recipe)]
    if not names:
        return " (no recipe has that; a new one is a row of RECIPES in quantize/recipes.py)"
    return f" (--recipe {' or '.join(names[:LISTED])})"
