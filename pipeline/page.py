"""A page of HTML that is complete in itself: no script, nothing fetched, every text escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple, NewType

Markup = NewType("Markup", str)
"""Text that is HTML already. Only this module makes it, so that no device's answer becomes markup."""


class Column(NamedTuple):
    """A column's heading, and whether its cells are `number`, `text`, or `prose`, which wraps."""

    heading: str
    kind: str = "number"


class Row(NamedTuple):
    """A table's row. `kind` is "" or `invalid`: its cells are struck out but the last, which says why."""

    cells: tuple[str, ...]
    kind: str = ""


def text(value: str) -> Markup:
    """The value as text, whatever is in it."""
    return Markup(escape(value))


def element(tag: str, *children: Markup, kind: str = "") -> Markup:
    """An element of class `kind` around its children."""
    attribute = f' class="{escape(kind)}"' if kind else ""
    return Markup(f"<{tag}{attribute}>{''.join(children)}</{tag}>")


def paragraph(sentence: str, kind: str = "") -> Markup:
    """A paragraph of plain text."""
    return element("p", text(sentence), kind=kind)


def heading(level: int, words: str, badge: str = "") -> Markup:
    """A heading, with a short note in a frame after it."""
    note = Markup(f" {element('span', text(badge), kind='badge')}") if badge else Markup("")
    return element(f"h{level}", text(words), note)


def bullets(lines: Iterable[str], kind: str = "") -> Markup:
    """A list of plain lines."""
    return element("ul", *(element("li", text(line)) for line in lines), kind=kind)


def facts(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Names with their values; those without a value are left out."""
    known = ((element("dt", text(name)), element("dd", text(value))) for name, value in pairs if value)
    return element("dl", *(part for pair in known for part in pair))


def table(columns: Sequence[Column], rows: Iterable[Row]) -> Markup:
    """A table, its numbers to the right."""
    head = element("tr", *(element("th", text(column.heading), kind=column.kind) for column in columns))
    body = [_row(columns, row) for row in rows]
    return element("div", element("table", element("thead", head), element("tbody", *body)), kind="wide")


def figure(svg: bytes, caption: str) -> Markup:
    """A drawing inside the page, with what it shows."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    image = Markup(f'<img src="{source}" alt="{escape(caption)}">')
    return element("figure", image, element("figcaption", text(caption)))


def page(title: str, *body: Markup) -> str:
    """The whole document."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{element("h1", text(title))}
{"".join(body)}
</main>
</body>
</html>
"""


def _row(columns: Sequence[Column], row: Row) -> Markup:
    cells = (
        element("td", text(cell), kind=column.kind) for column, cell in zip(columns, row.cells, strict=True)
    )
    return element("tr", *cells, kind=row.kind)


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #222;
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 88rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 2px solid #222; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .5rem; }
p, ul { max-width: 52rem; }
.badge { font-size: .75rem; font-weight: 600; padding: .15rem .5rem; border: 1px solid #888;
  border-radius: 1rem; vertical-align: middle; white-space: nowrap; }
.break { color: #a02c00; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .6rem 0;
  font-size: .9rem; }
dt { color: #666; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .18rem .5rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 1.5px solid #888; vertical-align: bottom; }
th.text, td.text, th.prose, td.prose { text-align: left; }
td.text:last-child, td.prose { white-space: normal; min-width: 12rem; }
tr.invalid td { color: #888; text-decoration: line-through; }
tr.invalid td:last-child { color: #a02c00; text-decoration: none; }
figure { margin: 1rem 0; display: inline-block; max-width: 100%; vertical-align: top; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #555; max-width: 44rem; }
@page { size: A4 landscape; margin: 12mm; }
@media print {
  body { font-size: 10px; }
  main { max-width: none; padding: 0; }
  .wide { overflow: visible; }
  figure, tr, dl, h2, h3 { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  thead { display: table-header-group; }
}
"""
