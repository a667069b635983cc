"""The page and the drawings of `report`."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from device_bench.curves import Unit
from device_bench.device import save
from pipeline import report
from pipeline.artifacts import CheckError
from pipeline.page import Column, Row, page, paragraph, table
from pipeline.plots import Scored, accuracy_plot, pareto_front, svg
from pipeline.results import path_of
from pipeline.variant import Variant
from tests.pipeline.recorded import (
    A72,
    PIXEL,
    published_ms,
    save_counts,
    save_invalid,
    save_ladder,
    save_manifest,
    timed,
)

BAD = Variant("v1", 0.75, 160)
HOSTILE = "<script>alert(1)</script>&\"'"


class Page(HTMLParser):
    """Tags with their attributes, the rows of the tables, and all text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[tuple[str, list[str]]] = []
        self.sections: dict[str, list[tuple[str, list[str]]]] = {}
        self._heading = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append((dict(attrs).get("class") or "", []))
        if tag in ("td", "th"):
            self.rows[-1][1].append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("td", "th") and self.rows:
            self.rows[-1][1][-1] += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a phone with one invalid result, and of an emulated core."""
    build = tmp_path_factory.mktemp("build")
    save_ladder(build, "int8", leave_out=[BAD])
    reason = "drift: the last third ran 9 % slower than the first"
    save_invalid(build, timed(BAD, "int8", 0.001), BAD, reason)
    save_counts(build, "int8")
    for variant, ms in published_ms("int8").items():
        save_manifest(build, variant, {"int8": 40 + ms / 3}, 4_000_000)
    strange = replace(PIXEL, name="ssh://pi@board", kind="ssh", model=HOSTILE)
    save(timed(BAD, "float32", 30.0, strange), path_of(build, strange.name, BAD, "float32"))
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    assert report.run(parser.parse_args(["--build", str(build)])) == 0
    return build / "report"


@pytest.fixture(scope="module")
def source(folder: Path) -> str:
    return (folder / report.PAGE_NAME).read_text(encoding="utf-8")


def test_the_page_fetches_nothing(source: str) -> None:
    for tag, attributes in Page(source).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed")
        for name in ("src", "href", "srcset", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in source
    assert "@import" not in source
    assert "default-src 'none'" in source


def test_what_a_device_answers_is_never_markup(source: str) -> None:
    assert "<script" not in source
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in source


def test_invalid_results_are_struck_out_last_and_with_their_reason(source: str) -> None:
    rows = [row for row in Page(source).rows if row[1][:2] == [BAD.name, "int8"] and "0.001000" in row[1]]
    ((kind, cells),) = rows
    assert kind == "invalid"
    assert cells[-1].startswith("invalid: drift: the last third ran 9 % slower than the first")
    assert re.search(r"tr\.invalid td \{[^}]*line-through", source)
    valid = [number for number, row in enumerate(Page(source).rows) if row[1][1:2] == ["int8"] and not row[0]]
    struck = next(number for number, row in enumerate(Page(source).rows) if row[0] == "invalid")
    assert sum(number < struck for number in valid) >= 15


def test_invalid_results_have_no_law_and_change_none(source: str) -> None:
    ((_, cells),) = [row for row in Page(source).rows if row[0] == "invalid"]
    assert cells[9:11] == ["", ""]
    assert "No point is off the law" in source


def test_counts_are_never_shown_as_times(source: str) -> None:
    emulated = source[source.index(A72.name) : source.index("The law on published ladders")]
    emulated = emulated[: emulated.index("ssh://")]
    words = re.sub(r"data:image/[^\"]*", "", emulated)
    assert "instruction counts, not time" in words
    assert not re.search(r"\bms\b|millisecond", words)


def test_every_result_has_a_row(source: str) -> None:
    named = [row for row in Page(source).rows if row[1] and row[1][0].startswith("v1_")]
    assert len(named) == 16 + 16 + 1


def test_the_published_check_says_whose_figures_they_are(source: str) -> None:
    assert "not measured by this project" in source
    assert sum("published" in row[1][0] for row in Page(source).rows if row[1]) == 4


def test_every_drawing_is_also_a_png(folder: Path, source: str) -> None:
    files = sorted(folder.glob("*.png"))
    assert len(files) == source.count("<img ") == 3 + 3 + 2
    for file in files:
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300
    assert all(attributes.get("alt") for tag, attributes in Page(source).tags if tag == "img")


def test_no_results_say_what_to_do(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    with pytest.raises(CheckError, match=r"no results of any device; measure first"):
        report.run(parser.parse_args(["--build", str(tmp_path)]))


# --- Its parts ----------------------------------------------------------------------------------------------


def test_text_is_escaped_wherever_it_stands() -> None:
    made = page(HOSTILE, paragraph(HOSTILE), table([Column(HOSTILE)], [Row((HOSTILE,), kind="invalid")]))
    assert "<script" not in made
    assert made.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;&quot;&#x27;") == 5


SCORED = tuple(
    Scored(variant=name, precision="int8", value=value, top1=top1)
    for name, value, top1 in (
        ("a", 1, 40),
        ("b", 2, 60),
        ("c", 3, 55),
        ("d", 4, 60),
        ("e", 2, 50),
        ("f", 9, 61),
    )
)


def test_the_pareto_front_is_what_nothing_beats() -> None:
    assert [item.variant for item in pareto_front(SCORED)] == ["a", "b", "f"]


def test_the_same_drawing_has_the_same_bytes() -> None:
    first, second = (svg(accuracy_plot(SCORED, Unit.MILLISECONDS, "t")) for _ in range(2))
    assert first == second
