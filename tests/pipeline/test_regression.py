"""The accuracy gate: the paired test, its three verdicts, and damaged baselines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from device_bench.records import to_plain, write_json
from pipeline.artifacts import AlpharhoError, CheckError
from pipeline.regression import (
    AccuracyBaseline,
    Recorded,
    check_accuracy,
    compared,
    difference,
    least_detectable,
    load_accuracy,
    shipped,
    table,
    tail,
    verdicts,
)


def flags(samples: int, wrong: range) -> NDArray[np.bool_]:
    right = np.ones(samples, bool)
    right[list(wrong)] = False
    return right


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_a_record_holds_every_flag(right: list[bool]) -> None:
    assert Recorded.of(np.array(right)).right().tolist() == right


def test_the_tail_is_that_of_fair_coins() -> None:
    assert tail(0, 0) == tail(0, 3) == 1
    assert tail(3, 3) == 1 / 8
    assert tail(4, 5) == 6 / 32
    assert 0 < tail(1500, 2500) < 1e-20  # beyond the range of a float's powers


def test_five_losses_without_a_win_are_the_least_that_show() -> None:
    assert tail(5, 5) < 0.05 < tail(4, 4)
    assert least_detectable(0) == 5
    assert least_detectable(100) == 18  # 59 to 41


@pytest.mark.parametrize(
    ("samples", "lost", "won", "word"),
    [
        (2000, 0, 0, "OK"),
        (2000, 3, 2, "OK"),
        (2000, 0, 40, "OK"),
        (2000, 5, 0, "REGRESSED"),
        (2000, 60, 40, "REGRESSED"),
        (100, 0, 0, "INCONCLUSIVE"),
        (2000, 30, 25, "INCONCLUSIVE"),
    ],
)
def test_the_verdict(samples: int, lost: int, won: int, word: str) -> None:
    before = flags(samples, range(won))
    now = flags(samples, range(won, won + lost))
    verdict = compared("v1.int8", before, now)
    assert (verdict.lost, verdict.won, verdict.word) == (lost, won, word)
    assert f"{lost}  " in table([verdict]) and word in table([verdict])
    if word != "OK":
        with pytest.raises(CheckError, match=rf"v1\.int8 {word}"):
            check_accuracy([verdict])


def test_other_images_and_unknown_files_are_refused() -> None:
    with pytest.raises(CheckError, match=r"10 test images, the baseline has 20"):
        compared("v1.int8", flags(20, range(0)), flags(10, range(0)))
    with pytest.raises(CheckError, match=r"no accuracy baseline of v9\.int8"):
        verdicts(AccuracyBaseline(), AccuracyBaseline({"v9.int8": Recorded(1, "80")}))


def test_a_rewrite_names_what_changes() -> None:
    before = AccuracyBaseline({"a.int8": Recorded(8, "ff"), "b.int8": Recorded(8, "ff")})
    after = AccuracyBaseline(
        {"a.int8": Recorded(8, "fe"), "b.int8": Recorded(8, "ff"), "c.int8": Recorded(8, "01")}
    )
    assert difference(before, after).splitlines() == [
        "a.int8: 8 of 8 right -> 7 of 8 right",
        "c.int8: nothing -> 1 of 8 right",
    ]


@pytest.mark.parametrize("bits", ["zz", "ffff", ""])
def test_a_damaged_baseline_is_told(bits: str, tmp_path: Path) -> None:
    path = tmp_path / "accuracy.json"
    write_json(path, to_plain(AccuracyBaseline({"a.int8": Recorded(8, bits)})))
    with pytest.raises(AlpharhoError, match="make baseline"):
        load_accuracy(path).runs["a.int8"].right()


def test_every_shipped_network_has_a_baseline() -> None:
    recorded = load_accuracy().runs
    for request in shipped():
        assert [key for key in recorded if key.startswith(f"{request.model}_{request.alpha:.2f}_")]
