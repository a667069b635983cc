"""The gate of CI: quantised accuracy and instruction counts of the shipped networks, held to `baselines/`.

Accuracy is compared image by image with the recorded run (McNemar's test for paired samples), because two
percentages of the same images say little of what changed. A drop is REGRESSED when it is significant. A run
is OK only when a drop beyond the tolerance can be ruled out; INCONCLUSIVE, which fails too, means that the
images are too few to tell. A file that is recorded and no longer made fails by name, and so does a
comparison with a run on other images.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_bench import baseline as instruction_baseline
from device_bench.device import DeviceError, Measurement, ResultClass, connect, default_spec
from device_bench.measure import measure
from device_bench.records import from_plain, read_json, to_plain, write_json
from export.runtime import load_tflite_predictor
from models.weights import read_metadata
from pipeline.artifacts import AlpharhoError, CheckError
from pipeline.data import Split, normalise, open_dataset
from pipeline.evaluate import BATCH, predict
from pipeline.job import SHIPPED_WEIGHTS, Request, export
from pipeline.manifest import Manifest
from pipeline.summary import aligned
from pipeline.variant import BUILD, PRECISIONS

BASELINES = Path(__file__).resolve().parent.parent / "baselines"
ACCURACY, INSTRUCTIONS = BASELINES / "accuracy.json", BASELINES / "instructions.json"
CORES = ("cortex-a72", "cortex-a76")
LEVEL = 0.05  # of significance, one-sided
TOLERANCE_POINTS = 0.5  # of top-1, that may go unnoticed


@dataclass(frozen=True, slots=True)
class Recorded:
    """Which test images a file classified rightly: `bits` is the packed string of `samples` bits in hex.

    `images` is the SHA-256 of the pixels and labels, empty in a file of before it was kept.
    """

    samples: int
    bits: str
    images: str = ""

    @classmethod
    def of(cls, right: NDArray[np.bool_], images: str) -> Recorded:
        """The record of one flag an image, and the digest of the images."""
        return cls(len(right), np.packbits(right).tobytes().hex(), images)

    def right(self) -> NDArray[np.bool_]:
        """One flag an image. AlpharhoError for a damaged record."""
        try:
            packed = np.frombuffer(bytes.fromhex(self.bits), np.uint8)
        except ValueError as error:
            raise AlpharhoError(f"{ACCURACY}: bits are not hexadecimal; run make baseline") from error
        if len(packed) != math.ceil(self.samples / 8):
            raise AlpharhoError(
                f"{ACCURACY}: {len(packed)} bytes for {self.samples} images; run make baseline"
            )
        return np.unpackbits(packed, count=self.samples).astype(bool)


@dataclass(frozen=True, slots=True)
class AccuracyBaseline:
    """Recorded runs by `<variant>.<precision>`."""

    runs: Mapping[str, Recorded] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A paired comparison: images `lost` and `won` since the baseline, and what can be said of the drop.

    `p_value` is of McNemar's exact one-sided test, `most` the largest drop in points that cannot be ruled
    out, `detectable` the smallest that they would show, given this many changes.
    """

    key: str
    samples: int
    lost: int
    won: int
    p_value: float
    most: float
    detectable: float

    @property
    def word(self) -> str:
        """OK, REGRESSED or INCONCLUSIVE."""
        if self.p_value < LEVEL:
            return "REGRESSED"
        return "OK" if self.most <= TOLERANCE_POINTS else "INCONCLUSIVE"


def compared(key: str, recorded: Recorded, run: Recorded) -> Verdict:
    """McNemar's test of `run` against what is recorded. CheckError for other images."""
    check_images(key, recorded, run)
    before, now = recorded.right(), run.right()
    lost, won = int((before & ~now).sum()), int((~before & now).sum())
    per_image = 100 / len(now)
    return Verdict(
        key=key,
        samples=len(now),
        lost=lost,
        won=won,
        p_value=tail(lost, lost + won),
        most=most_lost(lost, won) * per_image,
        detectable=least_detectable(lost + won) * per_image,
    )


def check_images(key: str, recorded: Recorded, run: Recorded) -> None:
    """CheckError unless both are of the same test images and labels."""
    if recorded.samples != run.samples:
        raise CheckError(
            f"{key}: {run.samples} test images, the baseline has {recorded.samples}; run make baseline"
        )
    if not recorded.images:
        raise CheckError(f"{key}: {ACCURACY.name} does not say of which images it is; run make baseline")
    if recorded.images != run.images:
        raise CheckError(
            f"{key}: the baseline was recorded on other test images or labels ({recorded.images[:12]}, here "
            f"{run.images[:12]}), so nothing can be compared; put the images back, or run make baseline"
        )


def tail(lost: int, changed: int) -> float:
    """P(at least `lost` of `changed` images are losses) if losses and wins were equally likely."""
    return sum(math.comb(changed, k) for k in range(lost, changed + 1)) / (1 << changed)


def least_detectable(changed: int) -> int:
    """The smallest surplus of losses among `changed` images that the test calls significant; 5 with none."""
    changed = max(changed, 5)
    return next(2 * lost - changed for lost in range(changed + 1) if tail(lost, changed) < LEVEL)


def most_lost(lost: int, won: int) -> float:
    """Upper 95 % bound on the surplus of losses: the observed one and 1.645 standard deviations.

    With no change at all it is the rule of three: 3 unseen images.
    """
    return lost - won + 1.645 * math.sqrt(lost + won) if lost + won else 3.0


def shipped() -> Iterator[Request]:
    """An export request for every network that ships with weights."""
    for path in sorted(SHIPPED_WEIGHTS.glob("*.safetensors")):
        noted = read_metadata(path)
        dataset = open_dataset(noted["dataset"])
        rho = int(noted["resolution"]) / dataset.base_resolution
        yield Request(model=noted["model"], alpha=float(noted["alpha"]), rho=rho, dataset=noted["dataset"])


def recorded(manifest: Manifest, dataset: str) -> Iterator[tuple[str, Recorded]]:
    """The key and the record of the network's exported files, a precision after the other."""
    test = open_dataset(dataset).test
    images = digest(test, manifest.resolution)
    for precision in PRECISIONS:
        path = BUILD / manifest.variant / manifest.artifacts[precision].path
        predictor = load_tflite_predictor(path, normalise)
        logits, labels = predict(predictor, test, manifest.resolution, path.name)
        yield f"{manifest.variant}.{precision}", Recorded.of(logits.argmax(1) == labels, images)


def digest(test: Split, resolution: int) -> str:
    """SHA-256 of all pixels at `resolution` and all labels, in their order."""
    found = sha256()
    for pixels, labels in test.batches(BATCH, resolution):
        found.update(pixels.tobytes())
        found.update(labels.astype("<i8").tobytes())
    return found.hexdigest()


def count(manifests: Sequence[Manifest], cores: Sequence[str] = CORES) -> instruction_baseline.Baseline:
    """Instructions of every exported file on every core. DeviceError where the emulator is not set up."""
    found: dict[str, Measurement] = {}
    for core in cores:
        name = f"emulated:{core}"
        with connect(name) as device:
            for manifest in manifests:
                for precision in PRECISIONS:
                    path = BUILD / manifest.variant / manifest.artifacts[precision].path
                    (measurement,) = measure(device, [path], default_spec(name))
                    found[instruction_baseline.key(manifest.variant, precision, measurement)] = measurement
    return instruction_baseline.baseline_of(found)


def accuracies(manifests: Sequence[Manifest], requests: Sequence[Request]) -> AccuracyBaseline:
    """The record of every exported file."""
    return AccuracyBaseline(
        {
            key: record
            for manifest, request in zip(manifests, requests, strict=True)
            for key, record in recorded(manifest, request.dataset)
        }
    )


def load_accuracy(path: Path = ACCURACY) -> AccuracyBaseline:
    """The recorded runs, none where there is no file. AlpharhoError for a damaged one."""
    return from_plain(AccuracyBaseline, read_json(path), str(path)) if path.exists() else AccuracyBaseline()


def verdicts(before: AccuracyBaseline, now: AccuracyBaseline) -> list[Verdict]:
    """A verdict for every file. CheckError for one that was never recorded, or is recorded and gone."""
    if unknown := sorted(now.runs.keys() - before.runs.keys()):
        raise CheckError(
            f"no accuracy baseline of {', '.join(unknown)}; run make baseline and look at the change"
        )
    check_all_made("accuracy", before.runs, now.runs)
    return [compared(key, before.runs[key], run) for key, run in now.runs.items()]


def check_all_made(what: str, before: Collection[str], now: Collection[str]) -> None:
    """CheckError that names every key of a baseline that this run has no figure for."""
    if gone := sorted(set(before) - set(now)):
        raise CheckError(
            f"{what} baseline: {', '.join(gone)} recorded, but no longer made; put the network back under "
            f"{SHIPPED_WEIGHTS.name}/, or run make baseline if it is meant to go"
        )


def table(found: Sequence[Verdict]) -> str:
    """A row a file."""
    header = ("file", "images", "lost", "won", "p", "detectable points", "at most lost", "verdict")
    return aligned(
        [
            header,
            *(
                (
                    verdict.key,
                    str(verdict.samples),
                    str(verdict.lost),
                    str(verdict.won),
                    f"{verdict.p_value:.3f}",
                    f"{verdict.detectable:.2f}",
                    f"{verdict.most:.2f}",
                    verdict.word,
                )
                for verdict in found
            ),
        ]
    )


def check_accuracy(found: Sequence[Verdict]) -> None:
    """CheckError that names every file whose verdict is not OK."""
    bad = [f"{verdict.key} {verdict.word}" for verdict in found if verdict.word != "OK"]
    if bad:
        raise CheckError(
            f"accuracy gate: {', '.join(bad)}; mend the cause, or run make baseline if it is meant"
        )


def difference(before: AccuracyBaseline, after: AccuracyBaseline) -> str:
    """What a rewrite changes, one line a file: right images before and after."""
    lines = []
    for key in sorted(before.runs.keys() | after.runs.keys()):
        old, new = (
            f"{int(run.right().sum())} of {run.samples} right{_images(run)}" if run else "nothing"
            for run in (before.runs.get(key), after.runs.get(key))
        )
        if before.runs.get(key) != after.runs.get(key):
            lines.append(f"{key}: {old} -> {new}")
    return "\n".join(lines)


def _images(run: Recorded) -> str:
    return f", images {run.images[:12]}" if run.images else ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `gate`."""
    parser.add_argument(
        "--update", action="store_true", help="write the baselines anew and print what changes"
    )


def run(arguments: argparse.Namespace) -> int:
    """The verb `gate`: exports every shipped network, then checks (or rewrites) both baselines."""
    requests = list(shipped())
    if not requests:
        raise CheckError(f"{SHIPPED_WEIGHTS} holds no weights to check")
    manifests = [export(request, say=lambda line: print(line, file=sys.stderr)) for request in requests]
    now, counted = accuracies(manifests, requests), _counted(manifests)
    before, held = load_accuracy(), instruction_baseline.load(INSTRUCTIONS)
    if arguments.update:
        _update(before, now, held, counted)
        return 0
    found = verdicts(before, now)
    print(table(found))
    check_accuracy(found)
    if counted is not None:
        check_all_made("instruction", held.instructions, counted.instructions)
        instruction_baseline.check(held, counted)
        allowed = 100 * instruction_baseline.TOLERANCE
        print(f"instructions: {len(counted.instructions)} counts, none risen by more than {allowed:g} %")
    return 0


def _counted(manifests: Sequence[Manifest]) -> instruction_baseline.Baseline | None:
    """The counts; None, and a line that says so, on a person's machine that has no emulator."""
    try:
        return count(manifests)
    except DeviceError as error:
        if error.result is not ResultClass.NO_RUNTIME or os.environ.get("CI") == "true":
            raise
        print(f"instructions are not checked: {error.found}; set it up with make emulator")
        return None


def _update(
    before: AccuracyBaseline,
    now: AccuracyBaseline,
    held: instruction_baseline.Baseline,
    counted: instruction_baseline.Baseline | None,
) -> None:
    counts = instruction_baseline.difference(held, counted) if counted is not None else ""
    print("\n".join(filter(None, (difference(before, now), counts))) or "the baselines are as they were")
    write_json(ACCURACY, to_plain(now))
    if counted is not None:
        instruction_baseline.save(counted, INSTRUCTIONS)
