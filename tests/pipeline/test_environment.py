"""The set-up reads lock files right and says in one line what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import environment

SCRIPT = Path(environment.__file__)
LOCK = """\
# a comment with name==1.0 inside
ai-edge-litert==2.3.0 \\
    --hash=sha256:08cec0910d
    # via alpharho (pyproject.toml)
contourpy==1.3.3 ; python_full_version < '3.12' \\
    --hash=sha256:ffff
contourpy==1.4.0 ; python_full_version >= '3.12' \\
    --hash=sha256:eeee
Typing_Extensions==4.16.0
torch==2.13.0+cpu
"""


def test_pins_are_read_by_normalised_name() -> None:
    assert environment.pins(LOCK) == {
        "ai-edge-litert": ("2.3.0",),
        "contourpy": ("1.3.3", "1.4.0"),
        "typing-extensions": ("4.16.0",),
        "torch": ("2.13.0+cpu",),
    }


def test_fresh_is_finished_after_the_last_change(tmp_path: Path) -> None:
    stamp, lock = tmp_path / "ready", tmp_path / "lock"
    lock.touch()
    assert not environment.is_fresh(stamp, [lock])
    stamp.touch()
    os.utime(lock, (100, 100))
    assert environment.is_fresh(stamp, [lock])
    os.utime(stamp, (99, 99))
    assert not environment.is_fresh(stamp, [lock])


@pytest.mark.parametrize("version", [(3, 9, 2), (3, 10, 13), (3, 15, 0), (2, 7, 18)])
def test_an_unsupported_python_is_named_with_what_is_supported(version: tuple[int, ...]) -> None:
    found = ".".join(map(str, version))
    with pytest.raises(environment.SetupError, match=rf"^Python is {found}; 3\.11 to 3\.14 are supported"):
        environment.check_python(version)


@pytest.mark.parametrize("version", [(3, 11), (3, 12, 1), (3, 14, 9)])
def test_a_supported_python_passes(version: tuple[int, ...]) -> None:
    environment.check_python(version)


def _checkout(folder: Path, lock: str) -> Path:
    """A checkout with nothing in it but what the set-up reads."""
    (folder / "pipeline").mkdir()
    script = folder / "pipeline" / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    for name in environment.SOURCES:
        (folder / name).write_text(lock)
    return script


@pytest.mark.slow
def test_a_set_up_begins_anew_after_a_killed_one_and_a_failed_one_is_not_finished(tmp_path: Path) -> None:
    script = _checkout(tmp_path, "no-such-package==1.0 --hash=sha256:" + "0" * 64 + "\n")
    half_done = tmp_path / ".venv" / "half-done"  # by a run that was killed
    half_done.mkdir(parents=True)
    environ = {**os.environ, "PIP_NO_INDEX": "1"}
    done = subprocess.run([sys.executable, "-I", script], env=environ, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "setup: could not install the packages of requirements.lock"
    )
    assert "making .venv" in done.stdout
    assert not half_done.exists()
    assert not (tmp_path / ".venv" / environment.STAMP).exists()


def test_a_finished_set_up_is_left_alone(tmp_path: Path) -> None:
    script = _checkout(tmp_path, "no-such-package==1.0\n")
    stamp = tmp_path / ".venv" / environment.STAMP
    stamp.parent.mkdir()
    stamp.touch()
    done = subprocess.run([sys.executable, "-I", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_ensurepip_and_debian_it_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get
    with pytest.raises(environment.SetupError, match=r"sudo apt-get install python3\.\d+-venv$"):
        environment._debian_pip(tmp_path)
