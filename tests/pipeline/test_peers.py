"""Peers' environments and what is asked of them: a real child process, a missing environment, the pins."""

from __future__ import annotations

import importlib
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from export.runtime import run_onnx
from pipeline.artifacts import AlpharhoError
from pipeline.data import normalise, open_fashion_mnist_sample
from pipeline.peers import environments, protocol
from pipeline.peers.static_onnx import quantize_static

OWN = [sys.executable]


@pytest.mark.parametrize("name", environments.NAMES)
def test_every_requirement_is_an_exact_pin(name: str) -> None:
    lines = (environments.REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    assert lines and not [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+]+", line)]


def test_a_missing_environment_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        AlpharhoError,
        match=r"onnx2tf: no finished environment .*make it: .*pipeline\.peers\.environments onnx2tf",
    ):
        environments.python_of("onnx2tf", tmp_path)


def test_an_environment_of_other_pins_is_not_ready(tmp_path: Path) -> None:
    stamp = tmp_path / "onnx2tf" / environments.STAMP
    stamp.parent.mkdir()
    stamp.write_text("onnx2tf==1.0\n")
    assert not environments.is_ready("onnx2tf", tmp_path)
    stamp.write_bytes((environments.REQUIREMENTS / "onnx2tf.txt").read_bytes())
    assert environments.is_ready("onnx2tf", tmp_path)
    assert environments.make("onnx2tf", print, tmp_path) == tmp_path / "onnx2tf" / "bin" / "python"


def test_what_pip_cannot_install_leaves_no_finished_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "odd.txt").write_text("alpharho-no-such-package==1\n")
    monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
    monkeypatch.setattr(environments, "PYTHON", sys.executable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(AlpharhoError, match=r"cannot install odd: .*alpharho-no-such-package"):
        environments.make("odd", print, tmp_path / "peers")
    assert not environments.is_ready("odd", tmp_path / "peers")


def test_a_script_that_fails_is_told_by_its_last_line() -> None:
    with pytest.raises(AlpharhoError, match=r"run_tflite ended with 1: KeyError: 'no-such-runtime'"):
        environments.ask(OWN, "run_tflite", {"runtime": "no-such-runtime"})


def test_onnxruntimes_quantiser_gives_a_network_that_still_tells_images_apart(
    small_job: Path, tmp_path: Path
) -> None:
    images = normalise(open_fashion_mnist_sample().test.take(range(8), 32)[0])
    quantize_static(small_job / "model.onnx", tmp_path / "int8.onnx", images)
    found, exact = (run_onnx(path, images) for path in (tmp_path / "int8.onnx", small_job / "model.onnx"))
    error = np.abs(found - exact).max() / np.ptp(exact)
    assert 0 < error < 0.2
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


def test_the_time_of_imports_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_inner.py").write_text("import time\ntime.sleep(0.3)\n")
    (tmp_path / "slow_outer.py").write_text("import slow_inner\nimport time\ntime.sleep(0.2)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        importlib.import_module("slow_outer")
        time.sleep(0.4)

    started = time.perf_counter()
    seconds, _ = protocol.timed(work)
    whole = time.perf_counter() - started
    assert 0.4 <= seconds <= whole - 0.5
    again, _ = protocol.timed(lambda: time.sleep(0.1))
    assert again >= 0.1
