from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from device_bench.device import BenchSpec, DeviceError, ResultClass, WarmUp, connect, load, save
from device_bench.host import HostDevice, fastest_cpus
from device_bench.measure import measure
from device_bench.process import finish
from device_bench.runner_client import gather
from pipeline.artifacts import UsageError, sha256_of
from tests.device_bench.tiny_models import conv_model, int8_conv_model

QUICK = BenchSpec(processes=2, runs=5, seconds=0, warm_up=WarmUp(runs=2, seconds=0, window=1, max_runs=20))
HOSTILE = "$(touch pwned) ; 'ü \"`x`.tflite"


def test_a_measurement_has_samples_by_process_and_all_that_made_them(tmp_path: Path) -> None:
    model = tmp_path / HOSTILE
    model.write_bytes(int8_conv_model())
    with connect("host") as device:
        made, info = device.run(model, QUICK), device.info()
    assert [len(process.samples_ns) for process in made.processes] == [5, 5]
    assert all(sample > 0 for process in made.processes for sample in process.samples_ns)
    assert made.model.sha256 == sha256_of(model) and made.model.size_bytes == model.stat().st_size
    assert made.model.name == HOSTILE
    assert [(tensor.dtype, tensor.shape) for tensor in made.model.outputs] == [("int8", (1, 8, 8, 16))]
    assert made.processes[0].affinity == made.spec.affinity == fastest_cpus(1)
    assert made.device == info and info.kind == "host" and info.cores == os.cpu_count()
    assert made.runtime.name == "ai-edge-litert" and made.runtime.numpy == np.__version__
    assert made.before.boot_id and made.before.utc <= made.after.utc
    assert list(tmp_path.iterdir()) == [model]
    save(made, tmp_path / "result.json")
    assert load(tmp_path / "result.json") == made


def test_several_models_share_their_conditions(tmp_path: Path) -> None:
    models = [tmp_path / "a.tflite", tmp_path / "b.tflite"]
    for seed, model in enumerate(models):
        model.write_bytes(conv_model(seed=seed))
    with connect("host") as device:
        a, b = measure(device, models, QUICK)
    assert len(a.processes) == len(b.processes) == 2
    assert (a.device, a.runtime, a.spec) == (b.device, b.runtime, b.spec)
    assert a.model.sha256 != b.model.sha256
    assert a.result is ResultClass.INVALID and "2 processes, at least 5" in a.reasons[0]


def test_outputs_are_those_of_the_runtime(tmp_path: Path) -> None:
    model, inputs, result = (tmp_path / name for name in ("m.tflite", "in.npy", "out.npy"))
    model.write_bytes(conv_model())
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 16)).astype(np.float32)
    np.save(inputs, images)
    HostDevice().outputs(model, inputs, result)
    interpreter = Interpreter(model_path=str(model), num_threads=1)
    interpreter.allocate_tensors()
    expected = []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
        interpreter.invoke()
        expected.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    np.testing.assert_array_equal(np.load(result), np.stack(expected))


def test_threads_need_as_many_cpus() -> None:
    with pytest.raises(UsageError, match="1000 threads asked for"):
        fastest_cpus(1000)
    assert len(fastest_cpus(len(os.sched_getaffinity(0)))) == len(os.sched_getaffinity(0))


def test_a_run_that_does_not_end_is_ended_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {mark}; wait"
    with pytest.raises(DeviceError, match="still running after 1 s") as caught:
        finish(["sh", "-c", script], timeout_s=1)
    assert caught.value.result is ResultClass.TIMEOUT
    deadline = time.monotonic() + 30
    while _alive(int(mark.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(int(mark.read_text()))


def _alive(pid: int) -> bool:
    """Whether the process still runs; one that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_program_that_is_not_there_is_no_runtime() -> None:
    with pytest.raises(DeviceError, match="nowhere does not start: No such file") as caught:
        finish(["/nowhere"], timeout_s=1)
    assert caught.value.result is ResultClass.NO_RUNTIME


class Failing:
    """Real answers of the host, and then a failure."""

    def __init__(self, model: Path, failure: BaseException) -> None:
        with HostDevice() as device:
            made = device.run(model, replace(QUICK, processes=1))
        self.samples = made.processes[0].samples_ns
        self.left = 2
        self.failure = failure

    def __call__(self) -> Mapping[str, Any]:
        if not self.left:
            raise self.failure
        self.left -= 1
        return {
            "runtime": {"name": "ai-edge-litert"},
            "model": {"sha256": "0", "size_bytes": 1},
            "device": {},
            "before": {"utc": ""},
            "after": {"utc": ""},
            "process": {"samples_ns": list(self.samples)},
        }


@pytest.mark.parametrize(
    ("failure", "result"),
    [
        (DeviceError(ResultClass.TIMEOUT, "slow"), ResultClass.TIMEOUT),
        (KeyboardInterrupt(), ResultClass.INVALID),
    ],
)
def test_processes_before_a_failure_are_kept_and_marked(
    tmp_path: Path, failure: BaseException, result: ResultClass
) -> None:
    model = tmp_path / "m.tflite"
    model.write_bytes(conv_model(2, 1))
    run = Failing(model, failure)
    with pytest.raises(DeviceError) as caught:
        gather(("host", "host"), model, replace(QUICK, processes=5), run)
    (partial,) = caught.value.partials
    assert partial.result is result and not partial.valid
    assert [process.samples_ns for process in partial.processes] == [run.samples] * 2
    assert "2 of 5 processes" in partial.reasons[0]


def test_an_answer_that_does_not_fit_is_a_parse_error(tmp_path: Path) -> None:
    answer: dict[str, Any] = {
        "runtime": {},
        "model": {},
        "device": {},
        "before": {},
        "after": {},
        "process": {},
    }
    with pytest.raises(DeviceError, match="field 'sha256' is missing") as caught:
        gather(("host", "host"), tmp_path / "m", QUICK, lambda: answer)
    assert caught.value.result is ResultClass.PARSE_ERROR
