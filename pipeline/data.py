"""Real images for training, calibration and testing: Fashion-MNIST as IDX files, or any folder of pictures.

Every data set is shown to a network the same way: uint8 RGB, NHWC, square, so that PyTorch in training sees
exactly what a uint8 TFLite input sees on a device. `normalise` is the only step from there to float32.
"""

from __future__ import annotations

import argparse
import gzip
import math
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.artifacts import AlpharhoError, sha256_of, write_bytes

Images: TypeAlias = NDArray[np.uint8]  # [N, R, R, 3]
Labels: TypeAlias = NDArray[np.int64]  # [N]
Batch: TypeAlias = tuple[Images, Labels]

MEAN = STD = 127.5
FASHION_MNIST_RESOLUTION = 56
FOLDER_RESOLUTION = 224
CROP_FRACTION = 0.875  # of the shorter side, as the MobileNet papers evaluate
CALIBRATION_SEED = (
    20170825  # Fashion-MNIST's arXiv date; fixed, so that every run calibrates on the same images
)
CALIBRATION_PER_CLASS = 50
SAMPLE_TEST_PER_CLASS = 200
TEST_FRACTION = 0.2

REPOSITORY = Path(__file__).resolve().parent.parent
SAMPLE_DIR = Path(__file__).resolve().parent / "sample_data" / "fashion_mnist"
FASHION_MNIST_DIRS = (
    REPOSITORY / "build" / "data" / "fashion-mnist",
    Path("/usr/share/datasets/fashion-mnist"),
)
FASHION_MNIST_PACKAGE = "dataset-fashion-mnist"
FASHION_MNIST_LICENCE = "MIT (Expat), (c) 2017 Zalando SE, https://github.com/zalandoresearch/fashion-mnist"
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# fmt: off
FASHION_MNIST_SHA256 = {  # of the files in Debian's package 0.0~git20200523.55506a9-1
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz":  "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz":  "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
# fmt: on

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
TRAIN_FOLDER = "train"
TEST_FOLDERS = ("test", "val")


def evenly(total: int, count: int) -> NDArray[np.int64]:
    """`count` numbers from all over range(total), or all of them if there are fewer."""
    return np.linspace(0, total - 1, min(count, total), dtype=np.int64)


def normalise(images: Images) -> NDArray[np.float32]:
    """uint8 to float32 in [-1, 1], any shape: (x - 127.5) / 127.5, what a quantised input's scale undoes."""
    return ((images.astype(np.float32) - MEAN) / STD).astype(np.float32, copy=False)


class Split(Protocol):
    """Some images of a data set, in a fixed order, decoded when asked for."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def take(self, indices: Sequence[int] | NDArray[np.int64], resolution: int) -> Batch:
        """The images at `indices`, uint8 RGB `[N, resolution, resolution, 3]`, and int64 labels `[N]`."""
        ...

    def batches(self, size: int, resolution: int) -> Iterator[Batch]:
        """All images in order, `size` at a time, the last batch shorter; arrays as `take`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Images in up to three splits. `calibration` is part of `train` where both come from one place.

    `classes[label]` is a label's name; `test` shares no image with the other two; `train` is None where only
    a sample is at hand.
    """

    name: str
    classes: tuple[str, ...]
    base_resolution: int
    train: Split | None
    calibration: Split
    test: Split
    licence: str


# --- Fashion-MNIST and other IDX files --------------------------------------------------------------------


class IdxSplit:
    """Grey images held in memory, `[N, 28, 28]` uint8, shown as RGB at any resolution (bilinear)."""

    def __init__(self, images: Images, labels: Labels) -> None:
        """`images` `[N, H, W]` uint8 and as many `labels`."""
        self.images, self.labels = images, labels
        self._resized: dict[int, Images] = {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, indices: Sequence[int] | NDArray[np.int64], resolution: int) -> Batch:
        """See `Split.take`."""
        chosen = np.asarray(indices, dtype=np.int64)
        if resolution not in self._resized:
            self._resized = {resolution: _resized(self.images, resolution)}
        grey = self._resized[resolution][chosen]
        return np.repeat(grey[..., None], 3, axis=3), self.labels[chosen]

    def batches(self, size: int, resolution: int) -> Iterator[Batch]:
        """See `Split.batches`."""
        return _batches(self, size, resolution)


def _batches(split: Split, size: int, resolution: int) -> Iterator[Batch]:
    if size < 1:
        raise AlpharhoError(f"batch size is {size}; choose at least 1")
    for start in range(0, len(split), size):
        yield split.take(range(start, min(start + size, len(split))), resolution)


def _resized(images: Images, resolution: int) -> Images:
    """`[N, H, W]` uint8 to `[N, resolution, resolution]`, bilinear, rounded to uint8 by Pillow."""
    shape = (resolution, resolution)
    if images.shape[1:] == shape:
        return images
    resized = np.empty((len(images), *shape), dtype=np.uint8)
    for i, image in enumerate(images):
        resized[i] = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR))
    return resized


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped where its name ends in .gz, with that many dimensions.

    AlpharhoError where the magic number, the number of dimensions or the length is not what the format asks.
    The format is described at http://yann.lecun.com/exdb/mnist/.
    """
    content = _read_bytes(path)
    magic = bytes((0, 0, 8, dimensions))
    header = 4 + 4 * dimensions
    if content[:4] != magic or len(content) < header:
        raise AlpharhoError(
            f"{path}: not an IDX file of {dimensions}-dimensional unsigned bytes: starts with "
            f"{content[:4].hex() or 'nothing'}, expected {magic.hex()}"
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", dimensions, 4))
    found, expected = len(content) - header, math.prod(shape)
    if found != expected:
        raise AlpharhoError(f"{path}: holds {found} bytes of data, its header {shape} asks for {expected}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise AlpharhoError(f"{path}: cannot be read: {reason}; fetch it again") from error


def write_idx(path: Path, values: NDArray[np.uint8]) -> None:
    """Write `values` as a gzipped IDX file; the same values give the same bytes."""
    header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
    write_bytes(path, gzip.compress(header + values.tobytes(), 9, mtime=0))


def _idx_file(folder: Path, stem: str) -> Path:
    """`stem` or `stem`.gz in `folder`."""
    candidates = (folder / stem, folder / f"{stem}.gz")
    for path in candidates:
        if path.is_file():
            return path
    raise AlpharhoError(
        f"{folder}: no {stem} or {stem}.gz; Fashion-MNIST needs all four IDX files: `make data`"
    )


def read_idx_split(folder: Path, prefix: str, classes: int) -> IdxSplit:
    """`<prefix>-images-idx3-ubyte[.gz]` and `<prefix>-labels-idx1-ubyte[.gz]`, checked against each other."""
    images_path = _idx_file(folder, f"{prefix}-images-idx3-ubyte")
    labels_path = _idx_file(folder, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if not len(labels):
        raise AlpharhoError(f"{labels_path}: holds no labels; fetch it again")
    if len(images) != len(labels):
        raise AlpharhoError(
            f"{images_path}: {len(images)} images, but {len(labels)} labels in {labels_path.name}"
        )
    if labels.max() >= classes:
        raise AlpharhoError(f"{labels_path}: label {labels.max()}, but there are only {classes} classes")
    return IdxSplit(images, labels.astype(np.int64))


def open_fashion_mnist(folder: Path) -> Dataset:
    """The full set, 60,000 training and 10,000 test images, from a folder with its four IDX files."""
    train = read_idx_split(folder, "train", len(FASHION_MNIST_CLASSES))
    return Dataset(
        name="fashion_mnist",
        classes=FASHION_MNIST_CLASSES,
        base_resolution=FASHION_MNIST_RESOLUTION,
        train=train,
        calibration=_calibration_of(train),
        test=read_idx_split(folder, "t10k", len(FASHION_MNIST_CLASSES)),
        licence=FASHION_MNIST_LICENCE,
    )


def _calibration_of(train: IdxSplit) -> IdxSplit:
    chosen = balanced_indices(train.labels, CALIBRATION_PER_CLASS, CALIBRATION_SEED)
    return IdxSplit(train.images[chosen], train.labels[chosen])


def balanced_indices(labels: Labels, per_class: int, seed: int) -> NDArray[np.int64]:
    """Indices of `per_class` images of every class (all of a smaller class), drawn by `seed`, ascending."""
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)
    ]
    return np.sort(np.concatenate(drawn))


def open_full_fashion_mnist() -> Dataset:
    """The full set from where `make data` or Debian's package puts it."""
    for folder in FASHION_MNIST_DIRS:
        if folder.is_dir():
            return open_fashion_mnist(folder)
    places = ", ".join(str(folder) for folder in FASHION_MNIST_DIRS)
    raise AlpharhoError(
        f"the full Fashion-MNIST set is in none of {places}; run `make data`, or give a folder of IDX files"
    )


def open_fashion_mnist_sample() -> Dataset:
    """The sample in the repository: 500 calibration and 2,000 test images, balanced, none to train on."""
    classes = len(FASHION_MNIST_CLASSES)
    return Dataset(
        name="fashion_mnist",
        classes=FASHION_MNIST_CLASSES,
        base_resolution=FASHION_MNIST_RESOLUTION,
        train=None,
        calibration=read_idx_split(SAMPLE_DIR, "calibration", classes),
        test=read_idx_split(SAMPLE_DIR, "t10k", classes),
        licence=FASHION_MNIST_LICENCE,
    )


# --- A folder of pictures -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FolderSplit:
    """Picture files, decoded when asked for."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def take(self, indices: Sequence[int] | NDArray[np.int64], resolution: int) -> Batch:
        """See `Split.take`; AlpharhoError names a picture that cannot be decoded."""
        images = np.empty((len(indices), resolution, resolution, 3), dtype=np.uint8)
        with ThreadPoolExecutor() as pool:  # Pillow decodes and resizes outside Python's lock
            decoded = pool.map(load_image, (self.paths[i] for i in indices), repeat(resolution))
            for row, image in enumerate(decoded):
                images[row] = image
        return images, np.array([self.labels[i] for i in indices], dtype=np.int64)

    def batches(self, size: int, resolution: int) -> Iterator[Batch]:
        """See `Split.batches`."""
        return _batches(self, size, resolution)


def load_image(path: Path, resolution: int) -> Images:
    """A picture file as `[resolution, resolution, 3]` uint8 RGB, upright.

    The shorter side is resized to resolution / 0.875 (bilinear), then the centre is cropped. AlpharhoError
    names a file that Pillow cannot decode.
    """
    try:
        with Image.open(path) as file:
            picture = _rgb(ImageOps.exif_transpose(file))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise AlpharhoError(
            f"{path}: cannot be decoded as a picture ({error}); repair or remove it"
        ) from error
    shorter = round(resolution / CROP_FRACTION)
    scale = shorter / min(picture.size)
    size = (max(shorter, round(picture.width * scale)), max(shorter, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BILINEAR)
    left, top = (picture.width - resolution) // 2, (picture.height - resolution) // 2
    return np.asarray(picture.crop((left, top, left + resolution, top + resolution)))


def _rgb(picture: Image.Image) -> Image.Image:
    """8-bit RGB; 16-bit greys keep their high byte (Pillow would clip them), palettes their colours."""
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "P":
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def open_image_folder(folder: Path, base_resolution: int = FOLDER_RESOLUTION, seed: int = 0) -> Dataset:
    """Pictures in `folder/<class>/`, or in `folder/train/<class>/` and `folder/{test,val}/<class>/`.

    Without a folder of test pictures a fifth of every class becomes the test split, drawn by `seed`.
    AlpharhoError for a folder with no pictures, fewer than two classes, or a class too small to be split.
    """
    train, test = _given_splits(folder) or _drawn_splits(folder, seed)
    classes = tuple(sorted(train))
    training = _folder_split(train, classes)
    chosen = balanced_indices(np.array(training.labels), CALIBRATION_PER_CLASS, CALIBRATION_SEED)
    calibration = FolderSplit(
        tuple(training.paths[i] for i in chosen), tuple(training.labels[i] for i in chosen)
    )
    return Dataset(
        name=folder.resolve().name,
        classes=classes,
        base_resolution=base_resolution,
        train=training,
        calibration=calibration,
        test=_folder_split(test, classes),
        licence="as its owner says",
    )


ByClass: TypeAlias = dict[str, tuple[Path, ...]]


def _pictures_by_class(folder: Path) -> ByClass:
    """Picture files of every sub-folder, both in order of name; at least two classes, none of them empty."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {path.name: pictures(path) for path in folders}
    suffixes = " ".join(sorted(IMAGE_SUFFIXES))
    if not any(found.values()):
        raise AlpharhoError(f"{folder}: no pictures; put them in one sub-folder a class ({suffixes})")
    empty = [name for name, pictures in found.items() if not pictures]
    if empty:
        raise AlpharhoError(
            f"{folder / empty[0]}: no pictures in this class ({suffixes}); add some or remove it"
        )
    if len(found) < 2:
        raise AlpharhoError(
            f"{folder}: only one class, {folders[0].name}; give at least two classes, or both train and test"
        )
    return found


def pictures(folder: Path) -> tuple[Path, ...]:
    """Picture files anywhere below `folder`, in order of name, hidden ones left out."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return tuple(sorted(path for path in paths if path.is_file() and not path.name.startswith(".")))


def _given_splits(folder: Path) -> tuple[ByClass, ByClass] | None:
    """The splits that the folder's own `train` and `test` or `val` make, None where it has no such pair."""
    tests = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    if not tests or not (folder / TRAIN_FOLDER).is_dir():
        return None
    train, test = _pictures_by_class(folder / TRAIN_FOLDER), _pictures_by_class(tests[0])
    unknown = sorted(set(test) - set(train))
    if unknown:
        raise AlpharhoError(f"{tests[0] / unknown[0]}: a class that {folder / TRAIN_FOLDER} does not have")
    return train, test


def _drawn_splits(folder: Path, seed: int) -> tuple[ByClass, ByClass]:
    generator = np.random.default_rng(seed)
    train: ByClass = {}
    test: ByClass = {}
    for name, paths in _pictures_by_class(folder).items():
        if len(paths) < 2:
            raise AlpharhoError(
                f"{folder / name}: one picture; a class needs two, one to train and one to test"
            )
        order = generator.permutation(len(paths))
        count = max(1, round(TEST_FRACTION * len(paths)))
        test[name] = tuple(paths[i] for i in sorted(order[:count]))
        train[name] = tuple(paths[i] for i in sorted(order[count:]))
    return train, test


def _folder_split(by_class: ByClass, classes: tuple[str, ...]) -> FolderSplit:
    rows = [(path, label) for label, name in enumerate(classes) for path in by_class.get(name, ())]
    return FolderSplit(tuple(path for path, _ in rows), tuple(label for _, label in rows))


# --- By name ------------------------------------------------------------------------------------------------

DATASETS: Mapping[str, Callable[[], Dataset]] = {
    "fashion_mnist": open_fashion_mnist_sample,
    "fashion_mnist_full": open_full_fashion_mnist,
}


def open_dataset(source: str, base_resolution: int = FOLDER_RESOLUTION, seed: int = 0) -> Dataset:
    """A data set by its name in DATASETS, a folder of Fashion-MNIST's IDX files, or a folder of pictures.

    `base_resolution` and `seed` are for folders of pictures. AlpharhoError says what is supported.
    """
    if source in DATASETS:
        return DATASETS[source]()
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise AlpharhoError(
            f"unknown data set {source!r}: neither {' nor '.join(DATASETS)} nor an existing folder "
            "of IDX files or of pictures (DIR/class/*.jpg)"
        )
    if any(folder.glob("*-idx[13]-ubyte*")):
        return open_fashion_mnist(folder)
    return open_image_folder(folder, base_resolution, seed)


# --- Fetching, and the shipped sample -----------------------------------------------------------------------


def fetch_fashion_mnist(out: Path) -> None:
    """Unpack Debian's package into `out` without root; no file is put there before its SHA-256 is checked."""
    if all(
        (out / name).is_file() and sha256_of(out / name) == sha for name, sha in FASHION_MNIST_SHA256.items()
    ):
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _run(["apt-get", "download", FASHION_MNIST_PACKAGE], folder)
        packages = sorted(folder.glob(f"{FASHION_MNIST_PACKAGE}_*.deb"))
        if not packages:
            raise AlpharhoError(
                f"apt-get downloaded no {FASHION_MNIST_PACKAGE}_*.deb; run `apt-get update` and repeat"
            )
        _run(["dpkg", "-x", packages[-1].name, "unpacked"], folder)
        _copy_verified(folder / "unpacked" / "usr" / "share" / "datasets" / "fashion-mnist", out)


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise AlpharhoError(
            f"{command[0]} is not on this machine (needs Debian or Ubuntu); elsewhere download the four IDX "
            "files of https://github.com/zalandoresearch/fashion-mnist and give their folder as the data set"
        ) from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise AlpharhoError(f"`{' '.join(command)}` failed: {reason}") from error


def _copy_verified(source: Path, out: Path) -> None:
    for name, expected in FASHION_MNIST_SHA256.items():
        path = source / name
        found = sha256_of(path) if path.is_file() else "no such file"
        if found != expected:
            raise AlpharhoError(f"{name} of {FASHION_MNIST_PACKAGE}: sha256 is {found}, expected {expected}")
        write_bytes(out / name, path.read_bytes())


def make_sample(out: Path) -> None:
    """Write the shipped sample from the full set, as gzipped IDX files: the same bytes every time."""
    full = open_full_fashion_mnist()
    assert isinstance(full.calibration, IdxSplit) and isinstance(full.test, IdxSplit)
    chosen = balanced_indices(full.test.labels, SAMPLE_TEST_PER_CLASS, CALIBRATION_SEED)
    test = IdxSplit(full.test.images[chosen], full.test.labels[chosen])
    for prefix, split in (("calibration", full.calibration), ("t10k", test)):
        write_idx(out / f"{prefix}-images-idx3-ubyte.gz", split.images)
        write_idx(out / f"{prefix}-labels-idx1-ubyte.gz", split.labels.astype(np.uint8))


MAKERS: Mapping[str, Callable[[Path], None]] = {"fetch": fetch_fashion_mnist, "sample": make_sample}


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m pipeline.data [fetch|sample] --out DIR`."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.data", description=main.__doc__)
    parser.add_argument("what", nargs="?", choices=MAKERS, default="fetch")
    parser.add_argument(
        "--out", type=Path, default=FASHION_MNIST_DIRS[0], help="folder to write (%(default)s)"
    )
    parsed = parser.parse_args(arguments)
    try:
        MAKERS[parsed.what](parsed.out)
    except AlpharhoError as error:
        print(f"pipeline.data: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
