"""Saved texts of real machines, and what the parsers make of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import machine

EPYC = """\
processor	: 0
vendor_id	: AuthenticAMD
model		: 17
model name	: AMD EPYC
flags		: fpu sse sse2 fma avx f16c avx2 avx512f avx512bw avx512_vnni

processor	: 1
vendor_id	: AuthenticAMD
model		: 17
model name	: AMD EPYC
flags		: fpu sse sse2 fma avx f16c avx2 avx512f avx512bw avx512_vnni

"""
RASPBERRY_PI_4 = """\
processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd evtstrm crc32 cpuid
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x0
CPU part	: 0xd08
CPU revision	: 3

Revision	: c03112
Serial		: 100000001234abcd
Model		: Raspberry Pi 4 Model B Rev 1.2
"""
RASPBERRY_PI_5 = """\
processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x4
CPU part	: 0xd0b
CPU revision	: 1

Revision	: c04170
Model		: Raspberry Pi 5 Model B Rev 1.0
"""
BIG_LITTLE = """\
processor	: 0
Features	: fp asimd aes crc32 fphp asimdhp asimddp i8mm
CPU implementer	: 0x41
CPU part	: 0xd46

processor	: 1
Features	: fp asimd aes crc32 fphp asimdhp asimddp i8mm bf16
CPU implementer	: 0x41
CPU part	: 0xd47

processor	: 2
Features	: fp asimd aes crc32 fphp asimdhp asimddp i8mm bf16
CPU implementer	: 0x51
CPU part	: 0x001
"""
MEMINFO = "MemTotal:       24552844 kB\nMemFree:         1234567 kB\nMemAvailable:   20971520 kB\n"


@pytest.mark.parametrize(
    ("text", "names", "has", "lacks"),
    [
        (EPYC, ("AMD EPYC",), "avx512_vnni", "avx512_fp16"),
        (RASPBERRY_PI_4, ("Cortex-A72",), "asimd", "asimdhp"),
        (RASPBERRY_PI_5, ("Cortex-A76",), "asimddp", "i8mm"),
        (BIG_LITTLE, ("Cortex-A510", "Cortex-A710", "core 0x51:0x001"), "i8mm", "bf16"),
    ],
)
def test_cpuinfo_names_each_core_once_and_keeps_what_all_have(
    text: str, names: tuple[str, ...], has: str, lacks: str
) -> None:
    processor = machine.parse_cpuinfo(text)
    assert processor.names == names
    assert has in processor.features
    assert lacks not in processor.features


@settings(max_examples=30)
@given(st.text())
def test_cpuinfo_of_any_text_is_a_processor(text: str) -> None:
    assert isinstance(machine.parse_cpuinfo(text), machine.Processor)


def test_empty_cpuinfo_is_an_unknown_processor() -> None:
    assert machine.parse_cpuinfo("") == machine.Processor((), frozenset())


@pytest.mark.parametrize(
    ("precision", "architecture", "text", "gains", "word"),
    [
        ("float16", "aarch64", RASPBERRY_PI_4, False, "speed of float32"),
        ("float16", "aarch64", RASPBERRY_PI_5, True, "asimdhp"),
        ("float16", "x86_64", EPYC, False, "no half-precision"),
        ("int8", "aarch64", RASPBERRY_PI_4, False, "hardly fewer"),
        ("int8", "aarch64", RASPBERRY_PI_5, True, "asimddp"),
        ("int8", "aarch64", BIG_LITTLE, True, "i8mm"),
        ("int8", "x86_64", EPYC, True, "avx512_vnni"),
        ("int8", "riscv64", EPYC, False, "nothing is known about riscv64"),
    ],
)
def test_speed_follows_from_the_features(
    precision: str, architecture: str, text: str, gains: bool, word: str
) -> None:
    speed = machine.find_speed(precision, architecture, machine.parse_cpuinfo(text).features)
    assert speed.gains is gains
    assert word in speed.meaning


@pytest.mark.parametrize(("text", "expected"), [(MEMINFO, 20 << 30), ("MemTotal: 1 kB\n", None), ("", None)])
def test_meminfo_says_what_is_available(text: str, expected: int | None) -> None:
    assert machine.parse_meminfo(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000\n", None), ("150000 100000\n", 1.5), ("", None), ("nonsense", None)]
)
def test_cpu_max_is_cores(text: str, expected: float | None) -> None:
    assert machine.parse_cpu_max(text) == expected


DYNAMIC_QEMU = """\
usage: qemu-aarch64 [options] program [arguments...]
Argument             Env-variable      Description
-cpu model           QEMU_CPU          select CPU (-cpu help for list)
-plugin              QEMU_PLUGIN       [file=]<file>[,<argname>=<argvalue>]
-version             QEMU_VERSION      display version information and exit
"""


def test_plugins_are_an_option_of_the_dynamic_build() -> None:
    assert machine.has_plugins(DYNAMIC_QEMU)
    assert not machine.has_plugins(
        "".join(line for line in DYNAMIC_QEMU.splitlines(True) if "plugin" not in line)
    )
