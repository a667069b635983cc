"""An aarch64 Python with two TFLite runtimes in a folder, for qemu-user: without root, pinned by hash.

`emulator.lock.json` names every Debian package and wheel with version and SHA-256. Wheels must match it. A
Debian package must match it as long as the mirror has that version; once a security update has replaced it,
its successor is taken on the strength of Debian's signed index and reported as moved. `manifest.json` in the
folder says what was really installed.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from device_bench import debian_packages
from device_bench.debian_packages import Pinned
from device_bench.device import BenchSpec, ResultClass
from device_bench.process import finish
from device_bench.records import RecordError, from_plain, read_json, to_plain, write_json
from device_bench.runner import TINY_MODEL
from device_bench.runner_client import RUNNER, answer_of, model_fields, request
from pipeline.artifacts import AlpharhoError, replacing, write_bytes

FOLDER = Path(__file__).resolve().parent.parent / "build" / "emulator"
LOCK = Path(__file__).with_name("emulator.lock.json")
COUNTER_SOURCE = Path(__file__).parent / "counting" / "count.c"
QEMU = "qemu-aarch64"
# The oldest core: what runs on it runs on all.
PROOF_CORE = "cortex-a53"
TAGS = ("manylinux_2_34_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64")

T = TypeVar("T")
Say = Callable[[str], None]


class EmulatorError(AlpharhoError):
    """The emulated runtime cannot be set up: says what is missing and how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """What the emulator is made of: Debian packages of `release`, and the wheels of each runtime."""

    release: str
    packages: tuple[Pinned, ...]
    sites: Mapping[str, tuple[Pinned, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What was installed; `key` is of all that it depends on, `moved` names what differs from the lock."""

    key: str
    qemu: str
    packages: tuple[Pinned, ...]
    sites: Mapping[str, tuple[Pinned, ...]]
    moved: tuple[str, ...]


class _Tool(NamedTuple):
    program: str
    package: str


TOOLS = (
    _Tool(QEMU, "qemu-user"),
    _Tool("gcc", "gcc"),
    _Tool("apt-get", "apt"),
    _Tool("dpkg-deb", "dpkg"),
)


def set_up(folder: Path = FOLDER, say: Say = print) -> Manifest:
    """Make `folder` a working emulator, or find that it is one already.

    Every part is made beside its place and renamed, and `manifest.json` comes last: a set-up that was killed
    goes on where it stopped. Needs the network and the programs of TOOLS. Raises AlpharhoError.
    """
    require_tools()
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        ready = installed(folder)
        return ready if ready is not None else _make(folder, read_lock(), say)


def installed(folder: Path = FOLDER) -> Manifest | None:
    """The manifest of an emulator that is complete and of this lock file and this counter; None otherwise."""
    manifest = _recorded(Manifest, folder / "manifest.json")
    if manifest is None:
        return None
    parts = [python(folder), counter(folder), *(site(folder, runtime) for runtime in manifest.sites)]
    return manifest if manifest.key == _key() and all(part.exists() for part in parts) else None


def require_tools() -> None:
    """Raise EmulatorError naming what programs are missing, and the Debian packages that have them."""
    missing = [tool for tool in TOOLS if shutil.which(tool.program) is None]
    if missing:
        programs, packages = (" ".join(names) for names in zip(*missing, strict=True))
        raise EmulatorError(f"not found: {programs}; install them: sudo apt-get install {packages}")
    usage = finish([QEMU, "-help"], timeout_s=30)
    if not re.search(r"^-plugin\s", usage.out + usage.err, re.MULTILINE):
        found = f"{qemu_version()} takes no plugins, as static builds do"
        raise EmulatorError(f"{found}; install the dynamic build: sudo apt-get install qemu-user")


def qemu_version() -> str:
    """The first line of the emulator's version."""
    return finish([QEMU, "--version"], timeout_s=30).out.partition("\n")[0]


def read_lock() -> Lock:
    """The lock file of this version of the project."""
    return from_plain(Lock, read_json(LOCK), str(LOCK))


def python(folder: Path) -> Path:
    """The aarch64 interpreter."""
    return folder / "root/usr/bin/python3.11"


def site(folder: Path, runtime: str) -> Path:
    """The import folder of a runtime: one each, because they need different versions of numpy."""
    return folder / "site" / runtime


def counter(folder: Path) -> Path:
    """The compiled plugin."""
    return folder / "libcount.so"


def command(folder: Path, core: str) -> list[str]:
    """The command line that begins the aarch64 interpreter on `core`."""
    return [shutil.which(QEMU) or QEMU, "-cpu", core, "-L", str(folder / "root"), str(python(folder))]


def environment(folder: Path, runtime: str) -> dict[str, str]:
    """All that the emulated Python is given: its counts must not depend on the caller's."""
    return {
        "PYTHONHOME": str(folder / "root/usr"),
        "PYTHONPATH": str(site(folder, runtime)),
        "PYTHONHASHSEED": "0",
        "LC_ALL": "C.UTF-8",
        # numpy's OpenBLAS would start a thread for each CPU, and idle threads spin: millions of instructions.
        "OPENBLAS_NUM_THREADS": "1",
    }


# --- The parts, in the order they are made ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Root:
    pinned: tuple[Pinned, ...]
    packages: tuple[Pinned, ...]  # what they really were


def _make(folder: Path, lock: Lock, say: Say) -> Manifest:
    packages = _make_root(folder, lock, say)
    for runtime, wheels in lock.sites.items():
        _make_site(folder, runtime, wheels, say)
    with replacing(counter(folder)) as part:
        _compile(part)
    for runtime in lock.sites:
        _prove(folder, runtime, say)
    manifest = Manifest(
        key=_key(),
        qemu=qemu_version(),
        packages=packages,
        sites=lock.sites,
        moved=tuple(new.name for new, old in zip(packages, lock.packages, strict=True) if new != old),
    )
    if manifest.moved:
        say(f"newer than {LOCK.name}, by Debian's signed index: {', '.join(manifest.moved)}")
    write_json(folder / "manifest.json", to_plain(manifest))
    return manifest


def _make_root(folder: Path, lock: Lock, say: Say) -> tuple[Pinned, ...]:
    """`root/`: the Debian packages, unpacked; what they really were stands in it."""
    target, record = folder / "root", folder / "root" / "packages.json"
    made = _recorded(_Root, record)
    if made is not None and made.pinned == lock.packages:
        return made.packages
    say(f"fetching {len(lock.packages)} Debian arm64 packages")
    with _replacing_folder(target) as root, tempfile.TemporaryDirectory(prefix="alpharho-") as scratch:
        packages = debian_packages.unpack(lock.packages, lock.release, "arm64", Path(scratch), root)
        write_json(root / record.name, to_plain(_Root(pinned=lock.packages, packages=packages)))
    return packages


def _make_site(folder: Path, runtime: str, wheels: Sequence[Pinned], say: Say) -> None:
    """`site/RUNTIME/`: the wheels, whose hashes pip holds against the lock."""
    target, listing = site(folder, runtime), "requirements.txt"
    wanted = "".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels)
    if (target / listing).exists() and (target / listing).read_text() == wanted:
        return
    say(f"fetching {' and '.join(f'{wheel.name} {wheel.version}' for wheel in wheels)} for aarch64")
    with _replacing_folder(target) as part:
        (part / listing).write_text(wanted)
        tags = [word for tag in TAGS for word in ("--platform", tag)]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        chosen = ["--no-deps", "--no-compile", "--only-binary=:all:", "--implementation=cp", *tags]
        where = [
            "--python-version=3.11",
            f"--target={part}",
            "--require-hashes",
            f"--requirement={part / listing}",
        ]
        debian_packages.run([*pip, *chosen, *where])


def _compile(target: Path) -> None:
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
    made = finish(["gcc", *flags, "-o", str(target), str(COUNTER_SOURCE)], timeout_s=60)
    if made.code != 0:
        raise EmulatorError(
            f"gcc cannot compile {COUNTER_SOURCE.name}: {made.err.strip()[-200:]}; install gcc and libc6-dev"
        )


def _prove(folder: Path, runtime: str, say: Say) -> None:
    """Run a model once. That also leaves the compiled modules, which every later start-up then reads."""
    say(f"running a first model with {runtime} on {PROOF_CORE}")
    with tempfile.TemporaryDirectory(prefix="alpharho-") as scratch:
        model = Path(scratch) / "tiny.tflite"
        write_bytes(model, zlib.decompress(base64.b64decode(TINY_MODEL)))
        spec = BenchSpec(runtime=runtime, timeout_s=300)
        asked = request("count", spec, model=str(model), invokes=1, **model_fields(model))
        done = finish(
            [*command(folder, PROOF_CORE), "-", asked.argument],
            timeout_s=spec.timeout_s,
            given=RUNNER.read_bytes(),
            folder=Path(scratch),
            environment=environment(folder, runtime),
        )
    assert answer_of(done, asked)["result"] == ResultClass.OK


def _recorded(kind: type[T], path: Path) -> T | None:
    """The record of an earlier set-up; None if there is none, or one of another version, to be made again."""
    if not path.exists():
        return None
    try:
        return from_plain(kind, read_json(path), str(path))
    except RecordError:
        return None


def _key() -> str:
    """Changes with the lock file and the counter's source."""
    return hashlib.sha256(LOCK.read_bytes() + COUNTER_SOURCE.read_bytes()).hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder: a second set-up waits for the first."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    """A fresh folder beside `target` that takes its place on success and is removed on failure."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
