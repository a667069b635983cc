"""`manifest.json`: the one record of an exported variant, each number tied to a file's sha256."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from device_bench.records import from_plain, read_json, to_plain, write_json
from export.check import DelegateAudit, Parity
from pipeline.artifacts import AlpharhoError, sha256_of

SCHEMA = 1  # 1: the first
FILE_NAME = "manifest.json"
VERSIONED = ("torch", "onnx", "onnxruntime", "ai-edge-litert", "numpy", "flatbuffers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Where the trained weights came from; "" for what nobody says. `recognised` is a name of SOURCES."""

    source: str
    sha256: str
    recognised: str = "alpharho"
    licence: str = ""
    trained_on: str = ""
    licence_of_data: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A written file; `path` is relative to the manifest, `seconds` the time of its stage."""

    path: str
    sha256: str
    bytes: int
    seconds: float

    @classmethod
    def of(cls, path: Path, started: float) -> Artifact:
        """The record of a file just written by a stage that began at `started` (time.perf_counter)."""
        seconds = round(time.perf_counter() - started, 3)
        return cls(path=path.name, sha256=sha256_of(path), bytes=path.stat().st_size, seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Percent of `samples` test images whose label is first, or among the first five."""

    top1: float
    top5: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """How the int8 file was made."""

    recipe: str
    calibration_images: int
    input: str
    output: str
    report: Mapping[str, object] = field(default_factory=dict)  # as quantize.recipes.QuantizedModel has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything known of one exported variant. Keys of the mappings are stage names, in pipeline order.

    `accuracy` is empty where the pictures had no labels (`dataset` "none").
    """

    variant: str
    model: str
    alpha: float
    rho: float
    resolution: int
    dataset: str
    num_classes: int
    seed: int
    versions: Mapping[str, str] = field(default_factory=lambda: {name: version(name) for name in VERSIONED})
    weights: Weights
    macs: int
    params: int
    artifacts: Mapping[str, Artifact]
    accuracy: Mapping[str, Accuracy]
    agreement: Mapping[str, float]
    parity: Mapping[str, Parity]
    delegate: Mapping[str, DelegateAudit]
    quantised: Quantised


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What is known of a converted file: no labels, so parity with ONNX Runtime instead of accuracy."""

    source: str
    source_sha256: str
    recipe: str
    calibration_images: int
    report: Mapping[str, object]
    artifacts: Mapping[str, Artifact]
    parity: Mapping[str, Parity]
    delegate: Mapping[str, DelegateAudit]


def save(manifest: Manifest, folder: Path) -> None:
    """Write `folder/manifest.json`, whole or not at all."""
    write_json(folder / FILE_NAME, {"schema": SCHEMA, **to_plain(manifest)})


def load(path: Path) -> Manifest:
    """The manifest in the file `path`; AlpharhoError if it is missing, damaged or of another schema."""
    plain = read_json(path)
    if not isinstance(plain, dict) or plain.pop("schema", None) != SCHEMA:
        raise AlpharhoError(
            f"{path}: not a manifest of schema {SCHEMA}; run 'python -m pipeline export' again"
        )
    return from_plain(Manifest, plain, str(path))
