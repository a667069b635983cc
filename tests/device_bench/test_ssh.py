"""What the ssh backend decides without a connection."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import pytest

from device_bench.device import (
    BenchSpec,
    DeviceInfo,
    DeviceState,
    Measurement,
    ModelInfo,
    RuntimeInfo,
    connect,
)
from device_bench.ssh import doubts, fastest_cpus, wheel_advice
from device_bench.ssh_link import REMOTE, Target, printable, target
from pipeline.artifacts import UsageError

DEVICE = DeviceInfo(kind="ssh", name="ssh://board", cores=4, word_bits=64, machine="aarch64")


def measured(**before: object) -> Measurement:
    state = DeviceState(utc="2026-01-01T00:00:00+00:00")
    return Measurement(
        model=ModelInfo(name="m.tflite", sha256="0" * 64, size_bytes=1),
        device=DEVICE,
        runtime=RuntimeInfo(name="ai-edge-litert"),
        spec=BenchSpec(),
        before=replace(state, **before),  # type: ignore[arg-type]  # the test's own words
        after=state,
    )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ssh://pi@raspberrypi", ["-l", "pi", "--", "raspberrypi"]),
        ("ssh://raspberrypi.local:2222/", ["-p", "2222", "--", "raspberrypi.local"]),
        ("ssh://my.user+x@[fe80::1]:22", ["-l", "my.user+x", "-p", "22", "--", "fe80::1"]),
        ("ssh://board_2", ["--", "board_2"]),
    ],
)
def test_an_address_becomes_words_for_ssh(name: str, arguments: list[str]) -> None:
    assert target(name).arguments == arguments


@pytest.mark.parametrize(
    "name",
    [
        "ssh://-oProxyCommand=touch pwned",
        "ssh://-oProxyCommand=x@host",
        "ssh://host -oProxyCommand=x",
        "ssh://$(touch pwned)@host",
        "ssh://host;touch pwned",
        "ssh://host\n",
        "ssh://höst",
        "ssh://host:0",
        "ssh://host:65536",
        "ssh://host/folder",
        "ssh://user@",
    ],
)
def test_what_is_no_address_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"ssh://\[user@\]host\[:port\]"):
        connect(name)


def test_the_login_command_is_one_to_type() -> None:
    assert Target("board", "pi", 2222).login == "ssh -l pi -p 2222 board"


def test_the_remote_script_is_valid_shell_without_its_comments() -> None:
    assert re.search(r"^\s*#", REMOTE, re.MULTILINE) is None
    checked = subprocess.run(["sh", "-n", "-c", REMOTE], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_fastest_cores_are_taken_and_equal_ones_from_the_end() -> None:
    big_little = replace(DEVICE, max_frequencies_khz=(2400000, 1800000, 2400000, 1800000))
    assert fastest_cpus(big_little, 2) == (0, 2)
    assert fastest_cpus(big_little, 3) == (0, 2, 3)
    assert fastest_cpus(DEVICE, 1) == (3,)
    with pytest.raises(UsageError, match="5 threads asked for, ssh://board has 4 CPUs"):
        fastest_cpus(DEVICE, 5)


@pytest.mark.parametrize(
    ("word_bits", "python", "advice"),
    [
        (64, "3.11.2", "pip install ai-edge-litert"),
        (64, "3.9.2", "pip install ai-edge-litert==1.4.0"),
        (32, "3.11.2", "pip install tflite-runtime==2.14.0 'numpy<2'"),
        (32, "3.9.2", "pip install tflite-runtime==2.13.0 'numpy<2'"),
        (32, "3.13.5", "no TFLite runtime is published for Python 3.13 on 32 bits: use a 64-bit system"),
    ],
)
def test_the_advice_names_a_wheel_that_exists(word_bits: int, python: str, advice: str) -> None:
    device = replace(DEVICE, word_bits=word_bits)
    assert wheel_advice(f"Python {python}: ai-edge-litert: ImportError", device).endswith(advice)


def test_heat_counts_only_where_no_firmware_tells_of_throttling() -> None:
    hot = {"thermal_zone0 cpu-thermal": 81.0, "thermal_zone1 battery": 90.0}
    assert doubts(measured(temperatures_c={"thermal_zone0 cpu-thermal": 79.9})) == ()
    assert doubts(measured(temperatures_c=hot, throttle_flags=0)) == ()
    assert doubts(measured(temperatures_c=hot)) == (
        "thermal_zone0 cpu-thermal at 81 °C before the run; cores slow down from 80 °C on",
    )


def test_an_emulated_python_gives_no_arm_times() -> None:
    taken = measured()
    assert doubts(replace(taken, device=replace(DEVICE, features=("asimd", "fphp")))) == ()
    (doubt,) = doubts(replace(taken, device=replace(DEVICE, features=("avx2", "sse2"))))
    assert doubt.startswith("its Python is aarch64 code emulated by an x86 machine")


def test_a_device_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[31mb\x07\r\nc é") == "a [31mb   c é"
