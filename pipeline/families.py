"""The verb `families`: what float16 and int8 cost every network with weights, each with a verdict."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts import CheckError
from pipeline.photographs import FOLDER
from pipeline.quality import measured
from pipeline.subjects import Subject, shipped, trained
from pipeline.summary import aligned
from pipeline.variant import PRECISIONS
from quantize.recipes import RECIPES

MOST_LOST_POINTS = 0.2  # of top-1, int8 against float32
LEAST_DB = 20.0  # of int8's logits
HEAD = ("network", "images", "float32 top-1 %", "float16", "int8", "int8 - float32", "logit SQNR dB", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A network's top-1 in percent in the three precisions, and int8's logit SQNR in dB."""

    name: str
    images: int
    float32: float
    float16: float
    int8: float
    sqnr_db: float

    @property
    def difference(self) -> float:
        """Int8's top-1 less float32's, in points."""
        return self.int8 - self.float32

    @property
    def misses(self) -> str:
        """Which targets int8 misses, or nothing."""
        lost = (
            f"loses more than {MOST_LOST_POINTS:g} points"
            if -self.difference > MOST_LOST_POINTS + 1e-9
            else ""
        )
        noisy = f"below {LEAST_DB:g} dB" if self.sqnr_db < LEAST_DB else ""
        return ", ".join(filter(None, (lost, noisy)))


def member_of(subject: Subject, folder: Path = FOLDER) -> Member:
    """The three files of a network, measured on its test images or remembered from before."""
    found = {
        precision: measured(subject, precision, RECIPES["int8"], 0, precision, folder)
        for precision in PRECISIONS
    }
    top1 = {precision: one.top1 for precision, one in found.items() if one.top1 is not None}
    if len(top1) < len(found):
        raise CheckError(f"{subject.name}: its test images have no labels; give a network that 'train' wrote")
    quality = found["int8"].quality
    return Member(name=subject.name, images=quality.crops, sqnr_db=quality.sqnr_db, **top1)


def row(member: Member) -> tuple[str, ...]:
    """The member's cells under HEAD."""
    return (
        member.name,
        f"{member.images:,}",
        f"{member.float32:.2f}",
        f"{member.float16:.2f}",
        f"{member.int8:.2f}",
        f"{member.difference:+.2f}",
        f"{member.sqnr_db:.1f}",
        member.misses or "holds",
    )


def check(members: Sequence[Member]) -> None:
    """CheckError that names every network whose int8 file misses a target."""
    if bad := [f"{member.name} {member.misses}" for member in members if member.misses]:
        raise CheckError(
            f"int8 misses its targets: {'; '.join(bad)}; see why with 'python -m pipeline diagnose'"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `families`."""
    parser.add_argument(
        "--weights",
        nargs="*",
        type=Path,
        default=[],
        metavar="FILE",
        help="checkpoints that 'train' wrote, beside the shipped ones",
    )


def run(arguments: argparse.Namespace) -> int:
    """The verb `families`: a row a network; fails with the names of those that miss a target."""
    paths = dict.fromkeys((*shipped(), *arguments.weights))
    members = [member_of(trained(path)) for path in paths]
    print(aligned([HEAD, *map(row, members)]))
    print(f"targets: at most {MOST_LOST_POINTS:g} points lost, {LEAST_DB:g} dB at least")
    check(members)
    return 0
