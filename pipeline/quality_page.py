"""`python -m pipeline.quality_page`: measures what docs/quantization.md says, and writes it.

What has been measured before with the same code, recipe, weights and images is not measured again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from pipeline.artifacts import AlpharhoError, write_text
from pipeline.data import REPOSITORY
from pipeline.families import HEAD as FAMILY_HEAD
from pipeline.families import LEAST_DB, MOST_LOST_POINTS, Member, member_of
from pipeline.families import row as family_row
from pipeline.machine import this_processor
from pipeline.markdown import markdown_table
from pipeline.quality import ONE_SCALE, Measurement, ablation, measured
from pipeline.quality_arm import CORE, LEAST, OnCore, done_on
from pipeline.subjects import Subject, photographed, shipped, subject_named, trained
from quantize.recipes import RECIPES

PAGE = REPOSITORY / "docs" / "quantization.md"
STEPPED = "v3_small"  # the Fashion-MNIST network of the ablation
AGREEMENT, CONFIDENT, PHOTOGRAPHS_DB = 85.0, 100.0, 16.0
PACKAGES = ("ai-edge-litert", "onnxruntime", "torch")


@dataclass(frozen=True, slots=True)
class Ablated:
    """A network and its measurements, by the label of a recipe, one a split."""

    subject: Subject
    rows: dict[str, list[Measurement]]


def ablated(subject: Subject) -> Ablated:
    """Every row of the ablation on every split; says each that it has."""
    rows = {}
    for label, recipe in ablation().items():
        rows[label] = [measured(subject, label, recipe, n) for n in range(len(subject.splits))]
        print(f"{subject.name}: {label}", file=sys.stderr, flush=True)
    return Ablated(subject, rows)


# --- the parts of the page ----------------------------------------------------------------------------------


def _machine() -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return f"{this_processor()} ({platform.machine()}), {versions}"


def _sure(found: Measurement) -> float | None:
    return found.quality.confident_agreement


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


QUALITY_HEAD = ("agree %", "confident %", "top-5 %", "KL", "SQNR dB", "bytes", "seconds")


def _quality(found: Measurement) -> tuple[str, ...]:
    quality = found.quality
    return (
        f"{quality.agreement:.1f}",
        _percent(quality.confident_agreement),
        f"{quality.top5_overlap:.1f}",
        f"{quality.kl:.3f}",
        f"{quality.sqnr_db:.2f}",
        f"{found.size_bytes:,}",
        f"{found.seconds:.0f}",
    )


def headline(found: Ablated) -> str:
    """The recipes on every split of the photographs."""
    named = {label: ones for label, ones in found.rows.items() if label in RECIPES}
    rows = [(label, str(one.split), *_quality(one)) for label, ones in named.items() for one in ones]
    return markdown_table(("recipe", "split", *QUALITY_HEAD), rows)


def steps(found: Ablated) -> str:
    """The ablation: means over the splits, and the SQNR's fall from the whole recipe."""
    whole = mean(one.quality.sqnr_db for one in next(iter(found.rows.values())))
    labelled = all(one.top1 is not None for ones in found.rows.values() for one in ones)
    rows = []
    for label, ones in found.rows.items():
        sure = [one for one in map(_sure, ones) if one is not None]
        db = mean(one.quality.sqnr_db for one in ones)
        cells = (
            f"{mean(one.quality.agreement for one in ones):.1f}",
            _percent(mean(sure) if sure else None),
            f"{mean(one.quality.top5_overlap for one in ones):.1f}",
            f"{mean(one.quality.kl for one in ones):.3f}",
            f"{db:.2f}",
            f"{db - whole:+.2f}",
            f"{mean(one.seconds for one in ones):.0f}",
        )
        top1 = (f"{mean(one.top1 or 0 for one in ones):.2f}",) if labelled else ()
        rows.append((label, *cells, *top1))
    head = ("", "agree %", "confident %", "top-5 %", "KL", "SQNR dB", "against all steps", "seconds")
    return markdown_table((*head, "top-1 %") if labelled else head, rows)


def per_tensor(found: Ablated) -> str:
    """What equalisation does for weights with one scale per tensor."""
    ones = [[one.quality for one in found.rows[label]] for label in (ONE_SCALE, "int8_per_tensor")]
    plain, equalised = (mean(quality.agreement for quality in of) for of in ones)
    decibels = [mean(quality.sqnr_db for quality in of) for of in ones]
    return (
        "Some accelerators take one scale for all weights of a layer. With nothing else MobileNetV2 then "
        f"agrees with float32 on {plain:.1f} % of the crops ({decibels[0]:.1f} dB); the recipe "
        "`int8_per_tensor`, which equalises the weights first, on "
        f"{equalised:.1f} % ({decibels[1]:.1f} dB)."
    )


def on_arm(runs: Sequence[OnCore]) -> str:
    """Runs on an emulated core, split by split; a line that says how, if there are none."""
    if not runs:
        return "Not measured with this code yet: `python -m pipeline.quality_arm`."
    rows = []
    for run in runs:
        sure = _percent(run.quality.confident_agreement)
        figures = (f"{run.quality.agreement:.1f}", sure, f"{run.quality.sqnr_db:.2f}")
        rows.append((run.precision, run.split, str(run.quality.crops), *figures))
    return markdown_table(("file", "split", "crops", "agree %", "confident %", "SQNR dB"), rows)


def targets(v2: Ablated, members: Sequence[Member], runs: Sequence[OnCore]) -> str:
    """The targets, what was found, and whether it is enough."""
    whole = [one.quality for one in next(iter(v2.rows.values()))]
    sure = [of.confident_agreement for of in whole if of.confident_agreement is not None]
    agreement, db = (min(getattr(of, name) for of in whole) for name in ("agreement", "sqnr_db"))
    difference = min(member.difference for member in members)
    rows = [
        _target("agreement with float32, worst split", AGREEMENT, agreement, "%"),
        _target("the same where float32 is confident", CONFIDENT, min(sure), "%"),
        _target("logit SQNR, worst split", PHOTOGRAPHS_DB, db, "dB"),
        _target("Fashion-MNIST: int8 less float32", -MOST_LOST_POINTS, difference, "points"),
        _target("Fashion-MNIST: logit SQNR, worst", LEAST_DB, min(m.sqnr_db for m in members), "dB"),
    ]
    for run in runs:
        if run.verdict:
            what = f"{run.precision} by {CORE}'s kernels, agreement on {run.quality.crops} crops"
            rows.append(_target(what, LEAST[run.precision], run.quality.agreement, "%"))
    return markdown_table(("", "at least", "found", "met"), rows)


def _target(what: str, least: float, found: float, unit: str) -> tuple[str, str, str, str]:
    met = "yes" if found >= least - 1e-9 else "**no**"
    return (what, f"{least:g} {unit}", f"{found:.2f} {unit}", met)


def page(v2: Ablated, small: Ablated, members: Sequence[Member]) -> str:
    """The whole document."""
    runs = done_on(CORE, v2.subject)
    parts = (
        "# Quantisation: what was measured",
        "Made by `make quality-docs`; do not edit. Figures are of files that the TFLite runtime runs, "
        f"against ONNX Runtime's float32, on {_machine()}. Agreement is the share of images with the same "
        "first class, *confident* where float32's softmax is above 0.5; top-5 is the overlap of the first "
        "five classes; KL of the softmax in nats; SQNR of the logits; seconds to convert with calibration, "
        "on a machine that did other work too.",
        "## Targets",
        targets(v2, members, runs),
        "## MobileNetV2 with ImageNet weights on photographs",
        "torchvision's weights; crops of 17 photographs in three groups. Each split calibrates on 256 crops "
        "of two groups and tests on 180 of the third (`pipeline/photographs.py`):",
        headline(v2),
        "Each step of the recipe on and off, means of the three splits:",
        steps(v2),
        "### One scale per weight tensor",
        per_tensor(v2),
        f"### On ARM kernels (emulated {CORE})",
        "float16 there computes in half precision; int8 uses the dot products of bytes.",
        on_arm(runs),
        f"## {small.subject.name} on {small.subject.images}",
        steps(small),
        "## Every network with weights at hand",
        "Top-1 on all test images (`python -m pipeline families`).",
        markdown_table(tuple(FAMILY_HEAD), [family_row(member) for member in members]),
    )
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m pipeline.quality_page [--weights FILE ...] [--out PAGE]`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.quality_page", description=main.__doc__)
    parser.add_argument("--weights", nargs="*", type=Path, default=[], help="checkpoints beside the shipped")
    parser.add_argument("--out", type=Path, default=PAGE, help="(%(default)s)")
    parsed = parser.parse_args(arguments)
    try:
        small, v2 = ablated(subject_named(STEPPED)), ablated(photographed())
        members = [member_of(trained(path)) for path in dict.fromkeys((*shipped(), *parsed.weights))]
        write_text(parsed.out, page(v2, small, members))
    except AlpharhoError as error:
        print(f"pipeline.quality_page: {error}", file=sys.stderr)
        return 1
    print(parsed.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
