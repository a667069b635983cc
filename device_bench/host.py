"""This machine as a device: the runner in a fresh Python process per repetition, on chosen CPUs."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from device_bench import runner
from device_bench.device import BenchSpec, Device, DeviceInfo, Measurement
from device_bench.process import finish
from device_bench.runner_client import RUNNER, answer_of, device_info, gather, model_fields, request
from pipeline.artifacts import UsageError


class HostDevice:
    """`host`: the Python that runs the harness, with the runtime installed beside it."""

    def __enter__(self) -> Self:
        """Nothing to connect to."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was left behind."""

    def info(self) -> DeviceInfo:
        """What this machine is."""
        return device_info(_ask("facts", BenchSpec()), "host", "host")

    def run(self, model: Path, spec: BenchSpec) -> Measurement:
        """Time `model` in `spec.processes` fresh processes, on the fastest CPUs when none are given."""
        pinned = replace(spec, affinity=spec.affinity or fastest_cpus(spec.threads))
        fields = {"model": str(model.resolve()), **model_fields(model)}
        return gather(("host", "host"), model, pinned, lambda: _ask("time", pinned, **fields))

    def outputs(self, model: Path, inputs: Path, result: Path, runtime: str = "") -> None:
        """Write the model's first output for each row of the .npy file `inputs` to the .npy file `result`."""
        paths = {"model": model, "inputs": inputs, "result": result}
        fields = {name: str(path.resolve()) for name, path in paths.items()}
        _ask("outputs", BenchSpec(runtime=runtime, timeout_s=1800), **fields, **model_fields(model))


def connect(name: str) -> Device:
    """The backend of `host`."""
    assert name == "host"
    return HostDevice()


def fastest_cpus(threads: int) -> tuple[int, ...]:
    """`threads` of the CPUs this process may use, by highest maximal frequency, then highest number."""
    allowed = sorted(os.sched_getaffinity(0))
    if threads > len(allowed):
        raise UsageError(
            f"{threads} threads asked for, {len(allowed)} CPUs are usable; give --threads up to that"
        )
    folder = "/sys/devices/system/cpu/cpu{}/cpufreq/cpuinfo_max_freq"
    ranked = sorted(allowed, key=lambda cpu: (int(runner.read(folder.format(cpu)) or 0), cpu))
    return tuple(sorted(ranked[-threads:]))


def _ask(action: str, spec: BenchSpec, **fields: object) -> dict[str, Any]:
    asked = request(action, spec, **fields)
    with tempfile.TemporaryDirectory(prefix="alpharho-") as folder:  # the runner's import path begins there
        command = [sys.executable, "-", asked.argument]
        given = RUNNER.read_bytes()
        finished = finish(command, timeout_s=spec.timeout_s, given=given, folder=Path(folder))
    return answer_of(finished, asked)
