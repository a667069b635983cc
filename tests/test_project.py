"""The project's own promises: one-way imports, short functions, a true lock, a Makefile for any name."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipeline import environment
from pipeline.doctor import differences

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / environment.LOCK).read_text()
TORCH_LOCK = (ROOT / environment.TORCH_LOCK).read_text()
LONGEST_FUNCTION = 50  # lines

OURS = ("models", "export", "quantize", "device_bench", "pipeline")
# fmt: off
MAY_IMPORT_OF_OURS = {  # stages know the files they read, not each other's code; pipeline sits on top
    "models":       ("models", "pipeline.artifacts"),
    "export":       ("export", "pipeline.artifacts"),
    "quantize":     ("quantize", "pipeline.artifacts", "export.graph", "export.parallel", "export.run"),
    "device_bench": ("device_bench", "pipeline.artifacts"),
    "pipeline":     OURS,
}
MAY_IMPORT = {  # of others, what only some folders may
    "torch":      ("models", "export", "quantize", "pipeline"),
    "subprocess": ("device_bench", "pipeline"),
}
IMPORT_NOTHING_OF_OURS = ("pipeline/artifacts.py", "pipeline/environment.py", "device_bench/runner.py")
# fmt: on

MODULES = sorted(
    path.relative_to(ROOT).as_posix() for folder in OURS for path in (ROOT / folder).rglob("*.py")
)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in allowed)


@pytest.mark.parametrize("module", MODULES)
def test_dependencies_point_one_way(module: str) -> None:
    folder = module.split("/")[0]
    allowed = () if module in IMPORT_NOTHING_OF_OURS else MAY_IMPORT_OF_OURS[folder]
    imports = set(_imports(ROOT / module))
    assert not [name for name in imports if _within(name, OURS) and not _within(name, allowed)]
    assert not [
        name
        for other, folders in MAY_IMPORT.items()
        if folder not in folders
        for name in imports
        if _within(name, (other,))
    ]


@pytest.mark.parametrize("module", MODULES)
def test_functions_fit_on_a_screen(module: str) -> None:
    functions = (
        node for node in ast.walk(ast.parse((ROOT / module).read_text())) if isinstance(node, ast.FunctionDef)
    )
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert not {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}


# --- The lock -----------------------------------------------------------------------------------------------


def _dependencies() -> list[Requirement]:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"].values()
    return [
        Requirement(text)
        for text in (*project["dependencies"], *(text for extra in extras for text in extra))
    ]


@pytest.mark.parametrize("dependency", _dependencies(), ids=lambda dependency: dependency.name)
def test_every_dependency_is_pinned_within_its_range(dependency: Requirement) -> None:
    versions = environment.pins(LOCK + TORCH_LOCK)[environment.normalised(dependency.name)]
    assert all(dependency.specifier.contains(version) for version in versions)


def test_every_pin_has_hashes() -> None:
    entries = re.split(r"\n(?=\S)", LOCK)
    pinned = [entry for entry in entries if environment.PIN.match(entry)]
    assert len(pinned) > len(_dependencies())
    assert not [entry.splitlines()[0] for entry in pinned if "--hash=sha256:" not in entry]


def test_nothing_of_cuda_is_locked() -> None:
    assert not [name for name in environment.pins(LOCK) if re.match(r"torch|nvidia|cuda|triton", name)]
    assert environment.pins(TORCH_LOCK)["torch"][0].endswith("+cpu")


def test_what_is_installed_is_what_is_locked() -> None:
    def installed(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    held, wrong = differences(LOCK + TORCH_LOCK, installed)
    assert not wrong
    assert held > len(_dependencies())


def test_no_requirement_of_an_installed_package_is_unmet() -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_lock_was_resolved_with_the_needs_of_the_installed_torch() -> None:
    (declared,) = PYPROJECT["tool"]["uv"]["dependency-metadata"]
    needs = [Requirement(text) for text in metadata.requires("torch") or []]
    assert {str(need) for need in needs if need.marker is None} == {
        str(Requirement(text)) for text in declared["requires-dist"]
    }
    assert metadata.version("torch").split("+")[0] == declared["version"]


def test_supported_pythons_are_said_once() -> None:
    first, after = (".".join(map(str, version)) for version in environment.SUPPORTED)
    assert PYPROJECT["project"]["requires-python"] == f">={first},<{after}"


# --- The package --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wheel_holds_the_packages_and_their_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    rubbish = shutil.ignore_patterns("__pycache__")
    for folder in filter(lambda name: (ROOT / name).is_dir(), (*OURS, "baselines")):
        shutil.copytree(ROOT / folder, source / folder, ignore=rubbish)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(source)], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == files - {"pyproject.toml", "README.md", "LICENSE"}


# --- make ---------------------------------------------------------------------------------------------------


def _make(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make with a python that prints its arguments, one a line, instead of the environment's."""
    python = folder / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    command = ["make", "--silent", "--old-file=.venv/ready", f"BIN={folder}/", *arguments]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, cwd=ROOT, env={**environ, **variables}, capture_output=True, text=True)


NASTY = 'it\'s a "name"; $(touch made) `touch made` $(shell touch made) $HOME $$ & | > made # %'


@pytest.mark.parametrize("given", ["on the command line", "by the environment"])
def test_make_hands_any_value_on_as_it_is(tmp_path: Path, given: str) -> None:
    values = {"MODEL": NASTY, "WEIGHTS": NASTY, "OUT": str(tmp_path / NASTY), "RHO": ""}
    if given == "by the environment":
        done = _make(tmp_path, "export", **values)
    else:
        done = _make(tmp_path, "export", *(f"{name}={value}" for name, value in values.items()))
    expected = ["-m", "pipeline", "export", NASTY, f"--weights={NASTY}", f"--out={tmp_path / NASTY}"]
    assert done.stdout.splitlines() == expected, done.stderr
    assert not (ROOT / "made").exists()


def test_make_export_passes_only_what_is_set(tmp_path: Path) -> None:
    done = _make(tmp_path, "export", "MODEL=v1", "ALPHA=0.75", "RHO=0.857", "DATASET=fashion_mnist")
    expected = ["-m", "pipeline", "export", "v1", "--alpha=0.75", "--rho=0.857", "--dataset=fashion_mnist"]
    assert done.stdout.splitlines() == expected
    assert _make(tmp_path, "export").stdout.splitlines() == ["-m", "pipeline", "export", "v3_small"]


def test_make_help_has_a_line_for_every_command(tmp_path: Path) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    listed = re.findall(r"^make (\S+) +\S.*$", _make(tmp_path, "help").stdout, re.MULTILINE)
    assert listed == phony[1].split()


def test_make_says_in_one_line_that_there_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in environment.SOURCES:
        (tmp_path / name).touch()
    command = [shutil.which("make") or "make", "setup"]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "python3.11-venv" in done.stderr
