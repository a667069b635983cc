"""The page of supported operators is what the registry says."""

from __future__ import annotations

from pathlib import Path

from export.lowerings import LOWERINGS
from export.supported import PAGE, page

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_is_current() -> None:
    assert (ROOT / PAGE).read_text() == page(), "make it anew with: python -m export.supported"


def test_every_operator_stands_on_the_page() -> None:
    assert all(f"| {op} | " in page() for op in LOWERINGS)
