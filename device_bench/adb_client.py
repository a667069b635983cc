"""The adb program: which device is meant, commands that prove their own end, files that prove their arrival.

Exit codes prove nothing here: adb 29 exits 0 when the device is lost in mid-command, and a device without
shell_v2 always answers 0. So every remote command ends in a line with a nonce and its code.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from device_bench.device import DeviceError, ResultClass
from device_bench.process import Finished, finish
from device_bench.runner_client import last_lines

CALL_S = 30.0  # for a call that should take a moment
MARGIN_S = 15.0  # what the harness waits longer than the device's own deadline
RECONNECT_S = 5.0  # how long a lost device may take to come back


class Attached(NamedTuple):
    """One line of `adb devices`."""

    serial: str
    state: str

    def __str__(self) -> str:
        """How an error lists it."""
        return f"{self.serial} ({self.state})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A remote command that really ended. Without shell_v2 `out` holds both outputs."""

    code: int
    out: str
    err: str


_DIALOG = "unlock it and accept its dialog 'Allow USB debugging?', then try again"
_STATES: Mapping[str, str] = {
    "unauthorized": _DIALOG,
    "authorizing": _DIALOG,
    "offline": "unplug and plug it again (over network: adb disconnect, then adb connect), then try again",
    "connecting": "wait until `adb devices` shows it as device, then try again",
    "no permissions": "give your user access to the USB device (udev rule, group plugdev), plug it again",
    "bootloader": "start Android on it",
    "recovery": "start Android on it",
    "sideload": "start Android on it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Adb:
    """The adb program and the one device that every call of it is for."""

    program: str
    serial: str

    def state(self) -> str:
        """What `adb devices` says of it; `absent` where it is not listed."""
        return next((item.state for item in attached(self.program) if item.serial == self.serial), "absent")

    def shell(
        self, command: str, *, timeout_s: float = CALL_S, late: ResultClass = ResultClass.UNREACHABLE
    ) -> Reply:
        """Run `command` in the device's shell, to its proven end.

        Raises DeviceError: transport-lost without that proof, `late` when it does not come in time.
        """
        nonce = secrets.token_hex(8)
        framed = f'( {command}\n); rc=$?; echo; echo "@@{nonce} rc=$rc@@"'
        finished = self._call("shell", framed, timeout_s=timeout_s, late=late)
        out = finished.out.replace("\r\n", "\n")
        ended = re.search(rf"\n@@{nonce} rc=(\d{{1,3}})@@", out)
        if ended is None:
            raise self._lost(finished)
        return Reply(code=int(ended[1]), out=out[: ended.start()], err=finished.err)

    def ask(self, commands: Mapping[str, str], *, timeout_s: float = CALL_S) -> dict[str, str]:
        """The standard output of each command, by its name, in one call; empty where it failed."""
        nonce = secrets.token_hex(8)
        parts = [
            f'echo; echo "@@{nonce} {name}"; {{ {command}; }} 2>/dev/null'
            for name, command in commands.items()
        ]
        text = self.shell("\n".join(parts), timeout_s=timeout_s).out
        pieces = re.split(rf"\n@@{nonce} (\w+)\n", "\n" + text + "\n")
        found = dict(zip(pieces[1::2], pieces[2::2], strict=True))
        return {name: found.get(name, "").removesuffix("\n") for name in commands}

    def push(self, local: Path, remote: str, *, timeout_s: float) -> None:
        """Copy a file; the caller checks what arrived. Raises DeviceError: no-space, transport-lost."""
        finished = self._call("push", str(local.resolve()), remote, timeout_s=timeout_s)
        text = finished.out + finished.err
        if "No space left on device" in text:
            raise DeviceError(ResultClass.NO_SPACE, f"{local.name} does not fit", log=last_lines(text))
        if finished.code != 0:
            raise self._lost(finished)

    def reconnect(self) -> None:
        """Ask for a new connection and wait a moment for it. Leaves the judgement to `require`."""
        # `adb reconnect` forgets a network device; `adb connect` waits for its answer.
        if re.fullmatch(r".+:\d+", self.serial):
            _run(self.program, "disconnect", self.serial)
            _run(self.program, "connect", self.serial)
            return
        _run(self.program, "-s", self.serial, "reconnect")
        deadline = time.monotonic() + RECONNECT_S
        while self.state() != "device" and time.monotonic() < deadline:
            time.sleep(0.2)

    def require(self) -> None:
        """Raise DeviceError(unreachable), with the remedy of its state, unless it takes commands."""
        state = self.state()
        if state in ("offline", "absent"):
            self.reconnect()
            state = self.state().replace("absent", state)
        if state != "device":
            remedy = next((text for start, text in _STATES.items() if state.startswith(start)), _ABSENT)
            raise DeviceError(ResultClass.UNREACHABLE, f"adb device {self.serial} is {state}", remedy=remedy)

    def _call(
        self, verb: str, *arguments: str, timeout_s: float, late: ResultClass = ResultClass.UNREACHABLE
    ) -> Finished:
        try:
            return finish([self.program, "-s", self.serial, verb, *arguments], timeout_s=timeout_s)
        except DeviceError as error:
            if error.result is not ResultClass.TIMEOUT:
                raise
            found = f"adb {verb} on {self.serial} gave no end within {timeout_s:g} s"
            raise DeviceError(late, found) from error

    def _lost(self, finished: Finished) -> DeviceError:
        text = finished.out + finished.err
        said = (last_lines(finished.err) or last_lines(finished.out) or "nothing").splitlines()[-1]
        return DeviceError(
            ResultClass.TRANSPORT_LOST, f"adb exit code {finished.code} said {said}", log=last_lines(text)
        )


_ABSENT = "attach it with USB debugging on (over network: adb connect), see `adb devices`"


def connected(serial: str = "") -> Adb:
    """The device `serial`, else ANDROID_SERIAL's, else the only attached one.

    Raises DeviceError(unreachable) that tells the reasons apart: no adb program, no device, several, unknown,
    offline, unauthorized.
    """
    program = _program()
    listed = attached(program)
    wanted = serial or os.environ.get("ANDROID_SERIAL", "")
    shown = ", ".join(map(str, listed)) or "none"
    if not wanted and len(listed) > 1:
        raise _unreachable(f"{len(listed)} devices attached: {shown}", "name one as adb:SERIAL")
    if not wanted and not listed:
        raise _unreachable("no adb device attached", _ABSENT)
    adb = Adb(program=program, serial=wanted or listed[0].serial)
    if all(item.serial != adb.serial for item in listed):
        raise _unreachable(f"adb knows no device {adb.serial!r}; attached: {shown}", _ABSENT)
    adb.require()
    return adb


def attached(program: str) -> list[Attached]:
    """What `adb devices` lists. Raises DeviceError(unreachable) when its server does not answer."""
    finished = _run(program, "devices")
    _, header, listed = finished.out.partition("List of devices attached\n")
    if finished.code != 0 or not header:
        said = (last_lines(finished.err + finished.out) or "nothing").splitlines()[-1]
        raise _unreachable(f"adb devices said {said}", "see whether `adb devices` works by hand")
    rows = (line.partition("\t") for line in listed.splitlines())
    return [Attached(serial, state.partition(";")[0].strip()) for serial, tab, state in rows if tab]


def adb_version(program: str) -> str:
    """The program's own version, such as 36.0.0-13206524."""
    found = re.search(r"^Version (\S+)", _run(program, "version").out, re.M)
    return found[1] if found else ""


def _program() -> str:
    named = os.environ.get("ADB", "adb")
    found = shutil.which(named)
    if found is None:
        remedy = "install Android's platform-tools (Debian: package adb) or give the path of adb in ADB"
        raise _unreachable(f"no program {named!r}", remedy)
    return found


def _run(program: str, *arguments: str) -> Finished:
    try:
        return finish([program, *arguments], timeout_s=CALL_S)
    except DeviceError as error:
        if error.result is not ResultClass.TIMEOUT:
            raise
        raise _unreachable(
            f"adb {arguments[0]} gave no end within {CALL_S:g} s", "adb kill-server"
        ) from error


def _unreachable(found: str, remedy: str) -> DeviceError:
    return DeviceError(ResultClass.UNREACHABLE, found, remedy=remedy)
