"""Data: IDX files, the shipped sample, folders of pictures, and what is said about broken ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hypothesis_numpy
from PIL import Image

from pipeline import data
from pipeline.artifacts import AlpharhoError, sha256_of
from pipeline.data import Dataset, IdxSplit, Split

FULL_SET = next((folder for folder in data.FASHION_MNIST_DIRS if folder.is_dir()), None)


@pytest.fixture(scope="module")
def sample() -> Dataset:
    return data.open_dataset("fashion_mnist")


def shown(split: Split, resolution: int = 28) -> set[bytes]:
    return {image.tobytes() for images, _ in split.batches(500, resolution) for image in images}


def labels_of(split: Split) -> list[int]:
    return [label for _, labels in split.batches(500, 32) for label in labels.tolist()]


# --- IDX ----------------------------------------------------------------------------------------------------


@given(values=hypothesis_numpy.arrays(np.uint8, hypothesis_numpy.array_shapes(min_dims=1, max_dims=4)))
@settings(max_examples=25, deadline=None)
def test_idx_files_hold_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("idx") / "values.gz"
    data.write_idx(path, values)
    np.testing.assert_array_equal(data.read_idx(path, values.ndim), values)


IMAGES = bytes((0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3)) + bytes(6)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty", b"", "starts with nothing, expected 00000803"),
        ("labels-not-images", bytes((0, 0, 8, 1, 0, 0, 0, 1, 7)), "starts with 00000801, expected 00000803"),
        ("cut-in-the-header", IMAGES[:12], "not an IDX file"),
        ("cut-in-the-data", IMAGES[:-1], r"holds 5 bytes of data, its header \(2, 1, 3\) asks for 6"),
        ("too-long", IMAGES + b"\0", "holds 7 bytes"),
        ("not-gzip.gz", IMAGES, "cannot be read: Not a gzipped file"),
        ("cut.gz", gzip.compress(IMAGES)[:-9], "cannot be read"),
        (
            "flipped.gz",
            gzip.compress(IMAGES)[:12] + b"\xff\xff" + gzip.compress(IMAGES)[14:],
            "cannot be read",
        ),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AlpharhoError, match=rf"{name}: .*{said}"):
        data.read_idx(tmp_path / name, 3)


def write_pair(folder: Path, images: int, labels: list[int], prefix: str = "train") -> None:
    pixels = np.random.default_rng(len(labels)).integers(0, 256, (images, 28, 28), dtype=np.uint8)
    data.write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", pixels)
    data.write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.array(labels, np.uint8))


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (3, [1, 2], "3 images, but 2 labels"),
        (2, [1, 10], "label 10, but there are only 10 classes"),
        (0, [], "holds no labels"),
    ],
)
def test_idx_images_and_labels_must_agree(tmp_path: Path, images: int, labels: list[int], said: str) -> None:
    write_pair(tmp_path, images, labels)
    with pytest.raises(AlpharhoError, match=said):
        data.read_idx_split(tmp_path, "train", classes=10)


def test_a_folder_of_idx_files_is_a_data_set(tmp_path: Path) -> None:
    write_pair(tmp_path, 30, [i % 10 for i in range(30)])
    write_pair(tmp_path, 10, list(range(10)), "t10k")
    dataset = data.open_dataset(str(tmp_path))
    assert dataset.train is not None
    assert (dataset.name, len(dataset.train), len(dataset.test)) == ("fashion_mnist", 30, 10)
    assert shown(dataset.calibration) <= shown(dataset.train)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_pair(tmp_path, 10, list(range(10)))
    with pytest.raises(AlpharhoError, match=r"no t10k-images-idx3-ubyte or t10k-images-idx3-ubyte\.gz"):
        data.open_dataset(str(tmp_path))


# --- The shipped sample -------------------------------------------------------------------------------------


def test_the_sample_is_balanced_and_its_parts_share_no_image(sample: Dataset) -> None:
    assert sample.train is None
    assert np.bincount(labels_of(sample.calibration)).tolist() == [50] * 10
    assert np.bincount(labels_of(sample.test)).tolist() == [200] * 10
    assert not shown(sample.calibration) & shown(sample.test)


@pytest.mark.skipif(FULL_SET is None, reason="needs the full set: `make data`")
def test_the_sample_is_made_again_to_the_byte(tmp_path: Path) -> None:
    assert data.main(["sample", "--out", str(tmp_path)]) == 0
    made = {path.name: sha256_of(path) for path in tmp_path.iterdir()}
    assert made == {path.name: sha256_of(path) for path in data.SAMPLE_DIR.glob("*.gz")}


@pytest.mark.skipif(FULL_SET is None, reason="needs the full set: `make data`")
def test_the_sample_is_part_of_the_full_set(sample: Dataset) -> None:
    full = data.open_dataset("fashion_mnist_full")
    assert full.train is not None
    assert (len(full.train), len(full.test)) == (60_000, 10_000)
    assert shown(sample.calibration) == shown(full.calibration) <= shown(full.train)
    assert shown(sample.test) <= shown(full.test)


def test_grey_images_are_shown_as_rgb_resized_by_pillow(sample: Dataset) -> None:
    assert isinstance(sample.test, IdxSplit)
    images, _ = sample.test.take([7], 56)
    expected = Image.fromarray(sample.test.images[7]).resize((56, 56), Image.Resampling.BILINEAR)
    assert images.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(images[0, :, :, channel], np.asarray(expected))


def test_batches_cover_a_split_once_in_order(sample: Dataset) -> None:
    batches = list(sample.calibration.batches(130, 28))
    everything, labels = sample.calibration.take(range(500), 28)
    assert [len(part) for part, _ in batches] == [130, 130, 130, 110]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in batches]), everything)
    np.testing.assert_array_equal(np.concatenate([part for _, part in batches]), labels)


def test_a_batch_has_at_least_one_image(sample: Dataset) -> None:
    with pytest.raises(AlpharhoError, match="batch size is 0"):
        next(iter(sample.test.batches(0, 56)))


def test_normalise_takes_bytes_to_minus_one_to_one() -> None:
    normal = data.normalise(np.array([0, 127, 128, 255], np.uint8))
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal, [-1, -0.5 / 127.5, 0.5 / 127.5, 1], rtol=1e-6)


def test_balanced_indices_are_seeded_and_balanced() -> None:
    labels = np.repeat([0, 1, 2], [50, 3, 20])
    chosen = data.balanced_indices(labels, 10, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [10, 3, 10]
    assert chosen.tolist() == data.balanced_indices(labels, 10, seed=1).tolist()
    assert chosen.tolist() != data.balanced_indices(labels, 10, seed=2).tolist()


# --- Folders of pictures ------------------------------------------------------------------------------------


def save_pictures(folder: Path, count: int, size: tuple[int, int] = (40, 30)) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(count)
    for i in range(count):
        pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_a_folder_is_split_by_seed_class_by_class(tmp_path: Path) -> None:
    save_pictures(tmp_path / "cat", 10)
    save_pictures(tmp_path / "dog", 20)
    dataset, again = data.open_dataset(str(tmp_path), seed=3), data.open_dataset(str(tmp_path), seed=3)
    assert dataset.train is not None
    assert dataset.classes == ("cat", "dog")
    assert np.bincount(labels_of(dataset.test)).tolist() == [2, 4]
    assert np.bincount(labels_of(dataset.train)).tolist() == [8, 16]
    assert not shown(dataset.train) & shown(dataset.test)
    assert shown(dataset.calibration) <= shown(dataset.train)
    assert shown(dataset.test) == shown(again.test)
    assert shown(dataset.test) != shown(data.open_dataset(str(tmp_path), seed=4).test)


@pytest.mark.parametrize("test_folder", ["test", "val"])
def test_a_folder_may_bring_its_own_splits(tmp_path: Path, test_folder: str) -> None:
    for name in ("cat", "dog"):
        save_pictures(tmp_path / "train" / name, 3)
        save_pictures(tmp_path / test_folder / name, 2)
    dataset = data.open_dataset(str(tmp_path), base_resolution=64)
    assert dataset.train is not None
    assert (len(dataset.train), len(dataset.test), dataset.base_resolution) == (6, 4, 64)


def test_a_class_that_was_not_trained_cannot_be_tested(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        save_pictures(tmp_path / "train" / name, 2)
        save_pictures(tmp_path / "test" / f"{name}fish", 2)
    with pytest.raises(AlpharhoError, match=r"test/catfish: a class that .*train does not have"):
        data.open_dataset(str(tmp_path))


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ({}, "no pictures; put them in one sub-folder a class"),
        ({"cat": 0, "dog": 0}, "no pictures; put them in one sub-folder a class"),
        ({"cat": 2, "dog": 0}, r"dog: no pictures in this class \(\.bmp"),
        ({"cat": 2}, "only one class, cat"),
        ({"cat": 2, "dog": 1}, "dog: one picture; a class needs two"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(tmp_path: Path, classes: dict[str, int], said: str) -> None:
    (tmp_path / ".thumbnails").mkdir()
    for name, count in classes.items():
        save_pictures(tmp_path / name, count)
        (tmp_path / name / "notes.txt").write_text("no picture")
    with pytest.raises(AlpharhoError, match=said):
        data.open_dataset(str(tmp_path))


PNG_OF_NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("kept", [0, 20, 3000])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_damaged_picture_is_named(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"broken.{suffix}"
    Image.fromarray(PNG_OF_NOISE).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(AlpharhoError, match=rf"broken\.{suffix}: cannot be decoded as a picture"):
        data.load_image(path, 32)


def test_a_picture_is_resized_by_its_shorter_side_and_cropped_in_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = (0, 200, 0)  # the middle third is the centre square
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    image = data.load_image(tmp_path / "wide.png", 56)
    assert image.shape == (56, 56, 3)
    np.testing.assert_array_equal(image, np.broadcast_to(np.array([0, 200, 0], np.uint8), image.shape))


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((80, 80, 3), np.uint8)
    pixels[:40] = 250
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn right by 90 degrees to see it upright
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    image = data.load_image(tmp_path / "turned.png", 70)
    assert image[:, 60].min() > 240
    assert image[:, 10].max() < 10


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 99, (99, 99, 99)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 99 * 256, (99, 99, 99)),
        ("RGBA", (10, 20, 30, 128), (10, 20, 30)),
        ("LA", (50, 128), (50, 50, 50)),
    ],
)
def test_pictures_of_every_mode_become_rgb(
    tmp_path: Path, mode: str, value: int | tuple[int, ...], expected: tuple[int, ...]
) -> None:
    Image.new(mode, (40, 40), value).save(tmp_path / "picture.png")
    image = data.load_image(tmp_path / "picture.png", 32)
    np.testing.assert_array_equal(image, np.broadcast_to(np.array(expected, np.uint8), image.shape))


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    picture = Image.new("P", (40, 40), 1)
    picture.putpalette([0, 0, 0, 10, 200, 30])
    picture.save(tmp_path / "palette.png", transparency=b"\x00\x80")
    assert data.load_image(tmp_path / "palette.png", 32)[0, 0].tolist() == [10, 200, 30]


def test_an_unknown_data_set_lists_what_is_supported(tmp_path: Path) -> None:
    with pytest.raises(
        AlpharhoError, match=r"unknown data set .*cifar.* fashion_mnist nor fashion_mnist_full"
    ):
        data.open_dataset(str(tmp_path / "cifar"))


# --- Fetching -----------------------------------------------------------------------------------------------


def test_fetching_without_apt_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert data.main(["--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("pipeline.data: apt-get is not on this machine")
    assert said.count("\n") == 1


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_download_that_fails_gives_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path / "apt-get", "echo 'E: Unable to locate package' >&2; exit 100")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AlpharhoError, match=r"`apt-get download .*` failed: E: Unable to locate package"):
        data.fetch_fashion_mnist(tmp_path / "out")


def test_a_download_with_other_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_program(tmp_path / "apt-get", ": > dataset-fashion-mnist_1_all.deb")
    unpacked = "unpacked/usr/share/datasets/fashion-mnist"
    write_program(tmp_path / "dpkg", f"/bin/mkdir -p {unpacked}; : > {unpacked}/train-images-idx3-ubyte.gz")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        AlpharhoError, match=r"train-images-idx3-ubyte\.gz of .*: sha256 is e3b0c4.*, expected b056"
    ):
        data.fetch_fashion_mnist(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(FULL_SET is None, reason="needs the full set: `make data`")
def test_what_was_fetched_is_not_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FULL_SET is not None
    monkeypatch.setenv("PATH", "")
    data.fetch_fashion_mnist(FULL_SET)
