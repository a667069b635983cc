"""The verb `choose` on recorded results, with gaps that only the law can fill."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from device_bench.device import save
from pipeline import choose
from pipeline.artifacts import CheckError, UsageError
from pipeline.results import path_of
from pipeline.variant import Variant
from tests.pipeline.recorded import (
    A72,
    PIXEL,
    counted,
    published_ms,
    save_counts,
    save_invalid,
    save_manifest,
    timed,
)

GAP = Variant("v1", 0.5, 160)  # 13.0 ms, with 1.34 M weights
ODD = Variant("v1", 0.35, 160)  # exported, on no grid


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """All int8 points but GAP, which is exported; accuracy rises with the cost."""
    save_counts(tmp_path, "int8", leave_out=[GAP])
    for variant, ms in published_ms("int8").items():
        save_manifest(tmp_path, variant, {"int8": 40 + ms / 3}, 4_000_000)
    save_manifest(tmp_path, ODD, {"int8": 51.0}, 900_000)
    return tmp_path


def rows(capsys: pytest.CaptureFixture[str], build: Path, *words: str) -> list[list[str]]:
    parser = argparse.ArgumentParser()
    choose.add_arguments(parser)
    assert choose.run(parser.parse_args(["--build", str(build), *words])) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()[1:]]


def test_the_most_accurate_that_fits_is_first(capsys: pytest.CaptureFixture[str], build: Path) -> None:
    found = rows(capsys, build, "--device", A72.name, "--max-minsn", "20", "--model", "v1")
    assert found[0][:3] == ["v1_0.35_160", "int8", "51.00"]
    assert found[1][:3] == ["v1_0.50_192", "int8", "46.10"]
    accuracies = [float(row[2]) for row in found]
    assert accuracies == sorted(accuracies, reverse=True)
    assert all(float(row[4]) <= 20 for row in found)


def test_measured_and_predicted_are_told_apart(capsys: pytest.CaptureFixture[str], build: Path) -> None:
    found = {row[0]: row for row in rows(capsys, build, "--device", A72.name)}
    assert len(found) == 17
    assert {name for name, row in found.items() if row[5] == "predicted"} == {GAP.name, ODD.name}
    assert found["v1_0.50_192"][5] == "measured"
    assert float(found[GAP.name][4]) == pytest.approx(13.0, rel=0.05)  # as was published


def test_a_prediction_has_to_fit_with_its_error_band(capsys: pytest.CaptureFixture[str], build: Path) -> None:
    predicted = next(row for row in rows(capsys, build, "--device", A72.name) if row[0] == GAP.name)
    value, band = float(predicted[4]), float(predicted[6].strip("±%")) / 100
    for limit, expected in ((value * (1 + 0.9 * band), False), (value * (1 + 1.1 * band), True)):
        names = [row[0] for row in rows(capsys, build, "--device", A72.name, "--max-minsn", str(limit))]
        assert (GAP.name in names) is expected


def test_files_too_large_are_left_out(capsys: pytest.CaptureFixture[str], build: Path) -> None:
    found = rows(capsys, build, "--device", A72.name, "--max-mb", "1")
    assert [row[0] for row in found] == [ODD.name]


def test_a_prediction_outside_the_measured_sizes_says_so(
    capsys: pytest.CaptureFixture[str], build: Path
) -> None:
    save_manifest(build, Variant("v1", 1.0, 320), {"int8": 72.0}, 4_000_000)
    first = rows(capsys, build, "--device", A72.name)[0]
    assert first[0] == "v1_1.00_320"
    assert "beyond the measured sizes" in " ".join(first)


def test_an_invalid_result_is_never_chosen(capsys: pytest.CaptureFixture[str], build: Path) -> None:
    save_invalid(build, counted(GAP, "int8", 1), GAP, "drift")
    found = {row[0]: row for row in rows(capsys, build, "--device", A72.name)}
    assert found[GAP.name][5] == "predicted"


def test_accuracy_of_another_file_is_not_used(capsys: pytest.CaptureFixture[str], build: Path) -> None:
    variant = Variant("v1", 1.0, 224)
    other = counted(variant, "int8", 70_200_000)
    save(
        replace(other, model=replace(other.model, sha256="f" * 64)),
        path_of(build, A72.name, variant, "int8"),
    )
    found = [row for row in rows(capsys, build, "--device", A72.name) if row[0] == variant.name]
    assert sorted("measured" in row for row in found) == [False, True]  # the new file is only predicted
    assert all(("not" in row) == ("measured" in row) for row in found)  # accuracy not known


def test_a_limit_is_in_the_unit_of_the_device(capsys: pytest.CaptureFixture[str], build: Path) -> None:
    save(timed(GAP, "int8", 13.0), path_of(build, PIXEL.name, GAP, "int8"))
    assert [row[:6] for row in rows(capsys, build, "--device", PIXEL.name, "--max-ms", "13.1")] == [
        [GAP.name, "int8", "44.33", "flowers", "13.00", "measured"],
        ["v1", "int8", "on", "adb:HT7A1", "(Google", "Pixel"],
    ]
    with pytest.raises(UsageError, match=r"has results in M instructions, not ms; give --max-minsn"):
        rows(capsys, build, "--device", A72.name, "--max-ms", "10")
    with pytest.raises(UsageError, match=r"has results in ms, not M instructions; give --max-ms"):
        rows(capsys, build, "--device", PIXEL.name, "--max-minsn", "10")


def test_when_nothing_fits_the_nearest_are_named(capsys: pytest.CaptureFixture[str], build: Path) -> None:
    with pytest.raises(
        CheckError, match=r"none of 17 files fits: the fastest is v1_0\.25_128 int8, 3\.7 M inst"
    ):
        rows(capsys, build, "--device", A72.name, "--max-minsn", "0.1")


def test_data_sets_are_not_ranked_together(capsys: pytest.CaptureFixture[str], build: Path) -> None:
    save_manifest(build, GAP, {"int8": 99.0}, 1_000_000, dataset="digits")
    with pytest.raises(UsageError, match=r"give --dataset, one of digits, flowers"):
        rows(capsys, build, "--device", A72.name)
    assert [row[0] for row in rows(capsys, build, "--device", A72.name, "--dataset", "digits")] == [GAP.name]


def test_two_devices_of_a_kind_must_be_told_apart(capsys: pytest.CaptureFixture[str], build: Path) -> None:
    for info in (PIXEL, replace(PIXEL, name="adb:HT9", model="Google Pixel 3")):
        save(timed(GAP, "int8", 8.0, info), path_of(build, info.name, GAP, "int8"))
    with pytest.raises(
        UsageError, match=r"found 2: adb:HT7A1 \(Google Pixel 2\), adb:HT9 \(Google Pixel 3\)"
    ):
        rows(capsys, build, "--device", "adb")


def test_too_few_points_predict_nothing_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(counted(GAP, "int8", 13_000_000), path_of(tmp_path, A72.name, GAP, "int8"))
    save_manifest(tmp_path, ODD, {"int8": 51.0}, 900_000)
    found = rows(capsys, tmp_path, "--device", A72.name)
    assert [row[0] for row in found[:1]] == [GAP.name]
    assert "nothing predicted, 1 of the 5 points needed" in " ".join(found[1])
