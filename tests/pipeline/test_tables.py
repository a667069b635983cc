from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from pipeline.tables import PAGE, SECTIONS, Row, page, run

ROWS = [row for section in SECTIONS for row in section.rows if row.ours is not None]
UNLIKE = ("misprint", "body; the paper does not specify", "1280")


@pytest.fixture(scope="module")
def text() -> str:
    return page()


def test_the_page_of_the_repository_is_up_to_date(text: str) -> None:
    assert (Path(__file__).parents[2] / PAGE).read_text() == text


def test_the_verb_writes_the_page(tmp_path: Path, text: str) -> None:
    assert run(argparse.Namespace(out=tmp_path / "docs" / "tables.md")) == 0
    assert (tmp_path / "docs" / "tables.md").read_text() == text


def test_published_examples_are_on_the_page(text: str) -> None:
    for line in (
        "3,763,200 Mult-Adds against 209,328",
        "| Conv 1x1 | 94.86 | 94.86 | 74.59 | 74.57 |  |",
        "| SSD 300, MobileNet | 1,200 | 1,237.1 | 1.031 | 6.8 | 6.82 | 1.003 |  |",
        "| M3 | 21 | 20.8 | 0.991 | 2.6 | 2.62 | 1.009 |",
    ):
        assert line in text


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.label} {row.macs}")
def test_every_count_is_near_the_printed_one_or_the_note_says_why_not(row: Row) -> None:
    assert row.ours is not None
    found, explained = row.ours(), any(word in row.note for word in UNLIKE)
    for printed, ours in ((row.macs, found.macs), (row.params, found.params)):
        assert printed is not None
        assert explained or ours / 1e6 == pytest.approx(printed, rel=0.09, abs=0.05)
