"""MediaPipe Tasks, the strictest ordinary client, takes our files and gives our runtime's scores.

`make mediapipe` makes its environment and fetches the weights and photographs. It also needs libEGL.so.1 and
libGLESv2.so.2 (Debian: libegl1, libgles2).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from export.runtime import load_tflite_predictor
from pipeline import photographs
from pipeline.__main__ import main
from pipeline.artifacts import CheckError
from pipeline.data import normalise
from pipeline.peers import environments, mediapipe_tasks
from pipeline.peers.mediapipe_tasks import FILES, Comparison, ask, check, compare, make_files
from tests.pipeline.test_convert import CLASSES, SIZE, classifier, saved

TOLERANCE = 1e-5
PICTURES = 4

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    """Skips on a user's machine and fails in CI, where `make mediapipe` has run before."""
    if environments.is_ready(mediapipe_tasks.ENVIRONMENT):
        return
    reason = "no environment of MediaPipe: make mediapipe"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def imagenet_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNetV2 with ImageNet's weights, for apps: probabilities, bytes at the int8 file's doors."""
    if not (photographs.FOLDER / photographs.WEIGHTS["v2"].name).is_file():
        pytest.skip("no ImageNet weights and photographs: make mediapipe")
    return make_files(tmp_path_factory.mktemp("imagenet"))


@pytest.mark.parametrize(("io", "name"), [("float32", "float32"), ("uint8", "float16"), ("uint8", "int8")])
def test_mediapipe_gives_what_our_runtime_gives(io: str, name: str, tmp_path: Path) -> None:
    labels = tmp_path / "names.txt"
    labels.write_text("".join(f"class {index}\n" for index in range(CLASSES)))
    words = ["--labels", str(labels), "--head", "probabilities", "--io", io]
    assert main([*saved(tmp_path, classifier()), *words]) == 0
    file = tmp_path / "out" / f"{name}.tflite"
    pixels = np.random.default_rng(0).integers(0, 256, (PICTURES, SIZE, SIZE, 3), np.uint8)
    answer, expected = ask(file, pixels), load_tflite_predictor(file, normalise)(pixels)
    np.testing.assert_allclose(answer.scores, expected, atol=TOLERANCE)
    np.testing.assert_allclose(answer.embeddings, expected, atol=TOLERANCE)
    assert answer.names == tuple(f"class {row.argmax()}" for row in expected)


def test_photographs_get_the_classes_and_scores_of_our_evaluation(imagenet_files: Path) -> None:
    names, images = mediapipe_tasks.photographs_at_size()
    for file in FILES:
        found, answer, _ = compare(imagenet_files / f"{file}.tflite", images)
        check(found)
        assert found.photographs == len(names) == 17
        said = dict(zip(names, answer.names, strict=True))
        assert said["chelsea.png"] == "Egyptian cat" and said["coffee.png"] == "espresso"
        assert said["china.jpg"] == "palace" and said["camera.png"] == "tripod"


@pytest.mark.parametrize(("same", "off"), [(16, 0.0), (17, 1e-3), (17, float("nan"))])
def test_a_difference_is_reported(same: int, off: float) -> None:
    with pytest.raises(CheckError, match=r"int8: \d+ of 17 photographs"):
        check(Comparison("int8", same, 17, off, offline=True))
