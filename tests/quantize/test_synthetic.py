"""Painted calibration images: like photographs in what matters, and enough to quantise on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from export.check import audit_delegate, check_delegate
from export.run import Program
from export.runtime import run_tflite
from export.write_tflite import write_tflite
from quantize.int8 import Io
from quantize.ranges import observe
from quantize.recipes import GENERATED_IMAGES, RECIPES, ROOM, Prepared, quantize, widen
from quantize.synthetic import generated
from tests.quantize.networks import images, inverted_residuals


def test_pictures_fill_the_exact_range_and_are_the_same_every_time() -> None:
    first, second = (generated(6, (1, 40, 56, 3), -2.0, 3.0) for _ in "ab")
    assert first.shape == (6, 40, 56, 3) and first.dtype == np.float32
    assert first.min() >= -2.0 and first.max() <= 3.0 and np.ptp(first) > 4.0
    np.testing.assert_array_equal(first, second)
    assert all(picture.std() > 0.1 for picture in first)


def test_neighbouring_pixels_are_alike_and_distant_ones_are_not() -> None:
    pictures = generated(16, (1, 64, 64, 3), 0.0, 1.0)
    flat = pictures - pictures.mean((1, 2), keepdims=True)
    near, far = (float((flat[:, :-by] * flat[:, by:]).mean() / np.square(flat).mean()) for by in (1, 32))
    assert near > 0.6 and far < 0.3


def test_a_network_that_is_fed_no_image_at_all_is_quantised_from_its_weights(tmp_path: Path) -> None:
    graph = inverted_residuals()
    model = quantize(graph, [], RECIPES["int8_data_free"], Io())
    assert model.report["calibration_images"] == GENERATED_IMAGES
    path = tmp_path / "int8.tflite"
    path.write_bytes(write_tflite(model.graph))
    check_delegate(audit_delegate(path), path)
    test = images(32, seed=4)
    expected, found = Program(graph)(test), run_tflite(path, test)
    assert np.square(found - expected).sum() < 0.01 * np.square(expected).sum()  # 20 dB


def test_room_is_made_for_what_the_pictures_do_not_show_but_not_beyond_a_clamp_or_in_the_input() -> None:
    graph, calibration = inverted_residuals(), [images(8)]
    before = Prepared(graph, observe(graph, calibration), calibration)
    after = widen(before)
    for name, factor in (("image", 1.0), ("second/add", ROOM), ("logits", ROOM)):
        np.testing.assert_allclose(after.seen[name].low, before.seen[name].low * factor)
        np.testing.assert_allclose(after.seen[name].high, before.seen[name].high * factor)
    assert after.seen["stem"].high.max() == 6.0 and before.seen["stem"].high.max() <= 6.0
