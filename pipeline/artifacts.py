"""Records and file habits that every stage shares. Imports nothing of alpharho."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class AlpharhoError(Exception):
    """A failure the user can act on. Its text is one line: what was found, what is supported, what to do."""


class UsageError(AlpharhoError):
    """The command line itself is wrong (exit code 2)."""


class CheckError(AlpharhoError):
    """A stage's result failed its check: says what was found, what was expected, where."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any failure it is removed.

    A reader therefore sees the old file or the new one, never a part. The file is flushed to disk before the
    rename.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make `folder` and hold it for one job; a second is refused. Parts of a killed job are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for part in folder.glob(".*.part"):
            part.unlink()
        yield
    except BlockingIOError:
        raise AlpharhoError(
            f"another run is writing to {folder}; wait for it or give another --out"
        ) from None
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write `content` as UTF-8 to `path`, whole or not at all."""
    write_bytes(path, content.encode())


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write `array` as .npy, whole or not at all."""
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's bytes, lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
