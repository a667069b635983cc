"""The verb `compare`: this project beside its peers, on one machine: docs/compare.md.

Every result is kept under `build/compare/` as soon as it is there, so that an interrupted run goes on where
it stopped. What was not measured stays empty on the page; what earlier code of ours did is measured anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pipeline.artifacts import write_text
from pipeline.data import REPOSITORY
from pipeline.peers import accuracy, comparison_page, conversion, cost, environments
from pipeline.peers.conversion import Say, Wanted
from pipeline.progress import say

PAGE = REPOSITORY / "docs" / "compare.md"
ONLY_OURS = "ours"
PARTS: Mapping[str, Callable[[Path, Wanted, Say], None]] = {
    "conversion": conversion.measure_missing,
    "accuracy": accuracy.measure_missing,
    "instructions": cost.count_missing,
    "latency": cost.time_missing,
}
BY_PEERS = ("conversion", "accuracy")  # the parts in which peers' programs run, not only their files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `compare`."""
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*PARTS, ONLY_OURS],
        default=[],
        metavar="PART",
        help=f"only {', '.join(PARTS)}; '{ONLY_OURS}': only our rows, of the parts named or of all",
    )
    parser.add_argument("--again", action="store_true", help="measure also what has been measured before")
    parser.add_argument("--recorded", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--folder", type=Path, default=conversion.FOLDER, help="for results (build/compare)")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page (docs/compare.md)")


def run(arguments: argparse.Namespace) -> int:
    """The verb `compare`: measures, writes the page and prints which targets are reached."""
    try:
        if not arguments.recorded:
            parts = [part for part in PARTS if part in arguments.only] or list(PARTS)
            _measure(parts, arguments.folder, Wanted(ONLY_OURS in arguments.only, arguments.again))
    finally:
        page, targets = comparison_page.page(arguments.folder)
        write_text(arguments.out, page)
    print(targets)
    return 0


def _measure(parts: Collection[str], folder: Path, wanted: Wanted) -> None:
    if not wanted.only_ours and not set(parts).isdisjoint(BY_PEERS):
        for maker in conversion.MAKERS.values():
            if maker.environment:
                environments.make(maker.environment, say)
    for part in parts:
        PARTS[part](folder, wanted, say)
