"""The connection under `ssh.py`: the OpenSSH client, a master connection, and the folder held on the device.

The device's side is `ssh_remote.sh`. No path, file name or answer of the device ever stands in a remote
command line except the owner's name, which must have one strict form; still every word is quoted once.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from device_bench.device import DeviceError, ResultClass
from device_bench.process import Finished
from device_bench.runner_client import last_lines
from pipeline.artifacts import UsageError

REMOTE = re.sub(r"(?m)^ *#.*\n", "", Path(__file__).with_name("ssh_remote.sh").read_text(encoding="utf-8"))
CONNECT_S = 30.0  # until the folder is held; a lock that is just being left takes 6 s of it
LEAVE_S = 15.0  # until the device has removed the folder
COMMAND_S = 60.0
OWNER = r"owner-\d+-\d+-[0-9a-f-]{36}"

# Before the user's own configuration, which decides all else: user, port, keys, jump hosts, known hosts.
OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ControlPersist": "no",
    "LogLevel": "INFO",
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "PermitLocalCommand": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
}


class _Sign(NamedTuple):
    pattern: str  # in what ssh says; its exit code is 255 for all of these
    found: str
    remedy: str  # {login}: how to log in by hand


# fmt: off
SIGNS = (
    _Sign("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key is not the one that is known",
          "if the device was set up anew, forget its old key (ssh-keygen -R) and log in once: {login}"),
    _Sign("Host key verification failed", "its host key is not known",
          "log in once by hand and compare the fingerprint: {login}"),
    _Sign("Permission denied|Too many authentication failures", "it does not accept your key",
          "put your public key there (ssh-copy-id), until this asks for no password: {login}"),
    _Sign("Connection refused", "nothing listens on its ssh port",
          "enable ssh there (Raspberry Pi: sudo raspi-config), or give the port: ssh://host:port"),
    _Sign("Could not resolve hostname", "its name is unknown",
          "check the spelling, or give its address: ssh://192.168.1.2"),
    _Sign("[Bb]ad configuration option|Bad owner or permissions|terminating, .* bad configuration",
          "ssh refuses your configuration", "correct your ssh configuration until this works: {login}"),
)
# fmt: on

# Once the login has worked, only the folder can be in the way.
TAKEN = "wait until the other measurement has ended; if there is none, see to its folder for temporary files"


@dataclass(frozen=True, slots=True)
class Target:
    """Where to log in. An empty user and port 0 leave it to the ssh configuration."""

    host: str
    user: str = ""
    port: int = 0

    @property
    def arguments(self) -> list[str]:
        """The words that name it to ssh, the host last."""
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        return [*user, *port, "--", self.host]

    @property
    def login(self) -> str:
        """The command with which a person logs in."""
        return shlex.join(["ssh", *(word for word in self.arguments if word != "--")])


def target(name: str) -> Target:
    """What `ssh://[user@]host[:port]` means; an IPv6 address stands in brackets. Raises UsageError."""
    user, host = r"(?:(?P<user>[A-Za-z0-9_][\w.+-]*)@)?", r"(?P<host>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+\])"
    found = re.fullmatch(rf"ssh://{user}{host}(?::(?P<port>\d{{1,5}}))?/?", name, re.ASCII)
    if found is None or int(found["port"] or 1) not in range(1, 65536):
        raise UsageError(f"device {name!r} is no ssh address; give ssh://[user@]host[:port]")
    return Target(found["host"].strip("[]"), found["user"] or "", int(found["port"] or 0))


class Link:
    """An open connection that holds the device's folder until `close`.

    The master connection carries the session of the remote guard, whose standard input this process holds:
    when the harness dies, or the connection, the guard stops the run and removes the folder.
    """

    def __init__(self, where: Target) -> None:
        """Log in and take the folder. Raises DeviceError: unreachable, parse-error, no-space."""
        self._target = where
        self._owner = ""
        # A socket's path has room for about 100 bytes, and ssh needs 58 of them.
        short = tempfile.gettempdir() if len(tempfile.gettempdir()) <= 24 else "/tmp"
        self._folder = Path(tempfile.mkdtemp(prefix="alpharho-", dir=short))
        self._guard: subprocess.Popen[bytes] | None = None
        try:
            self._guard = self._start_guard("nonce" + secrets.token_hex(8))
        except BaseException:
            self.close()
            raise

    def put(self, name: str, content: bytes) -> str:
        """Store `content` as `name` in the device's folder: its SHA-256 there. Raises DeviceError."""
        finished = self._call("put", self._owner, name, str(len(content)), given=content, timeout_s=600)
        digests = re.findall(r"^([0-9a-f]{64})\b", finished.out, re.MULTILINE)
        if finished.code != 0 or not digests:
            found = f"{name} did not arrive: {_last(finished) or f'exit code {finished.code}'}"
            raise DeviceError(ResultClass.TRANSPORT_LOST, found, log=finished.err)
        return str(digests[-1])

    def run_python(self, name: str, argument: str, seconds: int) -> Finished:
        """Run a file of the device's folder in its Python, for at most `seconds`; the code is the remote one.

        The device itself ends the run, with 124 or a signal. Raises DeviceError when the connection is lost.
        """
        return self._call("run", self._owner, str(seconds), name, argument, timeout_s=seconds + 15)

    def close(self) -> None:
        """Have the folder removed, over a new connection where this one is lost, and disconnect."""
        try:
            if self._owner and not self._left():
                self._clean()
        finally:
            self._owner = ""
            _end(self._guard)
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start_guard(self, nonce: str) -> subprocess.Popen[bytes]:
        command = [*self._ssh("yes", self._folder / "%C"), _line(nonce, "guard")]
        with (self._folder / "stderr").open("wb") as errors:
            try:
                guard = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                remedy = "install the OpenSSH client (Debian: sudo apt-get install openssh-client)"
                raise DeviceError(
                    ResultClass.UNREACHABLE, "the program ssh is missing", remedy=remedy
                ) from error
        try:
            self._owner = self._ready(guard, nonce)
        except BaseException:
            _end(guard)
            raise
        return guard

    def _ready(self, guard: subprocess.Popen[bytes], nonce: str) -> str:
        text = _read_until(guard, rf"@@{nonce} .*@@", CONNECT_S)
        _raise_refusal(text, nonce)
        ready = re.search(rf"@@{nonce} ready ({OWNER})@@", text)
        if ready is not None:
            return ready[1]
        if f"@@{nonce} ready" in text:
            raise DeviceError(
                ResultClass.PARSE_ERROR, "it does not say who holds its folder", log=last_lines(text)
            )
        if guard.poll() is None:
            raise DeviceError(ResultClass.UNREACHABLE, f"no answer within {CONNECT_S:g} s")
        raise self._no_login(Finished(code=guard.returncode, out=text, err=self._master_said()))

    def _no_login(self, ended: Finished) -> DeviceError:
        """What kept the guard from getting ready."""
        for pattern, found, remedy in SIGNS:
            if ended.code == 255 and re.search(pattern, ended.err):
                found = f"{found} ({_last(ended)})"
                remedy = remedy.format(login=self._target.login)
                return DeviceError(ResultClass.UNREACHABLE, found, remedy=remedy, log=ended.err)
        if ended.code == 255:
            return DeviceError(ResultClass.UNREACHABLE, _last(ended) or "ssh says nothing", log=ended.err)
        found = f"its login shell does not run a command ({_last(ended) or f'exit code {ended.code}'})"
        remedy = f"give an account with a POSIX shell on Linux and a quiet login: {self._target.login}"
        log = last_lines(ended.out + ended.err)
        return DeviceError(ResultClass.PARSE_ERROR, found, remedy=remedy, log=log)

    def _left(self) -> bool:
        """Whether the guard, told to leave, says that it did."""
        assert self._guard is not None and self._guard.stdin is not None
        self._guard.stdin.close()
        return "rc=0@@" in _read_until(self._guard, r"@@\w+ rc=\d+@@", LEAVE_S)

    def _clean(self) -> None:
        _end(self._guard)
        nonce = secrets.token_hex(8)
        command = [*self._ssh("no", "none"), _line(nonce, "clean", self._owner)]
        try:
            finished = self._finish(command, COMMAND_S)
            _raise_refusal(finished.out, nonce)
            _remote_end(finished, nonce)
        except DeviceError as error:
            # The measurement is worth more than a tidy device that cannot be reached.
            message = "%s: the folder alpharho-* for temporary files may be left there: %s"
            logging.getLogger(__name__).warning(message, self._target.host, error.found)

    def _call(
        self, action: str, *arguments: str, given: bytes = b"", timeout_s: float = COMMAND_S
    ) -> Finished:
        assert self._guard is not None
        if self._guard.poll() is not None:
            raise _lost(Finished(code=self._guard.returncode, out="", err=self._master_said()))
        nonce = secrets.token_hex(8)
        command = [*self._ssh("no", self._folder / "%C"), _line(nonce, action, *arguments)]
        finished = self._finish(command, timeout_s, given)
        _raise_refusal(finished.out, nonce)
        return _remote_end(finished, nonce)

    def _finish(self, command: list[str], timeout_s: float, given: bytes = b"") -> Finished:
        """Run ssh to its end. Files, not pipes: the master connection holds a dead client's pipes open."""
        texts = [self._folder / name for name in ("given", "out", "err")]
        texts[0].write_bytes(given)
        with texts[0].open("rb") as entry, texts[1].open("wb") as out, texts[2].open("wb") as err:
            client = subprocess.Popen(command, stdin=entry, stdout=out, stderr=err, start_new_session=True)
            try:
                code: int | None = client.wait(timeout_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(client)
        said = [path.read_text(encoding="utf-8", errors="replace") for path in texts[1:]]
        if code is None:
            found = f"no end after {timeout_s:g} s, when the device should have ended it"
            raise DeviceError(ResultClass.TIMEOUT, found, log=last_lines("".join(said)))
        return Finished(code=code, out=said[0], err=self._master_said() + said[1])

    def _master_said(self) -> str:
        return (self._folder / "stderr").read_text(encoding="utf-8", errors="replace")

    def _ssh(self, master: str, control_path: Path | str) -> list[str]:
        options = {**OPTIONS, "ControlMaster": master, "ControlPath": str(control_path)}
        return [
            "ssh",
            *(f"-o{name}={value}" for name, value in options.items()),
            "-T",
            *self._target.arguments,
        ]


def _line(nonce: str, action: str, *arguments: str) -> str:
    """The remote command line: each word quoted once, for the login shell."""
    return "exec " + shlex.join(["sh", "-c", REMOTE, nonce, action, *arguments])


def _read_until(process: subprocess.Popen[bytes], pattern: str, seconds: float) -> str:
    """The process's output until `pattern` is in it, its end, or the time is over."""
    assert process.stdout is not None
    poll, deadline, text = select.poll(), time.monotonic() + seconds, b""
    poll.register(process.stdout, select.POLLIN)
    while not re.search(pattern, text.decode(errors="replace")):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            break
        chunk = os.read(process.stdout.fileno(), 65536)
        if not chunk:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=LEAVE_S)
            break
        text += chunk
    return text.decode(errors="replace")


def _end(process: subprocess.Popen[bytes] | None) -> None:
    """Close the pipes of a master connection and kill it, with what it started (a jump host's ssh)."""
    if process is None:
        return
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _raise_refusal(text: str, nonce: str) -> None:
    refused = re.findall(rf"@@{nonce} refused ([a-z-]+) (.*)@@", text)
    if refused:
        result, found = ResultClass(refused[-1][0]), printable(refused[-1][1])
        remedy = TAKEN if result is ResultClass.UNREACHABLE else ""
        raise DeviceError(result, found, remedy=remedy, log=last_lines(text))


def _remote_end(finished: Finished, nonce: str) -> Finished:
    """`finished` with the remote exit code. Raises DeviceError(transport-lost) when that never came."""
    codes = re.findall(rf"@@{nonce} rc=(\d+)@@", finished.out)
    if not codes:
        raise _lost(finished)
    return Finished(code=int(codes[-1]), out=finished.out, err=finished.err)


def _lost(finished: Finished) -> DeviceError:
    found = _last(finished) or f"ssh ended with exit code {finished.code} and no word"
    return DeviceError(ResultClass.TRANSPORT_LOST, found, log=last_lines(finished.out + finished.err))


def _last(finished: Finished) -> str:
    lines = finished.err.strip().splitlines()
    return printable(lines[-1]) if lines else ""


def printable(text: str) -> str:
    """`text` without the control characters by which a device could drive the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
