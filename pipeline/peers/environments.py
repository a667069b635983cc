"""The peers' environments: `build/peers/NAME`, made from exact pins by the first command that needs one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from device_bench.process import finish
from pipeline.artifacts import AlpharhoError, locked, write_bytes
from pipeline.data import REPOSITORY
from pipeline.environment import TORCH_INDEX, TORCH_LOCK

FOLDER = REPOSITORY / "build" / "peers"
REQUIREMENTS = Path(__file__).parent / "requirements"
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))
WITH_TORCH = ("litert_torch",)
PYTHON = "python3.11"  # the newest that has a wheel of every peer
STAMP = "requirements.txt"  # inside the environment, written last: what it was made from
TIMEOUT_S = 1800
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "KERAS_BACKEND": "tensorflow"}

Say = Callable[[str], None]


def python_of(name: str, folder: Path = FOLDER) -> Path:
    """The interpreter of a finished environment; AlpharhoError with the remedy where it is not there."""
    if not is_ready(name, folder):
        raise AlpharhoError(
            f"{folder / name}: no finished environment of the pins in {_pins(name).name}; "
            f"make it: .venv/bin/python -m pipeline.peers.environments {name}"
        )
    return folder / name / "bin" / "python"


def is_ready(name: str, folder: Path = FOLDER) -> bool:
    """Whether the environment was finished from the pins that stand here now."""
    stamp = folder / name / STAMP
    return stamp.is_file() and stamp.read_bytes() == _pins(name).read_bytes()


def make(name: str, say: Say, folder: Path = FOLDER) -> Path:
    """Make the environment unless it is ready, from nothing but its pins; its interpreter.

    AlpharhoError without Python 3.11, or where pip cannot get a package.
    """
    if is_ready(name, folder):
        return python_of(name, folder)
    interpreter = shutil.which(PYTHON)
    if interpreter is None:
        raise AlpharhoError(
            f"{PYTHON} not found, which every peer has wheels for; install it: "
            f"sudo apt-get install {PYTHON}-venv"
        )
    say(f"making {folder / name}")
    target = folder / name
    with locked(folder / ".locks" / name):
        _run([interpreter, "-m", "venv", "--clear", str(target)], f"make {target}")
        if name in WITH_TORCH:
            _install_torch(target)
        _install(target, "--no-deps", "--only-binary=:all:", "--requirement", str(_pins(name)))
        write_bytes(target / STAMP, _pins(name).read_bytes())
    return python_of(name, folder)


def ask(
    python: Sequence[str], module: str, request: Mapping[str, Any], variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The answer of `PYTHON -m MODULE` to `request`; a module of this package that calls `protocol.serve`.

    `variables` are set besides the caller's. AlpharhoError with the last line of its log where it fails.
    """
    with tempfile.TemporaryDirectory(prefix="alpharho-") as scratch:
        asked, answer = Path(scratch) / "request.json", Path(scratch) / "answer.json"
        asked.write_text(json.dumps(request))
        command = [*python, "-m", f"pipeline.peers.{module}", str(asked), str(answer)]
        paths = os.pathsep.join(filter(None, [str(REPOSITORY), (variables or {}).get("PYTHONPATH", "")]))
        environment = {**os.environ, **QUIET, **(variables or {}), "PYTHONPATH": paths}
        done = finish(command, timeout_s=TIMEOUT_S, folder=Path(scratch), environment=environment)
        if done.code != 0 or not answer.is_file():
            reason = (done.err.strip() or done.out.strip() or "no message").splitlines()[-1]
            raise AlpharhoError(f"{module} ended with {done.code}: {reason[:300]}")
        plain: dict[str, Any] = json.loads(answer.read_text())
        return plain


def _pins(name: str) -> Path:
    return REQUIREMENTS / f"{name}.txt"


def _install_torch(target: Path) -> None:
    """The project's own pin of torch: from where pip looks anyway if that has it, else from torch's index."""
    pinned = ("--no-deps", "--requirement", str(REPOSITORY / TORCH_LOCK))
    try:
        _install(target, *pinned)
    except AlpharhoError:
        _install(target, *pinned, "--index-url", os.environ.get("TORCH_INDEX") or TORCH_INDEX)


def _install(target: Path, *arguments: str) -> None:
    pip = [str(target / "bin" / "python"), "-I", "-m", "pip", "install", "--quiet"]
    _run([*pip, "--disable-pip-version-check", *arguments], f"install {target.name}")


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise AlpharhoError(f"cannot {what}: {reason}; mend that and run the command again")


if __name__ == "__main__":
    for wanted in sys.argv[1:] or NAMES:
        make(wanted, print)
