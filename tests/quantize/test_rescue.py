"""The ladder keeps what pays, for the stated reasons, and its candidates are whole parts of the network."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import Any

import pytest

from export.graph import Graph
from quantize.diagnose import LayerReport, diagnose
from quantize.int8 import Io
from quantize.recipes import RECIPES, quantize
from quantize.rescue import Candidate, Rung, Step, candidates, climb, refusal
from tests.quantize.networks import images, inverted_residuals, squeezed

BELOW = Rung(agreement=90.0, sqnr_db=20.0, bytes=1000, partitions=1, instructions=1e6)


def _reports(graph: Graph) -> tuple[list[LayerReport], list[Candidate]]:
    model = quantize(graph, [images(24)], RECIPES["int8_full"], Io())
    reports = diagnose(model.exact, model.plain, images(8, seed=3))
    return reports, candidates(graph, reports)


def test_gates_hard_swish_outputs_and_blocks_are_candidates() -> None:
    _, found = _reports(squeezed())
    nodes = {candidate.name: candidate.nodes for candidate in found}
    assert nodes["gate of excited"] == {"squeeze", "reduce", "gate"}
    assert nodes["layer and hard-swish last"] == {"last", "last/swish"}
    assert not any("stem" in found for found in nodes.values())
    _, found = _reports(inverted_residuals())
    nodes = {candidate.name: candidate.nodes for candidate in found}
    assert nodes["block up to second/project"] == {"second/expand", "second/depthwise", "second/project"}


def test_candidates_come_worst_first() -> None:
    reports, found = _reports(inverted_residuals())
    losses = {report.name: report.alone_db for report in reports}
    worst = [min(losses[name] for name in candidate.nodes) for candidate in found]
    assert worst == sorted(worst)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sqnr_db": 20.4}, "gains less than 0.5 dB"),
        ({"sqnr_db": 22.0, "partitions": 2}, "2 delegate partitions"),
        ({"sqnr_db": 22.0, "agreement": 89.0}, "agrees on fewer images"),
        ({"sqnr_db": 22.0, "bytes": 1150}, "7.5 % more bytes a dB"),
        ({"sqnr_db": 22.0, "instructions": 1.2e6}, "10.0 % more instructions a dB"),
        ({"sqnr_db": 22.0, "instructions": None}, ""),
        ({"sqnr_db": 22.0, "bytes": 1050, "instructions": 1.05e6}, ""),
    ],
)
def test_a_step_that_does_not_pay_is_refused_with_its_reason(change: dict[str, Any], reason: str) -> None:
    assert refusal(BELOW, replace(BELOW, **change)) == reason


@pytest.mark.parametrize("sqnr_db", [float("inf"), float("-inf")])
def test_a_step_between_two_exact_or_two_lost_models_gains_nothing(sqnr_db: float) -> None:
    same = replace(BELOW, sqnr_db=sqnr_db)
    kept, steps = climb([Candidate("a", frozenset("a"))], lambda nodes: same, lambda step: None)
    assert not kept
    assert (steps[0].sqnr_db, steps[0].reason) == (0.0, "gains less than 0.5 dB")


def test_the_ladder_builds_on_what_it_kept() -> None:
    gains = {"a": 1.0, "b": 0.1, "c": 2.0}

    def measure(nodes: Set[str]) -> Rung:
        return replace(BELOW, sqnr_db=20 + sum(gains[name] for name in nodes), bytes=1000 + 10 * len(nodes))

    heard: list[Step] = []
    tried = [Candidate(name, frozenset(name)) for name in gains]
    kept, steps = climb(tried, measure, heard.append)
    assert kept == {"a", "c"}
    assert [step.kept for step in steps] == [True, False, True]
    assert heard == steps
    assert (steps[2].sqnr_db, steps[2].bytes) == (2.0, 10)


@pytest.mark.parametrize("candidate", range(3))
def test_the_result_of_what_is_kept_in_float_comes_closer_to_float(candidate: int) -> None:
    graph = inverted_residuals()
    model = quantize(graph, [images(24)], RECIPES["int8_min_max"], Io())
    before = {report.name: report for report in diagnose(model.exact, model.plain, images(8, seed=3))}
    chosen = candidates(graph, list(before.values()))[candidate]
    kept = quantize(graph, [images(24)], RECIPES["int8_min_max"], Io(), chosen.nodes)
    after = {report.name: report for report in diagnose(kept.exact, kept.plain, images(8, seed=3))}
    last = [node.output for node in graph.nodes if node.output in chosen.nodes][-1]
    assert after[last].alone_db > before[last].alone_db + 1
