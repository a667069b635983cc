from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_bench import emulated, host
from device_bench.device import (
    ADVICE,
    BenchSpec,
    DeviceError,
    Measurement,
    ProcessSamples,
    ResultClass,
    connect,
    default_spec,
    from_json,
    load,
    save,
    to_json,
)
from device_bench.records import RecordError, dumps
from pipeline.artifacts import UsageError
from tests.device_bench.measurements import counted, timed

NANOSECONDS = st.integers(1, 10**13)


@given(
    st.lists(st.lists(NANOSECONDS, min_size=1), max_size=4),
    st.text(),
    st.floats(0, 1e9),
    st.integers(0, 2**31),
)
def test_a_measurement_survives_json_exactly(
    samples: list[list[int]], name: str, seconds: float, flags: int
) -> None:
    made = timed(samples)
    made = replace(
        made,
        model=replace(made.model, name=name),
        spec=replace(made.spec, seconds=seconds, affinity=(3, 1)),
        after=replace(made.after, throttle_flags=flags, temperatures_c={name: seconds}),
    ).marked(ResultClass.INVALID, "too hot")
    assert from_json(json.loads(dumps(to_json(made)))) == made


@pytest.mark.parametrize(
    "made", [timed([[1, 2], [3]]), counted(10, 11), timed([])], ids=["timed", "counted", "none"]
)
def test_save_and_load_round_trip(tmp_path: Path, made: Measurement) -> None:
    path = tmp_path / "new folder" / "result ü.json"
    save(made, path)
    assert load(path) == made
    assert json.loads(path.read_text(encoding="utf-8"))["valid"] is True


def _damaged(change: dict[str, object]) -> dict[str, object]:
    return {**json.loads(dumps(to_json(timed([[1], [2]])))), **change}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "schema 2, supported is 1"),
        ({"result": "fine"}, "measurement.result: found 'fine', where one of ok, invalid"),
        ({"processes": [{"samples_ns": [1, 2.5]}]}, r"measurement.processes\[0\].samples_ns\[1\]: found 2.5"),
        ({"processes": [{"samples_ns": [True]}]}, r"samples_ns\[0\]: found True, where int is needed"),
        ({"speed": 1}, "unknown field 'speed'"),
        ({"model": {"name": "x", "size_bytes": 1}}, "model: field 'sha256' is missing"),
        ({"valid": False}, "valid is False but result is ok"),
        ({"emulated": True}, "times and instruction counts are mixed"),
        ({"processes": {}}, "found {}, where an array is needed"),
    ],
)
def test_a_file_that_does_not_fit_names_the_field(change: dict[str, object], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        from_json(_damaged(change))


@pytest.mark.parametrize("content", ["", "[", '{"a": 1', "[]", "\udcff"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(RecordError, match=r"result\.json: .*; |result\.json: not a measurement"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"nowhere\.json: No such file or directory"):
        load(tmp_path / "nowhere.json")


def test_times_and_counts_never_share_a_record() -> None:
    with pytest.raises(AssertionError):
        replace(counted(10, 10), processes=(ProcessSamples(samples_ns=(1,)),))
    with pytest.raises(AssertionError):
        replace(timed([[1]]), counts=counted(1).counts)


def test_every_result_class_has_a_message_and_a_remedy_of_its_own() -> None:
    assert set(ADVICE) == set(ResultClass)
    assert len({advice.message for advice in ADVICE.values()}) == 10
    assert len({advice.remedy for advice in ADVICE.values()}) == 10


@pytest.mark.parametrize("result", ResultClass)
def test_an_error_is_one_line_with_class_finding_and_remedy(result: ResultClass) -> None:
    text = str(DeviceError(result, "seen\nthat"))
    assert text == f"{result}: {ADVICE[result].message}: seen that; {ADVICE[result].remedy}"
    assert str(DeviceError(result, "seen", remedy="do this")).endswith("; do this")


@pytest.mark.parametrize("name", ["", "hosts", "ssh://", "adb:", "emulated:", "emulated", "usb"])
def test_an_unknown_device_string_lists_the_known_ones(name: str) -> None:
    with pytest.raises(
        UsageError, match=r"give one of host, ssh://\[user@\]host\[:port\], adb\[:SERIAL\], emulated"
    ):
        connect(name)


def test_an_unknown_core_lists_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match="'cortex-m4' is unknown; give one of cortex-a53, cortex-a72, cortex-a76"
    ):
        connect("emulated:cortex-m4")


def test_device_strings_lead_to_their_backends() -> None:
    assert isinstance(connect("host"), host.HostDevice)
    assert connect("emulated:cortex-a72") == emulated.EmulatedDevice(core="cortex-a72")
    assert default_spec("host") == BenchSpec()
    assert default_spec("emulated:cortex-a53").processes == 2
