"""What a machine's own text files say of it: processor, memory, limits. Text in, facts out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Processor:
    """What /proc/cpuinfo says: the distinct cores' names and the SIMD features that all of them have."""

    names: tuple[str, ...]
    features: frozenset[str]


# fmt: off
ARM_CORES = {  # "CPU implementer" and "CPU part": MIDR_EL1 in each core's technical reference manual
    ("0x41", "0xd03"): "Cortex-A53", ("0x41", "0xd04"): "Cortex-A35", ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57", ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75", ("0x41", "0xd0b"): "Cortex-A76", ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77", ("0x41", "0xd40"): "Neoverse-V1", ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd44"): "Cortex-X1",  ("0x41", "0xd46"): "Cortex-A510", ("0x41", "0xd47"): "Cortex-A710",
    ("0x41", "0xd48"): "Cortex-X2",  ("0x41", "0xd49"): "Neoverse-N2", ("0x41", "0xd4d"): "Cortex-A715",
    ("0x41", "0xd4e"): "Cortex-X3",  ("0x41", "0xd4f"): "Neoverse-V2",
}
# fmt: on


def parse_cpuinfo(text: str) -> Processor:
    """The text of /proc/cpuinfo, x86 or ARM; an unknown ARM core keeps its numbers as its name."""
    blocks = [_fields(block) for block in re.split(r"\n\s*\n", text)]
    cores = [block for block in blocks if block.get("flags") or block.get("Features")]
    features = [frozenset((core.get("flags") or core["Features"]).split()) for core in cores]
    names = dict.fromkeys(_core_name(core) for core in cores)
    return Processor(tuple(names), frozenset.intersection(*features) if features else frozenset())


def this_processor() -> str:
    """The distinct cores' names of this machine, which must have a /proc/cpuinfo."""
    return ", ".join(parse_cpuinfo(Path("/proc/cpuinfo").read_text()).names) or "an unknown processor"


def _fields(block: str) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in block.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _core_name(core: dict[str, str]) -> str:
    numbers = (core.get("CPU implementer", "?"), core.get("CPU part", "?"))
    return core.get("model name") or ARM_CORES.get(numbers, f"core {numbers[0]}:{numbers[1]}")


def parse_meminfo(text: str) -> int | None:
    """Bytes of memory still to be had, from the text of /proc/meminfo; None if it does not say."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def parse_cpu_max(text: str) -> float | None:
    """Cores that a control group may use, from the text of its cpu.max; None if there is no limit."""
    quota, _, period = text.strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def has_plugins(qemu_help: str) -> bool:
    """Whether `qemu-aarch64 -help` lists TCG plugins; statically linked builds have none."""
    return re.search(r"^-plugin\s", qemu_help, re.MULTILINE) is not None


class Speed(NamedTuple):
    """What a processor with all these features means for a precision; the first row that fits holds."""

    precision: str
    machine: str
    features: frozenset[str]
    gains: bool
    meaning: str


# fmt: off
SPEEDS = (  # kernels that XNNPACK has; the ratios are its instruction counts for MobileNetV2
    Speed("float16", "aarch64", frozenset({"asimdhp"}), True,
          "half-precision arithmetic (asimdhp): about 1.8 times fewer instructions than float32"),
    Speed("float16", "aarch64", frozenset(), False,
          "no half-precision arithmetic (asimdhp): half the file, the speed of float32"),
    Speed("float16", "x86_64", frozenset({"avx512_fp16"}), True, "half-precision arithmetic (avx512_fp16)"),
    Speed("float16", "x86_64", frozenset(), False,
          "no half-precision arithmetic: half the file, the speed of float32; ARM cores may have it"),
    Speed("int8", "aarch64", frozenset({"i8mm"}), True, "matrix products of bytes (i8mm): the fastest int8"),
    Speed("int8", "aarch64", frozenset({"asimddp"}), True,
          "dot products of bytes (asimddp): about 2.3 times fewer instructions than float32"),
    Speed("int8", "aarch64", frozenset(), False,
          "no dot products of bytes (asimddp): smaller files, hardly fewer instructions than float32"),
    Speed("int8", "x86_64", frozenset({"avx512_vnni"}), True,
          "dot products of bytes, 512 bits at once (avx512_vnni)"),
    Speed("int8", "x86_64", frozenset({"avx_vnni"}), True,
          "dot products of bytes, 256 bits at once (avx_vnni)"),
    Speed("int8", "x86_64", frozenset({"avx2"}), False,
          "no dot products of bytes (avx512_vnni, avx_vnni): int8 is little faster than float32"),
    Speed("int8", "x86_64", frozenset(), False, "no avx2: every precision is slow here"),
)
# fmt: on


def find_speed(precision: str, machine: str, features: frozenset[str]) -> Speed:
    """What `precision` gains over float32 with these `features`; `machine` as platform.machine() names it."""
    for row in SPEEDS:
        if (row.precision, row.machine) == (precision, machine) and row.features <= features:
            return row
    return Speed(precision, machine, features, False, f"nothing is known about {machine} processors")
