"""An Android device's facts and state: the commands that ask for them, and what their text means.

Pure: `adb.py` sends the commands and hands the answers over. What a device answers never becomes a command.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from device_bench.device import DeviceError, DeviceInfo, DeviceState, ResultClass
from pipeline.artifacts import UsageError

Answers = Mapping[str, str]  # by the keys of FACTS or STATE

_CPUS = "/sys/devices/system/cpu/cpu[0-9]*"
_ZONES = "/sys/class/thermal/thermal_zone*"
_COMMANDS = ("sha256sum", "tail", "taskset", "timeout")
FACTS: Mapping[str, str] = {
    "properties": "getprop",
    "kernel": "uname -r",
    "machine": "uname -m",
    "cpuinfo": "cat /proc/cpuinfo",
    "memory": "cat /proc/meminfo",
    "allowed": "cat /proc/self/status",
    "cpus": f"grep -H '' {_CPUS}/cpu_capacity {_CPUS}/cpufreq/cpuinfo_max_freq",
    "present": "cat /sys/devices/system/cpu/present",
    "missing": f"for name in {' '.join(_COMMANDS)}; do command -v $name >/dev/null || echo $name; done",
}
STATE: Mapping[str, str] = {
    "utc": "date -u +%Y-%m-%dT%H:%M:%S+00:00",
    "uptime": "cat /proc/uptime",
    "boot_id": "cat /proc/sys/kernel/random/boot_id",
    "load": "cat /proc/loadavg",
    "cpus": f"grep -H '' {_CPUS}/cpufreq/scaling_[gcm]*",
    "zones": f"grep -H '' {_ZONES}/type {_ZONES}/temp",
    "battery": "timeout 10 dumpsys battery",
    "thermal": "timeout 10 dumpsys thermalservice",
    "low_power": "timeout 10 settings get global low_power",
}


class Cpu(NamedTuple):
    """What tells a big core from a small one. Unknown numbers 0."""

    number: int
    capacity: int  # relative to the fastest core's 1024
    max_frequency_khz: int


def require_commands(answers: Answers) -> None:
    """Raise DeviceError(no-runtime) when the device's shell lacks a command that a run needs."""
    missing = [name for name in _COMMANDS if name in answers["missing"].split()]
    if missing:
        found = f"the device has no {', '.join(missing)}"
        raise DeviceError(ResultClass.NO_RUNTIME, found, remedy="Android 8 or later is needed")


def device_info(answers: Answers, serial: str) -> DeviceInfo:
    """The record of the answers to FACTS."""
    properties = _properties(answers["properties"])
    features = re.search(r"^Features\s*:(.*)$", answers["cpuinfo"], re.M)
    abis = properties.get("ro.product.cpu.abilist") or properties.get("ro.product.cpu.abi", "")
    release, sdk = properties.get("ro.build.version.release", ""), properties.get("ro.build.version.sdk", "")
    memory = re.search(r"MemTotal:\s*(\d+) kB", answers["memory"])
    return DeviceInfo(
        kind="adb",
        name=f"adb:{serial}",
        model=_joined(properties, "ro.product.manufacturer", "ro.product.model"),
        soc=_joined(properties, "ro.soc.manufacturer", "ro.soc.model")
        or properties.get("ro.board.platform", ""),
        machine=_first_line(answers["machine"]),
        cores=len(_cpu_list(answers["present"]))
        or len(re.findall(r"^processor\b", answers["cpuinfo"], re.M)),
        features=tuple(sorted(features[1].split())) if features else (),
        max_frequencies_khz=tuple(cpu.max_frequency_khz for cpu in cpus(answers)),
        memory_bytes=int(memory[1]) * 1024 if memory else 0,
        os=f"Android {release} (SDK {sdk})",
        kernel=_first_line(answers["kernel"]),
        libc="bionic",
        word_bits=(64 if "64" in abis else 32) if abis else 0,
        extra={"abis": abis, "fingerprint": properties.get("ro.build.fingerprint", "")},
    )


def device_state(answers: Answers) -> DeviceState:
    """The record of the answers to STATE."""
    uptime, load = _numbers(answers["uptime"]), _numbers(answers["load"])
    battery = dict(re.findall(r"^\s*([A-Za-z ]+): (\S+)\s*$", answers["battery"], re.M))
    status = re.search(r"Thermal Status: (\d)", answers["thermal"])
    values = _per_cpu(answers["cpus"])
    extra = {
        "battery_percent": battery.get("level", ""),
        "battery_present": battery.get("present", ""),
        "low_power": _first_line(answers["low_power"]),
    }
    return DeviceState(
        utc=_first_line(answers["utc"]),
        uptime_s=uptime[0] if uptime else 0.0,
        boot_id=_first_line(answers["boot_id"]),
        governors=tuple(_column(values, "scaling_governor")),
        frequencies_khz=tuple(map(int, filter(str.isdigit, _column(values, "scaling_cur_freq")))),
        frequency_limits_khz=tuple(map(int, filter(str.isdigit, _column(values, "scaling_max_freq")))),
        temperatures_c=_temperatures(answers, battery),
        thermal_status=int(status[1]) if status else None,
        load_1min=load[0] if load else None,
        extra={name: _clean(value) for name, value in extra.items() if value},
    )


def refuse(state: DeviceState) -> None:
    """Raise DeviceError(invalid) where a measurement would say nothing about the device as it normally is."""
    level = state.extra.get("battery_percent", "")
    has_battery = state.extra.get("battery_present") != "false" and level.isdigit()
    for applies, found, remedy in (
        (state.extra.get("low_power") == "1", "battery saver is on", "switch it off, then measure again"),
        (has_battery and int(level or 0) < 20, f"battery at {level} %", "charge it to 20 % or more"),
        (
            (state.thermal_status or 0) >= 3,
            f"hot: thermal status {state.thermal_status} of 6",
            "let it cool down, then measure again",
        ),
    ):
        if applies:
            raise DeviceError(ResultClass.INVALID, f"not measured, {found}", remedy=remedy)


def doubts(after: DeviceState) -> list[str]:
    """Why one process's samples cannot be trusted, where the states around the whole run may not tell."""
    status = after.thermal_status or 0
    checks = (
        (status > 0, f"thermal status {status} of 6 after a process"),
        (after.extra.get("low_power") == "1", "battery saver came on during the run"),
    )
    return [reason for applies, reason in checks if applies]


def cpus(answers: Answers) -> list[Cpu]:
    """The cores of the answers to FACTS that the kernel tells anything about, by number."""
    values = _per_cpu(answers["cpus"])
    known = sorted({cpu for cpu, _ in values})
    return [
        Cpu(cpu, _int(values.get((cpu, "cpu_capacity"))), _int(values.get((cpu, "cpuinfo_max_freq"))))
        for cpu in known
    ]


def allowed_cpus(answers: Answers) -> list[int]:
    """The cores that a command over adb may use."""
    listed = re.search(r"^Cpus_allowed_list:\s*(\S+)", answers["allowed"], re.M)
    return _cpu_list(listed[1]) if listed else _cpu_list(answers["present"])


def big_cpus(answers: Answers, threads: int) -> tuple[int, ...]:
    """The `threads` fastest of the usable cores, by capacity, maximal frequency, number.

    Raises UsageError when there are fewer.
    """
    allowed, known = allowed_cpus(answers), {cpu.number: cpu for cpu in cpus(answers)}
    if threads > len(allowed):
        raise UsageError(
            f"{threads} threads asked for, the device lets {len(allowed)} CPUs be used; "
            "give --threads up to that"
        )
    ranked = sorted(
        (known.get(number, Cpu(number, 0, 0)) for number in allowed),
        key=lambda cpu: (cpu.capacity, cpu.max_frequency_khz, cpu.number),
    )
    return tuple(sorted(cpu.number for cpu in ranked[-threads:]))


def mask_of(affinity: Iterable[int]) -> str:
    """The hexadecimal mask, without 0x, that toybox taskset takes."""
    return f"{sum(1 << cpu for cpu in affinity):x}"


def cpus_in(mask_text: str) -> tuple[int, ...]:
    """The cores in the answer of `taskset -p`; none where it cannot be read."""
    found = re.search(r"mask:\s*(?:0x)?([0-9a-fA-F]{1,64})\s*$", mask_text)
    mask = int(found[1], 16) if found else 0
    return tuple(cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1)


def abi_of(head: bytes) -> str:
    """The Android ABI of an ELF file by its first 20 bytes; empty where it is none or of another kind."""
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return ""
    return _ABIS.get((head[4], int.from_bytes(head[18:20], "little")), "")


# By EI_CLASS and e_machine.
_ABIS: Mapping[tuple[int, int], str] = {
    (2, 183): "arm64-v8a",
    (1, 40): "armeabi-v7a",
    (2, 62): "x86_64",
    (1, 3): "x86",
    (2, 243): "riscv64",
}


def free_bytes(df_text: str) -> int | None:
    """Bytes available according to `df -k FOLDER`, whose last line may hold a wrapped row."""
    found = re.findall(r"(\d+)\s+\d+%\s+\S+\s*$", df_text)
    return int(found[-1]) * 1024 if found else None


def _properties(text: str) -> dict[str, str]:
    return {name: _clean(value) for name, value in re.findall(r"^\[([^\]]*)\]: \[(.*)\]$", text, re.M)}


def _joined(properties: Mapping[str, str], *names: str) -> str:
    return " ".join(filter(None, (properties.get(name, "") for name in names)))


def _clean(text: str) -> str:
    """One printable line of at most 200 characters: a device may answer terminal commands."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text.strip())[:200]


def _first_line(text: str) -> str:
    return _clean(text.strip().partition("\n")[0])


def _per_cpu(text: str) -> dict[tuple[int, str], str]:
    """`.../cpu4/cpufreq/scaling_governor:walt` as (4, "scaling_governor"): "walt"."""
    rows = re.findall(r"/cpu(\d{1,3})/(?:cpufreq/)?(\w+):(.*)$", text, re.M)
    return {(int(cpu), name): _clean(value) for cpu, name, value in rows}


def _column(values: Mapping[tuple[int, str], str], wanted: str) -> list[str]:
    return [value for (_, name), value in sorted(values.items()) if name == wanted]


def _temperatures(answers: Answers, battery: Mapping[str, str]) -> dict[str, float]:
    """Degrees Celsius by sensor: the thermal service's current ones, else the kernel's zones; the battery."""
    current = (
        answers["thermal"].partition("Current temperatures from HAL:")[2].partition("Current cooling")[0]
    )
    found = {
        _clean(name): float(value)
        for value, name in re.findall(r"mValue=(-?\d{1,4}(?:\.\d+)?), mType=-?\d+, mName=([^,}]+)", current)
    }
    if not found:
        zones = re.findall(r"/(thermal_zone\d+)/(type|temp):(.*)$", answers["zones"], re.M)
        types = {zone: _clean(value) for zone, name, value in zones if name == "type"}
        found = {
            f"{zone} {types.get(zone, '')}".strip(): int(value) / 1000
            for zone, name, value in zones
            if name == "temp" and re.fullmatch(r"-?\d{1,7}", value)
        }
    if re.fullmatch(r"-?\d{1,5}", battery.get("temperature", "")):
        found["battery"] = int(battery["temperature"]) / 10
    return found


def _cpu_list(text: str) -> list[int]:
    """`0-3,6` as numbers; none where it is something else."""
    text = text.strip()
    if not re.fullmatch(r"\d{1,3}(-\d{1,3})?(,\d{1,3}(-\d{1,3})?)*", text):
        return []
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def _numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"(?<!\S)\d{1,12}(?:\.\d+)?(?!\S)", text)]


def _int(text: str | None) -> int:
    return int(text) if text and re.fullmatch(r"\d{1,9}", text) else 0
