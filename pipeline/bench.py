"""The verb `bench`: what an inference costs on a device, for any alpha and rho or any .tflite file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from device_bench.device import BenchSpec, Device, DeviceError, Measurement, connect, default_spec, save
from device_bench.measure import measure
from models import HEADED
from pipeline.artifacts import AlpharhoError, UsageError, sha256_of
from pipeline.results import Result, load_result, path_of
from pipeline.summary import aligned
from pipeline.untrained import NAMES, base_resolution, file_of
from pipeline.variant import BUILD, PRECISIONS, Variant

SPEC_OPTIONS: Mapping[str, tuple[type, str]] = {  # fields of BenchSpec
    "threads": (int, "of the runtime (1)"),
    "processes": (int, "fresh processes a file (5, emulated 2)"),
    "runs": (int, "timed runs a process, at least (50)"),
    "runtime": (str, "ai-edge-litert or tflite-runtime (the first that works)"),
    "timeout_s": (float, "seconds for one process (120)"),
}


def measured(
    files: Sequence[tuple[Path, Path]], device: Device, spec: BenchSpec
) -> Iterator[tuple[Path, Measurement]]:
    """Measure files on a device, each saved under its second path; what a broken run left is saved too."""
    where = {sha256_of(model): target for model, target in files}
    with device:
        try:
            found = measure(device, [model for model, _ in files], spec)
        except DeviceError as error:
            for partial in error.partials:
                save(partial, where[partial.model.sha256])
            raise
    for (_, target), measurement in zip(files, found, strict=True):
        save(measurement, target)
        yield target, measurement


def measure_point(device: str, spec: BenchSpec, build: Path = BUILD) -> Callable[[Variant, str], Measurement]:
    """What `curves` calls for every point of the grid: exports the file if there is none, and runs it."""

    def measure_variant(variant: Variant, precision: str) -> Measurement:
        with connect(device) as place:
            return measure(place, [file_of(variant, precision, build)], spec)[0]

    return measure_variant


def files_of(arguments: argparse.Namespace) -> list[tuple[Path, Path]]:
    """The .tflite files that were asked for, and where the result of each is kept."""
    targets: list[str] = arguments.targets
    named = [target for target in targets if target in NAMES]
    if named and len(targets) > 1:
        raise UsageError(f"give one model or some .tflite files, not {' '.join(targets)}")
    if named:
        variant = Variant.of(named[0], arguments.alpha, arguments.rho, base_resolution(named[0]))
        return [
            (file_of(variant, precision, BUILD), path_of(BUILD, arguments.device, variant, precision))
            for precision in PRECISIONS
        ]
    files = [(_existing(target), _result_path(Path(target), arguments.device)) for target in targets]
    if len({result for _, result in files}) < len(files):
        raise UsageError(
            f"two of {' '.join(targets)} would share a result file; rename one or measure it alone"
        )
    return files


def _existing(target: str) -> Path:
    path = Path(target)
    if path.suffix != ".tflite" or not path.is_file():
        known = ", ".join(NAMES)
        raise AlpharhoError(f"{target}: neither a model ({known}) nor an existing .tflite file")
    return path


def _result_path(file: Path, device: str) -> Path:
    """`<folder>.<precision>.json` for the files of an export, so that results and manifests can be joined."""
    name = f"{file.resolve().parent.name}.{file.stem}" if file.stem in PRECISIONS else file.stem
    return BUILD / "bench" / quote(device, safe=":@") / f"{name}.json"


def table(results: Sequence[Result]) -> str:
    """A row a file: median with its interval, or instructions; and why a result is not valid."""
    rows = [("file", "median", "95 % interval", "unit", "valid")]
    for result in results:
        value, measurement = result.value, result.measurement
        unit = "M instructions (emulated, no time)" if measurement.emulated else "ms"
        figures = (f"{value.value:.3f}", f"{value.low:.3f} - {value.high:.3f}") if value else ("", "")
        verdict = "yes" if measurement.valid else "; ".join((measurement.result, *measurement.reasons))
        rows.append((result.name, *figures, unit, verdict))
    return aligned(rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `bench`."""
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="MODEL|FILE.tflite",
        help="a model, measured in three precisions with untrained weights at 224 rho, one with a head "
        f"({', '.join(HEADED)}) at its paper's resolution times rho; or files, interleaved",
    )
    parser.add_argument("--alpha", type=float, default=1.0, help="width multiplier (%(default)s)")
    parser.add_argument("--rho", type=float, default=1.0, help="resolution multiplier (%(default)s)")
    add_device_arguments(parser)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Which device, and how to run on it."""
    parser.add_argument(
        "--device",
        default="host",
        help="host, ssh://[user@]host[:port], adb[:SERIAL], emulated:cortex-a76|a72|a53 (%(default)s)",
    )
    for name, (kind, text) in SPEC_OPTIONS.items():
        flag = f"--{name.removesuffix('_s')}"
        parser.add_argument(flag, dest=name, type=kind, default=None, metavar="X", help=text)


def spec_of(arguments: argparse.Namespace) -> BenchSpec:
    """The device's default way of running, with what was asked for put in. UsageError for a bad number."""
    asked = {name: value for name in SPEC_OPTIONS if (value := getattr(arguments, name)) is not None}
    for name, value in asked.items():
        if name != "runtime" and not value > 0:
            raise UsageError(f"--{name.removesuffix('_s')} is {value}; choose a number above 0")
    return replace(default_spec(arguments.device), **asked)


def run(arguments: argparse.Namespace) -> int:
    """The verb `bench`: measures, saves below build/bench, prints a row a file; 1 if one is not valid."""
    spec, device = spec_of(arguments), connect(arguments.device)
    found = list(measured(files_of(arguments), device, spec))
    print(table([load_result(path, BUILD) for path, _ in found]))
    return 0 if all(measurement.valid for _, measurement in found) else 1
