"""What an exported file says of itself, and from where it knows that."""

from __future__ import annotations

import json
import shutil
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from export.metadata import DETAILS_ENTRY, ENTRY, Metadata, described, entries, with_labels
from models.weights import read_card
from pipeline import manifest
from pipeline.artifacts import sha256_of
from pipeline.job import SHIPPED_WEIGHTS, Request, prepare
from pipeline.variant import PRECISIONS
from tests.pipeline.conftest import RHO

ABOUT = Metadata(
    name="v2_1.00_224",
    description="Image classifier.",
    license="BSD-3-Clause",
    labels=("cat", "Größe"),
    details={"alpha": "1", "training data": "ImageNet-1k"},
)


def buffers_of(path: Path) -> dict[str, bytes]:
    """Metadata entries by name, read with the runtime's own schema module."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    return {
        entry.name.decode(): bytes(np.asarray(model.buffers[entry.buffer].data)) for entry in model.metadata
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_exported_file_says_what_it_is(precision: str, small_job: Path, small_weights: Path) -> None:
    record = manifest.load(small_job / "manifest.json")
    found = buffers_of(small_job / f"{precision}.tflite")
    details = json.loads(found[DETAILS_ENTRY])
    recipe = {"recipe": "int8"} if precision == "int8" else {}
    assert details == recipe | {
        "model": "v1",
        "alpha": "0.25",
        "rho": f"{RHO:g}",
        "resolution": "32",
        "precision": precision,
        "training data": record.dataset,
        "weights": small_weights.name,
        "weights sha256": sha256_of(small_weights),
        "onnx sha256": sha256_of(small_job / "model.onnx"),
        "made with": f"alpharho {version('alpharho')}",
    }
    lines = described(found[ENTRY])
    assert {"name: v1_0.25_32", "version: 1", "description: Image classifier: logits of 10 classes."} <= set(
        lines
    )
    assert {f"description: {key}: {value}" for key, value in details.items()} <= set(lines)
    with zipfile.ZipFile(small_job / f"{precision}.tflite") as archive:
        assert archive.read("labels.txt") == (small_job / "labels.txt").read_bytes()


def test_no_path_of_this_machine_is_in_a_file(small_job: Path, small_weights: Path) -> None:
    for precision in PRECISIONS:
        content = (small_job / f"{precision}.tflite").read_bytes()
        assert str(small_weights.parent).encode() not in content and str(small_job).encode() not in content


def test_metadata_is_written_whole_and_twice_the_same() -> None:
    once, again = entries(ABOUT, "image", "logits"), entries(ABOUT, "image", "logits")
    assert once == again and set(once) == {ENTRY, DETAILS_ENTRY}
    assert described(once[ENTRY]) == (
        "name: v2_1.00_224",
        "version: 1",
        "license: BSD-3-Clause",
        "description: Image classifier.",
        "description: alpha: 1",
        "description: training data: ImageNet-1k",
        "input 'image': normalised with mean 127.5 and std 127.5",
        "output 'logits': labels.txt",
    )
    assert with_labels(b"file", ABOUT.labels) == with_labels(b"file", ABOUT.labels)
    assert with_labels(b"file", ()) == b"file"


# where licence and training data come from


def test_shipped_weights_are_under_the_projects_licence_and_name_their_data() -> None:
    weights = prepare(Request(model="v2", alpha=0.35)).weights
    assert (weights.recognised, weights.licence) == ("alpharho", "MIT")
    assert weights.trained_on == "fashion_mnist, 60,000 training images"
    assert weights.licence_of_data.startswith("MIT (Expat), (c) 2017 Zalando SE")


def test_a_card_beside_the_weights_is_read(tmp_path: Path) -> None:
    shipped = SHIPPED_WEIGHTS / "v2_0.35_56.fashion_mnist.safetensors"
    mine = tmp_path / "mine.safetensors"
    shutil.copy(shipped, mine)
    request = Request(model="v2", alpha=0.35, weights=mine)
    assert read_card(mine) == {} and prepare(request).weights.licence == ""
    assert prepare(request).weights.trained_on == "fashion_mnist"
    mine.with_suffix(".md").write_text(
        "# mine\n\n| | |\n|---|---|\n| licence | CC-BY-4.0 |\n| trained on | my shop |\n"
    )
    weights = prepare(request).weights
    assert (weights.licence, weights.trained_on, weights.licence_of_data) == ("CC-BY-4.0", "my shop", "")
    named = Request(model="v2", alpha=0.35, weights=mine, licence="Apache-2.0")
    assert prepare(named).weights.licence == "Apache-2.0"
