"""Markdown tables for the pages that commands write."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the head; the first column to the left, the others to the right."""
    head, *body = rows
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in row)} |" for row in (head, rule, *body))


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
