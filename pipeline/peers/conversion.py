"""Table 1: from the same module to float32 and int8 files, by this project and by its peers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import torch

import models
from device_bench.records import from_plain, read_json, to_plain, write_json
from export.to_onnx import to_onnx
from models.weights import save_weights
from pipeline.artifacts import AlpharhoError, write_array, write_bytes
from pipeline.data import REPOSITORY, normalise, open_fashion_mnist_sample
from pipeline.peers import environments
from pipeline.source_digest import source_digest
from pipeline.untrained import calibrate_norms
from pipeline.variant import IMAGENET_CLASSES, IMAGENET_RESOLUTION, PRECISIONS

NETWORKS = ("v2", "v3_small", "v1", "v3_large")
CALIBRATION_IMAGES = 20  # what onnx2tf takes when nothing is said
OURS = "alpharho"
OUR_SCRIPT = "convert_alpharho"
FOLDER = REPOSITORY / "build" / "compare"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Who converts: a script of this package, its environment (none: the project's own), what it is told.

    `does` says what its int8 is, beside the others'. The files of those that are compared are also measured.
    """

    shown: str
    script: str
    environment: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    does: str = ""
    starts_from_onnx: bool = False
    is_compared: bool = True

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's own script that converts."""
        return self.script == OUR_SCRIPT

    @property
    def with_recipe(self) -> str:
        """How it is called where makers differ in what they are told."""
        return f"{self.shown}, recipe {self.options['recipe']}" if self.is_ours else self.shown


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to measure: of all makers or `only_ours`, and `again` also what is known."""

    only_ours: bool = False
    again: bool = False

    def wants(self, maker: Maker, is_known: bool) -> bool:
        """Whether this maker's row is to be measured."""
        return (self.again or not is_known) and (maker.is_ours or not self.only_ours)


MAKERS: Mapping[str, Maker] = {
    "alpharho_min_max": Maker(
        shown="alpharho",
        script=OUR_SCRIPT,
        options={"recipe": "int8_min_max"},
        does="the same work as the peers'",
        is_compared=False,
    ),
    OURS: Maker(
        shown="alpharho",
        script=OUR_SCRIPT,
        options={"recipe": "int8"},
        does="the default, which does more",
    ),
    "litert_torch": Maker(
        shown="litert-torch + litert-quantizer", script="convert_litert_torch", environment="litert_torch"
    ),
    "onnx2tf": Maker(shown="onnx2tf", script="convert_onnx2tf", environment="onnx2tf", starts_from_onnx=True),
    "tensorflow": Maker(
        shown="TensorFlow (Keras network)", script="convert_tensorflow", environment="tensorflow"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """How one maker converted one network. `refused` says why there are no files.

    `onnx_seconds` is the export to ONNX, `seconds` the rest up to float32 and int8 on disk, imports apart;
    `onnx_cpu_seconds` and `cpu_seconds` are the same in time of processors, which other work disturbs less;
    `process_seconds` is the whole process, float16 included; `peak_bytes` its most memory before float16.
    `code` is the digest of the project's code that converted, empty for peers.
    """

    maker: str
    model: str
    onnx_seconds: float = 0.0
    seconds: float = 0.0
    onnx_cpu_seconds: float = 0.0
    cpu_seconds: float = 0.0
    process_seconds: float = 0.0
    peak_bytes: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    refused: str = ""

    @property
    def is_current(self) -> bool:
        """Whether it is of a peer, or of this project's code as it is now."""
        return self.code == code_of(MAKERS[self.maker])


def code_of(maker: Maker) -> str:
    """The digest of the code that converts, where that is ours; the pins decide what a peer does."""
    return source_digest() if maker.is_ours else ""


def prepared(model: str, folder: Path) -> Path:
    """The folder with the network's weights, its ONNX file and the calibration images, made when missing."""
    target = folder / model
    if not (target / "model.onnx").is_file():
        torch.manual_seed(0)
        pixels, _ = open_fashion_mnist_sample().calibration.take(
            range(CALIBRATION_IMAGES), IMAGENET_RESOLUTION
        )
        images = normalise(pixels)
        module = models.build(model, num_classes=IMAGENET_CLASSES)
        calibrate_norms(module, images)
        write_network(module, target)
        write_array(target / "calibration.npy", images)
        write_bytes(
            target / "model.onnx", to_onnx(models.deployed(module), IMAGENET_RESOLUTION).SerializeToString()
        )
    return target


def write_network(module: models.MobileNet, folder: Path) -> None:
    """The module's weights as `network.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(module, folder / "network.safetensors", {})


def request_of(model: str, folder: Path, out: Path, padding: str = "tf") -> dict[str, object]:
    """What every script is told of a prepared network."""
    return {
        "model": model,
        "classes": IMAGENET_CLASSES,
        "resolution": IMAGENET_RESOLUTION,
        "padding": padding,
        "weights": str(folder / "network.safetensors"),
        "onnx": str(folder / "model.onnx"),
        "calibration": str(folder / "calibration.npy"),
        "out": str(out),
    }


def convert(model: str, maker: str, folder: Path) -> Conversion:
    """Convert once, anew, in a process of its own; the record is also written beside the files.

    A peer that cannot convert is recorded with its reason; AlpharhoError where ours cannot, or where the
    peer's environment is not there.
    """
    source, out, who = prepared(model, folder), folder / model / maker, MAKERS[maker]
    python = environments.python_of(who.environment) if who.environment else Path(sys.executable)
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    try:
        answer = environments.ask(
            [str(python)], who.script, {**request_of(model, source, out), **who.options}
        )
    except AlpharhoError as error:
        if who.is_ours:
            raise
        found = Conversion(maker=maker, model=model, refused=str(error))
    else:
        sizes = {precision: (out / f"{precision}.tflite").stat().st_size for precision in PRECISIONS}
        found = Conversion(
            maker=maker,
            model=model,
            process_seconds=time.perf_counter() - started,
            sizes=sizes,
            code=code_of(who),
            **answer,
        )
    write_json(out / "conversion.json", to_plain(found))
    return found


def measure_missing(folder: Path, wanted: Wanted, say: Say) -> None:
    """Convert what has no record of the code as it is, or all that is `wanted` again."""
    for model, maker in product(NETWORKS, MAKERS):
        known = recorded(model, maker, folder)
        if wanted.wants(MAKERS[maker], known is not None and known.is_current):
            say(f"{model} by {MAKERS[maker].with_recipe}")
            convert(model, maker, folder)


def recorded(model: str, maker: str, folder: Path) -> Conversion | None:
    """The record of an earlier conversion, None where there is none."""
    path = folder / model / maker / "conversion.json"
    return from_plain(Conversion, read_json(path), str(path)) if path.is_file() else None
