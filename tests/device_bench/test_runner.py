from __future__ import annotations

import ast
import base64
import json
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_bench import runner
from device_bench.device import BenchSpec, DeviceError, ResultClass, WarmUp
from device_bench.host import HostDevice
from device_bench.process import Finished, finish
from device_bench.runner_client import RUNNER, answer_in, answer_of, model_fields, request
from pipeline.artifacts import AlpharhoError
from tests.device_bench.tiny_models import conv_model, int8_conv_model

QUICK = BenchSpec(processes=1, runs=3, seconds=0, warm_up=WarmUp(runs=2, seconds=0, window=1, max_runs=3))


def _ask(action: str, model: Path, tmp_path: Path, **fields: object) -> dict[str, object]:
    """What the runner answers in a real process of this Python."""
    plain = {"model": str(model), **(model_fields(model) if model.exists() else {"sha256": ""}), **fields}
    asked = request(action, QUICK, **plain)
    command = [sys.executable, "-", asked.argument]
    return answer_of(finish(command, timeout_s=60, given=RUNNER.read_bytes(), folder=tmp_path), asked)


def _file(tmp_path: Path, content: bytes, name: str = "model.tflite") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_the_runner_is_python_3_8_and_needs_only_the_standard_library_to_start() -> None:
    tree = ast.parse(RUNNER.read_text(), feature_version=(3, 8))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [getattr(node, "module", None) or node.names[0].name for node in imports]
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names


def test_the_embedded_model_is_the_smallest_convolution() -> None:
    assert zlib.decompress(base64.b64decode(runner.TINY_MODEL)) == conv_model(2, 1)


def test_a_request_holds_nothing_a_shell_would_take() -> None:
    asked = request("time", QUICK, model="/tmp/$(reboot); 'ü \"`x`\n.tflite")
    assert set(asked.argument) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=")
    assert (
        json.loads(base64.urlsafe_b64decode(asked.argument))["model"] == "/tmp/$(reboot); 'ü \"`x`\n.tflite"
    )


@pytest.mark.parametrize(
    ("content", "result", "said"),
    [
        (b"junk" * 9, ResultClass.MODEL_UNSUPPORTED, "not a valid Flatbuffer|identifier"),
        (
            conv_model(8, 4, signature=(-1, -1, -1, 4)),
            ResultClass.MODEL_UNSUPPORTED,
            r"\[-1, -1, -1, 4\]; only",
        ),
    ],
    ids=["junk", "dynamic shape"],
)
def test_models_that_are_refused(tmp_path: Path, content: bytes, result: ResultClass, said: str) -> None:
    with pytest.raises(DeviceError, match=said) as caught:
        _ask("time", _file(tmp_path, content), tmp_path)
    assert caught.value.result is result


def test_a_free_batch_is_run_at_one(tmp_path: Path) -> None:
    model = _file(tmp_path, conv_model(8, 4, signature=(-1, 8, 8, 4)))
    answer = _ask("time", model, tmp_path)
    assert answer["model"]["inputs"] == [{"name": "input", "dtype": "float32", "shape": [1, 8, 8, 4]}]  # type: ignore[index]


def test_the_nodes_inside_the_delegate_are_recorded(tmp_path: Path) -> None:
    answer = _ask("time", _file(tmp_path, conv_model(8, 4)), tmp_path)
    assert answer["after"]["extra"]["delegated"] == "1 of 1 nodes, 1 partitions"  # type: ignore[index]


def test_another_file_than_the_one_sent_is_noticed_by_its_hash(tmp_path: Path) -> None:
    model = _file(tmp_path, conv_model())
    with pytest.raises(DeviceError, match=r"sent model 00, found [0-9a-f]{64}") as caught:
        _ask("time", model, tmp_path, sha256="00")
    assert caught.value.result is ResultClass.TRANSPORT_LOST


def test_a_file_that_did_not_arrive_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="not on the device: No such file") as caught:
        _ask("time", tmp_path / "gone.tflite", tmp_path)
    assert caught.value.result is ResultClass.TRANSPORT_LOST


def test_a_local_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AlpharhoError, match=r"gone\.tflite: No such file or directory; give"):
        HostDevice().run(tmp_path / "gone.tflite", QUICK)


def test_a_runtime_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"Python 3\.\S+: tflite-runtime: ModuleNotFoundError") as caught:
        _ask("probe", tmp_path / "none", tmp_path, runtime="tflite-runtime")
    assert caught.value.result is ResultClass.NO_RUNTIME


def test_cpus_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"cannot run on CPUs \[1000\]") as caught:
        _ask("time", _file(tmp_path, conv_model()), tmp_path, affinity=[1000])
    assert caught.value.result is ResultClass.INVALID


def test_a_full_disk_is_no_space(tmp_path: Path) -> None:
    model = _file(tmp_path, conv_model(8, 4))
    np.save(tmp_path / "inputs.npy", np.zeros((2, 8, 8, 4), np.float32))
    with pytest.raises(DeviceError, match="No space left on device") as caught:
        _ask("outputs", model, tmp_path, inputs=str(tmp_path / "inputs.npy"), result="/dev/full")
    assert caught.value.result is ResultClass.NO_SPACE


@pytest.mark.parametrize("shape", [(2, 9, 8, 4), (2, 8, 8, 4)], ids=["shape", "dtype"])
def test_inputs_that_do_not_fit_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = _file(tmp_path, int8_conv_model(8, 4))
    np.save(tmp_path / "inputs.npy", np.zeros(shape, np.float32))
    with pytest.raises(DeviceError, match=r"inputs are float32 \(2, .*, the model takes int8 \(1, 8, 8, 4\)"):
        _ask("outputs", model, tmp_path, inputs=str(tmp_path / "inputs.npy"), result="out.npy")


NONCE = "0123456789abcdef"
FRAME = f'@@{NONCE} {{"result": "ok", "value": 1}}@@'


@given(st.text(), st.text())
def test_the_answer_is_found_in_any_noise(before: str, after: str) -> None:
    assert answer_in(f"{before}\n{FRAME}\n{after}", NONCE) == {"result": "ok", "value": 1}


def test_the_last_frame_wins_and_other_nonces_are_noise() -> None:
    other = FRAME.replace(NONCE, "f" * 16)
    assert answer_in(f"{FRAME.replace('1}', '0}')}\n{FRAME}\n{other}", NONCE) == {"result": "ok", "value": 1}
    assert answer_in(other, NONCE) is None
    assert answer_in(FRAME[:-1], NONCE) is None


@pytest.mark.parametrize(
    ("finished", "result", "said"),
    [
        (Finished(code=-11, out="", err=""), ResultClass.CRASHED, "SIGSEGV"),
        (Finished(code=139, out="", err=""), ResultClass.CRASHED, "SIGSEGV"),
        (Finished(code=-31, out="", err=""), ResultClass.CRASHED, "SIGSYS"),
        (Finished(code=255, out="", err=""), ResultClass.PARSE_ERROR, "exit code 255, no answer"),
        (Finished(code=0, out="hello", err=""), ResultClass.PARSE_ERROR, "exit code 0, no answer.*hello"),
        (Finished(code=1, out="", err="oops\n"), ResultClass.PARSE_ERROR, "exit code 1, no answer.*oops"),
        (Finished(code=0, out="@@N {]}@@", err=""), ResultClass.PARSE_ERROR, "holds no JSON"),
        (Finished(code=0, out='@@N {"result": "odd"}@@', err=""), ResultClass.PARSE_ERROR, "no result"),
    ],
)
def test_ends_without_an_answer(finished: Finished, result: ResultClass, said: str) -> None:
    asked = request("time", QUICK)
    finished = Finished(
        code=finished.code, out=finished.out.replace("@@N", f"@@{asked.nonce}"), err=finished.err
    )
    with pytest.raises(DeviceError, match=said) as caught:
        answer_of(finished, asked)
    assert caught.value.result is result


def test_a_process_that_dies_by_signal_is_a_crash() -> None:
    asked = request("time", QUICK)
    finished = finish([sys.executable, "-c", "import os; os.kill(os.getpid(), 6)"], timeout_s=60)
    with pytest.raises(DeviceError, match="ended by SIGABRT"):
        answer_of(finished, asked)


# --- The warm-up rule ---------------------------------------------------------------------------------------


class Clock:
    """An interpreter whose invokes take scripted times, and the clock that shows them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times_ms: Iterator[float]) -> None:
        self.now_ns = 0
        self.times_ms = times_ms
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.now_ns)
        monkeypatch.setattr(time, "monotonic", lambda: self.now_ns / 1e9)

    def invoke(self) -> None:
        self.now_ns += int(next(self.times_ms) * 1e6)


def _slowing_down() -> Iterator[float]:
    value = 1.0
    while True:
        yield value
        value *= 1.05


def _constant(value: float) -> Iterator[float]:
    while True:
        yield value


def test_warm_up_takes_its_least_time(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, steady = runner.warm_up(Clock(monkeypatch, _constant(10)), asdict(WarmUp()))
    assert steady and len(samples) == 100  # 1 s


def test_warm_up_takes_its_least_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, steady = runner.warm_up(Clock(monkeypatch, _constant(600)), asdict(WarmUp(window=2)))
    assert steady and len(samples) == 5


def test_warm_up_goes_on_until_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([200.0, 100, 200, 100, 200, *[100] * 40])
    samples, steady = runner.warm_up(Clock(monkeypatch, times), asdict(WarmUp(window=2)))
    assert steady and samples[-2:] == [100_000_000] * 2 and 5 < len(samples) < 12


def test_warm_up_gives_up_after_its_most_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = asdict(WarmUp(seconds=0, max_runs=20, max_seconds=1e9))
    samples, steady = runner.warm_up(Clock(monkeypatch, _slowing_down()), rule)
    assert not steady and len(samples) == 25


def test_warm_up_gives_up_after_its_most_time(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, steady = runner.warm_up(Clock(monkeypatch, _constant(2000)), asdict(WarmUp()))
    assert not steady and len(samples) == 5  # 10 s before two windows of ten were full


@pytest.mark.parametrize(
    ("runs", "seconds", "most", "taken"), [(5, 0, 9, 5), (5, 0.1, 9, 10), (50, 0, 0.2, 20), (0, 0.05, 9, 5)]
)
def test_sampling_ends_by_runs_and_time(
    monkeypatch: pytest.MonkeyPatch, runs: int, seconds: float, most: float, taken: int
) -> None:
    rule = {"runs": runs, "seconds": seconds, "max_seconds": most}
    assert runner.sample(Clock(monkeypatch, _constant(10)), rule) == [10_000_000] * taken
