from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from device_bench import baseline
from device_bench.baseline import Baseline, baseline_of, changes, check, difference, joined
from device_bench.device import ResultClass, RuntimeInfo
from device_bench.records import RecordError
from pipeline.artifacts import CheckError
from tests.device_bench.measurements import counted, timed

RECORDED = Baseline(
    runtime="ai-edge-litert 2.1.6", instructions={"v1.int8.cortex-a76": 1000, "v2.int8.cortex-a76": 500}
)


def _counted(**counts: int) -> Baseline:
    instructions = {f"{name}.int8.cortex-a76": count for name, count in counts.items()}
    return Baseline(runtime=RECORDED.runtime, instructions=instructions)


def test_a_baseline_is_made_of_valid_counts() -> None:
    made = counted(1000, 1003, core="cortex-a53")
    name = baseline.key("v1_0.25_128", "int8", made)
    assert name == "v1_0.25_128.int8.cortex-a53"
    assert baseline_of({name: made}) == Baseline(runtime="ai-edge-litert 2.1.6", instructions={name: 1002})


@pytest.mark.parametrize("made", [timed([[1]]), counted(1, 1).marked(ResultClass.INVALID, "differ")])
def test_only_valid_counts_are_taken(made: object) -> None:
    with pytest.raises(CheckError, match=r"not an instruction count|differ"):
        baseline.instructions(made)  # type: ignore[arg-type]  # parametrized


def test_runtimes_are_not_mixed() -> None:
    other = replace(counted(1, 1), runtime=RuntimeInfo(name="tflite-runtime", version="2.14.0"))
    with pytest.raises(CheckError, match=r"ai-edge-litert 2.1.6, tflite-runtime 2.14.0"):
        baseline_of({"a": counted(1, 1), "b": other})
    with pytest.raises(CheckError, match=r"recorded with ai-edge-litert 2\.1\.6, counted with x"):
        check(RECORDED, Baseline(runtime="x"))


@pytest.mark.parametrize("count", [1, 999, 1000, 1020])
def test_counts_up_to_two_percent_above_pass(count: int) -> None:
    check(RECORDED, _counted(v1=count))


def test_a_rise_names_the_variant_and_nothing_else() -> None:
    with pytest.raises(CheckError) as caught:
        check(RECORDED, _counted(v1=1021, v2=510))
    assert "v1.int8.cortex-a76: 1,000 -> 1,021 instructions (+2.10 %)" in str(caught.value)
    assert "v2" not in str(caught.value)


def test_a_variant_without_a_baseline_fails() -> None:
    with pytest.raises(CheckError, match=r"v3\.int8\.cortex-a76: new"):
        check(RECORDED, _counted(v3=1))


def test_the_difference_is_readable() -> None:
    text = difference(RECORDED, _counted(v1=1100, v3=7))
    assert text.splitlines() == [
        "v1.int8.cortex-a76: 1,000 -> 1,100 instructions (+10.00 %)",
        "v2.int8.cortex-a76: no longer counted, was 500 instructions",
        "v3.int8.cortex-a76: new, 7 instructions",
    ]
    assert difference(RECORDED, RECORDED) == "" and changes(RECORDED, RECORDED) == ()


def test_joining_keeps_what_was_not_counted_unless_the_runtime_is_another() -> None:
    assert joined(RECORDED, _counted(v1=7)).instructions["v2.int8.cortex-a76"] == 500
    other = Baseline(runtime="ai-edge-litert 3", instructions={"a": 1})
    assert joined(RECORDED, other) == other
    assert difference(RECORDED, other).startswith("runtime: ai-edge-litert 2.1.6 -> ai-edge-litert 3\n")


def test_the_file_round_trips_and_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "instructions.json"
    assert baseline.load(path) == Baseline(runtime="")
    baseline.save(RECORDED, path)
    assert baseline.load(path) == RECORDED
    path.write_text('{"runtime": 5}')
    with pytest.raises(RecordError, match=r"instructions\.json\.runtime: found 5"):
        baseline.load(path)
