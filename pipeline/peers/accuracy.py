"""Table 3: MobileNetV2's ImageNet weights in int8 by each maker, calibrated and tested on the same crops."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from device_bench.records import from_plain, read_json, to_plain, write_json
from export.runtime import Logits, run_onnx, run_tflite
from pipeline import photographs
from pipeline.artifacts import AlpharhoError, write_array, write_bytes
from pipeline.data import normalise
from pipeline.measures import Quality, compare, reference_logits
from pipeline.peers import environments
from pipeline.peers.conversion import (
    MAKERS,
    OUR_SCRIPT,
    OURS,
    Maker,
    Say,
    Wanted,
    code_of,
    request_of,
    write_network,
)
from pipeline.peers.static_onnx import quantize_static
from pipeline.photographs import PHOTOGRAPHS, Split
from pipeline.subjects import Subject, photographed

MODEL, PADDING = "v2", "torch"  # torchvision's network
SPLITS = range(len(PHOTOGRAPHS))

CONTENDERS: Mapping[str, Maker] = {
    OURS: MAKERS[OURS],
    "alpharho_full": Maker(shown="alpharho", script=OUR_SCRIPT, options={"recipe": "int8_full"}),
    "litert": Maker(
        shown="litert-quantizer, its own calibration",
        script="convert_litert_torch",
        environment="litert_torch",
        options={"calibrated": "default"},
    ),
    "litert_min_max": Maker(
        shown="litert-quantizer, min/max calibration",
        script="convert_litert_torch",
        environment="litert_torch",
        options={"calibrated": "min_max"},
    ),
    "onnx2tf": MAKERS["onnx2tf"],
    "onnxruntime": Maker(shown="ONNX Runtime, static QDQ, min/max", script=""),  # in the project's own
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """One contender's int8 file on one split; `code` as in `Conversion`, `refused` says why there is none."""

    contender: str
    split: int
    quality: Quality | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    refused: str = ""

    @property
    def is_current(self) -> bool:
        """Whether it is of a peer, or of this project's code as it is now."""
        return self.code == code_of(CONTENDERS[self.contender])


def recorded(contender: str, split: int, folder: Path) -> Accuracy | None:
    """What was found earlier, None where nothing was."""
    path = _place(contender, split, folder) / "accuracy.json"
    return from_plain(Accuracy, read_json(path), str(path)) if path.is_file() else None


def measure_missing(folder: Path, wanted: Wanted, say: Say) -> None:
    """Measure what has no record of the code as it is, or all that is `wanted` again, split by split."""
    known = {each: recorded(*each, folder) for each in product(CONTENDERS, SPLITS)}
    chosen = [
        (contender, number)
        for (contender, number), found in known.items()
        if wanted.wants(CONTENDERS[contender], found is not None and found.is_current)
    ]
    if not chosen:
        return
    subject = photographed()
    for contender, number in chosen:
        say(f"split {number} by {CONTENDERS[contender].with_recipe}")
        found = _measured(contender, number, subject, folder)
        write_json(_place(contender, number, folder) / "accuracy.json", to_plain(found))


def _measured(contender: str, number: int, subject: Subject, folder: Path) -> Accuracy:
    part, out, who = subject.splits[number], _place(contender, number, folder), CONTENDERS[contender]
    source = _prepared(subject, number, folder)
    out.mkdir(parents=True, exist_ok=True)
    try:
        logits, versions = _logits(who, source, out, part)
    except AlpharhoError as error:
        return Accuracy(contender=contender, split=number, code=code_of(who), refused=str(error))
    quality = compare(logits, reference_logits(subject.model, part.test))
    return Accuracy(contender=contender, split=number, quality=quality, versions=versions, code=code_of(who))


def _logits(who: Maker, source: Path, out: Path, part: Split) -> tuple[Logits, dict[str, str]]:
    """Logits of the test crops by the contender's file, and the versions that made it."""
    images = normalise(part.test)
    if not who.script:
        target = out / "int8.onnx"
        quantize_static(source / "model.onnx", target, normalise(part.calibration))
        return run_onnx(target, images), {}
    python = environments.python_of(who.environment) if who.environment else Path(sys.executable)
    request = {**request_of(MODEL, source, out, PADDING), **who.options}
    answer = environments.ask([str(python)], who.script, request)
    return run_tflite(out / "int8.tflite", images), answer["versions"]


def _prepared(subject: Subject, number: int, folder: Path) -> Path:
    """The folder with the network's weights and ONNX file, and the split's calibration crops."""
    target = folder / "accuracy" / str(number)
    if not (target / "model.onnx").is_file():
        write_network(photographs.imagenet_module(MODEL), target)
        crops = subject.splits[number].calibration
        # Photographs in turn would favour the last one where a peer keeps a moving average.
        shuffled = crops[np.random.default_rng(number).permutation(len(crops))]
        write_array(target / "calibration.npy", normalise(shuffled))
        write_bytes(target / "model.onnx", subject.model.SerializeToString())
    return target


def _place(contender: str, split: int, folder: Path) -> Path:
    return folder / "accuracy" / str(split) / contender
