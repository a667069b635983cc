from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from device_bench import debian_packages, emulator_setup
from device_bench.debian_packages import PackageError, Pinned, Source
from device_bench.emulated import EmulatedDevice
from device_bench.emulator_setup import EmulatorError, installed, read_lock, require_tools, set_up
from pipeline.artifacts import sha256_of
from tests.device_bench.emulation import need_emulator

needs_dpkg = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, which only Debian has"
)
needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get, which only Debian has")


def test_everything_is_pinned() -> None:
    lock = read_lock()
    wheels = [wheel for site in lock.sites.values() for wheel in site]
    assert len(lock.packages) == 15 and set(lock.sites) == {"ai-edge-litert", "tflite-runtime"}
    for pinned in (*lock.packages, *wheels):
        assert len(pinned.sha256) == 64 and pinned.version
    versions = {(wheel.name, wheel.version) for wheel in wheels}
    assert {("ai-edge-litert", "2.1.6"), ("tflite-runtime", "2.14.0")} <= versions


def test_missing_programs_are_named_with_their_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorError, match=r"qemu-aarch64 gcc .*: sudo apt-get install qemu-user gcc"):
        set_up(tmp_path / "emulator")
    assert not (tmp_path / "emulator").exists()


def test_a_qemu_without_plugins_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for tool in emulator_setup.TOOLS:
        program = tmp_path / tool.program
        program.write_text("#!/bin/sh\necho 'qemu-aarch64 version 1 (static)'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorError, match=r"version 1 \(static\) takes no plugins.*install qemu-user"):
        require_tools()


def test_what_is_not_complete_is_not_installed(tmp_path: Path) -> None:
    assert installed(tmp_path) is None
    manifest = {"key": "0" * 64, "qemu": "", "packages": [], "sites": {}, "moved": []}
    for content in (json.dumps(manifest), "{}", "not JSON"):
        (tmp_path / "manifest.json").write_text(content)
        assert installed(tmp_path) is None


def test_a_device_without_emulator_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = EmulatedDevice(core="cortex-a76", folder=tmp_path)
    if shutil.which(emulator_setup.QEMU):
        with pytest.raises(Exception, match=r"no-runtime: .*; set it up: make emulator"), device:
            pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(Exception, match=r"qemu-aarch64 not found; install it: sudo apt-get install qemu-user"),
        device,
    ):
        pass


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "site"
    with emulator_setup._replacing_folder(target) as part:
        (part / "old").touch()
    with pytest.raises(KeyboardInterrupt), emulator_setup._replacing_folder(target) as part:
        (part / "new").touch()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["site", "old"]
    with emulator_setup._replacing_folder(target) as part:
        (part / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["site", "new"]


# --- Debian packages ----------------------------------------------------------------------------------------


def _package(folder: Path, content: str) -> Path:
    """A real .deb of one file."""
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
    (tree / "usr").mkdir(exist_ok=True)
    (tree / "usr" / "it").write_text(content)
    control = (
        "Package: it\nVersion: 1:2-3\nArchitecture: arm64\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    (tree / "DEBIAN" / "control").write_text(control)
    path = folder / "it_1%3a2-3_arm64.deb"
    debian_packages.run(["dpkg-deb", "--build", "--root-owner-group", str(tree), str(path)])
    return path


@needs_dpkg
def test_the_pinned_version_must_have_the_pinned_hash(tmp_path: Path) -> None:
    path = _package(tmp_path, "content")
    pinned = Pinned(name="it", version="1:2-3", sha256="0" * 64)
    with pytest.raises(PackageError, match=r"it 1:2-3: SHA-256 is [0-9a-f]{64}, pinned is 0{64}; the mirror"):
        debian_packages._unpack_one(pinned, path, tmp_path / "root")
    assert not (tmp_path / "root").exists()


@needs_dpkg
@pytest.mark.parametrize("version", ["1:2-3", "1:2-2"], ids=["pinned", "moved"])
def test_a_package_is_unpacked_and_recorded_as_it_is(tmp_path: Path, version: str) -> None:
    path = _package(tmp_path, "content")
    sha256 = sha256_of(path) if version == "1:2-3" else "0" * 64
    found = debian_packages._unpack_one(
        Pinned(name="it", version=version, sha256=sha256), path, tmp_path / "root"
    )
    assert found == Pinned(name="it", version="1:2-3", sha256=sha256_of(path))
    assert (tmp_path / "root" / "usr" / "it").read_text() == "content"


@needs_apt
def test_a_mirror_in_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    if not debian_packages.KEYRING.exists():
        pytest.skip("needs debian-archive-keyring")
    monkeypatch.setenv("DEBIAN_MIRROR", "http://mirror.example/debian")
    assert debian_packages.sources("bookworm") == (
        Source(uri="http://mirror.example/debian", suite="bookworm"),
    )
    monkeypatch.delenv("DEBIAN_MIRROR")
    with pytest.raises(PackageError, match=r"no source for Debian sarge, only for: .*DEBIAN_MIRROR=URI"):
        debian_packages.sources("sarge")


@needs_apt
def test_apt_state_is_private_and_unsigned_indices_are_refused(tmp_path: Path) -> None:
    """A repository without a signature, in a folder: apt must not take it."""
    (tmp_path / "repository").mkdir()
    _package(tmp_path / "repository", "content")
    (tmp_path / "repository" / "Packages").write_text("")
    lines = (Source(uri=f"file:{tmp_path}/repository", suite="bookworm"),)
    scratch = tmp_path / "scratch"
    options = debian_packages.private_state(scratch, "arm64", lines)
    with pytest.raises(PackageError, match="apt-get failed: E:"):
        debian_packages.run(["apt-get", *options, "update"], scratch)
    assert (
        debian_packages.run(["apt-config", *options[1:], "dump", "Dir::State::Lists"]).count(str(scratch))
        == 1
    )


def test_a_program_that_fails_gives_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="sh failed: E: it is broken; check the network and repeat"):
        debian_packages.run(["sh", "-c", "echo 'E: it is broken' >&2; exit 7"])
    with pytest.raises(PackageError, match="sh failed: exit code 7"):
        debian_packages.run(["sh", "-c", "exit 7"])


@pytest.mark.emulator
def test_the_emulator_that_is_set_up_is_found_and_not_made_again() -> None:
    need_emulator()
    said: list[str] = []
    assert set_up(say=said.append) == installed()
    assert said == []
