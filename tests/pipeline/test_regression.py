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
from pipeline.data import IdxSplit
from pipeline.regression import (
    AccuracyBaseline,
    Recorded,
    check_accuracy,
    check_all_made,
    compared,
    difference,
    digest,
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


def run_of(samples: int, wrong: range = range(0), images: str = "a1b2") -> Recorded:
    return Recorded.of(flags(samples, wrong), images)


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_a_record_holds_every_flag(right: list[bool]) -> None:
    assert Recorded.of(np.array(right), "a1b2").right().tolist() == right


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
    verdict = compared("v1.int8", run_of(samples, range(won)), run_of(samples, range(won, won + lost)))
    assert (verdict.lost, verdict.won, verdict.word) == (lost, won, word)
    assert f"{lost}  " in table([verdict]) and word in table([verdict])
    if word != "OK":
        with pytest.raises(CheckError, match=rf"v1\.int8 {word}"):
            check_accuracy([verdict])


def test_other_images_are_refused() -> None:
    with pytest.raises(CheckError, match=r"10 test images, the baseline has 20; run make baseline"):
        compared("v1.int8", run_of(20), run_of(10))
    with pytest.raises(CheckError, match=r"other test images or labels \(a1b2, here ffff\).*make baseline"):
        compared("v1.int8", run_of(20), run_of(20, images="ffff"))
    with pytest.raises(CheckError, match=r"does not say of which images it is; run make baseline"):
        compared("v1.int8", run_of(20, images=""), run_of(20))


def test_a_file_that_is_new_or_gone_is_named() -> None:
    both = {"v1.int8": run_of(2000), "v9.int8": run_of(2000)}
    one = {"v1.int8": run_of(2000)}
    with pytest.raises(CheckError, match=r"no accuracy baseline of v9\.int8"):
        verdicts(AccuracyBaseline(one), AccuracyBaseline(both))
    with pytest.raises(CheckError, match=r"accuracy baseline: v9\.int8 recorded, but no longer made"):
        verdicts(AccuracyBaseline(both), AccuracyBaseline(one))
    assert [found.word for found in verdicts(AccuracyBaseline(both), AccuracyBaseline(both))] == ["OK", "OK"]
    check_all_made("instruction", {"v1.int8.cortex-a72"}, {"v1.int8.cortex-a72", "new"})
    with pytest.raises(CheckError, match=r"instruction baseline: v9\.int8\.cortex-a72 recorded"):
        check_all_made("instruction", {"v9.int8.cortex-a72"}, {"v1.int8.cortex-a72"})


def test_the_digest_tells_images_and_labels_apart() -> None:
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (70, 6, 6), np.uint8)  # more than one batch
    labels = random.integers(0, 10, 70)
    of = digest(IdxSplit(images, labels), 6)
    assert of == digest(IdxSplit(images.copy(), labels.astype(np.int64)), 6)
    other_pixel, other_label = images.copy(), labels.copy()
    other_pixel[69, 5, 5] ^= 1
    other_label[69] ^= 1
    others = [digest(IdxSplit(other_pixel, labels), 6), digest(IdxSplit(images, other_label), 6)]
    assert len({of, *others, digest(IdxSplit(images, labels), 7)}) == 4


def test_a_rewrite_names_what_changes() -> None:
    before = AccuracyBaseline({"a.int8": Recorded(8, "ff"), "b.int8": Recorded(8, "ff")})
    after = AccuracyBaseline(
        {"a.int8": Recorded(8, "fe"), "b.int8": Recorded(8, "ff"), "c.int8": Recorded(8, "01")}
    )
    assert difference(before, after).splitlines() == [
        "a.int8: 8 of 8 right -> 7 of 8 right",
        "c.int8: nothing -> 1 of 8 right",
    ]
    renewed = AccuracyBaseline({"a.int8": Recorded(8, "ff", "1234567890abcdef"), "b.int8": Recorded(8, "ff")})
    assert difference(before, renewed) == "a.int8: 8 of 8 right -> 8 of 8 right, images 1234567890ab"


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
