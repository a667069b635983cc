"""Files on runtimes: the project's own and the emulated one really run, the page says what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_bench import emulator_setup
from export.runtime import run_onnx
from pipeline import runtimes
from pipeline.__main__ import main
from pipeline.data import normalise, open_fashion_mnist_sample
from pipeline.runtimes import RUNTIMES, Cell, Subject, complaint, page, run_cell

RESOLUTION = 32
TRAINED = Cell(subject="v1_0.25_56", kind="float32", runtime="own", sha256="", images=8, partitions=1)


@pytest.fixture(scope="module")
def subject(small_job: Path) -> Subject:
    """A small network's float32 and int8 files."""
    pixels, _ = open_fashion_mnist_sample().test.take(range(4), RESOLUTION)
    files = {kind: small_job / f"{kind}.tflite" for kind in ("float32", "int8")}
    return Subject("small", files, pixels, run_onnx(small_job / "model.onnx", normalise(pixels)))


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_projects_own_runtime_runs_a_file_and_tells_its_partitions(subject: Subject, kind: str) -> None:
    cell, logits = run_cell(subject, kind, RUNTIMES["own"], None)
    assert logits is not None
    assert (cell.partitions, cell.refused, cell.largest, cell.images) == (1, "", 0.0, 4)
    span = np.ptp(subject.reference)
    assert np.abs(logits - subject.reference).max() < {"float32": 1e-3, "int8": 0.2}[kind] * span


def test_what_a_runtime_cannot_load_is_refused_in_its_own_words(subject: Subject, tmp_path: Path) -> None:
    content = bytearray(subject.files["float32"].read_bytes())
    content[4:8] = b"XXXX"
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(content)
    request = {"runtime": "ai-edge-litert", "model": str(damaged), "inputs": "-", "outputs": "-"}
    assert runtimes.asked(RUNTIMES["own"], request)["refused"]


@pytest.mark.emulator
@pytest.mark.slow
@pytest.mark.skipif(emulator_setup.installed() is None, reason="no emulator: make emulator")
def test_the_emulated_runtime_gives_what_the_own_one_gives(subject: Subject) -> None:
    _, own = run_cell(subject, "int8", RUNTIMES["own"], None)
    cell, _ = run_cell(subject, "int8", RUNTIMES["arm_litert"], own)
    assert (cell.partitions, cell.version) == (1, "2.1.6")
    assert cell.largest < 0.05


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"agreement": 100.0}, ""),
        ({"agreement": 97.0}, "agrees with ONNX Runtime on 97 %"),
        ({"agreement": 97.0, "subject": "v2_1.00_224"}, ""),
        ({"agreement": 100.0, "partitions": 3}, "3 delegate partitions"),
        ({"agreement": 100.0, "largest": 0.002}, "0.2 % of the range"),
        ({"refused": "no such operator"}, "does not run: no such operator"),
        ({"agreement": 95.0, "partitions": 4, "kind": "int8_full", "runtime": "tflite_runtime"}, ""),
    ],
)
def test_what_must_work_is_told_from_what_cannot(changes: dict[str, Any], expected: str) -> None:
    found = complaint(replace(TRAINED, **changes))
    assert found.startswith(expected) and bool(found) == bool(expected)


def test_the_page_has_a_table_a_network_and_says_why_a_file_is_refused() -> None:
    cells = [
        replace(TRAINED, version="9.9", agreement=100.0, largest=0.0004),
        replace(TRAINED, version="9.9", kind="int8", agreement=96.0, largest=0.0312),
        replace(TRAINED, version="2.14", kind="int8", runtime="tflite_runtime", refused="a|b"),
    ]
    written = page(cells)
    assert (
        "| ai-edge-litert 9.9, the project's own | 100 % · 0.4 ‰ · 1 |  | 96 % · 31.2 ‰ · 1 |  |" in written
    )
    assert "| tflite-runtime 2.14 |  |  | **refused** |  |" in written
    divided = replace(TRAINED, version="9.9", agreement=100.0, partitions=2)
    assert "| **100 % · 0.0 ‰ · 2** |" in page([divided])
    assert "* tflite-runtime 2.14, int8: a|b" in written


def test_the_command_ends_with_1_and_still_writes_the_page(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.md"
    wrong = replace(subject, name="wrong_1.00_56", reference=-subject.reference)
    monkeypatch.setattr(runtimes, "KINDS", ("float32",))
    monkeypatch.setitem(runtimes.SUBJECTS, "v1_0.25_56", lambda: wrong)
    assert main(["runtimes", "--subject", "v1_0.25_56", "--runtime", "own", "--out", str(out)]) == 1
    assert "wrong_1.00_56 float32" in capsys.readouterr().out
    assert "## wrong_1.00_56" in out.read_text()
