"""The doctor on this machine, on a machine without tools, and on a broken installation."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_bench import emulator_setup
from pipeline import data, doctor
from pipeline.doctor import Finding, State


def test_an_export_works_on_the_machine_that_runs_the_tests(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(argparse.Namespace()) == 0
    shown = capsys.readouterr().out
    for topic in (
        "Python",
        "packages",
        "PyTorch",
        "ONNX Runtime",
        "TFLite runtime",
        "float16",
        "int8",
        "Fashion-MNIST",
    ):
        assert f"\n{topic} " in f"\n{shown}"
    assert "delegated to XNNPACK as one partition" in shown
    assert State.BROKEN not in shown


@pytest.mark.parametrize(
    ("package", "topic"),
    [("ai_edge_litert", "TFLite runtime"), ("onnxruntime", "ONNX Runtime"), ("torch", "PyTorch")],
)
def test_a_package_that_cannot_be_loaded_is_a_row_and_exit_code_1(
    tmp_path: Path, package: str, topic: str
) -> None:
    (tmp_path / f"{package}.py").write_text(
        "raise ImportError('libfoo.so.1: cannot open shared object file')\n"
    )
    program = "import sys; from pipeline import doctor; sys.exit(doctor.run(None))"
    root = str(Path(doctor.__file__).parent.parent)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), root)), "PATH": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (row,) = (line for line in done.stdout.splitlines() if line.startswith(topic))
    assert row.split("BROKEN")[1].strip() == "libfoo.so.1: cannot open shared object file"
    assert "An export does not work here" in done.stdout.splitlines()[-1]


def test_a_wrong_result_of_a_runtime_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor._probe_weights()
    monkeypatch.setattr(doctor, "_probe_weights", iter([right, right + 1]).__next__)
    found = doctor.probe_tflite()
    assert found.state is State.BROKEN
    assert "wrong result" in found.fact


def test_a_missing_tool_says_what_it_costs_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(doctor, "SBIN", ())
    for tool in doctor.TOOLS:
        found = doctor.probe_tool(tool)
        assert (found.state, found.costs) == (State.ABSENT, tool.needed_for)
        assert found.remedy.endswith(tool.package)
    assert doctor.probe_qemu().state is State.ABSENT


@pytest.mark.parametrize(("help_line", "state"), [("-plugin  QEMU_PLUGIN", State.OK), ("", State.LIMITED)])
def test_qemu_needs_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, help_line: str, state: State
) -> None:
    qemu = tmp_path / "qemu-aarch64"
    qemu.write_text(f"#!/bin/sh\necho 'qemu-aarch64 version 7.2.22'\necho '{help_line}'\n")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = doctor.probe_qemu()
    assert found.state is state
    assert found.fact.startswith("qemu-aarch64 version 7.2.22")


def test_a_tool_that_cannot_be_run_is_shown_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adb = tmp_path / "adb"
    adb.write_text("#!/nonexistent\n")
    adb.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.probe_tool(doctor.Tool("adb", ("--version",), "adb", "phones")).fact == str(adb)


def test_emulated_cores_are_absent_until_they_are_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator_setup.installed, "__defaults__", (tmp_path,))
    found = doctor.probe_emulator()
    assert (found.state, found.fact, found.remedy) == (State.ABSENT, "not set up", "make emulator")
    (tmp_path / "manifest.json").write_text("{")  # damaged: made again by the next set-up
    assert doctor.probe_emulator().state is State.ABSENT


def test_data_is_whole_only_with_all_four_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "FASHION_MNIST_DIRS", (tmp_path,))
    *most, last = data.FASHION_MNIST_SHA256
    for name in most:
        (tmp_path / name).touch()
    assert (doctor.probe_data().state, doctor.probe_data().remedy) == (State.ABSENT, "make data")
    (tmp_path / last).touch()
    assert str(tmp_path) in doctor.probe_data().fact


def test_differences_from_the_lock_are_named() -> None:
    lock = "a==1.0 \\\nb==2.0\nc==3.0 ; sys_platform == 'win32'\nd==4.0 ; x\nd==5.0 ; y\ne_e==6.0\nf==7.0\n"
    versions = {"a": "1.0", "b": "2.1", "d": "5.0", "e-e": "6.0"}
    held, wrong = doctor.differences(lock, versions.get)
    assert held == 3
    assert wrong == ["b is 2.1 (lock: 2.0)", "f is missing (lock: 7.0)"]


def test_little_room_is_limited_and_says_how_much_is_needed() -> None:
    found = doctor._room("disk", 1 << 29, 1 << 30, "files cannot be written")
    assert found == Finding(
        topic="disk",
        state=State.LIMITED,
        fact="0.5 GiB available",
        costs="files cannot be written",
        remedy="free at least 1 GiB",
    )
    assert doctor._room("disk", 1 << 30, 1 << 30, "").state is State.OK


def test_the_table_puts_costs_and_remedy_below_their_row() -> None:
    rows = [
        Finding(topic="gcc", fact="gcc 12.2.0"),
        Finding(
            topic="adb",
            state=State.ABSENT,
            fact="not found",
            costs="phones",
            remedy="sudo apt-get install adb",
        ),
    ]
    assert doctor.table(rows).splitlines() == [
        "gcc  ok       gcc 12.2.0",
        "adb  absent   not found",
        "              costs: phones",
        "              mend: sudo apt-get install adb",
    ]
