"""The project's own environment: `python3 -I pipeline/environment.py` makes `.venv` from the lock files.

It runs before anything is installed, so it uses the standard library alone and imports nothing of ours.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = "requirements.lock"
TORCH_LOCK = "requirements-torch.lock"
SUPPORTED = ((3, 11), (3, 15))  # first Python that works, first that does not
SOURCES = (LOCK, TORCH_LOCK, "pyproject.toml")
STAMP = "ready"  # inside the environment, written last: without it the environment is not finished
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"

PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)", re.MULTILINE)


class SetupError(Exception):
    """The environment cannot be made; the text is one line that says what to do."""


def pins(lock_text: str) -> dict[str, tuple[str, ...]]:
    """Pinned versions by normalised package name; several where the version depends on the Python version."""
    found: dict[str, tuple[str, ...]] = {}
    for match in PIN.finditer(lock_text):
        name = normalised(match["name"])
        found[name] = (*found.get(name, ()), match["version"])
    return found


def normalised(name: str) -> str:
    """A package name as registries compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_fresh(stamp: Path, sources: Sequence[Path]) -> bool:
    """Whether the environment was finished after every file that describes it was last written."""
    return stamp.exists() and stamp.stat().st_mtime >= max(source.stat().st_mtime for source in sources)


def make(root: Path) -> None:
    """Make `root/.venv`, or bring it up to date; a killed run leaves no stamp and is redone from nothing."""
    venv = root / ".venv"
    stamp = venv / STAMP
    with _alone(root / LOCK):
        if is_fresh(stamp, [root / name for name in SOURCES]):
            return
        if not stamp.exists():
            _say("making .venv (about 1.4 GB, once)")
            _create(venv)
        stamp.unlink(missing_ok=True)
        _install(
            venv,
            f"the packages of {LOCK}",
            "--only-binary=:all:",
            "--require-hashes",
            f"--requirement={root / LOCK}",
        )
        _install_torch(venv, root / TORCH_LOCK)
        _install(
            venv, "alpharho itself", "--no-deps", "--no-build-isolation", "--no-index", f"--editable={root}"
        )
        stamp.touch()
        _say(".venv is ready")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Two makes at once: the second waits for the first and then finds its work done."""
    with lock.open("r+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _create(venv: Path) -> None:
    if importlib.util.find_spec("ensurepip") is not None:
        _run("make the virtual environment", sys.executable, "-I", "-m", "venv", "--clear", venv)
        return
    _run("make the virtual environment", sys.executable, "-I", "-m", "venv", "--clear", "--without-pip", venv)
    with tempfile.TemporaryDirectory() as folder:
        wheel = _debian_pip(Path(folder))
        _run(
            "install pip",
            venv / "bin/python",
            wheel / "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            wheel,
        )


def _debian_pip(folder: Path) -> Path:
    """Debian's pip wheel, fetched and unpacked without root: its Python comes without ensurepip."""
    commands = (["apt-get", "download", "python3-pip-whl"], ["sh", "-c", "dpkg-deb -x ./*.deb ."])
    try:
        for command in commands:
            subprocess.run(
                command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        return next(folder.glob("usr/share/python-wheels/pip-*.whl"))
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        package = f"python3.{sys.version_info.minor}-venv"
        raise SetupError(
            f"{sys.executable} has no ensurepip; install it: sudo apt-get install {package}"
        ) from error


def _install_torch(venv: Path, lock: Path) -> None:
    """The CPU build: from where pip is configured to look if that has it, else from the index TORCH_INDEX."""
    arguments = ("--only-binary=:all:", "--no-deps", f"--requirement={lock}")
    index = os.environ.get("TORCH_INDEX")
    if not index:
        command = _pip_install(venv, *arguments)
        if subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0:
            return
    index = index or TORCH_INDEX
    _install(
        venv, f"torch from {index} (another index: make TORCH_INDEX=...)", f"--index-url={index}", *arguments
    )


def _install(venv: Path, what: str, *arguments: str) -> None:
    _say(f"installing {what}")
    _run(f"install {what}", *_pip_install(venv, *arguments))


def _pip_install(venv: Path, *arguments: str) -> list[str]:
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    return [
        str(venv / "bin/python"),
        "-I",
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        *quiet,
        *arguments,
    ]


def _run(what: str, *command: str | Path) -> None:
    code = subprocess.run([str(part) for part in command]).returncode
    if code != 0:
        raise SetupError(f"could not {what}: exit code {code}, the reason stands above; then run make again")


def _say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def check_python(version: tuple[int, ...]) -> None:
    """Raise SetupError unless the project supports this Python version."""
    first, after = SUPPORTED
    if not first <= version < after:
        found = ".".join(map(str, version[:3]))
        raise SetupError(
            f"Python is {found}; 3.{first[1]} to 3.{after[1] - 1} are supported: make PYTHON=python3.11"
        )


def main(arguments: Sequence[str]) -> int:
    """Make the environment beside this checkout, or only `--check` this Python; 1 and a line if it fails."""
    try:
        check_python(sys.version_info[:3])
        if "--check" not in arguments:
            make(ROOT)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; run make again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
