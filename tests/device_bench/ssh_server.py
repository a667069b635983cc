"""A real sshd on a loopback port with throw-away keys: the board of the ssh tests, in one folder.

Whoever logs in is this account, with HOME, TMPDIR and PATH inside the folder; `python3` there is a wrapper
that first runs a hook of the test, in which the faults are made.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
WRAPPER = """#!/bin/sh
echo "$$" >>{calls}
call=$(wc -l <{calls})
if [ -e {hook} ]; then . {hook}; fi
exec {python} "$@"
"""


class Board:
    """The device's side: `hook` what its Python does first, look at what is left there."""

    def __init__(self, folder: Path, python: str = shlex.quote(sys.executable)) -> None:
        """`python`: the words of a shell command that runs Python."""
        self.folder, self.home, self.tmp = folder, folder / "home", folder / "tmp"
        self.reached, self._calls, self._hook = folder / "reached", folder / "calls", folder / "hook"
        for made in (folder, self.home, self.tmp, folder / "bin"):
            made.mkdir()
        self.port = _free_port()
        calls, hook = shlex.quote(str(self._calls)), shlex.quote(str(self._hook))
        self.script("python3", WRAPPER.format(calls=calls, hook=hook, python=python))
        self._keys()
        self._configure()
        self._sshd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start sshd, and wait until it listens."""
        assert SSHD is not None
        log = (self.folder / "sshd.log").open("wb")
        with log:
            self._sshd = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError((self.folder / "sshd.log").read_text())

    def stop(self) -> None:
        """End the listening sshd; open connections live on."""
        assert self._sshd is not None
        self._sshd.terminate()
        self._sshd.wait()

    def script(self, name: str, text: str) -> None:
        """A program on the device's PATH."""
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def hook(self, text: str) -> None:
        """Shell lines that every call of python3 runs first; `$call` counts the calls from 1."""
        self._hook.write_text(text)

    def bashrc(self, text: str) -> None:
        """What the login shell reads at every command."""
        (self.home / ".bashrc").write_text(text)

    def left(self) -> list[str]:
        """Files and processes that are still on the device."""
        files = [str(path) for path in self.tmp.iterdir()]
        return files + [command[-200:] for _, command in self.processes()]

    def processes(self) -> list[tuple[int, str]]:
        """Live processes that a login has started: (number, command line)."""
        mark, found = f"BOARD={self.folder}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if mark in environment.split(b"\0") and command:
                found.append((int(folder.name), command))
        return found

    def wait_for(self, path: Path) -> None:
        """Until the device has made the file."""
        for _ in range(3000):
            if path.exists():
                return
            time.sleep(0.01)
        raise AssertionError(f"{path} was not made within 30 s")

    def settled(self) -> list[str]:
        """`left`, once it is empty or 10 seconds have passed."""
        for _ in range(200):
            if not self.left():
                return []
            time.sleep(0.05)
        return self.left()

    def kill_connections(self) -> None:
        """SIGKILL to the processes of sshd that serve a connection."""
        _kill(self._connections())

    def freeze_connections(self) -> None:
        """Connections that neither answer nor end, as when the network is gone."""
        for pid in self._connections():
            os.kill(pid, signal.SIGSTOP)

    def switch_off(self) -> None:
        """No new connection, and SIGKILL to those that there are."""
        connections = self._connections()
        self.stop()
        _kill(connections)

    def _connections(self) -> list[int]:
        assert self._sshd is not None
        return children(self._sshd.pid)

    def _keys(self) -> None:
        for name in ("host_key", "id"):
            path = self.folder / name
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
        shutil.copy(self.folder / "id.pub", self.folder / "authorized_keys")
        host_key = " ".join((self.folder / "host_key.pub").read_text().split()[:2])
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {host_key}\n")

    def _configure(self) -> None:
        path = f"{self.folder}/bin:/usr/bin:/bin"
        variables = f"PATH={path} HOME={self.home} TMPDIR={self.tmp} BOARD={self.folder} LC_ALL=C.UTF-8"
        server = f"""
            Port {self.port}
            ListenAddress 127.0.0.1
            HostKey {self.folder}/host_key
            PidFile none
            AuthorizedKeysFile {self.folder}/authorized_keys
            StrictModes no
            UsePAM no
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            PermitRootLogin prohibit-password
            AllowTcpForwarding no
            MaxStartups 100
            SetEnv {variables}
        """
        client = f"""
            Host board
                HostName 127.0.0.1
                Port {self.port}
            Host *
                IdentityFile {self.folder}/id
                IdentitiesOnly yes
                UserKnownHostsFile {self.folder}/known_hosts
                GlobalKnownHostsFile /dev/null
                KexAlgorithms curve25519-sha256
        """
        (self.folder / "sshd_config").write_text(server)
        (self.folder / "ssh_config").write_text(client)


@contextmanager
def running(board: Board, patch: pytest.MonkeyPatch) -> Iterator[Board]:
    """The board switched on, and on PATH the real `ssh` with the board's configuration as the user's."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own requirement
    client = board.folder / "client"
    client.mkdir()
    ssh = shutil.which("ssh")
    program = client / "ssh"
    program.write_text(f'#!/bin/sh\nexec {ssh} -F {board.folder}/ssh_config "$@"\n')
    program.chmod(0o755)
    patch.setenv("PATH", f"{client}:{os.environ['PATH']}")
    board.start()
    try:
        yield board
    finally:
        board.switch_off()
        _kill(pid for pid, _ in board.processes())


def needs_sshd() -> None:
    """Skip where sshd is missing; on CI that is a failure."""
    if SSHD is not None and shutil.which("ssh") is not None:
        return
    reason = "needs sshd and ssh (Debian: apt-get install openssh-server openssh-client)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children(parent: int) -> list[int]:
    """The processes that `parent` started itself."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found
