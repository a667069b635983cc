"""MediaPipe Tasks, the strictest ordinary client, takes our files and gives our runtime's scores.

MediaPipe lives in an environment of its own, because its dependencies are not the project's:

    python3.11 -m venv build/mediapipe && build/mediapipe/bin/pip install mediapipe==0.10.33

It also needs libEGL.so.1 and libGLESv2.so.2 (Debian: libegl1, libgles2).
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.runtime import load_tflite_predictor
from pipeline.__main__ import main
from pipeline.data import normalise
from tests.pipeline.test_convert import CLASSES, SIZE, classifier, saved

PYTHON = Path(__file__).resolve().parents[2] / "build" / "mediapipe" / "bin" / "python"
TOLERANCE = 1e-5
PICTURES = 4

CLIENT = """
import json, sys
import mediapipe, numpy
from mediapipe.tasks.python import BaseOptions, vision
file, pictures = sys.argv[1:]
options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=file))
with vision.ImageClassifier.create_from_options(options) as classifier:
    images = [mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=p) for p in numpy.load(pictures)]
    results = [classifier.classify(image).classifications[0].categories for image in images]
embedder_options = vision.ImageEmbedderOptions(base_options=BaseOptions(model_asset_path=file))
with vision.ImageEmbedder.create_from_options(embedder_options) as embedder:
    vectors = [embedder.embed(image).embeddings[0].embedding for image in images]
scores = [[[entry.category_name, float(entry.score)] for entry in found] for found in results]
print(json.dumps([scores, [[float(value) for value in vector] for vector in vectors]]))
"""


@pytest.fixture(scope="session")
def mediapipe_python() -> Path:
    if not PYTHON.exists():
        pytest.skip(f"no MediaPipe environment in {PYTHON.parents[1]}; this file's head says how to make it")
    return PYTHON


def classified(python: Path, file: Path, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], ...]:
    """Scores and embeddings [N, classes] as MediaPipe gives them, in the order of the labels."""
    np.save(file.parent / "pixels.npy", pixels)
    command = [str(python), "-c", CLIENT, str(file), str(file.parent / "pixels.npy")]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    named, vectors = json.loads(done.stdout.splitlines()[-1])
    scores = [[dict(found)[f"class {index}"] for index in range(CLASSES)] for found in named]
    return np.array(scores, np.float32), np.array(vectors, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("io", "name"), [("float32", "float32"), ("uint8", "float16"), ("uint8", "int8")])
def test_mediapipe_gives_what_our_runtime_gives(
    io: str, name: str, mediapipe_python: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "names.txt"
    labels.write_text("".join(f"class {index}\n" for index in range(CLASSES)))
    words = ["--labels", str(labels), "--head", "probabilities", "--io", io]
    assert main([*saved(tmp_path, classifier()), *words]) == 0
    file = tmp_path / "out" / f"{name}.tflite"
    pixels = np.random.default_rng(0).integers(0, 256, (PICTURES, SIZE, SIZE, 3), np.uint8)
    scores, vectors = classified(mediapipe_python, file, pixels)
    expected = load_tflite_predictor(file, normalise)(pixels)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE)
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCE)
