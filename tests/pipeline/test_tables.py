from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from export.graph import Graph, Node, Tensor
from pipeline.table_counts import COUNTS, KINDS, TAKEN_APART, WHOLE, kind_of, load_counts, part
from pipeline.table_pictures import PICTURES
from pipeline.table_rows import SECTIONS, Row
from pipeline.tables import FOLDER, PAGE, page, run

ROWS = [row for section in SECTIONS for row in section.rows if row.ours is not None]
UNLIKE = (
    "misprint",
    "not reproduced",
    "body; the paper does not specify",
    "1280",
    "not the same cost",
    "not the paper's network",
    "rounds it",
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def text() -> str:
    return page(load_counts(ROOT / COUNTS))


def test_the_page_of_the_repository_is_up_to_date(text: str) -> None:
    assert (ROOT / PAGE).read_text() == text


def test_the_verb_writes_the_page_and_its_pictures(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run(argparse.Namespace(out=tmp_path / "tables.md")) == 0
    assert (tmp_path / "tables.md").read_text() == text
    for name in PICTURES:
        assert f"({FOLDER}/{name})" in text
        assert (tmp_path / FOLDER / name).read_bytes() == (ROOT / PAGE.parent / FOLDER / name).read_bytes()


def test_parts_of_v1_sum_to_the_whole_and_1x1_convolutions_are_most_of_it() -> None:
    counts = load_counts(ROOT / COUNTS)
    for precision, least in (("float32", 0.85), ("int8", 0.7)):
        whole = counts[f"{WHOLE.name}.{precision}"]
        parts = {kind: counts[f"{WHOLE.name}/{kind}.{precision}"] for kind in TAKEN_APART[WHOLE]}
        assert sum(parts.values()) == pytest.approx(whole, rel=0.01)
        assert least < parts["pointwise"] / whole < 0.95


def test_parts_are_a_partition_of_the_operators() -> None:
    tensors = {
        "x": Tensor((1, 8, 8, 4)),
        "w": Tensor.constant(np.ones((6, 1, 1, 4), np.float32)),
        "y": Tensor((1, 8, 8, 6)),
        "z": Tensor((1, 8, 8, 6)),
        "mean": Tensor((1, 6)),
    }
    nodes = (
        Node("CONV_2D", ("x", "w"), ("y",)),
        Node("ADD", ("y", "y"), ("z",)),
        Node("MEAN", ("z",), ("mean",)),
    )
    graph = Graph(tensors, nodes, ("x",), ("mean",))
    assert [kind_of(node, graph) for node in nodes] == ["pointwise", "element_wise", "rest"]
    found = [part(graph, kind) for kind in (*KINDS, "element_wise")]
    assert sum(len(each.nodes) for each in found) == len(nodes)
    alone = part(graph, "element_wise")
    alone.check()
    assert (alone.inputs, alone.outputs) == (("y",), ("z",))


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
        assert explained or printed is None or ours / 1e6 == pytest.approx(printed, rel=0.09, abs=0.05)
