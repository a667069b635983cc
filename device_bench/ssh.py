"""A Raspberry Pi or any Linux machine over ssh: `runner.py` is sent there and run in fresh processes."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from device_bench.device import (
    BenchSpec,
    Device,
    DeviceError,
    DeviceInfo,
    Measurement,
    ResultClass,
)
from device_bench.process import Finished
from device_bench.runner_client import (
    RUNNER,
    answer_in,
    answer_of,
    device_info,
    gather,
    last_lines,
    model_fields,
    request,
)
from device_bench.ssh_link import Link, printable, target
from pipeline.artifacts import UsageError

T = TypeVar("T")
FACTS_S = 60.0  # the runner without a runtime
HOT_C = 80.0  # where a Raspberry Pi begins to slow down


class SshDevice:
    """`ssh://[user@]host[:port]`: the OpenSSH client with the user's own configuration and keys."""

    def __init__(self, name: str) -> None:
        """Connects on entry. Raises UsageError for a string that is no ssh address."""
        self._name = name
        self._target = target(name)
        self._link: Link | None = None
        self._info: DeviceInfo | None = None
        self._sent: set[str] = set()  # names in the device's folder

    def __enter__(self) -> Self:
        """Log in and take the device for this harness alone. Raises DeviceError."""
        self._connected()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End what still runs there, remove the folder there, disconnect."""
        self._disconnect()

    def info(self) -> DeviceInfo:
        """What the device is, as its Python sees it."""
        if self._info is None:
            self._info = device_info(self._ask("facts", BenchSpec(timeout_s=FACTS_S)), "ssh", self._name)
        return self._info

    def run(self, model: Path, spec: BenchSpec) -> Measurement:
        """Time `model` in `spec.processes` fresh processes, on the fastest CPUs when none are given.

        The first time that the connection is lost it is built up again and that process repeated; `reasons`
        tell of it. Raises DeviceError.
        """
        digest, content = str(model_fields(model)["sha256"]), model.read_bytes()
        pinned = replace(spec, affinity=spec.affinity or fastest_cpus(self.info(), spec.threads))
        losses: list[DeviceError] = []

        def time_once() -> dict[str, Any]:
            try:
                return self._time(digest, content, pinned)
            except DeviceError as error:
                if losses or error.result is not ResultClass.TRANSPORT_LOST:
                    raise
                losses.append(error)
            self._reconnect(losses[0])
            return self._time(digest, content, pinned)

        taken = gather(("ssh", self._name), model, pinned, time_once)
        noted = [f"connection lost once, that process repeated: {error.found}" for error in losses]
        reasons = doubts(taken)
        return taken.marked(ResultClass.INVALID if reasons else taken.result, *reasons, *noted)

    def _time(self, digest: str, content: bytes, spec: BenchSpec) -> dict[str, Any]:
        return self._ask("time", spec, model=self._put(content, ".tflite"), sha256=digest)

    def _ask(self, action: str, spec: BenchSpec, **fields: object) -> dict[str, Any]:
        """The accepted answer of one runner process. Raises DeviceError."""
        runner, asked = self._put(RUNNER.read_bytes(), ".py"), request(action, spec, **fields)
        start, seconds = time.monotonic(), max(1, math.ceil(spec.timeout_s))
        finished = self._over(lambda link: link.run_python(runner, asked.argument, seconds))
        if answer_in(finished.out, asked.nonce) is None:
            _raise_unanswered(finished, time.monotonic() - start, seconds)
        try:
            return answer_of(finished, asked)
        except DeviceError as error:
            if error.result is not ResultClass.NO_RUNTIME:
                raise
            remedy = wheel_advice(error.found, self.info())
            raise DeviceError(error.result, error.found, remedy=remedy, log=error.log) from error

    def _put(self, content: bytes, ending: str) -> str:
        """Its name in the device's folder, made of its hash; sent once per connection."""
        digest = hashlib.sha256(content).hexdigest()
        name = digest[:16] + ending
        self._connected()
        if name not in self._sent:
            found = self._over(lambda link: link.put(name, content))
            if found != digest:
                raise DeviceError(ResultClass.TRANSPORT_LOST, f"sent {digest}, {found} arrived")
            self._sent.add(name)
        return name

    def _over(self, call: Callable[[Link], T]) -> T:
        """`call` over the connection, which is given up when it fails: the next call makes a new one."""
        try:
            return call(self._connected())
        except DeviceError as error:
            if error.result in (ResultClass.TRANSPORT_LOST, ResultClass.TIMEOUT):
                self._disconnect()
            raise

    def _connected(self) -> Link:
        if self._link is None:
            self._link = Link(self._target)
            self._sent.clear()
        return self._link

    def _reconnect(self, lost: DeviceError) -> None:
        """Raises `lost` when the device cannot be reached any more."""
        try:
            self._connected()
        except DeviceError as error:
            raise lost from error

    def _disconnect(self) -> None:
        if self._link is not None:
            link, self._link = self._link, None
            link.close()


def connect(name: str) -> Device:
    """The backend of `ssh://[user@]host[:port]`. Raises UsageError."""
    return SshDevice(name)


def fastest_cpus(device: DeviceInfo, threads: int) -> tuple[int, ...]:
    """`threads` of the device's CPUs, by highest maximal frequency, then highest number."""
    if threads > device.cores:
        raise UsageError(
            f"{threads} threads asked for, {device.name} has {device.cores} CPUs; give --threads up to that"
        )
    known = device.max_frequencies_khz
    frequencies = known if len(known) == device.cores else (0,) * device.cores
    ranked = sorted(range(device.cores), key=lambda cpu: (frequencies[cpu], cpu))
    return tuple(sorted(ranked[-threads:]))


def _raise_unanswered(finished: Finished, elapsed_s: float, seconds: int) -> None:
    """For the exit codes that `timeout` and the shell give; what else there is, `answer_of` names."""
    log = last_lines(finished.out + finished.err)
    # Ended at its time: 124, or 137 if it ignores SIGTERM; BusyBox's timeout gives the signal alone.
    if finished.code == 124 or (finished.code in (137, 143) and elapsed_s >= seconds):
        raise DeviceError(ResultClass.TIMEOUT, f"ended on the device after {seconds} s", log=log)
    if finished.code in (126, 127):
        found = printable(log.rpartition("\n")[2]) or f"exit code {finished.code}"
        remedy = "install Python 3.8 or newer there (Debian: sudo apt-get install python3-venv)"
        raise DeviceError(ResultClass.NO_RUNTIME, found, remedy=remedy, log=log)


# --- whether the samples can be trusted: what only ssh devices show; `measure.py` has the rest --------------


def doubts(taken: Measurement) -> tuple[str, ...]:
    """Why the samples cannot be trusted; empty when these rules find nothing."""
    return (*_hot(taken), *_emulated(taken))


def _hot(taken: Measurement) -> Iterator[str]:
    """Only where no firmware says whether it throttled: without vcgencmd, or without the right to ask it."""
    for when, state in (("before", taken.before), ("after", taken.after)):
        if state.throttle_flags is not None:
            continue
        for sensor, celsius in state.temperatures_c.items():
            if celsius >= HOT_C and re.search("cpu|soc|vcgencmd", sensor):
                yield f"{sensor} at {celsius:g} °C {when} the run; cores slow down from {HOT_C:g} °C on"


def _emulated(taken: Measurement) -> Iterator[str]:
    """Under qemu-user /proc/cpuinfo is the real machine's."""
    machine = taken.device.machine
    if machine in ("aarch64", "armv7l") and "sse2" in taken.device.features:
        yield f"its Python is {machine} code emulated by an x86 machine: these are no ARM times"


# --- what to install ------------------------------------------------------------------------------------


class _Wheels(NamedTuple):
    word_bits: int
    minors: range  # of Python 3
    packages: str


# The wheels that are published for Debian 11 and later; those of tflite-runtime were built against numpy 1.
_WHEELS = (
    _Wheels(64, range(10, 15), "ai-edge-litert"),
    _Wheels(64, range(9, 10), "ai-edge-litert==1.4.0"),
    _Wheels(64, range(8, 9), "tflite-runtime==2.13.0 'numpy<2'"),
    _Wheels(32, range(11, 12), "tflite-runtime==2.14.0 'numpy<2'"),
    _Wheels(32, range(8, 11), "tflite-runtime==2.13.0 'numpy<2'"),
)


def wheel_advice(found: str, device: DeviceInfo) -> str:
    """What to install, by the device's word size and the Python that the runner names in `found`."""
    version = re.search(r"Python 3\.(\d+)", found)
    minor, bits = int(version[1]) if version else 0, device.word_bits
    for word_bits, minors, packages in _WHEELS:
        if word_bits == bits and minor in minors:
            # ssh_remote.sh looks there before it takes python3, which Debian keeps free of pip's packages.
            return f"run there: python3 -m venv ~/.alpharho && ~/.alpharho/bin/pip install {packages}"
    return f"no TFLite runtime is published for Python 3.{minor} on {bits} bits: use a 64-bit system"
