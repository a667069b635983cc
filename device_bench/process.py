"""Child processes with a deadline that never outlive the harness."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device_bench.device import DeviceError, ResultClass


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a process ended. `code` is negative for death by signal; texts are decoded with replacement."""

    code: int
    out: str
    err: str


def finish(
    command: Sequence[str],
    *,
    timeout_s: float,
    given: bytes = b"",
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Finished:
    """Run `command` with `given` on its standard input, to its end.

    It leads a process group of its own, killed when the deadline passes or the harness is interrupted.
    Raises DeviceError: no-runtime when the program cannot be started, timeout when it does not end.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise DeviceError(ResultClass.NO_RUNTIME, f"{command[0]} does not start: {error.strerror}") from error
    try:
        out, err = process.communicate(given, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(ResultClass.TIMEOUT, f"still running after {timeout_s:g} s") from error
    finally:
        _kill_group(process)
    return Finished(
        code=process.returncode, out=out.decode(errors="replace"), err=err.decode(errors="replace")
    )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the group: nothing after a normal end, the whole of it otherwise."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def death(code: int) -> str | None:
    """The signal that ended a process, by its exit code: SIGSEGV for -11, or 139 as a shell or emulator says.

    None for an end of its own, such as exit code 255.
    """
    number = -code if code < 0 else code - 128
    if not 0 < number <= signal.SIGRTMAX:
        return None
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
