"""What the programs and the device print, read without any device."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_bench import android
from device_bench.benchmark_model import Report, arguments, failure, report, tool_in
from device_bench.device import BenchSpec, DeviceError, ResultClass, WarmUp
from device_bench.model_file import describe
from pipeline.artifacts import UsageError
from tests.device_bench.tiny_models import conv_model, int8_conv_model

DATA = Path(__file__).with_name("data")


def text(name: str) -> str:
    return (DATA / name).read_text()


# --- benchmark_model -----------------------------------------------------------------------------------

REPORTS = {
    "tflite_xnnpack.txt": Report(
        runs=99,
        inference_ns=10_062_000,
        statistic="median",
        init_ns=21_437_000,
        first_ns=13_817_000,
        delegated="65 of 67 nodes, 2 partitions",
    ),
    "tflite_slow.txt": Report(
        runs=50, inference_ns=1_239_807_000, statistic="median", init_ns=5_579_000, first_ns=1_357_602_000
    ),
    "tflite_2020.txt": Report(
        runs=50, inference_ns=33_209_400, statistic="mean", init_ns=855_000, first_ns=49_060_000
    ),
    "litert.txt": Report(
        runs=50, inference_ns=7_642_000, statistic="median", init_ns=21_440_000, first_ns=13_820_000
    ),
    "litert_listing.txt": Report(
        runs=50, inference_ns=7_650_000, statistic="mean", init_ns=21_440_000, first_ns=13_820_000
    ),
}


@pytest.mark.parametrize("name", REPORTS)
def test_both_programs_texts_are_read(name: str) -> None:
    assert report(text(name)) == REPORTS[name]


def counted(line: str) -> str:
    return f"count=3 first=9 curr=9 min=8 max=9 avg=9 std=0\n\n{line}\n"


@pytest.mark.parametrize(
    ("line", "runs", "inference_ns"),
    [
        ("INFO: count=50 curr=17(all same)", 50, 17_000),
        ("count=1 curr=3512391 p5=3512391 median=3512391 p95=3512391", 1, 3_512_391_000),
        ("count=9 first=2e+06 curr=2e+06 min=2 max=3 avg=1.24027e+06 std=3", 9, 1_240_270_000),
        ("count=9 first=1 curr=1 min=1 max=3 avg=1.5 std=3 p5=1 median=2.5E+01 p95=3", 9, 25_000),
    ],
)
def test_short_and_large_figures_are_read(line: str, runs: int, inference_ns: int) -> None:
    found = report(counted(line))
    assert (found.runs, found.inference_ns) == (runs, inference_ns)


@pytest.mark.parametrize(
    "line",
    [
        "count=0",
        "count=50 first=1 curr=1 min=1 max=1 avg=nan std=0",
        "count=50 avg=inf",
        "count=50 avg=-3",
        "",
    ],
)
def test_a_text_without_a_usable_time_is_a_parse_error(line: str) -> None:
    with pytest.raises(DeviceError) as caught:
        report(counted(line))
    assert caught.value.result is ResultClass.PARSE_ERROR


def test_the_warm_up_is_never_taken_for_the_measurement() -> None:
    warm_up_only = text("tflite_xnnpack.txt").partition("Running benchmark for at least 50")[0]
    with pytest.raises(DeviceError, match="no inference time"):
        report(warm_up_only)


def test_an_ignored_flag_is_refused_by_name() -> None:
    ignored = "WARN: Unconsumed cmdline flags: --use_xnnpack=true\n" + text("tflite_xnnpack.txt")
    with pytest.raises(DeviceError, match="ignores --use_xnnpack=true") as caught:
        report(ignored)
    assert caught.value.result is ResultClass.NO_RUNTIME


@pytest.mark.parametrize(
    ("code", "printed", "result", "found"),
    [
        (139, "", ResultClass.CRASHED, "SIGSEGV"),
        (132, "", ResultClass.CRASHED, "built for this CPU"),
        (137, "", ResultClass.CRASHED, "free memory"),
        (134, "", ResultClass.CRASHED, "SIGABRT"),
        (255, "", ResultClass.CRASHED, "exit code 255"),
        (124, "Loaded model m", ResultClass.TIMEOUT, "Loaded model m"),
        (126, "sh: ./b: not executable: 64-bit ELF file", ResultClass.NO_RUNTIME, "64-bit ELF"),
        (127, "", ResultClass.NO_RUNTIME, "nothing printed"),
        (1, 'CANNOT LINK EXECUTABLE "./b": library "libx.so" not found', ResultClass.NO_RUNTIME, "libx.so"),
        (1, text("bad_model.txt"), ResultClass.MODEL_UNSUPPORTED, "CONV_2D"),
        (1, "ERROR: Benchmarking failed.", ResultClass.MODEL_UNSUPPORTED, "Benchmarking failed"),
        (1, "ERROR: write: No space left on device", ResultClass.NO_SPACE, "No space"),
        (1, "taskset: failed to set pid 7's affinity: Invalid argument", ResultClass.INVALID, "affinity"),
        (3, "what", ResultClass.CRASHED, "exit code 3: what"),
    ],
)
def test_every_end_has_its_class(code: int, printed: str, result: ResultClass, found: str) -> None:
    error = failure(code, printed)
    assert error.result is result
    assert found in str(error)


def test_the_flags_fit_the_program() -> None:
    spec = BenchSpec(threads=4, runs=20, seconds=0.5, max_seconds=9, warm_up=WarmUp(runs=3, seconds=0.25))
    shared = ["--graph=m", "--num_threads=4", "--num_runs=20", "--min_secs=0.500", "--max_secs=9.000"]
    shared += ["--warmup_runs=3", "--warmup_min_secs=0.250"]
    for name, own in (("tflite", "--use_xnnpack=true"), ("litert", "--use_cpu=true")):
        tool = tool_in(text(f"{name}_help.txt"))
        assert tool.name == name
        assert sorted(arguments(tool, "m", spec)) == sorted([*shared, own])


def test_another_program_is_told_from_benchmark_model() -> None:
    with pytest.raises(DeviceError, match="usage: nothing") as caught:
        tool_in("usage: nothing")
    assert caught.value.result is ResultClass.NO_RUNTIME


@given(st.text())
def test_no_text_breaks_the_parser(printed: str) -> None:
    try:
        assert report(counted(printed)).inference_ns >= 0
    except DeviceError as error:
        assert error.result in (ResultClass.PARSE_ERROR, ResultClass.NO_RUNTIME)


# --- Android -------------------------------------------------------------------------------------------

CAPACITIES = (160, 160, 160, 160, 850, 850, 850, 1024)
ROOT = "/sys/devices/system/cpu"


def facts(**changed: str) -> dict[str, str]:
    answers = {
        "properties": text("getprop.txt"),
        "kernel": "4.19.278",
        "machine": "aarch64",
        "cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp asimdhp\n\nprocessor\t: 1\nFeatures\t: fp\n",
        "memory": "MemTotal:        7655728 kB\nMemFree: 1 kB\n",
        "allowed": "Name:\tgrep\nCpus_allowed:\tff\nCpus_allowed_list:\t0-7\n",
        "cpus": "\n".join(
            f"{ROOT}/cpu{cpu}/cpu_capacity:{capacity}\n{ROOT}/cpu{cpu}/cpufreq/cpuinfo_max_freq:{capacity}000"
            for cpu, capacity in enumerate(CAPACITIES)
        ),
        "present": "0-7",
        "missing": "",
    }
    return {**answers, **changed}


def state(**changed: str) -> dict[str, str]:
    answers = {
        "utc": "2026-09-20T10:00:00+00:00",
        "uptime": "1000.25 7000.00",
        "boot_id": "1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        "load": "1.50 1.2 1.1 2/900 4711",
        "cpus": f"{ROOT}/cpu0/cpufreq/scaling_governor:schedutil\n"
        f"{ROOT}/cpu0/cpufreq/scaling_max_freq:1804800\n{ROOT}/cpu0/cpufreq/scaling_cur_freq:1209600",
        "zones": "/sys/class/thermal/thermal_zone3/type:cpu\n/sys/class/thermal/thermal_zone3/temp:41500",
        "battery": text("battery.txt"),
        "thermal": text("thermalservice.txt"),
        "low_power": "0",
    }
    return {**answers, **changed}


def test_the_facts_of_a_phone() -> None:
    info = android.device_info(facts(), "SER")
    assert (info.kind, info.name, info.model, info.soc) == ("adb", "adb:SER", "Google Pixel 5", "QTI SM7250")
    assert (info.machine, info.cores, info.word_bits) == ("aarch64", 8, 64)
    assert info.features == ("asimd", "asimddp", "asimdhp", "fp")
    assert info.max_frequencies_khz == tuple(1000 * capacity for capacity in CAPACITIES)
    assert info.memory_bytes == 7655728 * 1024
    assert (info.os, info.kernel) == ("Android 13 (SDK 33)", "4.19.278")


def test_the_state_of_a_phone() -> None:
    found = android.device_state(state())
    assert (found.uptime_s, found.load_1min, found.thermal_status) == (1000.25, 1.5, 0)
    assert found.temperatures_c == {"CPU0": 35.3, "skin": 31.084, "battery": 28.5}
    assert (found.governors, found.frequencies_khz) == (("schedutil",), (1209600,))
    assert found.frequency_limits_khz == (1804800,)
    android.refuse(found)
    assert android.doubts(found) == []


def test_zones_stand_in_for_a_missing_thermal_service() -> None:
    found = android.device_state(state(thermal="Can't find service: thermalservice", battery=""))
    assert found.thermal_status is None
    assert found.temperatures_c == {"thermal_zone3 cpu": 41.5}


def test_silence_is_an_unknown_not_an_error() -> None:
    nothing = android.device_state(dict.fromkeys(android.STATE, ""))
    assert (nothing.thermal_status, nothing.load_1min, nothing.temperatures_c) == (None, None, {})
    android.refuse(nothing)
    info = android.device_info(dict.fromkeys(android.FACTS, ""), "S")
    assert (info.cores, info.word_bits, info.model) == (0, 0, "")


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"low_power": "1"}, "battery saver"),
        ({"battery": text("battery.txt").replace("level: 85", "level: 19")}, "battery at 19 %"),
        ({"thermal": "Thermal Status: 3"}, "thermal status 3"),
    ],
)
def test_a_phone_that_is_not_itself_is_refused(changed: Mapping[str, str], found: str) -> None:
    with pytest.raises(DeviceError, match=found) as caught:
        android.refuse(android.device_state(state(**changed)))
    assert caught.value.result is ResultClass.INVALID


def test_a_board_without_battery_is_not_refused() -> None:
    board = text("battery.txt").replace("present: true", "present: false").replace("level: 85", "level: 0")
    android.refuse(android.device_state(state(battery=board)))


def test_a_warm_phone_is_measured_and_doubted() -> None:
    warm = android.device_state(state(thermal="Thermal Status: 2"))
    android.refuse(warm)
    assert android.doubts(warm) == ["thermal status 2 of 6 after a process"]


@pytest.mark.parametrize(
    ("threads", "affinity", "mask"),
    [(1, (7,), "80"), (4, (4, 5, 6, 7), "f0"), (5, (3, 4, 5, 6, 7), "f8"), (8, tuple(range(8)), "ff")],
)
def test_threads_go_to_the_big_cores(threads: int, affinity: tuple[int, ...], mask: str) -> None:
    assert android.big_cpus(facts(), threads) == affinity
    assert android.mask_of(affinity) == mask
    assert android.cpus_in(f"pid 77's current affinity mask: {mask}") == affinity


def test_frequency_tells_cores_apart_where_capacity_is_unknown() -> None:
    frequencies = "\n".join(
        f"{ROOT}/cpu{cpu}/cpufreq/cpuinfo_max_freq:{khz}"
        for cpu, khz in ((0, 2_000_000), (1, 2_400_000), (2, 1_800_000), (10, 1_800_000))
    )
    allowed = "Cpus_allowed_list:\t0-2,10"
    assert android.big_cpus(facts(cpus=frequencies, allowed=allowed), 3) == (0, 1, 10)


def test_cores_outside_the_cpuset_are_not_taken() -> None:
    narrow = facts(allowed="Cpus_allowed_list:\t0-3\n")
    assert android.big_cpus(narrow, 2) == (2, 3)
    with pytest.raises(UsageError, match="5 threads asked for, the device lets 4"):
        android.big_cpus(narrow, 5)


@pytest.mark.parametrize(
    ("printed", "free"),
    [
        ("Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/dm-5 100 40 60 40% /data", 61440),
        (
            "Filesystem  1K-blocks Used Available Use% Mounted on\n/dev/block/long-name\n 9 4 5 45% /data\n",
            5120,
        ),
        ("df: /data: Permission denied", None),
        ("", None),
    ],
)
def test_free_space(printed: str, free: int | None) -> None:
    assert android.free_bytes(printed) == free


def test_a_shell_without_the_needed_commands_is_named() -> None:
    android.require_commands(facts())
    with pytest.raises(DeviceError, match="has no sha256sum, timeout; Android 8") as caught:
        android.require_commands(facts(missing="sha256sum\ntimeout\n"))
    assert caught.value.result is ResultClass.NO_RUNTIME


@pytest.mark.parametrize(
    ("head", "abi"),
    [
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\xb7\x00", "arm64-v8a"),
        (b"\x7fELF\x01\x01\x01" + bytes(9) + b"\x03\x00\x28\x00", "armeabi-v7a"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00", "x86_64"),
        (b"#!/bin/sh\n" + bytes(10), ""),
        (b"\x7fELF", ""),
    ],
)
def test_the_abi_of_a_binary(head: bytes, abi: str) -> None:
    assert android.abi_of(head) == abi


def test_terminal_commands_in_an_answer_are_disarmed() -> None:
    hostile = "[ro.product.model]: [\x1b]0;owned\x07" + "x" * 300 + "]"
    model = android.device_info(facts(properties=hostile), "S").model
    assert model.isprintable() and len(model) == 200


@given(st.dictionaries(st.sampled_from(sorted(android.STATE)), st.text()))
def test_no_answer_breaks_the_state(changed: dict[str, str]) -> None:
    found = android.device_state(state(**changed))
    assert all(abs(value) < 1e5 for value in found.temperatures_c.values())


@given(st.dictionaries(st.sampled_from(sorted(android.FACTS)), st.text()))
def test_no_answer_breaks_the_facts(changed: dict[str, str]) -> None:
    assert android.device_info(facts(**changed), "S").cores < 1000 * 1000


# --- the model's own words -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "dtype"), [(conv_model(6, 4), "float32"), (int8_conv_model(6, 4), "int8")]
)
def test_a_model_is_described(tmp_path: Path, content: bytes, dtype: str) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(content)
    found = describe(path)
    assert (found.size_bytes, found.name) == (len(content), "m.tflite")
    assert [(item.name, item.dtype, item.shape) for item in found.inputs] == [("input", dtype, (1, 6, 6, 4))]
    assert [(item.name, item.dtype, item.shape) for item in found.outputs] == [
        ("output", dtype, (1, 6, 6, 4))
    ]


def test_a_dynamic_shape_is_refused_beyond_the_batch(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(conv_model(6, 4, signature=(-1, 6, 6, 4)))
    describe(path)
    path.write_bytes(conv_model(6, 4, signature=(-1, -1, -1, 4)))
    with pytest.raises(DeviceError, match="only the batch may be -1") as caught:
        describe(path)
    assert caught.value.result is ResultClass.MODEL_UNSUPPORTED


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    path, whole, rng = tmp_path / "m.tflite", conv_model(4, 2), random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(8):
            if len(damaged) > 8:
                damaged[rng.randrange(8, len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            describe(path)
        except DeviceError as error:
            assert error.result is ResultClass.MODEL_UNSUPPORTED
