"""How close quantised files stay to ONNX Runtime's float32 network: recipe by recipe, and step by step.

Each figure is remembered with all it depends on (network, images, recipe, the code that quantises), so that
measuring again measures what has changed and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from device_bench.records import from_plain, read_json, to_plain, write_json
from export.check import audit_delegate, check_delegate
from export.runtime import load_tflite_predictor
from pipeline.artifacts import AlpharhoError, UsageError, write_bytes
from pipeline.convert import Calibration, convert_graph
from pipeline.data import normalise
from pipeline.evaluate import accuracy_of, batched
from pipeline.measures import Quality, compare, in_batches, reference_logits
from pipeline.photographs import FOLDER
from pipeline.source_digest import source_digest
from pipeline.subjects import Subject, subject_named
from pipeline.summary import aligned
from quantize.int8 import Io
from quantize.recipes import FLOAT_PARTS, RECIPES, Recipe

# Fields of a recipe that change what a file answers.
STEPS = ("graph_passes", "float_parts", "layer_passes", "final_passes")
ONE_SCALE = "one scale per weight tensor, nothing else"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One file on one split; `top1` in percent where the test images have labels."""

    label: str
    split: int
    quality: Quality
    top1: float | None
    partitions: int
    size_bytes: int
    sha256: str
    seconds: float  # to convert, calibration included


def measured(
    subject: Subject,
    label: str,
    recipe: Recipe,
    number: int,
    precision: str = "int8",
    folder: Path = FOLDER,
) -> Measurement:
    """As `measure`, but read from `folder` where the same has been measured before."""
    how = json.dumps([precision, to_plain(recipe)], sort_keys=True)
    parts = (digest(subject, number), how, source_digest())
    path = folder / "measured" / f"{sha256(' '.join(parts).encode()).hexdigest()[:24]}.json"
    if not path.is_file():
        write_json(path, to_plain(measure(subject, label, recipe, number, precision, folder)))
    return replace(from_plain(Measurement, read_json(path), str(path)), label=label)


def measure(
    subject: Subject, label: str, recipe: Recipe, number: int, precision: str, folder: Path
) -> Measurement:
    """Convert with the split's calibration side, run the file on its test side, compare with ONNX Runtime.

    CheckError when the file is more than one delegate partition.
    """
    part = subject.splits[number]
    started = time.perf_counter()
    content = converted(subject, recipe, number, precision)
    seconds = time.perf_counter() - started
    with tempfile.TemporaryDirectory(prefix="alpharho-") as place:
        path = Path(place) / f"{precision}.tflite"
        write_bytes(path, content)
        audit = audit_delegate(path)
        check_delegate(audit, path)
        found = in_batches(load_tflite_predictor(path, normalise), part.test)
    return Measurement(
        label=label,
        split=number,
        quality=compare(found, reference_logits(subject.model, part.test, folder)),
        top1=None if part.labels is None else accuracy_of(found, part.labels).top1,
        partitions=audit.partitions,
        size_bytes=len(content),
        sha256=sha256(content).hexdigest(),
        seconds=round(seconds, 1),
    )


def converted(subject: Subject, recipe: Recipe, number: int, precision: str) -> bytes:
    """The network's .tflite file, calibrated on the split's calibration side."""
    calibration = Calibration(batched(normalise(subject.splits[number].calibration)), recipe, Io())
    return convert_graph(precision, subject.graph(), calibration).content


def digest(subject: Subject, number: int) -> str:
    """Of the network and the split's images."""
    part = subject.splits[number]
    content = sha256(subject.model.SerializeToString())
    for images in (part.calibration, part.test):
        content.update(images.tobytes())
    return f"{content.hexdigest()} {number}"


# --- the ablation -------------------------------------------------------------------------------------------


def without(recipe: Recipe, field: str, entry: str) -> Recipe:
    """The recipe with one entry of one of its tuples left out."""
    return replace(recipe, **{field: tuple(name for name in getattr(recipe, field) if name != entry)})  # type: ignore[arg-type]  # the tuples are all of strings


def ablation() -> dict[str, Recipe]:
    """The default recipe, it without each of its steps, with other rules, the other recipes, and no step."""
    full, plain = RECIPES["int8"], RECIPES["int8_min_max"]
    rows = {"int8": full}
    for field in STEPS:
        rows |= {f"without {step}": without(full, field, step) for step in getattr(full, field)}
    rows |= {f"ranges {rule}": replace(full, ranges=rule) for rule in ("percentile", "mse")}
    for part in [name for name in FLOAT_PARTS if name not in full.float_parts]:
        rows[f"{part} in float too"] = replace(full, float_parts=(*full.float_parts, part))
    rows |= {name: recipe for name, recipe in RECIPES.items() if recipe not in (full, plain)}
    rows[ONE_SCALE] = replace(plain, weights="per_tensor")
    return rows | {"int8_min_max": plain}


# --- the command --------------------------------------------------------------------------------------------

HEAD = (
    "recipe",
    "split",
    "agree %",
    "confident %",
    "top-5 %",
    "KL",
    "SQNR dB",
    "top-1 %",
    "bytes",
    "s",
)


def row(found: Measurement) -> tuple[str, ...]:
    """The measurement's cells under HEAD."""
    quality = found.quality
    return (
        found.label,
        str(found.split),
        f"{quality.agreement:.1f}",
        "" if quality.confident_agreement is None else f"{quality.confident_agreement:.1f}",
        f"{quality.top5_overlap:.1f}",
        f"{quality.kl:.3f}",
        f"{quality.sqnr_db:.2f}",
        "" if found.top1 is None else f"{found.top1:.2f}",
        f"{found.size_bytes:,}",
        f"{found.seconds:.0f}",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m pipeline.quality [NETWORK] [--recipe NAME ... | --ablation] [--splits N ...]`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.quality", description=main.__doc__)
    parser.add_argument(
        "network", nargs="?", default="v2", help="v2 (ImageNet), a shipped one or FILE (%(default)s)"
    )
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=["int8", "int8_full"])
    parser.add_argument("--ablation", action="store_true", help="every step of the default recipe on and off")
    parser.add_argument("--splits", type=int, nargs="+", help="numbers of the splits (default: all)")
    parser.add_argument("--out", type=Path, help="JSON file to write (build/quality/NETWORK.json)")
    parsed = parser.parse_args(arguments)
    try:
        _report(parsed)
    except AlpharhoError as error:
        print(f"pipeline.quality: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _report(parsed: argparse.Namespace) -> None:
    subject = subject_named(parsed.network)
    recipes = ablation() if parsed.ablation else {name: RECIPES[name] for name in parsed.recipe}
    numbers = range(len(subject.splits)) if parsed.splits is None else parsed.splits
    if wrong := [number for number in numbers if number not in range(len(subject.splits))]:
        raise UsageError(f"there is no split {wrong[0]}; {parsed.network} has {len(subject.splits)}")
    found = []
    for label, recipe in recipes.items():
        for number in numbers:
            found.append(measured(subject, label, recipe, number))
            print(f"split {number}: {label}", file=sys.stderr, flush=True)
    print(aligned([HEAD, *map(row, found)]))
    ending = ".ablation.json" if parsed.ablation else ".json"
    write_json(parsed.out or FOLDER / f"{subject.name}{ending}", to_plain(found))


if __name__ == "__main__":
    sys.exit(main())
