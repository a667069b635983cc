"""The verb `compare`: this project beside its peers, on one machine: docs/compare.md.

Every result is kept under `build/compare/` as soon as it is there, so that an interrupted run goes on where
it stopped. What was not measured stays empty on the page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.artifacts import write_text
from pipeline.data import REPOSITORY
from pipeline.peers import accuracy, comparison_page, conversion, cost, environments

PAGE = REPOSITORY / "docs" / "compare.md"


def measure_conversion(folder: Path, again: bool) -> None:
    """Convert every network by every maker that has not yet, or by all of them `again`."""
    for model in conversion.NETWORKS:
        for maker in conversion.MAKERS:
            if again or conversion.recorded(model, maker, folder) is None:
                _say(f"{model} by {conversion.MAKERS[maker].shown}")
                conversion.convert(model, maker, folder)


def measure_cost(folder: Path, again: bool) -> None:
    """Measure every file that has no figures yet; those of a file that has changed are not its figures."""
    cost.measure_missing(folder, again, _say)


def measure_accuracy(folder: Path, again: bool) -> None:
    """Quantise and test by every contender."""
    accuracy.measure_missing(folder, again, _say)


TABLES: Mapping[str, Callable[[Path, bool], None]] = {
    "conversion": measure_conversion,
    "cost": measure_cost,
    "accuracy": measure_accuracy,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb `compare`."""
    parser.add_argument(
        "--only", nargs="+", choices=list(TABLES), default=list(TABLES), help="tables to measure (all)"
    )
    parser.add_argument("--again", action="store_true", help="measure also what has been measured before")
    parser.add_argument("--recorded", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--folder", type=Path, default=conversion.FOLDER, help="for results (build/compare)")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page (docs/compare.md)")


def run(arguments: argparse.Namespace) -> int:
    """The verb `compare`: measures, writes the page and prints which targets are reached."""
    try:
        if not arguments.recorded:
            _measure(arguments.only, arguments.folder, arguments.again)
    finally:
        page, targets = comparison_page.page(arguments.folder)
        write_text(arguments.out, page)
    print(targets)
    return 0


def _measure(tables: Sequence[str], folder: Path, again: bool) -> None:
    wanted = [maker.environment for maker in conversion.MAKERS.values() if maker.environment]
    for name in wanted:
        environments.make(name, _say)
    for table in tables:
        TABLES[table](folder, again)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
