"""TensorFlow's converter on Keras's network of the same name. Runs in the environment `tensorflow`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.peers import protocol

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "v1": ("MobileNet", {}),
    "v2": ("MobileNetV2", {}),
    "v3_large": ("MobileNetV3Large", {"include_preprocessing": False}),
    "v3_small": ("MobileNetV3Small", {"include_preprocessing": False}),
}


def convert(request: Mapping[str, Any]) -> dict[str, Any]:
    """Float32 and int8 are timed, float16 is made afterwards."""
    tf: Any = importlib.import_module("tensorflow")
    images = np.load(request["calibration"], allow_pickle=False)
    network = _network(tf, request["model"], images)
    write = partial(_write, tf, network, images, Path(request["out"]))

    def both() -> None:
        write("float32")
        write("int8")

    seconds, cpu_seconds = protocol.timed(both)
    peak = protocol.peak_bytes()
    write("float16")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak,
        "versions": protocol.versions("tensorflow", "keras"),
    }


def _network(tf: Any, model: str, images: Any) -> Any:
    """The untrained network, its batch norms filled with the statistics of `images`."""
    name, options = NETWORKS[model]
    tf.keras.utils.set_random_seed(0)
    network = getattr(tf.keras.applications, name)(
        input_shape=images.shape[1:], weights=None, classifier_activation=None, **options
    )
    for layer in network.layers:
        if isinstance(layer, tf.keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(images, training=True)
    return network


def _write(tf: Any, network: Any, images: Any, out: Path, precision: str) -> None:
    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    if precision != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if precision == "int8":
        converter.representative_dataset = partial(_one_by_one, images)
    (out / f"{precision}.tflite").write_bytes(converter.convert())


def _one_by_one(images: Any) -> Iterator[list[Any]]:
    for image in images:
        yield [image[None]]


if __name__ == "__main__":
    protocol.serve(convert)
