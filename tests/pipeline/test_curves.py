"""The verb `curves`: grid, law, breaks and published ladders, from the command line on."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from device_bench.device import Measurement, ResultClass, load, save
from pipeline import curves
from pipeline.artifacts import CheckError, UsageError
from pipeline.results import path_of
from pipeline.variant import PRECISIONS, Variant
from tests.pipeline.recorded import A72, PIXEL, counted, published_ms, save_counts, sha256_of_name, timed


def run(build: Path, *words: str, measure: curves.MeasurePoint | None = None) -> int:
    parser = argparse.ArgumentParser()
    curves.add_arguments(parser)
    return curves.run(parser.parse_args([*words, "--build", str(build)]), measure)


def test_the_grid_is_that_of_the_v1_paper() -> None:
    grid = curves.grid("v1")
    assert len(set(grid)) == 16
    assert {variant.resolution for variant in grid} == {224, 192, 160, 128}
    assert set(grid) == set(published_ms("int8"))


def test_a_recorded_curve_is_printed_with_its_law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_counts(tmp_path, "float32")
    assert run(tmp_path, "v1", "--device", A72.name, "--recorded") == 0
    printed = capsys.readouterr().out
    assert "v1 float32 on emulated:cortex-a72, 1 thread, CPU 4, ai-edge-litert 2.3.0" in printed
    assert "four-term law, R² 0.9995" in printed
    assert "M instructions per M quadratic Mult-Adds" in printed
    assert sum(line.startswith("v1_") for line in printed.splitlines()) == 16


def test_a_point_off_the_law_fails_and_is_named(tmp_path: Path) -> None:
    save_counts(tmp_path, "float32")
    slow = Variant("v1", 0.75, 192)
    save(counted(slow, "float32", 100_000_000), path_of(tmp_path, A72.name, slow, "float32"))
    with pytest.raises(CheckError, match=r"v1_0\.75_192 is off the law by more than 8\.0%"):
        run(tmp_path)


def test_a_bigger_model_that_is_faster_fails_and_is_named(tmp_path: Path) -> None:
    save_counts(tmp_path, "float32")
    fast = Variant("v1", 1.0, 224)
    save(counted(fast, "float32", 100_000_000), path_of(tmp_path, A72.name, fast, "float32"))
    with pytest.raises(CheckError, match=r"v1_1\.00_224 is faster than the smaller v1_1\.00_192"):
        run(tmp_path, "--tolerance", "5")


@pytest.mark.parametrize("words", [("--tolerance", "0"), ("--tolerance", "nan"), ("--tolerance", "-1")])
def test_a_senseless_tolerance_is_refused(tmp_path: Path, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="give a share above 0"):
        run(tmp_path, *words)


def test_nothing_recorded_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"no valid result of v1 on any device; measure first"):
        run(tmp_path)


def test_the_grid_is_measured_once_and_invalid_points_again(tmp_path: Path) -> None:
    asked: list[tuple[Variant, str]] = []
    first = (curves.grid("v1")[0], "float32")
    wrong = [first]

    def measure(variant: Variant, precision: str) -> Measurement:
        """Makes the file and measures it; the very first time something is wrong."""
        asked.append((variant, precision))
        file = tmp_path / variant.name / f"{precision}.tflite"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"{variant.name}.{precision}".encode())
        found = counted(variant, precision, round(1e6 * published_ms("int8")[variant]))
        return found.marked(ResultClass.INVALID, wrong.pop()[1]) if wrong else found

    assert run(tmp_path, "v1", "--device", A72.name, measure=measure) == 0
    assert len(set(asked)) == 16 * len(PRECISIONS)
    assert load(path_of(tmp_path, A72.name, *first)).result is ResultClass.INVALID
    asked.clear()
    run(tmp_path, "v1", "--device", A72.name, measure=measure)
    assert load(path_of(tmp_path, A72.name, *first)).result is ResultClass.OK
    changed = curves.grid("v1")[3]
    (tmp_path / changed.name / "int8.tflite").write_bytes(b"exported anew")
    asked.clear()
    run(tmp_path, "v1", "--device", A72.name, measure=measure)
    assert asked == [(changed, "int8")]


def test_the_hash_that_the_records_carry_is_that_of_the_file(tmp_path: Path) -> None:
    """The test above rests on it."""
    variant = curves.grid("v1")[0]
    assert timed(variant, "int8", 1.0).model.sha256 == sha256_of_name(variant, "int8")


def test_the_published_ladders_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--published") == 0
    assert capsys.readouterr().out.count("published") == 4


def test_a_tighter_tolerance_names_the_published_points(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match=r"v1_0\.50_160 is off the law by more than 2\.0%"):
        run(tmp_path, "--published", "--tolerance", "0.02")


def test_counts_are_compared_with_the_published_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for variant, ms in published_ms("float32").items():
        save(counted(variant, "float32", round(1.3e6 * ms)), path_of(tmp_path, A72.name, variant, "float32"))
    assert run(tmp_path, "--published", "--device", A72.name) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if " against v1 " in line]
    assert len(rows) == 2
    assert all(float(figure) >= 0.99 for row in rows for figure in row.split()[-2:])


def test_counts_that_do_not_follow_the_times_fail(tmp_path: Path) -> None:
    for variant, ms in published_ms("float32").items():
        count = round(1.3e9 / ms)
        save(counted(variant, "float32", count), path_of(tmp_path, A72.name, variant, "float32"))
    with pytest.raises(CheckError, match=r"Spearman -1\.0000, log-log R² 1\.0000, expected 0\.99 or more"):
        run(tmp_path, "--published", "--device", A72.name)


def test_no_counts_of_the_asked_device_say_what_to_do(tmp_path: Path) -> None:
    variant = curves.grid("v1")[0]
    save(timed(variant, "int8", 70.2), path_of(tmp_path, PIXEL.name, variant, "int8"))
    with pytest.raises(CheckError, match=r"no valid instruction count of v1 on adb; count first"):
        run(tmp_path, "--published", "--device", "adb")
