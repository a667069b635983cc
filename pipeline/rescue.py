"""`--rescue`: the ladder of layers to keep in float, each rung a file that is run, weighed and counted."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_bench.device import BenchSpec, DeviceError, ResultClass
from device_bench.emulated import EmulatedDevice
from export.check import audit_delegate
from export.graph import Graph
from export.run import Program
from export.runtime import run_tflite
from export.write_tflite import write_tflite
from pipeline.artifacts import UsageError, write_bytes
from pipeline.evaluate import batched
from pipeline.measures import compare
from quantize.diagnose import diagnose
from quantize.int8 import Io
from quantize.recipes import Recipe, quantize
from quantize.rescue import DEAREST_PER_DB, LEAST_GAIN_DB, STEPS, Rung, Step, candidates, climb

HELD_OUT = 4  # every fourth calibration image is kept to measure on
DIAGNOSED = 8  # held-out images that rank the candidates
CORE = "cortex-a76"
Images = NDArray[np.float32]  # [N, H, W, C] in the model input's own scale


@dataclass(frozen=True, slots=True)
class Ladder:
    """The nodes to keep in float and every step that was tried."""

    keep_float: frozenset[str] = frozenset()
    steps: tuple[Step, ...] = ()


def rescue(
    graph: Graph, batches: Sequence[Images], recipe: Recipe, io: Io, say: Callable[[str], None]
) -> Ladder:
    """Try to keep the worst parts of the float `graph` out of 8 bits; `say` hears of every step.

    Quantises on three quarters of the images and measures on the rest. UsageError for too few of them.
    """
    images = np.concatenate(batches)
    if len(images) < HELD_OUT:
        raise UsageError(
            f"{len(images)} calibration images; --rescue needs {HELD_OUT} at least, 200 are good"
        )
    held_out = is_held_out(len(images))
    used = batched(images[~held_out])
    say(f"rescue: measuring on {int(held_out.sum())} held-out images; {_counting()}")
    model = quantize(graph, used, recipe, io)
    tried = candidates(graph, diagnose(model.exact, model.plain, images[held_out][:DIAGNOSED]))[:STEPS]
    reference = Program(graph)(images[held_out])

    def measure(nodes: Set[str]) -> Rung:
        content = write_tflite((quantize(graph, used, recipe, io, nodes) if nodes else model).graph)
        with tempfile.TemporaryDirectory(prefix="alpharho-") as folder:
            path = Path(folder) / "int8.tflite"
            write_bytes(path, content)
            quality = compare(run_tflite(path, images[held_out]), reference)
            return Rung(
                agreement=quality.agreement,
                sqnr_db=quality.sqnr_db,
                bytes=len(content),
                partitions=audit_delegate(path).partitions,
                instructions=_instructions(path),
            )

    keep, steps = climb(tried, measure, lambda step: say(shown(step)))
    say(
        f"rescue: {len([step for step in steps if step.kept])} of {len(steps)} candidates kept in float; one "
        f"pays with {LEAST_GAIN_DB:g} dB or more, for at most {DEAREST_PER_DB:g} % more bytes and "
        "instructions a dB"
    )
    return Ladder(keep, tuple(steps))


def is_held_out(count: int) -> NDArray[np.bool_]:
    """Which of so many images are kept to measure on."""
    return np.asarray(np.arange(count) % HELD_OUT == HELD_OUT - 1)


def shown(step: Step) -> str:
    """A step as a line."""
    instructions = "not counted" if step.instructions is None else f"{step.instructions:+,.0f}"
    return (
        f"rescue: {step.candidate}: agreement {step.agreement_points:+.2f} points, "
        f"{step.sqnr_db:+.2f} dB, bytes {step.bytes:+,}, instructions {instructions}: "
        f"{'kept in float' if step.kept else 'left in int8'} ({step.reason})"
    )


def _instructions(path: Path) -> float | None:
    """Instructions of one inference on the emulated core; None where the emulator is not set up."""
    try:
        with EmulatedDevice(core=CORE) as device:
            return device.run(path, BenchSpec(processes=1, timeout_s=600)).counts[0].per_inference
    except DeviceError as error:
        if error.result is not ResultClass.NO_RUNTIME:
            raise
        return None


def _counting() -> str:
    try:
        with EmulatedDevice(core=CORE):
            return f"instructions are counted on an emulated {CORE}"
    except DeviceError as error:
        if error.result is not ResultClass.NO_RUNTIME:
            raise
        return f"instructions are not counted: {error.found}; set it up with make emulator"
