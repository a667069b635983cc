"""The main job: what it writes, what its manifest says, and that no fault leaves anything damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import models
from export.check import audit_delegate
from export.read_tflite import read_tflite
from models.weights import read_state, save_weights, write_state
from pipeline import manifest
from pipeline.__main__ import main
from pipeline.artifacts import AlpharhoError, CheckError, locked, sha256_of
from pipeline.job import Request, export
from pipeline.summary import STAGES, summary
from quantize.int8 import Io
from tests.pipeline.conftest import RHO, TEST_IMAGES

FILES = {"model.onnx", "float32.tflite", "float16.tflite", "int8.tflite", "labels.txt", "manifest.json"}


def request_for(small_idx: Path, small_weights: Path, out: Path, io: Io | None = None) -> Request:
    return Request(
        model="v1", alpha=0.25, rho=RHO, dataset=str(small_idx), weights=small_weights, out=out, io=io or Io()
    )


def words_for(request: Request) -> list[str]:
    return [
        *("export", request.model, "--alpha", str(request.alpha), "--rho", str(request.rho)),
        *("--dataset", request.dataset, "--weights", str(request.weights), "--out", str(request.out)),
    ]


@pytest.fixture(scope="module")
def finished(small_job: Path) -> tuple[Path, manifest.Manifest]:
    return small_job, manifest.load(small_job / "manifest.json")


def test_the_job_writes_every_file_of_the_contract(finished: tuple[Path, manifest.Manifest]) -> None:
    out, _ = finished
    assert {path.name for path in out.iterdir()} == FILES
    assert (out / "labels.txt").read_text().splitlines()[:2] == ["T-shirt/top", "Trouser"]


def test_the_manifest_has_the_promised_keys(finished: tuple[Path, manifest.Manifest]) -> None:
    out, _ = finished
    plain = json.loads((out / "manifest.json").read_text())
    assert {
        *(
            "schema",
            "variant",
            "model",
            "alpha",
            "rho",
            "resolution",
            "dataset",
            "num_classes",
            "seed",
            "versions",
        ),
        *("weights", "macs", "params", "artifacts", "accuracy", "agreement", "parity", "delegate"),
    } <= set(plain)
    assert {"source", "sha256", "recognised", "licence", "trained_on"} <= set(plain["weights"])
    assert set(plain["artifacts"]) == {"onnx", "float32", "float16", "int8"}
    assert set(plain["artifacts"]["int8"]) == {"path", "sha256", "bytes", "seconds"}
    assert set(plain["accuracy"]) == set(STAGES)
    assert set(plain["accuracy"]["int8"]) == {"top1", "top5", "samples"}
    assert set(plain["agreement"]) == {"float16", "int8"}
    assert set(plain["parity"]) == {"onnx", "float32"}
    assert {"max_abs_diff", "cosine"} <= set(plain["parity"]["onnx"])
    assert set(plain["delegate"]) == {"float32", "float16", "int8"}
    assert set(plain["delegate"]["int8"]) == {"partitions", "undelegated_ops"}


def test_the_manifest_says_what_the_files_are(finished: tuple[Path, manifest.Manifest]) -> None:
    out, record = finished
    for artifact in record.artifacts.values():
        path = out / artifact.path
        assert (artifact.sha256, artifact.bytes) == (sha256_of(path), path.stat().st_size)
    assert record.variant == "v1_0.25_32"
    assert record.params == 215642  # table 1 at alpha 0.25 with 10 classes, batch norms included
    assert record.accuracy["pytorch"].samples == TEST_IMAGES
    assert record.accuracy["pytorch"] == record.accuracy["onnx"] == record.accuracy["float32"]
    assert all(record.delegate[precision].partitions == 1 for precision in ("float32", "float16", "int8"))
    assert record.delegate["int8"].undelegated_ops == ()
    assert record.agreement["float16"] > 98 and record.agreement["int8"] > 80
    assert record.parity["onnx"].cosine > 0.999999


def test_the_summary_has_a_row_for_every_stage(finished: tuple[Path, manifest.Manifest]) -> None:
    lines = summary(finished[1]).splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(STAGES)
    assert len({len(line) for line in lines[1:]}) == 1


def test_the_same_request_gives_the_same_files(
    finished: tuple[Path, manifest.Manifest], small_idx: Path, small_weights: Path, tmp_path: Path
) -> None:
    again = export(request_for(small_idx, small_weights, tmp_path), say=lambda _: None)
    assert {name: a.sha256 for name, a in again.artifacts.items()} == {
        name: a.sha256 for name, a in finished[1].artifacts.items()
    }


def test_byte_doors_are_as_asked(small_idx: Path, small_weights: Path, tmp_path: Path) -> None:
    record = export(
        request_for(small_idx, small_weights, tmp_path, Io(input="int8", output="int8")), lambda _: None
    )
    file = read_tflite(tmp_path / "int8.tflite")
    assert file.tensors[file.inputs[0]].dtype == file.tensors[file.outputs[0]].dtype == "int8"
    assert record.delegate["int8"].undelegated_ops == ()
    assert (record.quantised.input, record.quantised.output) == ("int8", "int8")


def test_a_manifest_of_another_schema_is_refused(
    finished: tuple[Path, manifest.Manifest], tmp_path: Path
) -> None:
    path = tmp_path / "manifest.json"
    for content in ("{}", "[]", "{", '{"schema": 99}'):
        path.write_text(content)
        with pytest.raises(AlpharhoError, match=r"manifest\.json"):
            manifest.load(path)


def test_a_stage_that_fails_its_check_keeps_the_files_before_it(
    small_idx: Path, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget of another network stands for an export that lost a layer."""
    monkeypatch.setattr("pipeline.job.op_budget", lambda variant, padding: {"DEPTHWISE_CONV_2D": 14})
    (tmp_path / "manifest.json").write_text("of an older run")
    with pytest.raises(CheckError, match=r"float32\.tflite: .* 13 DEPTHWISE_CONV_2D \(expected 14\)"):
        export(request_for(small_idx, small_weights, tmp_path), say=lambda _: None)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "labels.txt", "float32.tflite"}


# --- bad input: one clear line, exit code 1 (2 for usage), nothing damaged ----------------------------------


@pytest.fixture
def faults(tmp_path: Path, small_weights: Path) -> Path:
    """A folder of bad files."""
    state = read_state(small_weights)
    write_state(tmp_path / "other.safetensors", {k: v for k, v in state.items() if "features.3" not in k}, {})
    write_state(tmp_path / "nan.safetensors", {k: v * float("nan") for k, v in state.items()}, {})
    (tmp_path / "cut.safetensors").write_bytes(small_weights.read_bytes()[:1000])
    (tmp_path / "empty").mkdir()
    for name in ("cats", "dogs"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "broken" / name / f"{number}.jpg").write_bytes(b"not a picture")
    return tmp_path


BAD_INPUT = [
    (["export", "v9"], "unknown model 'v9'; choose one of v1, "),
    (["export", "v1", "--alpha", "0"], "alpha is 0.0; choose a width multiplier above 0"),
    (["export", "v1", "--alpha", "-1"], "alpha is -1.0"),
    (["export", "v1", "--alpha", "nan"], "alpha is nan"),
    (["export", "v1", "--rho", "0.3"], "resolution 17 is too small for v1"),
    (["export", "v1", "--rho", "-1"], "rho is -1.0"),
    (["export", "v1", "--rho", "nan"], "rho is nan"),
    (["export", "v1", "--alpha", "0.4"], "no weights are shipped for v1_0.40_56 on fashion_mnist"),
    (["export", "v1", "--weights", "missing.safetensors"], "no weights file at missing.safetensors"),
    (["export", "v1", "--alpha", "0.25", "--weights", "cut.safetensors"], "cut.safetensors is damaged"),
    (
        ["export", "v1", "--alpha", "0.25", "--weights", "other.safetensors"],
        "has no features.3.depthwise.conv.weight",
    ),
    (
        ["export", "v1", "--alpha", "0.25", "--weights", "nan.safetensors"],
        "nan.safetensors is damaged: classifier.1.bias",
    ),
    (["export", "v1", "--alpha", "0.25", "--dataset", "empty"], "empty: no pictures"),
    (["export", "v1", "--alpha", "0.25", "--dataset", "nowhere"], "unknown data set 'nowhere'"),
    (
        ["export", "v1", "--alpha", "0.25", "--calibration-images", "0"],
        "0 calibration images; choose at least 1",
    ),
    (["convert", "missing.onnx", "--out", "o", "--calibration", "empty"], "missing.onnx: no such file"),
    (["evaluate", "missing.tflite"], "missing.tflite: no such file"),
    (["inspect", "missing.tflite"], "missing.tflite: No such file"),
]


@pytest.mark.parametrize(("words", "found"), BAD_INPUT, ids=[" ".join(words) for words, _ in BAD_INPUT])
def test_bad_input_is_one_clear_line(
    words: list[str],
    found: str,
    faults: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(faults)
    before = sorted(faults.rglob("*"))
    assert main(words) == 1
    error = capfd.readouterr().err
    assert error.startswith("pipeline: ") and error.count("\n") == 1
    assert found in error
    assert sorted(faults.rglob("*")) == before


def test_weights_of_another_class_count_are_refused(
    small_weights: Path, faults: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(faults)
    words = ["export", "v1", "--alpha", "0.25", "--dataset", "broken", "--weights", str(small_weights)]
    assert main(words) == 1
    assert "has 10 classes (classifier.1.bias), the network has 2" in capfd.readouterr().err


@pytest.mark.parametrize(
    "words",
    [[], ["nonsense"], ["export"], ["export", "v1", "--alpha", "wide"], ["export", "v1", "--io", "int4"]],
)
def test_wrong_usage_is_exit_code_2(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: python -m pipeline" in capfd.readouterr().err


def test_every_verb_shows_examples(capfd: pytest.CaptureFixture[str]) -> None:
    for verb in ("train", "export", "convert", "evaluate", "inspect", "doctor"):
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
        assert f"examples:\n  python -m pipeline {verb}" in capfd.readouterr().out


def test_two_jobs_do_not_share_a_folder(small_idx: Path, small_weights: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(AlpharhoError, match="another run is writing to"):
        export(request_for(small_idx, small_weights, tmp_path), say=lambda _: None)
    (tmp_path / ".int8.tflite.abc.part").write_text("of a killed run")
    with locked(tmp_path):
        assert not list(tmp_path.iterdir())


def start_job(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("moment", "number", "kept"),
    [  # the line that the job last said
        ("", signal.SIGINT, set()),
        ("model.onnx", signal.SIGINT, set()),
        ("float16.tflite", signal.SIGTERM, {"model.onnx", "labels.txt", "float32.tflite"}),
        ("int8.tflite", signal.SIGINT, {"model.onnx", "labels.txt", "float32.tflite", "float16.tflite"}),
    ],
)
def test_an_interrupted_job_leaves_whole_files_only(
    moment: str, number: signal.Signals, kept: set[str], small_idx: Path, small_weights: Path, tmp_path: Path
) -> None:
    job = start_job(words_for(request_for(small_idx, small_weights, tmp_path)))
    assert job.stderr is not None
    if moment:
        while not job.stderr.readline().startswith(moment):
            pass
    else:
        time.sleep(1.5)  # while torch is imported, where nothing is written yet
    job.send_signal(number)
    _, error = job.communicate(timeout=300)
    assert job.returncode == 1, error
    assert "Traceback" not in error and "interrupted" in error.splitlines()[-1]
    found = {path.name for path in tmp_path.iterdir()}
    assert kept <= found and not any(name.endswith(".part") for name in found)
    assert "manifest.json" not in found
    for name in found & {"float32.tflite", "float16.tflite", "int8.tflite"}:
        assert audit_delegate(tmp_path / name).partitions == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte: model.onnx and one more file fill it."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_whole_files_only(
    small_disk: Path, small_idx: Path, small_weights: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words_for(request_for(small_idx, small_weights, small_disk))) == 1
    error = capfd.readouterr().err.splitlines()
    assert "No space left on device" in error[-1]
    assert {path.name for path in small_disk.iterdir()} == {"model.onnx", "labels.txt"}


def test_logits_of_all_stages_are_close(finished: tuple[Path, manifest.Manifest]) -> None:
    _, record = finished
    top1 = [record.accuracy[stage].top1 for stage in STAGES]
    assert np.ptp(top1) < 10


def test_an_unreadable_image_is_named(
    faults: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(faults)
    weights = tmp_path / "two.safetensors"
    save_weights(models.build("v1", 0.25, 2), weights, {})
    words = [
        "export",
        "v1",
        "--alpha",
        "0.25",
        "--dataset",
        "broken",
        "--weights",
        str(weights),
        "--out",
        "o",
    ]
    assert main(words) == 1
    error = capfd.readouterr().err.splitlines()
    assert ".jpg: cannot be decoded as a picture" in error[-1] and "broken" in error[-1]
    assert not list((faults / "o").iterdir())


def test_the_files_say_what_they_are_and_can_give_probabilities(
    small_idx: Path, small_weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    request = request_for(small_idx, small_weights, tmp_path)
    assert main([*words_for(request), "--recipe", "int8_min_max", "--head", "probabilities"]) == 0
    found = manifest.load(tmp_path / "manifest.json")
    for precision in ("float32", "float16", "int8"):
        file = read_tflite(tmp_path / f"{precision}.tflite")
        assert file.attached == ("labels.txt",)
        about = "\n".join(file.about)
        assert f"name: {found.variant}" in about
        assert f"onnx sha256: {found.artifacts['onnx'].sha256}" in about
        assert "alpha: 0.25" in about
        assert ("recipe: int8_min_max" in about) == (precision == "int8")
        assert file.tensors[file.outputs[0]].name == "probabilities"
