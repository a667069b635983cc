"""An ARM core without ARM hardware: the real aarch64 runtime under qemu-user, its instructions counted.

A count is not a time: it knows no caches, no pipelines and one thread only. It is exact to a few thousand
instructions a process, the same on every machine, and moves when a kernel, an op or a partition does.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from device_bench import emulator_setup
from device_bench.device import (
    BenchSpec,
    Device,
    DeviceError,
    DeviceInfo,
    DeviceState,
    InstructionCount,
    Measurement,
    ResultClass,
    as_device_error,
)
from device_bench.process import finish
from device_bench.runner_client import RUNNER, answer_of, model_fields, model_info, request, runtime_info
from pipeline.artifacts import UsageError

# Cores, with what XNNPACK asks for: half-precision arithmetic (asimdhp) and dot products (asimddp).
CORES: Mapping[str, tuple[str, ...]] = {
    "cortex-a53": ("asimd",),
    "cortex-a72": ("asimd",),
    "cortex-a76": ("asimd", "asimddp", "asimdhp"),
}
RUNTIME = "ai-edge-litert"
LOW_RUNS = 2  # the first invoke also packs weights
FIRST_STEP = 2
MOST_RUNS = 512
# Process start-up varies by some 5,000 instructions: 0.03 % of this.
WANTED_DIFFERENCE = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedDevice:
    """`emulated:CORE`, from the emulator in `folder`."""

    core: str
    folder: Path = emulator_setup.FOLDER

    def __enter__(self) -> Self:
        """Raises DeviceError(no-runtime) where the emulator is not set up."""
        if shutil.which(emulator_setup.QEMU) is None:
            found, remedy = f"{emulator_setup.QEMU} not found", "install it: sudo apt-get install qemu-user"
            raise DeviceError(ResultClass.NO_RUNTIME, found, remedy=remedy)
        if emulator_setup.installed(self.folder) is None:
            found = f"no emulator of this version in {self.folder}"
            raise DeviceError(ResultClass.NO_RUNTIME, found, remedy="set it up: make emulator")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was left behind."""

    def info(self) -> DeviceInfo:
        """The emulated core; the facts of the machine below it play no part."""
        return DeviceInfo(
            kind="emulated",
            name=f"emulated:{self.core}",
            model=self.core,
            machine="aarch64",
            cores=1,
            features=CORES[self.core],
            os=f"Debian {emulator_setup.read_lock().release}",
            word_bits=64,
            extra={"emulator": emulator_setup.qemu_version()},
        )

    def run(self, model: Path, spec: BenchSpec) -> Measurement:
        """Count `spec.processes` times. Raises DeviceError, and UsageError for several threads."""
        if spec.threads != 1:
            raise UsageError(
                f"{spec.threads} threads asked for, an emulated core counts one; give --threads 1"
            )
        asked = replace(spec, runtime=spec.runtime or RUNTIME, affinity=())
        begun, (answer, first) = _now(), self._first_pair(model, asked)
        counts = [first]
        try:
            while len(counts) < spec.processes:
                counts.append(self._pair(model, asked, first.high_runs))
        except (DeviceError, KeyboardInterrupt) as error:
            failure = as_device_error(error)
            reason = f"{len(counts)} of {spec.processes} counts: {failure.found}"
            partial = self._measurement(model, asked, counts, answer, begun)
            failure.partials = (partial.marked(failure.result, reason),)
            raise failure from error.__cause__
        return self._measurement(model, asked, counts, answer, begun)

    def outputs(self, model: Path, inputs: Path, result: Path, runtime: str = RUNTIME) -> None:
        """Write the model's first output for each row of the .npy file `inputs` to the .npy file `result`."""
        paths = {"inputs": inputs, "result": result}
        fields = {name: str(path.resolve()) for name, path in paths.items()}
        self._ask("outputs", model, BenchSpec(runtime=runtime, timeout_s=1800), **fields)

    def _measurement(
        self,
        model: Path,
        spec: BenchSpec,
        counts: list[InstructionCount],
        answer: Mapping[str, Any],
        begun: str,
    ) -> Measurement:
        return Measurement(
            model=model_info(answer, model),
            device=self.info(),
            runtime=runtime_info(answer),
            spec=spec,
            counts=tuple(counts),
            emulated=True,
            before=DeviceState(utc=begun),
            after=DeviceState(utc=_now()),
        )

    def _first_pair(self, model: Path, spec: BenchSpec) -> tuple[dict[str, Any], InstructionCount]:
        """The runner's answer, and a count with enough invokes to drown the noise of start-up."""
        low, answer = self._count(model, spec, LOW_RUNS)
        step, _ = self._count(model, spec, LOW_RUNS + FIRST_STEP)
        more_runs = runs_wanted((step - low) / FIRST_STEP)
        high = step if more_runs == FIRST_STEP else self._count(model, spec, LOW_RUNS + more_runs)[0]
        return answer, _counted(low, LOW_RUNS + more_runs, high)

    def _pair(self, model: Path, spec: BenchSpec, high_runs: int) -> InstructionCount:
        low, _ = self._count(model, spec, LOW_RUNS)
        return _counted(low, high_runs, self._count(model, spec, high_runs)[0])

    def _count(self, model: Path, spec: BenchSpec, invokes: int) -> tuple[int, dict[str, Any]]:
        """Instructions of a whole process that invokes the model so many times, and its answer."""
        with tempfile.TemporaryDirectory(prefix="alpharho-") as folder:
            written = Path(folder) / "count"
            # qemu reads a comma as the end of an option, two as one.
            out = str(written).replace(",", ",,")
            plugin = str(emulator_setup.counter(self.folder)).replace(",", ",,")
            answer = self._ask("count", model, spec, f"{plugin},out={out}", invokes=invokes)
            return int(written.read_text()), answer

    def _ask(
        self, action: str, model: Path, spec: BenchSpec, plugin: str = "", **fields: object
    ) -> dict[str, Any]:
        asked = request(action, spec, model=str(model.resolve()), **model_fields(model), **fields)
        qemu, *rest = emulator_setup.command(self.folder, self.core)
        plugged = ["-plugin", plugin] if plugin else []
        with tempfile.TemporaryDirectory(prefix="alpharho-") as folder:
            finished = finish(
                [qemu, *plugged, *rest, "-", asked.argument],
                timeout_s=spec.timeout_s,
                given=RUNNER.read_bytes(),
                folder=Path(folder),
                environment={
                    **emulator_setup.environment(self.folder, spec.runtime),
                    # A run that writes compiled modules is longer than one that reads them.
                    "PYTHONDONTWRITEBYTECODE": "1",
                },
            )
        return answer_of(finished, asked)


def connect(name: str) -> Device:
    """The backend of `emulated:CORE`. Raises UsageError for a core that is not known."""
    core = name.partition(":")[2]
    if core not in CORES:
        raise UsageError(f"emulated core {core!r} is unknown; give one of {', '.join(CORES)}")
    return EmulatedDevice(core=core)


def outputs(model: Path, inputs: Path, result: Path, core: str, runtime: str = RUNTIME) -> None:
    """`result`: the model's first output for each row of the .npy file `inputs`, by the kernels of `core`."""
    with EmulatedDevice(core=core) as device:
        device.outputs(model, inputs, result, runtime)


def runs_wanted(instructions_per_run: float) -> int:
    """How many invokes drown the noise of start-up: a power of two, FIRST_STEP to MOST_RUNS.

    A power, so that the noise in the estimate does not change the answer.
    """
    wanted = WANTED_DIFFERENCE / max(1.0, instructions_per_run)
    return min(MOST_RUNS, 1 << math.ceil(math.log2(max(FIRST_STEP, wanted))))


def _counted(low: int, high_runs: int, high: int) -> InstructionCount:
    return InstructionCount(
        low_runs=LOW_RUNS, low_instructions=low, high_runs=high_runs, high_instructions=high
    )


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
