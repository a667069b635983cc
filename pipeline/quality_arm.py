"""What ARM kernels make of the photographs: float16 in real half precision, and int8, against float32.

`python -m pipeline.quality_arm` runs MobileNetV2's files on an emulated core, some crops at a time; what is
done stays done, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np

from device_bench.emulated import CORES, EmulatedDevice
from export.runtime import Logits, dequantised, input_values
from pipeline.artifacts import AlpharhoError, CheckError, UsageError, write_array, write_bytes
from pipeline.data import Images, normalise
from pipeline.evaluate import batched
from pipeline.measures import Quality, compare, reference_logits
from pipeline.photographs import FOLDER, SEED
from pipeline.quality import converted, measured
from pipeline.subjects import Subject, photographed
from pipeline.summary import aligned
from quantize.recipes import RECIPES

PRECISIONS = ("float16", "int8")
CHUNK = 15  # crops in one process of the emulator
CORE = "cortex-a76"
LEAST: Mapping[str, float] = {"float16": 98.0}  # percent of all crops that must agree with float32
EVERY = "all"
HEAD = ("file", "split", "crops", "agree %", "confident %", "SQNR dB", "at least %", "verdict")
Array = TypeVar("Array", Images, Logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnCore:
    """A precision's files by the kernels of a core against ONNX Runtime's float32, on crops of a split."""

    precision: str
    split: str  # its number, or EVERY for the crops of all splits
    quality: Quality

    @property
    def verdict(self) -> str:
        """`reached` or `missed`, of all crops; empty of a split, and where nothing is asked."""
        if self.precision not in LEAST or self.split != EVERY:
            return ""
        return "reached" if self.quality.agreement >= LEAST[self.precision] else "missed"


def place(sha: str, crops: Images, core: str, folder: Path = FOLDER) -> Path:
    """Where the logits of the file with this SHA-256 on some crops are remembered."""
    return folder / core / f"{sha256(sha.encode() + crops.tobytes()).hexdigest()[:24]}.npy"


def chunks(images: Images) -> list[Images]:
    """The crops as one process of the emulator after the other runs them."""
    return batched(images, CHUNK)


def logits_on(core: str, content: bytes, images: Images, folder: Path = FOLDER) -> Logits:
    """Logits of a .tflite file's content by the kernels of an emulated core, remembered chunk by chunk.

    DeviceError where the emulator is not set up.
    """
    sha = sha256(content).hexdigest()
    with EmulatedDevice(core=core) as device, tempfile.TemporaryDirectory(prefix="alpharho-") as temporary:
        file, inputs, outputs = (Path(temporary) / name for name in ("model.tflite", "in.npy", "out.npy"))
        write_bytes(file, content)
        for number, crops in enumerate(chunks(images), start=1):
            there = place(sha, crops, core, folder)
            if not there.is_file():
                np.save(inputs, input_values(file, crops, normalise))
                device.outputs(file, inputs, outputs)
                raw = np.load(outputs, allow_pickle=False).reshape(len(crops), -1)
                write_array(there, dequantised(file, raw))
                print(f"{core}: {number} of {len(chunks(images))} parts", file=sys.stderr, flush=True)
    return remembered(core, sha, images, folder)


def remembered(core: str, sha: str, images: Images, folder: Path = FOLDER) -> Logits:
    """The logits of all parts of the crops up to the first that has not been run, float32 [done, classes]."""
    done: list[Logits] = []
    for crops in chunks(images):
        there = place(sha, crops, core, folder)
        if not there.is_file():
            break
        done.append(np.asarray(np.load(there, allow_pickle=False), np.float32))
    return np.concatenate(done) if done else np.empty((0, 0), np.float32)


def measure_on(
    core: str, subject: Subject, precision: str, splits: Sequence[int], crops: int
) -> list[OnCore]:
    """A precision's files by the kernels of `core`, on some crops a split; what is missing is run."""
    parts = {}
    for number in splits:
        images = spread(subject.splits[number].test)[:crops]
        content = converted(subject, RECIPES["int8"], number, precision)
        reference = reference_logits(subject.model, subject.splits[number].test)
        parts[number] = logits_on(core, content, images), spread(reference)[:crops]
    return compared(precision, parts)


def done_on(core: str, subject: Subject) -> list[OnCore]:
    """What is remembered of the files that this code makes; nothing is run on the core."""
    tests = [spread(part.test) for part in subject.splits]
    references = [spread(reference_logits(subject.model, part.test)) for part in subject.splits]
    found = []
    for precision in PRECISIONS:
        parts = {}
        for number, (images, reference) in enumerate(zip(tests, references, strict=True)):
            sha = measured(subject, precision, RECIPES["int8"], number, precision).sha256
            logits = remembered(core, sha, images)
            if len(logits):
                parts[number] = logits, reference[: len(logits)]
        found += compared(precision, parts)
    return found


def compared(precision: str, parts: Mapping[int, tuple[Logits, Logits]]) -> list[OnCore]:
    """A core's logits and the reference's, split by split and of all splits together."""
    if not parts:
        return []
    together = [np.concatenate(logits) for logits in zip(*parts.values(), strict=True)]
    pairs = {**{str(number): pair for number, pair in parts.items()}, EVERY: together}
    return [OnCore(precision=precision, split=split, quality=compare(*pair)) for split, pair in pairs.items()]


def row(core: str, found: OnCore) -> tuple[str, ...]:
    """The cells under HEAD."""
    quality, verdict = found.quality, found.verdict
    return (
        f"{found.precision} on {core}",
        found.split,
        str(quality.crops),
        f"{quality.agreement:.1f}",
        "" if quality.confident_agreement is None else f"{quality.confident_agreement:.1f}",
        f"{quality.sqnr_db:.2f}",
        f"{LEAST[found.precision]:g}" if verdict else "",
        verdict,
    )


def check(found: Sequence[OnCore]) -> None:
    """CheckError that names every precision that agrees on fewer crops than it must."""
    missed = [
        f"{one.precision} agrees on {one.quality.agreement:.1f} %, {LEAST[one.precision]:g} are the least"
        for one in found
        if one.verdict == "missed"
    ]
    if missed:
        raise CheckError(f"{'; '.join(missed)}; look at the layers with python -m pipeline diagnose v2")


def spread(rows: Array) -> Array:
    """All rows, one a crop, in an order whose beginning is of all photographs; the same each time."""
    return rows[np.random.default_rng(SEED).permutation(len(rows))]


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m pipeline.quality_arm [--core CORE] [--split N ...] [--crops N] [--precision NAME ...]`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.quality_arm", description=main.__doc__)
    parser.add_argument("--core", choices=CORES, default=CORE, help="(%(default)s)")
    parser.add_argument("--split", type=int, nargs="+", help="of the photographs (all)")
    parser.add_argument("--crops", type=int, default=180, help="test crops of a split, at most (%(default)s)")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parsed = parser.parse_args(arguments)
    try:
        subject = photographed()
        every = range(len(subject.splits))
        splits = parsed.split or every
        if not set(splits).issubset(every) or parsed.crops < 1:
            raise UsageError(f"splits go from 0 to {len(subject.splits) - 1}, and one crop is the least")
        found = [
            one
            for precision in parsed.precision
            for one in measure_on(parsed.core, subject, precision, splits, parsed.crops)
        ]
        print(aligned([HEAD, *(row(parsed.core, one) for one in found)]))
        check(found)
    except AlpharhoError as error:
        print(f"pipeline.quality_arm: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
