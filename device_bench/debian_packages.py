"""Debian packages of another architecture in a folder, by apt's own client, without root or a trace.

apt runs on a private state folder, so the system's lists and architectures stay as they are. Every package is
verified by apt against the release's signed index, and against its SHA-256 if it is the pinned version.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import AlpharhoError, sha256_of

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "DEBIAN_MIRROR"  # environment: a mirror to use instead of the system's own
TIMEOUT_S = 900


class PackageError(AlpharhoError):
    """A package cannot be had: says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """One package file."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One line of an apt source list."""

    uri: str
    suite: str

    @property
    def line(self) -> str:
        """The line, bound to Debian's own keys."""
        return f"deb [signed-by={KEYRING}] {self.uri} {self.suite} main"


def unpack(
    pinned: Sequence[Pinned], release: str, architecture: str, scratch: Path, root: Path
) -> tuple[Pinned, ...]:
    """Fetch the packages into `scratch`, unpack them into `root`; what they really were, in this order.

    A package whose pinned version has left the mirror is taken in the version that the signed index has now.
    Raises PackageError.
    """
    options = private_state(scratch, architecture, sources(release))
    run(["apt-get", *options, "update"], scratch)
    available = versions([package.name for package in pinned], options, scratch)
    asked = [
        f"{package.name}={package.version}" if package.version in available[package.name] else package.name
        for package in pinned
    ]
    run(["apt-get", *options, "download", *asked], scratch)
    files = {package_name(path): path for path in scratch.glob("*.deb")}
    return tuple(_unpack_one(package, files[package.name], root) for package in pinned)


def sources(release: str) -> tuple[Source, ...]:
    """Where the system gets the release from, or the mirror in the environment. Raises PackageError."""
    if not KEYRING.exists():
        raise PackageError(f"{KEYRING} not found; install it: sudo apt-get install debian-archive-keyring")
    if mirror := os.environ.get(MIRROR):
        return (Source(uri=mirror, suite=release),)
    text = run(
        ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"]
    )
    rows = sorted({tuple(line.split()) for line in text.splitlines()})
    found = tuple(
        Source(uri=row[0], suite=row[1])
        for row in rows
        if len(row) == 3 and row[1].startswith(release) and row[2] == "main"
    )
    if not found:
        suites = ", ".join(sorted({row[1] for row in rows if len(row) == 3})) or "none"
        raise PackageError(
            f"apt has no source for Debian {release}, only for: {suites}; give a mirror: {MIRROR}=URI"
        )
    return found


def private_state(scratch: Path, architecture: str, lines: Sequence[Source]) -> list[str]:
    """Options that keep all of apt's state below `scratch`, for one architecture and these sources only."""
    for folder in ("lists/partial", "archives/partial", "parts"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "status").touch()
    (scratch / "sources.list").write_text("".join(f"{source.line}\n" for source in lines))
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "APT::Get::AllowUnauthenticated": "false",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::Languages": "none",
        "Dir::State": scratch,
        "Dir::State::Lists": scratch / "lists",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch,
        "Dir::Etc::sourcelist": scratch / "sources.list",
        "Dir::Etc::sourceparts": scratch / "parts",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": scratch / "parts",
    }
    return ["-q", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]


def versions(names: Sequence[str], options: Sequence[str], scratch: Path) -> dict[str, set[str]]:
    """The versions of each package that the sources have."""
    found: dict[str, set[str]] = {name: set() for name in names}
    for line in run(["apt-cache", *options, "madison", *names], scratch).splitlines():
        name, version, _ = (word.strip() for word in line.split("|", maxsplit=2))
        found[name].add(version)
    missing = [name for name, versions_of_name in found.items() if not versions_of_name]
    if missing:
        raise PackageError(f"the apt sources have no {', '.join(missing)}; give another mirror: {MIRROR}=URI")
    return found


def package_name(path: Path) -> str:
    """The name a package file gives itself."""
    return run(["dpkg-deb", "--field", str(path), "Package"]).strip()


def _unpack_one(pinned: Pinned, path: Path, root: Path) -> Pinned:
    version = run(["dpkg-deb", "--field", str(path), "Version"]).strip()
    found = Pinned(name=pinned.name, version=version, sha256=sha256_of(path))
    if version == pinned.version and found != pinned:
        raise PackageError(
            f"{pinned.name} {version}: SHA-256 is {found.sha256}, pinned is {pinned.sha256}; "
            f"the mirror is not to be trusted, give another: {MIRROR}=URI"
        )
    run(["dpkg-deb", "--extract", str(path), str(root)])
    return found


def run(command: Sequence[str], folder: Path | None = None) -> str:
    """The standard output of a program that must succeed. Raises PackageError with its last words."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"{command[0]} had not ended after {TIMEOUT_S} s; check the network") from error
    if done.returncode == 0:
        return done.stdout
    words = [
        line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("E:", "W:", "ERROR"))
    ]
    said = "; ".join(words[-2:]) or f"exit code {done.returncode}"
    raise PackageError(f"{Path(command[0]).name} failed: {said}; check the network and repeat")
