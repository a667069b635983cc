"""What holds for every test: no network, reproducible examples, a clear word on what a marked test needs."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest
from hypothesis import settings

from pipeline.doctor import find_program

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

settings.register_profile("alpharho", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("alpharho")

# A shell's background job ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

NEEDED_PROGRAMS = {  # marker: programs, and the Debian packages that bring them
    "emulator": (("qemu-aarch64", "gcc"), "qemu-user gcc"),
    "ssh": (("ssh", "sshd", "ssh-keygen"), "openssh-client openssh-server"),
    "adb": (("adb",), "adb"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a marked test whose programs are missing; in CI, where they must be there, fail it."""
    for marker, (programs, packages) in NEEDED_PROGRAMS.items():
        missing = [name for name in programs if find_program(name) is None]
        if item.get_closest_marker(marker) is None or not missing:
            continue
        reason = f"needs {', '.join(missing)}: sudo apt-get install {packages}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Connections leave this machine in no test; those to itself are free."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test connects to {address}")
        connect(self, address)  # type: ignore[arg-type]  # whatever the caller gave

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield
