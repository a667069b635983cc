"""The comparison: a small network really converted, measured and written down; targets and resumption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from device_bench.device import BenchSpec, WarmUp
from device_bench.records import to_plain, write_json
from pipeline.__main__ import main
from pipeline.artifacts import AlpharhoError, sha256_of, write_bytes
from pipeline.measures import Quality
from pipeline.peers import accuracy, comparison_page, conversion, cost, environments
from pipeline.peers.accuracy import CONTENDERS, Accuracy
from pipeline.peers.conversion import MAKERS, OURS, Conversion, Maker, Wanted, code_of
from pipeline.peers.cost import Instructions, Latency, Operators

QUICK = BenchSpec(
    processes=2, runs=3, seconds=0.01, warm_up=WarmUp(runs=1, seconds=0.0, max_runs=3, max_seconds=0.1)
)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which our script has converted a small V3-Small, in a process of its own."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "IMAGENET_RESOLUTION", 32)
        patch.setattr(conversion, "IMAGENET_CLASSES", 10)
        conversion.convert("v3_small", "alpharho_min_max", folder)
    return folder


@pytest.mark.slow
def test_our_script_converts_and_tells_time_memory_and_sizes(converted: Path) -> None:
    found = conversion.recorded("v3_small", "alpharho_min_max", converted)
    assert found is not None
    assert found.onnx_seconds > 0 and found.seconds > 0
    assert found.process_seconds > found.onnx_seconds + found.seconds
    assert found.peak_bytes > 50e6
    assert found.sizes["int8"] < found.sizes["float16"] < found.sizes["float32"]
    assert set(found.versions) == {"torch", "onnx"}


@pytest.mark.slow
def test_a_missing_environment_is_no_refusal_of_the_peer(converted: Path, tmp_path: Path) -> None:
    missing = Maker(shown="odd", script="convert_onnx2tf", environment="litert_none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "MAKERS", {"odd": missing})
        with pytest.raises(AlpharhoError, match="make it: "):
            conversion.convert("v3_small", "odd", converted)
    assert conversion.recorded("v3_small", "odd", converted) is None


@pytest.mark.slow
def test_what_a_peer_cannot_convert_is_recorded_with_its_reason(
    converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = Maker(shown="odd", script="convert_onnx2tf")  # onnx2tf is not in the project's environment
    monkeypatch.setattr(conversion, "MAKERS", {"odd": failing})
    found = conversion.convert("v3_small", "odd", converted)
    assert "No module named 'onnx2tf'" in found.refused
    assert conversion.recorded("v3_small", "odd", converted) == found


@pytest.mark.slow
def test_a_file_is_measured_until_the_machine_is_quiet_and_again_when_it_has_changed(
    converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "SPEC", QUICK)
    monkeypatch.setattr(cost, "ORDER", (("int8", "v3_small"),))
    file = cost.file_of("v3_small", OURS, "int8", tmp_path)
    file.parent.mkdir(parents=True)
    file.write_bytes((converted / "v3_small" / "alpharho_min_max" / "int8.tflite").read_bytes())
    said: list[str] = []
    cost.time_missing(tmp_path, Wanted(), said.append)  # so few samples leave doubts
    cost.time_missing(tmp_path, Wanted(), said.append)
    assert len(said) == 2
    monkeypatch.setattr(cost.Latency, "is_settled", property(lambda self: True))
    cost.time_missing(tmp_path, Wanted(), said.append)
    assert len(said) == 2
    found = cost.costs("v3_small", OURS, "int8", tmp_path)
    assert found.operators is not None and found.latency is not None
    assert found.operators.partitions == 1 and found.operators.outside <= 1  # a byte input is one
    assert found.operators.counted["TRANSPOSE"] == 0
    assert found.latency.median_ms > 0 and found.latency.ratio == 1
    file.write_bytes((converted / "v3_small" / "alpharho_min_max" / "float16.tflite").read_bytes())
    assert cost.costs("v3_small", OURS, "int8", tmp_path).latency is None


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Recorded conversions of V2; onnx2tf is the faster peer."""
    for maker, seconds in ((OURS, 1.0), ("onnx2tf", 28.0), ("litert_torch", 40.0)):
        onnx_seconds = 2.0 if maker == OURS else 0.0
        found = Conversion(
            maker=maker,
            model="v2",
            onnx_seconds=onnx_seconds,
            seconds=seconds,
            onnx_cpu_seconds=2 * onnx_seconds,
            cpu_seconds=1.0 * seconds if maker != OURS else 2.0,
            process_seconds=50.0,
            peak_bytes=10**9,
            sizes={"float32": 14_000_000, "int8": 4_000_000},
            versions={"torch": "2.13"},
            code=code_of(MAKERS[maker]),
        )
        write_json(tmp_path / "v2" / maker / "conversion.json", to_plain(found))
    return tmp_path


def test_the_export_to_onnx_counts_for_those_who_start_from_onnx(results: Path) -> None:
    (target,) = comparison_page.conversion_targets(results)
    assert (target.found, target.verdict) == ("10.0 times (5.3 in processor time)", "reached")


def test_each_recipe_is_held_to_the_target_and_says_what_it_does(results: Path) -> None:
    default = conversion.recorded("v2", OURS, results)
    assert default is not None
    slower = replace(default, maker="alpharho_min_max", seconds=2.0)
    write_json(results / "v2" / slower.maker / "conversion.json", to_plain(slower))
    found = {target.what: target.found[:10] for target in comparison_page.conversion_targets(results)}
    start = "v2: conversion 10 times faster than the fastest peer"
    assert found == {
        f"{start} (recipe int8_min_max, the same work as the peers')": "7.5 times ",
        f"{start} (recipe int8, the default, which does more)": "10.0 times",
    }


def test_what_earlier_code_of_ours_did_says_so_and_is_done_anew(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = conversion.recorded("v2", OURS, results)
    assert known is not None
    write_json(results / "v2" / OURS / "conversion.json", to_plain(replace(known, code="another")))
    (target,) = comparison_page.conversion_targets(results)
    assert target.found.endswith("(earlier code)")
    assert "| alpharho, recipe int8 (earlier code) |" in comparison_page.page(results)[0]
    asked: list[str] = []
    monkeypatch.setattr(conversion, "NETWORKS", ("v2",))
    monkeypatch.setattr(conversion, "convert", lambda model, maker, folder: asked.append(maker))
    conversion.measure_missing(results, Wanted(only_ours=True), lambda text: None)
    assert asked == ["alpharho_min_max", OURS]
    conversion.measure_missing(results, Wanted(), lambda text: None)
    assert asked[2:] == ["alpharho_min_max", OURS, "tensorflow"]


def test_a_refusing_peer_is_told_and_is_no_rival(results: Path) -> None:
    refusal = Conversion(maker="onnx2tf", model="v2", refused="no such | operator")
    write_json(results / "v2" / "onnx2tf" / "conversion.json", to_plain(refusal))
    (target,) = comparison_page.conversion_targets(results)
    assert target.found == "13.3 times (6.7 in processor time)"
    assert "| onnx2tf | refused: no such \\| operator |" in comparison_page.page(results)[0]


def record_cost(folder: Path, maker: str, model: str, precision: str, millions: float, ratio: float) -> None:
    """A file of a maker with figures as they are measured; `ratio` is our time over theirs."""
    path = cost.file_of(model, maker, precision, folder)
    write_bytes(path, f"{maker} {precision}".encode())
    digest = sha256_of(path)
    operators = Operators(
        sha256=digest, total=70, counted=dict.fromkeys(cost.COUNTED_OPS, 1), partitions=1, outside=0
    )
    count = Instructions(sha256=digest, runtime="ai-edge-litert 2.1.6", millions=millions)
    latency = Latency(
        sha256=digest,
        ours_sha256=sha256_of(cost.file_of(model, OURS, precision, folder)),
        median_ms=2.0,
        ours_median_ms=2.0 * ratio,
        ratio=ratio,
        low=ratio - 0.05,
        high=ratio + 0.05,
        doubts=("drift",),
    )
    records = {"operators": operators, "cortex-a76": count, "latency": latency}
    for name, found in records.items():
        write_json(path.with_name(f"{precision}.{name}.json"), to_plain(found))


def test_cost_is_held_to_the_best_peer_in_every_cell_that_was_measured(tmp_path: Path) -> None:
    for maker, millions, ratio in ((OURS, 15.0, 1.0), ("litert_torch", 20.0, 0.6), ("onnx2tf", 14.0, 1.2)):
        record_cost(tmp_path, maker, "v3_small", "int8", millions, ratio)
    found = {target.what: (target.found, target.verdict) for target in comparison_page.cost_targets(tmp_path)}
    assert found == {
        "v3_small int8: instructions on cortex-a76 at most 1.00 of the best peer's": (
            "1.071 of 2 peers",
            "missed",
        ),
        "v3_small int8: host latency at most 1.00 of the best peer's": ("1.20 (1.15 to 1.25)", "missed"),
        "v3_small int8: host latency at most 0.50 of litert-quantizer's": ("0.60 (0.55 to 0.65)", "missed"),
    }
    written, _ = comparison_page.page(tmp_path)
    shown = MAKERS["litert_torch"].shown
    assert (
        f"| int8, {shown} | 70 | 1, 1, 1 | 1 + 0 | 2.00? · 0.60 (0.55 to 0.65) | 20.00 · 0.75 |  |" in written
    )


def test_instructions_are_counted_of_files_that_changed_and_of_ours_alone_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for maker in (OURS, "onnx2tf", "litert_torch"):
        record_cost(tmp_path, maker, "v2", "int8", 50.0, 1.0)
    for maker in (OURS, "onnx2tf"):
        cost.file_of("v2", maker, "int8", tmp_path).write_bytes(b"changed")
    counted: list[str] = []
    monkeypatch.setattr(cost, "CORES", ("cortex-a76",))
    monkeypatch.setattr(cost, "measure_operators", lambda *what: None)
    monkeypatch.setattr(cost, "measure_instructions", lambda model, maker, *where: counted.append(maker))
    cost.count_missing(tmp_path, Wanted(only_ours=True), lambda text: None)
    assert counted == [OURS]
    cost.count_missing(tmp_path, Wanted(), lambda text: None)
    assert counted[1:] == [OURS, "onnx2tf"]
    cost.count_missing(tmp_path, Wanted(again=True), lambda text: None)
    assert counted[3:] == [OURS, "litert_torch", "onnx2tf"]


def test_half_precision_is_held_to_its_own_target(tmp_path: Path) -> None:
    for maker, millions in ((OURS, 60.0), ("onnx2tf", 100.0)):
        record_cost(tmp_path, maker, "v2", "float16", millions, 1.0)
    target = next(iter(comparison_page.cost_targets(tmp_path)))
    assert (target.what[:48], target.found) == (
        "v2 float16: instructions on cortex-a76 at most 0",
        "0.600 of 1 peers",
    )
    assert target.verdict == "reached"


def test_accuracy_stands_on_the_page_with_its_confident_crops(tmp_path: Path) -> None:
    quality = Quality(
        crops=180,
        confident_crops=70,
        agreement=90.0,
        confident_agreement=100.0,
        top5_overlap=88.8,
        kl=0.0512,
        sqnr_db=16.04,
    )
    better = replace(quality, agreement=92.0, top5_overlap=90.0, kl=0.0488, sqnr_db=17.0)
    worse = replace(quality, agreement=80.5, confident_agreement=None)
    record_accuracy(tmp_path, OURS, 0, quality=quality)
    record_accuracy(tmp_path, OURS, 1, quality=better)
    record_accuracy(tmp_path, "litert", 1, quality=worse)
    record_accuracy(tmp_path, "onnx2tf", 1, refused="no network")
    written, _ = comparison_page.page(tmp_path)
    assert "| alpharho, recipe int8 | 90.0 | 92.0 |  | 100.0 | 100.0 |  | 89.4 | 0.050 | 16.5 |" in written
    assert "|  | 80.5 |  |  |  |  | 88.8 | 0.051 | 16.0 |" in written
    assert "| onnx2tf |  | refused: no network |  |" in written
    assert "(70, 70 crops)" in written
    (target,) = comparison_page.accuracy_targets(tmp_path)
    assert (target.found, target.verdict) == ("92.0 % to 80.5 % of 1 peers", "reached")


def record_accuracy(
    folder: Path, contender: str, split: int, quality: Quality | None = None, refused: str = ""
) -> None:
    """A record of a contender as it is measured by the code as it is."""
    found = Accuracy(
        contender=contender,
        split=split,
        quality=quality,
        code=code_of(CONTENDERS[contender]),
        refused=refused,
    )
    write_json(folder / "accuracy" / str(split) / contender / "accuracy.json", to_plain(found))


def test_accuracy_by_earlier_code_of_ours_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for contender in CONTENDERS:
        record_accuracy(tmp_path, contender, 0, refused="no network")
    old = Accuracy(contender=OURS, split=0, code="another")
    write_json(tmp_path / "accuracy" / "0" / OURS / "accuracy.json", to_plain(old))
    monkeypatch.setattr(accuracy, "SPLITS", range(1))
    monkeypatch.setattr(accuracy, "photographed", lambda: None)
    monkeypatch.setattr(
        accuracy, "_measured", lambda contender, number, *where: replace(old, contender=contender, code="new")
    )
    said: list[str] = []
    accuracy.measure_missing(tmp_path, Wanted(), said.append)
    assert said == ["split 0 by alpharho, recipe int8"]
    accuracy.measure_missing(tmp_path, Wanted(only_ours=True, again=True), said.append)
    assert said[1:] == ["split 0 by alpharho, recipe int8", "split 0 by alpharho, recipe int8_full"]


def test_the_command_measures_only_what_is_asked_and_not_recorded(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(conversion, "NETWORKS", ("v2",))
    monkeypatch.setattr(conversion, "convert", lambda model, maker, folder: asked.append(maker))
    monkeypatch.setattr(environments, "make", lambda name, say: None)  # hundreds of megabytes
    words = ["compare", "--folder", str(results), "--out", str(tmp_path / "page.md")]
    assert main([*words, "--only", "conversion"]) == 0
    assert asked == ["alpharho_min_max", "tensorflow"]
    assert main([*words, "--only", "conversion", "--again"]) == 0
    assert asked[2:] == list(MAKERS)
    assert main([*words, "--only", "ours", "conversion", "--again"]) == 0
    assert asked[2 + len(MAKERS) :] == ["alpharho_min_max", OURS]
    assert main([*words, "--recorded"]) == 0
    assert len(asked) == 4 + len(MAKERS)
    assert "v2: conversion 10 times faster than the fastest peer" in capsys.readouterr().out
    assert "# Beside the peers" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(("ratio", "expected"), [(0.9, "reached"), (1.0, "inconclusive"), (1.2, "missed")])
def test_an_interval_on_both_sides_of_the_target_decides_nothing(
    tmp_path: Path, ratio: float, expected: str
) -> None:
    for maker in (OURS, "onnx2tf"):
        record_cost(tmp_path, maker, "v1", "float32", 60.0, ratio)
    *_, latency = comparison_page.cost_targets(tmp_path)
    assert latency.verdict == expected
