"""Runs a .tflite file on the device it was sent to. Needs Python >= 3.8, numpy and a TFLite runtime.

`python3 - REQUEST < runner.py`, where REQUEST is URL-safe base64 of a JSON object, so that no shell can take
any of it for its own. The answer is one line `@@NONCE {json}@@` on standard output; all else there is noise.
Actions: `facts`, `probe`, `time`, `count` (invokes only, for an instruction counter around it), `outputs`.
"""

from __future__ import annotations

import base64
import errno
import gc
import glob
import hashlib
import importlib
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import time
import zlib
from typing import Any

RUNTIMES = {"ai-edge-litert": "ai_edge_litert.interpreter", "tflite-runtime": "tflite_runtime.interpreter"}
# A 1x1 convolution with bias and ReLU6, float32 [1, 2, 2, 1]; zlib, base64.
TINY_MODEL = (
    "eNqTYGBgCHHzMWZg4GMQYRBg4GHgAIqwAHkMQB4DQw4Q32BkYGBmgOAIIFYAq2BgePf//38WKBsC2IC6WYAkREwFiEX+n7U5U3Bj"
    "z3QNZjufe6ttGDNv7/0rPcV2SnurXdA3R7t/8gL7WBhYwOoZoXbywF3CAiQR7igA4hKoOhGwfXxgGqSWG+pmGYhDGEF2a4DNgpjI"
    "wcAONgvkDUaoGYwMCH8xQPlMSOKMUHGQ21YAcQYQm0D5JUC/c0DdBvJvfmlJQWkJA9wfTEhm3QGq5YHyBaD6kzITixmQ3MED9gUD"
    "3M88SOHBDsTlqZnpGSXFcPOZkdzIA401BqhemLtYgTgzD+wsrO5ChLcAAz+S3UhhwgwAUucvjg=="
)


class Failure(Exception):
    """Ends the run with one of the harness's result classes."""

    def __init__(self, result: str, found: str) -> None:
        """`found`: what was seen."""
        super().__init__(found)
        self.result = result
        self.found = found


# --- the device's facts --------------------------------------------------------------------------------


def read(path: str) -> str:
    """The text of a /proc or /sys file without blanks and NULs at its end; empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8", "replace").strip().strip("\0")
    except OSError:
        return ""


def cpu_words() -> dict[str, str]:
    """The first value of every key in /proc/cpuinfo."""
    words: dict[str, str] = {}
    for line in read("/proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            words.setdefault(key.strip(), value.strip())
    return words


def per_core(name: str) -> list[str]:
    """One cpufreq value per core, in the order of the cores; empty where the kernel has none."""
    folders = glob.glob("/sys/devices/system/cpu/cpu[0-9]*")
    folders.sort(key=lambda folder: int(folder.rpartition("cpu")[2]))
    values = [read(os.path.join(folder, "cpufreq", name)) for folder in folders]
    return [value for value in values if value]


def os_name() -> str:
    """PRETTY_NAME of os-release."""
    for line in read("/etc/os-release").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def memory_bytes() -> int:
    """Physical memory."""
    for line in read("/proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def device_facts() -> dict[str, Any]:
    """What the device is: the fields of the harness's DeviceInfo."""
    cpu = cpu_words()
    compatible = read("/proc/device-tree/compatible").split("\0")
    return {
        "model": read("/proc/device-tree/model") or cpu.get("model name", "") or cpu.get("Model", ""),
        "soc": compatible[-1],
        "machine": platform.machine(),
        "cores": os.cpu_count() or 0,
        "features": sorted((cpu.get("Features") or cpu.get("flags") or "").split()),
        "max_frequencies_khz": [int(value) for value in per_core("cpuinfo_max_freq")],
        "memory_bytes": memory_bytes(),
        "os": os_name(),
        "kernel": platform.release(),
        "libc": "-".join(platform.libc_ver()).strip("-"),
        "word_bits": struct.calcsize("P") * 8,
    }


def vcgencmd(*arguments: str) -> str:
    """What Raspberry Pi's firmware tool answers after `=`; empty where there is none."""
    tool = shutil.which("vcgencmd")
    if tool is None:
        return ""
    try:
        done = subprocess.run([tool, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace").strip().partition("=")[2] if done.returncode == 0 else ""


def temperatures() -> dict[str, float]:
    """Degrees Celsius by sensor."""
    found = {}
    for zone in sorted(glob.glob("/sys/class/thermal/thermal_zone*")):
        text = read(os.path.join(zone, "temp"))
        if text.lstrip("-").isdigit():
            found[os.path.basename(zone) + " " + read(os.path.join(zone, "type"))] = int(text) / 1000
    firmware = vcgencmd("measure_temp").partition("'")[0]
    try:
        found["vcgencmd"] = float(firmware)
    except ValueError:
        pass
    return found


def device_state() -> dict[str, Any]:
    """What may change during a run: the fields of the harness's DeviceState."""
    flags, uptime = vcgencmd("get_throttled"), read("/proc/uptime").split()
    load, clock = read("/proc/loadavg").split(), vcgencmd("measure_clock", "arm")
    return {
        "utc": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "uptime_s": float(uptime[0]) if uptime else 0.0,
        "boot_id": read("/proc/sys/kernel/random/boot_id"),
        "governors": per_core("scaling_governor"),
        "frequencies_khz": [int(value) for value in per_core("scaling_cur_freq")],
        "frequency_limits_khz": [int(value) for value in per_core("scaling_max_freq")],
        "temperatures_c": temperatures(),
        "throttle_flags": int(flags, 16) if flags.startswith("0x") else None,
        "load_1min": float(load[0]) if load else None,
        "extra": {"arm_clock_hz": clock} if clock else {},
    }


# --- the runtime ---------------------------------------------------------------------------------------


def probe(request: dict[str, Any]) -> tuple[str, Any, int]:
    """The first runtime that really loads and runs a model: (name, interpreter class, import time in ns)."""
    tiny = zlib.decompress(base64.b64decode(TINY_MODEL))
    reasons = []
    for name in [request["runtime"]] if request["runtime"] else list(RUNTIMES):
        start = time.perf_counter_ns()
        try:
            interpreter_class = importlib.import_module(RUNTIMES[name]).Interpreter
            took = time.perf_counter_ns() - start
            interpreter = interpreter_class(model_content=tiny, num_threads=1)
            interpreter.allocate_tensors()
            interpreter.invoke()
        # tflite-runtime under numpy 2 imports well and raises SystemError here.
        except (ImportError, SystemError, AttributeError, RuntimeError, ValueError, OSError) as error:
            reasons.append(f"{name}: {type(error).__name__}: {error}")
            continue
        return name, interpreter_class, took
    tried = "; ".join(reasons)
    raise Failure("no-runtime", f"Python {platform.python_version()}: {tried}")


def version_of(name: str) -> str:
    """The installed version of a distribution."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def runtime_facts(name: str) -> dict[str, Any]:
    """The fields of the harness's RuntimeInfo."""
    import numpy

    python, version = platform.python_version(), version_of(name)
    return {"name": name, "version": version, "python": python, "numpy": numpy.__version__}


def read_model(request: dict[str, Any]) -> bytes:
    """The model's bytes. What arrived must be what was sent, by its hash."""
    try:
        with open(request["model"], "rb") as file:
            content = file.read()
    except OSError as error:
        raise Failure("transport-lost", f"the model is not on the device: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != request["sha256"]:
        sent = request["sha256"]
        raise Failure("transport-lost", f"sent model {sent}, found {digest}")
    return content


def load(interpreter_class: Any, content: bytes, threads: int) -> tuple[Any, int]:
    """An interpreter with allocated tensors, and what that took in ns."""
    start = time.perf_counter_ns()
    try:
        interpreter = interpreter_class(model_content=content, num_threads=threads)
        refuse_dynamic_shapes(interpreter)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise Failure("model-unsupported", str(error)) from error
    return interpreter, time.perf_counter_ns() - start


def refuse_dynamic_shapes(interpreter: Any) -> None:
    """-1 outside the batch allocates as 1 and gives absurdly fast runs in silence."""
    for tensor in interpreter.get_input_details():
        signature = [int(size) for size in tensor["shape_signature"]]
        if -1 in signature[1:]:
            name = tensor["name"]
            raise Failure(
                "model-unsupported", f"input {name!r} has shape {signature}; only the batch may be -1"
            )


def tensor_facts(details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fields of the harness's TensorInfo, with the shape that is really run."""
    import numpy

    return [
        {
            "name": tensor["name"],
            "dtype": numpy.dtype(tensor["dtype"]).name,
            "shape": [int(size) for size in tensor["shape"]],
        }
        for tensor in details
    ]


def set_random_inputs(interpreter: Any, seed: int) -> None:
    """Floats in [-1, 1), integers over the whole range of an 8-bit type, from a seeded generator."""
    import numpy

    rng = numpy.random.default_rng(seed)
    for tensor in interpreter.get_input_details():
        kind, shape = numpy.dtype(tensor["dtype"]), tensor["shape"]
        if kind.kind == "f":
            values = rng.uniform(-1, 1, shape).astype(kind)
        elif kind.itemsize == 1 and kind.kind in "iu":
            limits = numpy.iinfo(kind)
            values = rng.integers(limits.min, limits.max + 1, shape).astype(kind)
        else:
            name = tensor["name"]
            raise Failure("model-unsupported", f"input {name!r} is {kind}, neither float nor 8-bit")
        interpreter.set_tensor(tensor["index"], values)


def delegated(interpreter: Any) -> str:
    """`64 of 65 nodes, 1 partitions` run inside a delegate; empty where the runtime does not list its nodes.

    A partition holds what is reached backwards from its outputs without crossing its inputs.
    """
    if not hasattr(interpreter, "_get_ops_details"):
        return ""
    nodes = interpreter._get_ops_details()
    partitions = [node for node in nodes if node["op_name"] == "DELEGATE"]
    plain = [node for node in nodes if node["op_name"] != "DELEGATE"]
    makers = {int(tensor): place for place, node in enumerate(plain) for tensor in node["outputs"]}
    inside = set()
    for partition in partitions:
        borders = {int(tensor) for tensor in partition["inputs"]}
        pending = [int(tensor) for tensor in partition["outputs"]]
        while pending:
            place = makers.get(pending.pop())
            if place is not None and place not in inside:
                inside.add(place)
                pending += [int(tensor) for tensor in plain[place]["inputs"] if int(tensor) not in borders]
    return f"{len(inside)} of {len(plain)} nodes, {len(partitions)} partitions"


# --- the actions ---------------------------------------------------------------------------------------


def timed(interpreter: Any) -> int:
    """One invoke, ns."""
    start = time.perf_counter_ns()
    interpreter.invoke()
    return time.perf_counter_ns() - start


def median(samples: list[int]) -> int:
    """The middle one, the upper of the two of an even number."""
    return sorted(samples)[len(samples) // 2]


def steady(samples: list[int], rule: dict[str, Any]) -> bool:
    """Whether the medians of the last two windows differ by less than the tolerance."""
    window = rule["window"]
    if len(samples) < 2 * window:
        return False
    before, last = median(samples[-2 * window : -window]), median(samples[-window:])
    return bool(abs(last - before) < rule["tolerance"] * before)


def warm_up(interpreter: Any, rule: dict[str, Any]) -> tuple[list[int], bool]:
    """Invokes by the warm-up rule: (their ns in order, whether the pace was steady at the end)."""
    samples: list[int] = []
    start = time.monotonic()
    while len(samples) < rule["runs"] or time.monotonic() - start < rule["seconds"]:
        samples.append(timed(interpreter))
    last = len(samples) + rule["max_runs"]
    while not steady(samples, rule):
        if len(samples) >= last or time.monotonic() - start >= rule["max_seconds"]:
            return samples, False
        samples.append(timed(interpreter))
    return samples, True


def sample(interpreter: Any, request: dict[str, Any]) -> list[int]:
    """Timed invokes until there are `runs` and `seconds`, or `max_seconds` are over."""
    samples: list[int] = []
    start, elapsed = time.monotonic(), 0.0
    while elapsed < request["max_seconds"] and (
        len(samples) < request["runs"] or elapsed < request["seconds"]
    ):
        samples.append(timed(interpreter))
        elapsed = time.monotonic() - start
    return samples


def pin(cpus: list[int]) -> list[int]:
    """Keep this process on these CPUs (all of them when empty); the CPUs it really has."""
    if cpus:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError as error:
            raise Failure("invalid", f"cannot run on CPUs {cpus}: {error.strerror}") from error
    return sorted(os.sched_getaffinity(0))


def facts(request: dict[str, Any]) -> dict[str, Any]:
    """Device facts and state; needs no runtime."""
    return {"device": device_facts(), "before": device_state()}


def working_runtime(request: dict[str, Any]) -> dict[str, Any]:
    """Device facts and which runtime works."""
    name, _, _ = probe(request)
    return {"device": device_facts(), "runtime": runtime_facts(name)}


def loaded(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What the model actions share: an interpreter at rest and the answer so far."""
    name, interpreter_class, import_ns = probe(request)
    content = read_model(request)
    interpreter, init_ns = load(interpreter_class, content, request["threads"])
    model = {
        "sha256": request["sha256"],
        "size_bytes": len(content),
        "inputs": tensor_facts(interpreter.get_input_details()),
        "outputs": tensor_facts(interpreter.get_output_details()),
    }
    process = {"import_ns": import_ns, "init_ns": init_ns}
    return interpreter, {"runtime": runtime_facts(name), "model": model, "process": process}


def time_model(request: dict[str, Any]) -> dict[str, Any]:
    """Raw samples of this process."""
    affinity, before = pin(request["affinity"]), device_state()
    interpreter, answer = loaded(request)
    set_random_inputs(interpreter, request["seed"])
    gc.disable()
    first_ns = timed(interpreter)
    warm_up_ns, is_steady = warm_up(interpreter, request["warm_up"])
    samples_ns = sample(interpreter, request)
    gc.enable()
    answer["process"].update(
        samples_ns=samples_ns, warm_up_ns=warm_up_ns, steady=is_steady, first_ns=first_ns, affinity=affinity
    )
    after, nodes = device_state(), delegated(interpreter)
    after["extra"].update({"delegated": nodes} if nodes else {})
    return dict(answer, device=device_facts(), before=before, after=after)


def count(request: dict[str, Any]) -> dict[str, Any]:
    """A fixed number of invokes and nothing else that depends on it."""
    interpreter, answer = loaded(request)
    set_random_inputs(interpreter, request["seed"])
    gc.disable()
    for _ in range(request["invokes"]):
        interpreter.invoke()
    return answer


def write_outputs(request: dict[str, Any]) -> dict[str, Any]:
    """The first output for every row of an .npy file of inputs, as rows of another .npy file."""
    import numpy

    interpreter, answer = loaded(request)
    (entry,), exit_ = interpreter.get_input_details(), interpreter.get_output_details()[0]
    rows = numpy.load(request["inputs"], allow_pickle=False)
    shape, kind = tuple(int(size) for size in entry["shape"]), numpy.dtype(entry["dtype"])
    if rows.shape[1:] != shape[1:] or rows.dtype != kind:
        raise Failure(
            "model-unsupported", f"inputs are {rows.dtype} {rows.shape}, the model takes {kind} {shape}"
        )
    collected = []
    for row in rows:
        interpreter.set_tensor(entry["index"], row[numpy.newaxis])
        interpreter.invoke()
        collected.append(interpreter.get_tensor(exit_["index"])[0])
    with open(request["result"], "wb") as file:
        numpy.save(file, numpy.stack(collected), allow_pickle=False)
    return answer


ACTIONS = {
    "facts": facts,
    "probe": working_runtime,
    "time": time_model,
    "count": count,
    "outputs": write_outputs,
}


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    """The answer of the asked action, or the failure that ended it."""
    try:
        return dict(ACTIONS[request["action"]](request), result="ok")
    except Failure as failure:
        return {"result": failure.result, "found": failure.found}
    except MemoryError:
        return {"result": "crashed", "found": "out of memory"}
    except RuntimeError as error:  # what a runtime raises when an invoke fails
        return {"result": "model-unsupported", "found": str(error)}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return {"result": "no-space" if full else "crashed", "found": str(error)}


def main() -> int:
    """Answer the request in the first argument; exit code 0 when the result is ok, else 3."""
    request = json.loads(base64.urlsafe_b64decode(sys.argv[1]))
    answer = answer_to(request)
    # The leading line end keeps the frame at the start of a line whatever was printed before.
    nonce, text = request["nonce"], json.dumps(answer)
    sys.stdout.write(f"\n@@{nonce} {text}@@\n")
    sys.stdout.flush()
    return 0 if answer["result"] == "ok" else 3


if __name__ == "__main__":
    sys.exit(main())
