"""The verbs `bench` and `arm` on real runtimes: this machine's, and the emulated ARM core's."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from device_bench.device import load
from export.read_tflite import read_tflite
from pipeline import bench, untrained
from pipeline.__main__ import main
from pipeline.artifacts import UsageError, sha256_of
from pipeline.variant import Variant

SMALL = Variant("v1", 0.25, 32)
RHO = "0.143"  # of 224: 32 pixels


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder with the untrained files of a small variant."""
    folder = tmp_path_factory.mktemp("work") / "build"
    untrained.file_of(SMALL, "int8", folder)
    return folder


@pytest.fixture
def here(build: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(build.parent)
    return build


def test_untrained_files_have_a_thousand_classes_that_differ(build: Path) -> None:
    paths = set((build / SMALL.name).glob("*.tflite"))
    assert {path.name for path in paths} == {"float32.tflite", "float16.tflite", "int8.tflite"}
    for path in paths:
        file = read_tflite(path)
        assert file.tensors[file.outputs[0]].shape == (1, 1000)
    before = {path: sha256_of(path) for path in paths}
    untrained.file_of(SMALL, "float32", build)
    assert {path: sha256_of(path) for path in paths} == before


def test_batch_norms_are_calibrated_so_that_logits_spread(build: Path) -> None:
    from export.runtime import load_tflite_predictor
    from pipeline.data import normalise, open_fashion_mnist_sample

    pixels, _ = open_fashion_mnist_sample().test.take(range(16), SMALL.resolution)
    logits = load_tflite_predictor(build / SMALL.name / "float32.tflite", normalise)(pixels)
    assert np.std(logits, axis=0).mean() > 1e-3
    assert len(set(logits.argmax(1))) > 1


def test_bench_measures_a_file_on_this_machine(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", f"build/{SMALL.name}/int8.tflite", "--device", "host", "--runs", "5"]
    code = main(words)
    path = here / "bench" / "host" / f"{SMALL.name}.int8.json"
    measurement = load(path)
    assert measurement.model.sha256 == sha256_of(here / SMALL.name / "int8.tflite")
    assert len(measurement.processes) == 5 and not measurement.emulated
    shown = capsys.readouterr().out
    assert f"{SMALL.name}.int8" in shown and "ms" in shown
    assert code == (0 if measurement.valid else 1)
    assert json.loads(path.read_text())["valid"] is measurement.valid


@pytest.mark.emulator
def test_bench_counts_a_model_on_an_emulated_core(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "v1", "--alpha", "0.25", "--rho", RHO, "--device", "emulated:cortex-a76"]) == 0
    results = sorted((here / "bench" / "emulated:cortex-a76").glob("*.json"))
    assert [path.name for path in results] == [
        f"{SMALL.name}.{p}.json" for p in ("float16", "float32", "int8")
    ]
    half, single, integer = (load(path).counts[0].per_inference for path in results)
    assert integer < single and half < single
    shown = capsys.readouterr().out
    assert "M instructions (emulated, no time)" in shown and " ms" not in shown


@pytest.mark.emulator
def test_arm_kernels_answer_as_this_machine(
    small_idx: Path, here: Path, small_job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["arm", str(small_job / "int8.tflite"), "--dataset", str(small_idx), "--images", "20"]
    assert main(words) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[0].endswith("int8.tflite") and float(row[3]) >= 95 and float(row[4]) <= 3


@pytest.mark.parametrize(
    ("words", "found", "code"),
    [
        (["bench", "v9"], "v9: neither a model (v1, ", 1),
        (["bench", "v1", "v2"], "give one model or some .tflite files, not v1 v2", 2),
        (["bench", "v1", "--device", "toaster"], "device 'toaster' is unknown; give one of host, ssh://", 2),
        (["bench", "v1", "--device", "emulated:pentium"], "emulated core 'pentium' is unknown", 2),
        (["bench", "v1", "--threads", "0"], "--threads is 0; choose a number above 0", 2),
        (["bench", "v1", "--timeout", "-1"], "--timeout is -1.0; choose a number above 0", 2),
        (["arm", "x.tflite", "--device", "host"], "outputs are compared on emulated:CORE only", 2),
        (["arm", "x.tflite", "--images", "0"], "--images is 0", 2),
    ],
)
def test_bad_input_is_one_clear_line(
    words: list[str], found: str, code: int, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == code
    error = capfd.readouterr().err
    assert error.startswith("pipeline: ") and error.count("\n") == 1
    assert found in error


def test_a_damaged_model_is_told_by_class(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "junk.tflite").write_bytes(b"not a model")
    assert main(["bench", "build/junk.tflite"]) == 1
    assert "model-unsupported" in capfd.readouterr().err


def test_results_of_a_variant_are_kept_by_its_name(here: Path) -> None:
    file = here / SMALL.name / "int8.tflite"
    with pytest.raises(UsageError, match="would share a result file"):
        bench.files_of(Namespace(targets=[str(file), str(file)], device="host"))
    assert bench._result_path(file, "host") == Path("build/bench/host/v1_0.25_32.int8.json")
    assert bench._result_path(Path("/elsewhere/model.tflite"), "adb:X") == Path(
        "build/bench/adb:X/model.json"
    )
