"""A small adbd for tests: the device's side of the ADB protocol on a localhost port, with faults to order.

It runs commands with `sh`, as whoever runs the tests, in a folder that stands for the device's file system:
absolute paths under /data, /sys, /proc and /system are rewritten to lie there, and `bin/` stands before PATH.
It does not model ptys, root, forwarding, installing, SELinux or toybox.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue

VERSION = 0x01000001
MAX_DATA = 1 << 20
PATHS = re.compile(r"(?<![\w./-])/(data|sys|proc|system)/")


def command_id(word: str) -> int:
    """A protocol word as its little-endian number."""
    return int.from_bytes(word.encode(), "little")


@dataclass
class Faults:
    """What goes wrong. `drop_on`, `hang_on`: in a shell command that holds this text; once."""

    silent: bool = False  # never introduces itself: `offline`
    unauthorized: bool = False  # accepts no key
    shell_v2: bool = True
    drop_on: str = ""
    drop_for_good: bool = False
    hang_on: str = ""
    drop_in_push: int = 0  # bytes of a file after which the connection breaks, once
    space: int | None = None  # bytes of a file after which the disk is full
    spoil_push: bool = False  # a byte of the file changes


@dataclass
class Adbd:
    """A device on `127.0.0.1:port` whose files are under `root`."""

    root: Path
    faults: Faults = field(default_factory=Faults)
    commands: list[str] = field(default_factory=list)  # every shell command that came
    serial: str = field(init=False)  # what `adb connect` makes of it
    _listener: socket.socket = field(init=False)
    _connections: list[Connection] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def path(self, remote: str) -> Path:
        """Where a path of the device really lies."""
        return self.root / remote.lstrip("/")

    def unplug(self) -> None:
        """Break all connections; new ones are accepted."""
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def vanish(self) -> None:
        """Break all connections and refuse new ones."""
        # Closing alone does not end an accept() that is under way.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.unplug()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = Connection(self, self._listener.accept()[0])
                self._connections.append(connection)
                threading.Thread(target=connection.serve, daemon=True).start()


class Lost(Exception):
    """The connection or the stream is gone."""


class Connection:
    """One host. Every stream has a thread of its own: adb opens several at once."""

    def __init__(self, device: Adbd, link: socket.socket) -> None:
        self.device = device
        self._link = link
        self._sending = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._ids = iter(range(1, 1 << 31))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()

    def send(self, word: str, first: int, second: int, payload: bytes = b"") -> None:
        number = command_id(word)
        head = struct.pack(
            "<6I", number, first, second, len(payload), sum(payload) & 0xFFFFFFFF, number ^ 0xFFFFFFFF
        )
        try:
            with self._sending:
                self._link.sendall(head + payload)
        except OSError as error:
            raise Lost from error

    def serve(self) -> None:
        try:
            while True:
                word, first, second, payload = self._receive()
                _HANDLERS[word](self, first, second, payload)
        except (Lost, OSError):
            pass
        finally:
            self.close()
            for stream in list(self._streams.values()):
                stream.close()

    def _receive(self) -> tuple[str, int, int, bytes]:
        number, first, second, size, _, magic = struct.unpack("<6I", self._read(24))
        if magic != number ^ 0xFFFFFFFF or size > MAX_DATA:
            raise Lost
        return number.to_bytes(4, "little").decode(), first, second, self._read(size)

    def _read(self, size: int) -> bytes:
        content = b""
        while len(content) < size:
            piece = self._link.recv(size - len(content))
            if not piece:
                raise Lost
            content += piece
        return content

    def _introduce(self, first: int, second: int, payload: bytes) -> None:
        if self.device.faults.silent:
            return
        if self.device.faults.unauthorized:
            self.send("AUTH", 1, 0, os.urandom(20))
            return
        features = "cmd,shell_v2" if self.device.faults.shell_v2 else "cmd"
        banner = (
            "device::ro.product.name=test;ro.product.model=test;ro.product.device=test;features=" + features
        )
        self.send("CNXN", VERSION, MAX_DATA, banner.encode())

    def _authorize(self, kind: int, second: int, payload: bytes) -> None:
        signature = 2
        if kind == signature:  # refused by asking anew
            self.send("AUTH", 1, 0, os.urandom(20))

    def _open(self, host_id: int, second: int, payload: bytes) -> None:
        name = payload.rstrip(b"\0").decode(errors="surrogateescape")
        service = next((serve for start, serve in _SERVICES if name.startswith(start)), None)
        if service is None:
            self.send("CLSE", 0, host_id)
            return
        stream = Stream(self, next(self._ids), host_id)
        self._streams[stream.number] = stream
        self.send("OKAY", stream.number, host_id)
        threading.Thread(target=stream.run, args=(service, name), daemon=True).start()

    def _acknowledged(self, host_id: int, number: int, payload: bytes) -> None:
        if number in self._streams:
            self._streams[number].acknowledged.release()

    def _written(self, host_id: int, number: int, payload: bytes) -> None:
        if number in self._streams:
            self._streams[number].arrived.put(payload)
            self.send("OKAY", number, host_id)

    def _closed(self, host_id: int, number: int, payload: bytes) -> None:
        if number in self._streams:
            self._streams.pop(number).close()


_HANDLERS: dict[str, Callable[[Connection, int, int, bytes], None]] = {
    "CNXN": Connection._introduce,
    "AUTH": Connection._authorize,
    "OPEN": Connection._open,
    "OKAY": Connection._acknowledged,
    "WRTE": Connection._written,
    "CLSE": Connection._closed,
}


class Stream:
    """One service for one host."""

    def __init__(self, connection: Connection, number: int, host_id: int) -> None:
        self.connection = connection
        self.number = number
        self.acknowledged = threading.Semaphore(0)
        self.arrived: Queue[bytes | None] = Queue()
        self.closed = threading.Event()
        self._host_id = host_id
        self._rest = b""

    @property
    def device(self) -> Adbd:
        return self.connection.device

    def run(self, service: Callable[[Stream, str], None], name: str) -> None:
        with contextlib.suppress(Lost):
            service(self, name)
            if not self.closed.is_set():
                self.connection.send("CLSE", self.number, self._host_id)

    def close(self) -> None:
        self.closed.set()
        self.arrived.put(None)
        self.acknowledged.release()

    def write(self, content: bytes) -> None:
        """Send, and wait until the host took it: it may have one packet of a stream at a time."""
        for start in range(0, len(content), 64 << 10):
            if self.closed.is_set():
                raise Lost
            self.connection.send("WRTE", self.number, self._host_id, content[start : start + (64 << 10)])
            self.acknowledged.acquire()

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            piece = self.arrived.get()
            if piece is None:
                raise Lost
            self._rest += piece
        content, self._rest = self._rest[:size], self._rest[size:]
        return content


# --- shell ---------------------------------------------------------------------------------------------


def shell(stream: Stream, name: str) -> None:
    """`shell,v2,raw:COMMAND` with framed outputs and an exit code, or `shell:COMMAND` with neither."""
    options, _, command = name.partition(":")
    device, faults = stream.device, stream.device.faults
    device.commands.append(command)
    if faults.hang_on and faults.hang_on in command:
        faults.hang_on = ""
        stream.closed.wait()
        return
    framed = "v2" in options.split(",")
    process = _started(device, command, subprocess.PIPE if framed else subprocess.STDOUT)
    if faults.drop_on and faults.drop_on in command:
        faults.drop_on = ""
        threading.Thread(target=_drop_later, args=(stream,), daemon=True).start()
    threading.Thread(target=_hang_up, args=(stream, process), daemon=True).start()
    _copy_outputs(stream, process, framed)
    code = process.wait()
    if framed:
        stream.write(struct.pack("<BIB", 3, 1, code if code >= 0 else 128 - code))


def _started(device: Adbd, command: str, errors: int) -> subprocess.Popen[bytes]:
    here = PATHS.sub(lambda found: f"{device.root}/{found[1]}/", command)
    environment = {
        "PATH": f"{device.root}/bin:/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "DEVICE": str(device.root),
    }
    return subprocess.Popen(
        ["sh", "-c", here.encode(errors="surrogateescape")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        cwd=device.root,
        env=environment,
        start_new_session=True,
    )


def _copy_outputs(stream: Stream, process: subprocess.Popen[bytes], framed: bool) -> None:
    writing = threading.Lock()

    def copy(number: int, output: object) -> None:
        assert output is not None
        with contextlib.suppress(Lost), output:  # type: ignore[attr-defined]  # a pipe of either kind
            while piece := output.read1(32 << 10):  # type: ignore[attr-defined]  # the same
                with writing:
                    stream.write(struct.pack("<BI", number, len(piece)) + piece if framed else piece)

    outputs = [(1, process.stdout)] + ([(2, process.stderr)] if framed else [])
    threads = [threading.Thread(target=copy, args=item, daemon=True) for item in outputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _hang_up(stream: Stream, process: subprocess.Popen[bytes]) -> None:
    """A shell whose client is gone gets SIGHUP, as from the real adbd."""
    while process.poll() is None:
        if stream.closed.wait(0.05):
            process.send_signal(signal.SIGHUP)
            process.wait()


def _drop_later(stream: Stream) -> None:
    time.sleep(0.3)
    device = stream.device
    (device.vanish if device.faults.drop_for_good else device.unplug)()


# --- sync ----------------------------------------------------------------------------------------------


def sync(stream: Stream, name: str) -> None:
    """Version 1 of the file service: STAT and SEND."""
    while True:
        word, size = stream.read(4).decode(), struct.unpack("<I", stream.read(4))[0]
        if word == "QUIT":
            return
        _SYNC[word](stream, stream.read(size).decode(errors="surrogateescape"))


def _stat(stream: Stream, remote: str) -> None:
    try:
        found = stream.device.path(remote).stat()
        fields = (found.st_mode, found.st_size, int(found.st_mtime))
    except OSError:
        fields = (0, 0, 0)
    stream.write(b"STAT" + struct.pack("<3I", *fields))


def _send(stream: Stream, target: str) -> None:
    remote, _, mode = target.rpartition(",")
    path, faults = stream.device.path(remote), stream.device.faults
    content = b""
    for piece in _pieces(stream):
        content += piece
        if faults.drop_in_push and len(content) >= faults.drop_in_push:
            path.write_bytes(content)
            faults.drop_in_push = 0
            stream.device.unplug()
            raise Lost
    if faults.space is not None and len(content) > faults.space:
        message = b"couldn't write to file: No space left on device"
        stream.write(b"FAIL" + struct.pack("<I", len(message)) + message)
        return
    if faults.spoil_push:
        content = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes(content)
    path.chmod(int(mode) & 0o777)
    stream.write(b"OKAY" + struct.pack("<I", 0))


def _pieces(stream: Stream) -> Iterator[bytes]:
    while True:
        word, size = stream.read(4), struct.unpack("<I", stream.read(4))[0]
        if word == b"DONE":  # its number is the file's time
            return
        yield stream.read(size)


_SYNC: dict[str, Callable[[Stream, str], None]] = {"STAT": _stat, "SEND": _send}
_SERVICES: tuple[tuple[str, Callable[[Stream, str], None]], ...] = (("shell", shell), ("sync:", sync))
