"""Measurement files joined to manifests by hash, and the curves that they make."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from device_bench.curves import Unit
from device_bench.device import ModelInfo, save
from pipeline.artifacts import AlpharhoError
from pipeline.results import curves_of, load_result, load_results, path_of, variant_of
from pipeline.variant import Variant
from tests.pipeline.recorded import PIXEL, counted, save_counts, save_invalid, save_manifest, timed

V1 = Variant("v1", 0.5, 192)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v3_small_minimalistic_1.00_56.int8", (Variant("v3_small_minimalistic", 1.0, 56), "int8")),
        ("v1_0.50_192.float16", (Variant("v1", 0.5, 192), "float16")),
        ("v1_0.50_192", (None, "")),
        ("v1_0.50_192.int4", (None, "")),
        ("photo", (None, "")),
    ],
)
def test_a_file_name_says_what_was_measured(name: str, expected: tuple[Variant | None, str]) -> None:
    assert variant_of(name) == expected


def test_every_device_has_a_folder_of_its_own(tmp_path: Path) -> None:
    names = ["host", "adb", "adb:A1", "ssh://pi@raspberrypi", "ssh://pi@raspberrypi:22", "ssh://../../etc"]
    paths = {path_of(tmp_path, name, V1, "int8") for name in names}
    assert len(paths) == len(names)
    assert {path.parent.parent for path in paths} == {tmp_path / "bench"}


MODEL = timed(V1, "int8", 18.3).model


def saved(build: Path, model: ModelInfo = MODEL) -> Path:
    path = path_of(build, PIXEL.name, V1, "int8")
    save(replace(timed(V1, "int8", 18.3), model=model), path)
    return path


def test_accuracy_is_joined_to_the_file_it_is_of(tmp_path: Path) -> None:
    save_manifest(tmp_path, V1, {"int8": 60.4}, 1_400_000)
    result = load_result(saved(tmp_path), tmp_path)
    assert (result.accuracy, result.dataset, result.notes) == (60.4, "flowers", ())


def test_accuracy_of_another_file_is_refused(tmp_path: Path) -> None:
    save_manifest(tmp_path, V1, {"int8": 60.4}, 1_400_000)
    result = load_result(saved(tmp_path, replace(MODEL, sha256="f" * 64)), tmp_path)
    assert result.accuracy is None
    assert result.dataset == ""
    assert result.notes[0].startswith("accuracy not joined: the manifest is of file ")
    assert result.notes[0].endswith("measured was ffffffffffff")


def test_a_result_without_manifest_says_so(tmp_path: Path) -> None:
    result = load_result(saved(tmp_path), tmp_path)
    assert result.accuracy is None
    assert result.notes == ("accuracy not known: no manifest of this file",)


def test_a_run_at_another_resolution_is_on_no_curve(tmp_path: Path) -> None:
    inputs = timed(Variant("v1", 0.5, 160), "int8", 1.0).model.inputs
    result = load_result(saved(tmp_path, replace(MODEL, inputs=inputs)), tmp_path)
    assert "named 192, but ran at (1, 160, 160, 3)" in result.notes[-1]
    assert curves_of([result]) == {}


def test_without_output_shape_the_manifest_says_how_many_classes(tmp_path: Path) -> None:
    path = saved(tmp_path, replace(MODEL, outputs=()))
    assert "how many classes" in load_result(path, tmp_path).notes[-1]
    save_manifest(tmp_path, V1, {"int8": 60.4}, 1_400_000)
    assert load_result(path, tmp_path).num_classes == 1001


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(AlpharhoError, match=path.name):
        load_results(tmp_path)


def test_times_and_counts_are_never_on_one_curve(tmp_path: Path) -> None:
    save(timed(V1, "int8", 18.3), path_of(tmp_path, "d", V1, "int8"))
    other = Variant("v1", 0.5, 160)
    save(counted(other, "int8", 50_000_000), path_of(tmp_path, "d", other, "int8"))
    found = curves_of(load_results(tmp_path))
    assert {curve.unit for curve in found.values()} == {Unit.MILLISECONDS, Unit.INSTRUCTIONS}
    assert [len(curve.points) for curve in found.values()] == [1, 1]
    assert {point.value for curve in found.values() for point in curve.points} == {18.3, 50.0}


def test_other_threads_make_another_curve(tmp_path: Path) -> None:
    one = timed(V1, "int8", 18.3)
    save(one, path_of(tmp_path, "a", V1, "int8"))
    save(replace(one, spec=replace(one.spec, threads=4)), path_of(tmp_path, "b", V1, "int8"))
    assert len(curves_of(load_results(tmp_path))) == 2


def test_invalid_results_are_on_no_curve(tmp_path: Path) -> None:
    save_counts(tmp_path, "int8", leave_out=[V1])
    save_invalid(tmp_path, counted(V1, "int8", 1), V1, "drift")
    (curve,) = curves_of(load_results(tmp_path)).values()
    assert len(curve.points) == 15
    assert V1.name not in {point.variant for point in curve.points}


def test_a_device_is_found_by_name_and_by_kind(tmp_path: Path) -> None:
    saved(tmp_path)
    assert [len(load_results(tmp_path, device)) for device in ("", "adb", PIXEL.name, "host", "adb:H")] == [
        1,
        1,
        1,
        0,
        0,
    ]


def test_a_file_of_another_name_is_kept_without_a_cost(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "host" / "photo.json"
    model = ModelInfo(name="photo.tflite", sha256="a" * 64, size_bytes=10)
    save(replace(timed(V1, "int8", 3.0), model=model), path)
    result = load_result(path, tmp_path)
    assert (result.name, result.variant, result.size) == ("photo", None, None)
    assert result.value
    assert result.value.value == 3.0
