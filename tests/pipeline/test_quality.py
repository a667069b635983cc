"""Measuring quantised files: the figures, what is remembered, the diagnosis, the ladder, the verdicts."""

from __future__ import annotations

import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import models
from export.to_onnx import to_onnx
from pipeline import quality
from pipeline.artifacts import CheckError, UsageError
from pipeline.convert import Calibration, convert_graph, rescued
from pipeline.data import normalise
from pipeline.diagnose import Diagnosis, case_of, examine, html, text, write
from pipeline.evaluate import batched
from pipeline.families import Member, check, member_of
from pipeline.measures import Quality, compare
from pipeline.photographs import Split
from pipeline.quality import ONE_SCALE, Measurement, ablation, measured
from pipeline.quality_arm import CHUNK, EVERY, OnCore, compared, place, remembered, row, spread
from pipeline.quality_arm import check as check_cores
from pipeline.quality_page import Ablated, headline, per_tensor, steps, targets
from pipeline.subjects import Subject, subject_named
from quantize.int8 import Io
from quantize.recipes import RECIPES
from quantize.rescue import Step

RESOLUTION, CLASSES = 32, 10


@pytest.fixture(scope="module")
def subject() -> Subject:
    """A small V3 with random weights; images of coarse squares and noise."""
    torch.manual_seed(0)
    module = models.build("v3_small", 0.25, CLASSES).eval()
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (28, 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    images = np.clip(coarse + random.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)
    split = Split(images[:16], images[16:], random.integers(0, CLASSES, 12))
    return Subject("tiny", "squares", to_onnx(models.deployed(module), RESOLUTION), (split,))


def test_the_figures_of_logits() -> None:
    reference = np.array([[9, 0, 1, 2, 3, 4], [0, 0.2, 0.1, 0, 0, 0]], np.float32)
    swapped = np.array([[9, 0, 1, 2, 3, 4], [0.2, 0, 0.1, 0, 0, 0]], np.float32)
    same, found = compare(reference, reference), compare(swapped, reference)
    assert (same.agreement, same.sqnr_db) == (100.0, float("inf"))
    assert same.kl == pytest.approx(0, abs=1e-9)
    assert (found.agreement, found.confident_agreement, found.confident_crops) == (50.0, 100.0, 1)
    assert found.sqnr_db == pytest.approx(10 * np.log10(111.05 / 0.08), abs=0.01)
    assert compare(reference[1:], reference[1:]).confident_agreement is None


def test_what_was_measured_is_not_measured_again(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(subject, "first", RECIPES["int8_min_max"], 0, folder=tmp_path)
    assert (first.partitions, first.quality.crops) == (1, 12)
    assert len(list((tmp_path / "measured").iterdir())) == 1
    monkeypatch.setattr(quality, "measure", None)  # cannot be called
    again = measured(subject, "again", RECIPES["int8_min_max"], 0, folder=tmp_path)
    assert again == replace(first, label="again")
    with pytest.raises(TypeError):
        measured(subject, "other recipe", RECIPES["int8_full"], 0, folder=tmp_path)


def test_the_ablation_leaves_each_step_out_once() -> None:
    rows, full = ablation(), RECIPES["int8"]
    listed = (*full.graph_passes, *full.float_parts, *full.layer_passes)
    assert {f"without {step}" for step in listed} <= rows.keys()
    assert all(recipe != full for label, recipe in rows.items() if label.startswith("without"))


def test_the_page_says_what_is_met_and_what_each_step_brings(subject: Subject) -> None:
    figures = Quality(
        crops=180,
        confident_crops=99,
        agreement=86.0,
        confident_agreement=100.0,
        top5_overlap=80.0,
        kl=0.1,
        sqnr_db=15.5,
    )
    whole = Measurement(
        label="int8", split=0, quality=figures, top1=None, partitions=1, size_bytes=9, sha256="", seconds=1.0
    )
    less = replace(whole, quality=replace(figures, sqnr_db=11.25, agreement=70.0))
    found = Ablated(
        subject, {"int8": [whole], "int8_per_tensor": [whole], "without centre": [less], ONE_SCALE: [less]}
    )
    member = Member(name="v1", images=10_000, float32=93.0, float16=93.0, int8=92.9, sqnr_db=25.0)
    on_core = OnCore(precision="float16", split=EVERY, quality=figures)
    runs = [replace(on_core, split="0"), on_core, replace(on_core, precision="int8")]
    verdicts = {line.split("|")[1].strip(): line for line in targets(found, [member], runs).splitlines()}
    assert (
        "| 98 % | 86.00 % | **no** |"
        in verdicts[f"float16 by cortex-a76's kernels, agreement on {figures.crops} crops"]
    )
    assert "float16" not in targets(found, [member], [])
    assert "| yes |" in verdicts["agreement with float32, worst split"]
    assert "15.50 dB | **no** |" in verdicts["logit SQNR, worst split"]
    assert "-0.10 points | yes |" in verdicts["Fashion-MNIST: int8 less float32"]
    assert "| without centre | 70.0 | 100.0 | 80.0 | 0.100 | 11.25 | -4.25 | 1 |" in steps(found)
    assert "without centre" not in headline(found)
    assert "on 70.0 % of the crops (11.2 dB)" in per_tensor(found)
    assert "on 86.0 % (15.5 dB)" in per_tensor(found)


class _Pictures(HTMLParser):
    sources: tuple[str, ...] = ()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += tuple(value or "" for name, value in attrs if name in ("src", "href"))


def test_a_diagnosis_is_a_text_a_page_of_its_own_and_a_picture(subject: Subject, tmp_path: Path) -> None:
    found: Diagnosis = examine(case_of(subject, 0), RECIPES["int8"])
    words = text(found)
    assert "features.4.squeeze_excite.reduce" in words
    assert "most is lost at: " in words
    good = replace(found, quality=replace(found.quality, agreement=100.0, sqnr_db=25.0))
    bad = replace(found, quality=replace(found.quality, agreement=100.0, sqnr_db=15.0))
    assert "good, nothing has to be mended" in text(good) and "see the advice" in text(bad)
    page, picture = write(found, tmp_path)
    parser = _Pictures()
    parser.feed(page.read_text())
    assert parser.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in parser.sources)
    drawn = np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert("RGB"))
    blue = (np.abs(drawn.astype(int) - (0, 0x72, 0xB2)).max(2) < 40).sum()
    assert blue > 500  # the ranges after equalisation


def test_a_diagnosis_tells_how_to_climb_the_ladder_and_shows_its_steps(
    subject: Subject, tmp_path: Path
) -> None:
    found = examine(case_of(subject, 0), RECIPES["int8_min_max"])
    assert "add --rescue here" in html(found, b"<svg/>")
    step = Step(
        candidate="block <1>",
        nodes=("a",),
        agreement_points=1.5,
        sqnr_db=2.25,
        bytes=1200,
        instructions=None,
        kept=True,
        reason="pays",
    )
    page = html(replace(found, steps=[step]), b"<svg/>")
    for cell in ("block &lt;1&gt;", "+1.50", "+2.25", "+1,200", "not counted", "kept in float: pays"):
        assert f">{cell}</td>" in page
    assert "add --rescue here" not in page


def test_a_split_or_network_that_is_not_there_is_a_wrong_usage(subject: Subject) -> None:
    with pytest.raises(UsageError, match="no split 3; tiny has 1"):
        case_of(subject, 3)
    with pytest.raises(UsageError, match=r"give one of v2, .*v1_0\.25"):
        subject_named("v9")


@pytest.mark.slow
def test_the_ladder_is_in_the_report_and_its_nodes_in_the_file(subject: Subject) -> None:
    heard: list[str] = []
    batches = batched(normalise(subject.splits[0].calibration))
    plain = Calibration(batches, RECIPES["int8_min_max"], Io())
    calibration = rescued(subject.graph(), plain, heard.append)
    report = convert_graph("int8", subject.graph(), calibration).report
    assert isinstance(report["rescue"], list)
    assert len(report["rescue"]) == len(calibration.ladder.steps) == len(heard) - 2
    kept = {name for step in calibration.ladder.steps if step.kept for name in step.nodes}
    assert kept == calibration.ladder.keep_float
    assert "rescue" not in convert_graph("int8", subject.graph(), plain).report


def test_a_family_is_measured_in_three_precisions(subject: Subject, tmp_path: Path) -> None:
    member = member_of(subject, tmp_path)
    assert member.images == 12
    assert member.float32 == pytest.approx(member.float16, abs=10)


def test_families_that_miss_a_target_are_named() -> None:
    good = Member(name="good", images=10_000, float32=93.3, float16=93.3, int8=93.1, sqnr_db=20.0)
    lossy, noisy = replace(good, name="lossy", int8=93.09), replace(good, name="noisy", sqnr_db=19.9)
    check([good])
    with pytest.raises(CheckError, match=r"lossy loses more than 0\.2 points; noisy below 20 dB"):
        check([good, lossy, noisy])


def test_runs_on_an_emulated_core_go_on_where_they_stopped(tmp_path: Path) -> None:
    images = np.arange(3 * CHUNK, dtype=np.uint8).reshape(-1, 1, 1, 1)
    logits = np.random.default_rng(0).normal(size=(3 * CHUNK, 4)).astype(np.float32)
    for part in (0, 2):
        rows = slice(part * CHUNK, (part + 1) * CHUNK)
        there = place("sha", images[rows], "cortex-a76", tmp_path)
        there.parent.mkdir(exist_ok=True)
        np.save(there, logits[rows])
    assert np.array_equal(remembered("cortex-a76", "sha", images, tmp_path), logits[:CHUNK])
    assert len(remembered("cortex-a76", "other", images, tmp_path)) == 0
    assert sorted(spread(images).ravel()) == sorted(images.ravel())


def test_a_core_is_compared_split_by_split_and_over_all_crops() -> None:
    reference = np.eye(4, dtype=np.float32)
    wrong = reference[[1, 1, 2, 3]]
    found = compared("float16", {0: (reference[:2], reference[:2]), 2: (wrong, reference)})
    assert [(one.split, one.quality.crops, round(one.quality.agreement, 1)) for one in found] == [
        ("0", 2, 100.0), ("2", 4, 75.0), (EVERY, 6, 83.3),
    ]  # fmt: skip
    assert compared("float16", {}) == []


def test_float16_on_an_emulated_core_must_agree_and_int8_is_only_told() -> None:
    quality = Quality(
        crops=180,
        confident_crops=0,
        agreement=98.0,
        confident_agreement=None,
        top5_overlap=99.0,
        kl=0.0,
        sqnr_db=36.9,
    )
    good = OnCore(precision="float16", split=EVERY, quality=quality)
    worse = replace(good, quality=replace(quality, agreement=97.9))
    int8 = replace(worse, precision="int8")
    assert row("cortex-a76", good) == (
        "float16 on cortex-a76", "all", "180", "98.0", "", "36.90", "98", "reached",
    )  # fmt: skip
    assert replace(worse, split="0").verdict == ""
    assert (worse.verdict, int8.verdict) == ("missed", "")
    check_cores([good, int8])
    with pytest.raises(CheckError, match=r"float16 agrees on 97\.9 %, 98 are the least"):
        check_cores([good, worse, int8])
