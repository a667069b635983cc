"""Shows images to MediaPipe Tasks' ImageClassifier and ImageEmbedder; needs mediapipe and numpy."""

from __future__ import annotations

import importlib
import socket
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.peers import protocol


def run(request: Mapping[str, Any]) -> dict[str, Any]:
    """Scores [N, classes] in the order of the classes and embeddings [N, size], as .npy files.

    `names` is the name of each image's first class; `interfaces` are the network interfaces seen.
    """
    mediapipe: Any = importlib.import_module("mediapipe")
    tasks: Any = importlib.import_module("mediapipe.tasks.python")
    vision, options = tasks.vision, tasks.BaseOptions(model_asset_path=request["model"])
    pixels = np.load(request["images"], allow_pickle=False)
    images = [mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image) for image in pixels]
    with vision.ImageClassifier.create_from_options(
        vision.ImageClassifierOptions(base_options=options)
    ) as classifier:
        found = [classifier.classify(image).classifications[0].categories for image in images]
    with vision.ImageEmbedder.create_from_options(
        vision.ImageEmbedderOptions(base_options=options)
    ) as embedder:
        embeddings = [embedder.embed(image).embeddings[0].embedding for image in images]
    scores = np.zeros((len(found), len(found[0])), np.float32)
    for row, categories in zip(scores, found, strict=True):
        row[[category.index for category in categories]] = [category.score for category in categories]
    np.save(request["scores"], scores, allow_pickle=False)
    np.save(request["embeddings"], np.asarray(embeddings, np.float32), allow_pickle=False)
    return {
        "version": mediapipe.__version__,
        "names": [categories[0].category_name for categories in found],
        "interfaces": [name for _, name in socket.if_nameindex()],
    }


if __name__ == "__main__":
    protocol.serve(run)
