"""MediaPipe Tasks, the strictest ordinary client, on our ImageNet files: same classes, same scores.

`python -m pipeline.peers.mediapipe_tasks` makes the environment, fetches weights and photographs, exports
MobileNetV2 and compares. The client runs without a network where Linux allows that without root (`unshare`).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.runtime import load_tflite_predictor
from pipeline import imagenet, photographs
from pipeline.artifacts import AlpharhoError, CheckError
from pipeline.data import REPOSITORY, Images, load_image, normalise
from pipeline.job import Request, export
from pipeline.peers import environments
from pipeline.progress import say
from pipeline.summary import aligned
from pipeline.variant import IMAGENET_RESOLUTION
from quantize.int8 import Io

ENVIRONMENT = "mediapipe"
FOLDER = REPOSITORY / "build" / "mediapipe_tasks"
OFFLINE = ("unshare", "--net", "--map-root-user")
FILES = ("float32", "int8")  # the second with bytes at both doors
TOLERANCE = {"float32": 1e-5, "int8": 0.0}  # MediaPipe's float kernels are another version's

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Answer:
    """What MediaPipe says of images: scores [N, classes], embeddings, each image's first class by name."""

    scores: Values
    embeddings: Values
    names: tuple[str, ...]
    offline: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """One file on all photographs; `off` is the largest difference of a score or of an embedding's value."""

    file: str
    same_classes: int
    photographs: int
    off: float
    offline: bool


def ask(file: Path, images: Images) -> Answer:
    """MediaPipe's answer to uint8 images of exactly the file's size; AlpharhoError where it cannot run."""
    with tempfile.TemporaryDirectory(prefix="alpharho-") as scratch:
        paths = {name: str(Path(scratch) / f"{name}.npy") for name in ("images", "scores", "embeddings")}
        np.save(paths["images"], images, allow_pickle=False)
        python = str(environments.python_of(ENVIRONMENT))
        offline = _can_be_offline()
        answer = environments.ask(
            [*OFFLINE, python] if offline else [python],
            "classify_mediapipe",
            {"model": str(file.resolve()), **paths},
        )
        scores, embeddings = (np.load(paths[name], allow_pickle=False) for name in ("scores", "embeddings"))
    return Answer(scores, embeddings, tuple(answer["names"]), offline and answer["interfaces"] == ["lo"])


def _can_be_offline() -> bool:
    try:
        return subprocess.run([*OFFLINE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def make_files(out: Path = FOLDER) -> Path:
    """Export MobileNetV2 with ImageNet's weights for apps: probabilities, and bytes at the int8 file's doors.

    Calibrated on the photographs. AlpharhoError where the weights are nowhere.
    """
    request = Request(
        model="v2",
        dataset=imagenet.UNLABELLED,
        calibration=photographs.FOLDER,
        weights=imagenet.find_weights("v2", 1.0),
        out=out,
        io=Io(input="uint8", output="uint8"),
        head="probabilities",
    )
    export(request, say=say)
    return out


def photographs_at_size() -> tuple[tuple[str, ...], Images]:
    """Names and centre crops, uint8 [N, 224, 224, 3], of the photographs."""
    names = [member.name for group in photographs.PHOTOGRAPHS for member in group]
    crops = [load_image(photographs.FOLDER / name, IMAGENET_RESOLUTION) for name in names]
    return tuple(names), np.stack(crops)


def compare(file: Path, images: Images) -> tuple[Comparison, Answer, Values]:
    """MediaPipe's scores and embeddings beside our own evaluation of the same file and images."""
    own, answer = load_tflite_predictor(file, normalise)(images), ask(file, images)
    names = imagenet.class_names()
    same = [names[row.argmax()] == name for row, name in zip(own, answer.names, strict=True)]
    off = max(float(np.abs(values - own).max()) for values in (answer.scores, answer.embeddings))
    return Comparison(file.stem, sum(same), len(images), off, answer.offline), answer, own


def check(found: Comparison) -> None:
    """CheckError unless every class is the same and no value is further off than the file allows."""
    if found.same_classes != found.photographs or not found.off <= TOLERANCE[found.file]:
        raise CheckError(
            f"{found.file}: {found.same_classes} of {found.photographs} photographs get the same class in "
            f"MediaPipe, values differ by up to {found.off:.2g}, allowed {TOLERANCE[found.file]:g}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing, compare, print a row per photograph; 1 where MediaPipe says something else."""
    try:
        environments.make(ENVIRONMENT, print)
        photographs.fetch()
        out = make_files()
        names, images = photographs_at_size()
        compared = [compare(out / f"{file}.tflite", images) for file in FILES]
        print(table(names, [answer for _, answer, _ in compared], [own for _, _, own in compared]))
        for found, _, _ in compared:
            print(
                f"{found.file}: {found.same_classes} of {found.photographs} classes the same, values differ "
                f"by {found.off:.2g} at most{', network off' if found.offline else ''}"
            )
            check(found)
    except AlpharhoError as error:
        print(f"pipeline.peers.mediapipe_tasks: {error}", file=sys.stderr)
        return 1
    return 0


def table(names: Sequence[str], answers: Sequence[Answer], own: Sequence[Values]) -> str:
    """A row per photograph: MediaPipe's class and score, and our score of that class, for each file."""
    rows = [("photograph", *(f"{what} {file}" for file in FILES for what in ("class,", "score,", "ours,")))]
    for i, name in enumerate(names):
        cells = [
            cell
            for answer, values in zip(answers, own, strict=True)
            for cell in (answer.names[i], f"{answer.scores[i].max():.4f}", f"{values[i].max():.4f}")
        ]
        rows.append((name, *cells))
    return aligned(rows)


if __name__ == "__main__":
    sys.exit(main())
