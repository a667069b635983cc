"""Markdown tables, for every page that a command writes."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def markdown_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Collection[int] = (0,)
) -> str:
    """A table without a line end; the columns of text to the left (-1 is the last), numbers to the right.

    Bars within cells are escaped.
    """
    to_the_left = {column % len(head) for column in text_columns}
    rule = ["---" if column in to_the_left else "---:" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(map(_escaped, cells))} |" for cells in (head, rule, *rows))


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")
