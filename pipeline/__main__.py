"""`python -m pipeline VERB ...`: every stage as a verb; a failure is one line, exit code 1, usage 2."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import NoReturn

from pipeline.artifacts import AlpharhoError, UsageError


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb lives in a module that has `add_arguments(parser)` and `run(arguments) -> int`."""

    module: str
    help: str
    examples: tuple[str, ...]


VERBS = {
    "train": Verb(
        "pipeline.train",
        "train a network in PyTorch",
        (
            "train v3_small",
            "train v1 --alpha 0.25 --epochs 30",
            "train v2 --alpha 0.35 --dataset ~/flowers --rho 0.714",
        ),
    ),
    "export": Verb(
        "pipeline.job",
        "trained weights to verified .onnx and .tflite files",
        (
            "export v3_small",
            "export v1 --alpha 0.25",
            "export v2 --weights mine.safetensors --dataset ~/flowers --out build/flowers",
        ),
    ),
    "convert": Verb(
        "pipeline.convert",
        "a third party's .onnx file to .tflite files",
        (
            "convert model.onnx --out build/model --calibration photos",
            "convert model.onnx --out build/model --calibration images.npy --input-type int8",
        ),
    ),
    "evaluate": Verb(
        "pipeline.evaluate",
        "accuracy of a .tflite or .onnx file",
        ("evaluate build/v3_small_1.00_56/int8.tflite", "evaluate model.onnx --dataset ~/flowers"),
    ),
    "diagnose": Verb(
        "pipeline.diagnose",
        "where int8 loses accuracy, layer by layer, and what helps",
        ("diagnose v2", "diagnose v3_small", "diagnose model.onnx --calibration photos"),
    ),
    "families": Verb(
        "pipeline.families",
        "what float16 and int8 cost every network with weights, on all test images",
        ("families", "families --weights build/train/*.fashion_mnist_full.safetensors"),
    ),
    "inspect": Verb(
        "pipeline.inspection",
        "what is in a .tflite file, and which runtime parts take it",
        ("inspect build/v3_small_1.00_56/int8.tflite",),
    ),
    "bench": Verb(
        "pipeline.bench",
        "what an inference costs on a device",
        (
            "bench v3_small --device host",
            "bench v1 --alpha 0.5 --rho 0.714 --device ssh://pi@raspberrypi",
            "bench build/v3_small_1.00_56/int8.tflite --device emulated:cortex-a76",
        ),
    ),
    "curves": Verb(
        "pipeline.curves",
        "the grid of alpha and rho on a device, checked against the law",
        ("curves v1 --device emulated:cortex-a76", "curves --published"),
    ),
    "choose": Verb(
        "pipeline.choose",
        "which variants fit a budget, best accuracy first",
        ("choose --device host --max-ms 12 --max-mb 2", "choose --device emulated:cortex-a76 --max-minsn 20"),
    ),
    "report": Verb("pipeline.report", "one HTML page of all results, and the plots as PNG", ("report",)),
    "arm": Verb(
        "pipeline.arm",
        "what the ARM kernels answer, against this machine's",
        ("arm build/v3_small_1.00_56", "arm build/v3_small_1.00_56/int8.tflite --device emulated:cortex-a53"),
    ),
    "gate": Verb(
        "pipeline.regression",
        "hold accuracy and instruction counts of the shipped networks to baselines/",
        ("gate", "gate --update"),
    ),
    "tables": Verb(
        "pipeline.tables", "the papers' cost tables beside our counts: docs/tables.md", ("tables",)
    ),
    "runtimes": Verb("pipeline.runtimes", "every exported file on every TFLite runtime", ("runtimes",)),
    "compare": Verb("pipeline.compare", "this project beside its peers", ("compare --only conversion",)),
    "emulator": Verb("pipeline.emulator", "fetch and build what emulated ARM cores need", ("emulator",)),
    "doctor": Verb(
        "pipeline.doctor", "what this machine can and cannot do, and what to install", ("doctor",)
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code: 0 done, 1 failed with one line on stderr, 2 wrong usage."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return _run(words)
    except UsageError as error:
        return _failed(error, 2)
    except AlpharhoError as error:
        return _failed(error, 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _failed("interrupted; finished files are kept, nothing half-written is", 1)


def _run(words: Sequence[str]) -> int:
    """Only the chosen verb's module is imported: `--help` must not wait for torch."""
    chosen = next((word for word in words if word in VERBS), None)
    module = importlib.import_module(VERBS[chosen].module) if chosen and words[0] == chosen else None
    parsed = _parser(chosen, module).parse_args(words)
    assert module is not None
    return int(module.run(parsed))


def _parser(chosen: str | None, module: ModuleType | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline", description="MobileNets from PyTorch to the device."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        examples = "\n".join(f"  python -m pipeline {example}" for example in verb.examples)
        sub = verbs.add_parser(
            name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == chosen and module is not None:
            module.add_arguments(sub)
    return parser


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _failed(reason: object, code: int) -> int:
    print(f"pipeline: {' '.join(str(reason).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
