"""What this machine can and cannot do: `python -m pipeline doctor`.

Every row is a fact found now, by a probe that touches the real thing; a row that is not ok says what it costs
and how to mend it. Nothing here uses the network.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline import environment, machine
from pipeline.artifacts import AlpharhoError, write_bytes

if TYPE_CHECKING:  # the rest is imported where it is probed: a broken package is a row, not a crash
    import numpy as np
    from numpy.typing import NDArray

GIB = 1 << 30
MEMORY_NEEDED = 2 * GIB  # PyTorch, ONNX Runtime and the images of one export
DISK_NEEDED = 1 * GIB  # the files of a few variants, and the data set
TOOL_TIMEOUT_S = 20
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on an ordinary user's PATH


class State(StrEnum):
    """How a row stands: ok, less than it could be, not there (optional), or needed and not working."""

    OK = "ok"
    LIMITED = "limited"
    ABSENT = "absent"
    BROKEN = "BROKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row: what was looked at, how it stands, the fact; if not ok, what that costs and the remedy."""

    topic: str
    state: State = State.OK
    fact: str
    costs: str = ""
    remedy: str = ""


def differences(lock_text: str, installed: Callable[[str], str | None]) -> tuple[int, list[str]]:
    """How many pins of a lock hold here, and a line for each that does not.

    `installed` gives a package's version or None. A package that only some systems need, whose pin
    has a marker, may be absent.
    """
    held, wrong = 0, []
    conditional = {
        environment.normalised(name) for name in re.findall(r"^([\w.-]+)==[^;\n]+;", lock_text, re.M)
    }
    for name, versions in environment.pins(lock_text).items():
        found = installed(name)
        if found in versions:
            held += 1
        elif found is not None or name not in conditional:
            wrong.append(f"{name} is {found or 'missing'} (lock: {' or '.join(versions)})")
    return held, wrong


def probe_python() -> Finding:
    """The Python that runs this, against what the project supports."""
    try:
        environment.check_python(tuple(map(int, platform.python_version_tuple()[:2])))
    except environment.SetupError as error:
        return Finding(
            topic="Python", state=State.BROKEN, fact=str(error), remedy="make setup PYTHON=python3.11"
        )
    return Finding(topic="Python", fact=platform.python_version())


def probe_packages() -> Finding:
    """Installed packages against the pins of both lock files."""
    locks = [environment.ROOT / name for name in (environment.LOCK, environment.TORCH_LOCK)]
    if not all(lock.is_file() for lock in locks):
        return Finding(
            topic="packages",
            state=State.LIMITED,
            fact="no lock file beside this installation to compare with",
        )
    held, wrong = differences("".join(lock.read_text() for lock in locks), _installed)
    if wrong:
        return Finding(
            topic="packages",
            state=State.LIMITED,
            fact="; ".join(wrong),
            costs="results may differ from those that the tests were run on",
            remedy="make setup, or rm -r .venv and make setup",
        )
    return Finding(
        topic="packages", fact=f"{held} as pinned in {environment.LOCK} and {environment.TORCH_LOCK}"
    )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def probe_torch() -> Finding:
    """PyTorch, and whether it sees a GPU to train on."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return _broken("PyTorch", error, "training and the export of trained weights")
    version = f"{torch.__version__}"
    if torch.cuda.is_available():
        return Finding(topic="PyTorch", fact=f"{version}, trains on {torch.cuda.get_device_name()}")
    return Finding(
        topic="PyTorch", fact=f"{version}, no CUDA device: training runs on the CPU, and takes an hour or two"
    )


def probe_onnxruntime() -> Finding:
    """ONNX Runtime loads a one-convolution model and computes what it should."""
    try:
        import onnxruntime

        from export.runtime import run_onnx

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.onnx"
            write_bytes(path, _tiny_onnx())
            found = run_onnx(path, _probe_image())
        _check_result(found.transpose(0, 2, 3, 1))
    except (ImportError, OSError, AlpharhoError) as error:
        return _broken("ONNX Runtime", error, "checking model.onnx, so every export")
    return Finding(topic="ONNX Runtime", fact=f"{onnxruntime.__version__} runs a model")


def probe_tflite() -> Finding:
    """The TFLite runtime loads a one-convolution model, computes what it should, and gives it to XNNPACK."""
    topic = "TFLite runtime"
    try:
        from export.check import audit_delegate
        from export.runtime import run_tflite

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "probe.tflite"
            write_bytes(path, _tiny_tflite())
            _check_result(run_tflite(path, _probe_image()))
            partitions = audit_delegate(path).partitions
        version = metadata.version("ai-edge-litert")
    except (ImportError, OSError, AlpharhoError, metadata.PackageNotFoundError) as error:
        return _broken(topic, error, "checking .tflite files, so every export")
    if partitions != 1:
        costs = "the delegate audit, so every export"
        fact = (
            f"ai-edge-litert {version} runs a model, but in {partitions} partitions of XNNPACK instead of 1"
        )
        return Finding(topic=topic, state=State.BROKEN, fact=fact, costs=costs, remedy="make setup")
    return Finding(
        topic=topic, fact=f"ai-edge-litert {version} runs a model, delegated to XNNPACK as one partition"
    )


def _broken(topic: str, error: BaseException, costs: str) -> Finding:
    reason = _first_line(error)
    return Finding(
        topic=topic, state=State.BROKEN, fact=reason, costs=costs, remedy="rm -r .venv and make setup"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _probe_image() -> NDArray[np.float32]:
    """NHWC."""
    import numpy as np

    return np.arange(48, dtype=np.float32).reshape(1, 4, 4, 3)


def _probe_weights() -> NDArray[np.float32]:
    """Of a 1x1 convolution, `[out 2, in 3]`; whole numbers, so that every correct runtime agrees."""
    import numpy as np

    return np.array([[1, -2, 3], [-4, 5, 6]], np.float32)


def _check_result(found: NDArray[np.float32]) -> None:
    """AlpharhoError unless `found` is the convolution of the probe's image, NHWC."""
    import numpy as np

    if not np.array_equal(found, _probe_image() @ _probe_weights().T):
        raise AlpharhoError("a 1x1 convolution of whole numbers gave a wrong result")


def _tiny_onnx() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, [1, 2, 4, 4])
    weights = numpy_helper.from_array(_probe_weights().reshape(2, 3, 1, 1), "weights")
    node = helper.make_node("Conv", ["image", "weights"], ["result"])
    graph = helper.make_graph([node], "probe", [image], [result], [weights])
    opset = helper.make_opsetid("", 20)
    model: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString()
    return model


def _tiny_tflite() -> bytes:
    import numpy as np

    from export.graph import Attribute, Graph, Node, Tensor
    from export.write_tflite import write_tflite

    tensors = {
        "image": Tensor((1, 4, 4, 3)),
        "weights": Tensor.constant(_probe_weights().reshape(2, 1, 1, 3)),
        "bias": Tensor.constant(np.zeros(2, np.float32)),
        "result": Tensor((1, 4, 4, 2)),
    }
    options: dict[str, Attribute] = {"padding": "SAME", "stride_h": 1, "stride_w": 1}
    node = Node("CONV_2D", ("image", "weights", "bias"), ("result",), options)
    return write_tflite(Graph(tensors, (node,), ("image",), ("result",)))


# --- Probes: what this machine is ---------------------------------------------------------------------------


def probe_processor() -> Finding:
    """The cores' names and how many of them this process may use."""
    processor = machine.parse_cpuinfo(_text(Path("/proc/cpuinfo")))
    cores = float(len(os.sched_getaffinity(0)))
    limit = machine.parse_cpu_max(_text(Path("/sys/fs/cgroup/cpu.max")))
    usable = min(cores, limit or cores)
    names = ", ".join(processor.names) or "an unknown processor"
    return Finding(topic="processor", fact=f"{names}, {platform.machine()}, {usable:g} cores usable")


def probe_speeds() -> tuple[Finding, ...]:
    """What float16 and int8 gain on this processor."""
    features = machine.parse_cpuinfo(_text(Path("/proc/cpuinfo"))).features
    speeds = [
        machine.find_speed(precision, platform.machine(), features) for precision in ("float16", "int8")
    ]
    return tuple(
        Finding(topic=speed.precision, state=State.OK if speed.gains else State.LIMITED, fact=speed.meaning)
        for speed in speeds
    )


def probe_memory() -> Finding:
    """Memory that can still be taken."""
    available = machine.parse_meminfo(_text(Path("/proc/meminfo")))
    if available is None:
        return Finding(
            topic="memory", state=State.LIMITED, fact="/proc/meminfo does not say how much is available"
        )
    return _room("memory", available, MEMORY_NEEDED, "an export may be ended by the system")


def probe_disk() -> Finding:
    """Disk space where results are written, the folder `build` here."""
    return _room("disk", shutil.disk_usage(Path.cwd()).free, DISK_NEEDED, "files cannot be written")


def _room(topic: str, size_bytes: int, needed_bytes: int, costs: str) -> Finding:
    fact = f"{size_bytes / GIB:.1f} GiB available"
    if size_bytes >= needed_bytes:
        return Finding(topic=topic, fact=fact)
    wanted = f"free at least {needed_bytes / GIB:.0f} GiB"
    return Finding(topic=topic, state=State.LIMITED, fact=fact, costs=costs, remedy=wanted)


def probe_network() -> Finding:
    """A statement, and the switch that keeps ONNX Runtime to it."""
    fact = "not used, but by `make` for .venv and by `make data`"
    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":
        return Finding(topic="network", fact=fact)
    remedy = "export ORT_DISABLE_TELEMETRY=1"
    return Finding(
        topic="network",
        state=State.LIMITED,
        fact=fact,
        costs="ONNX Runtime may report its use",
        remedy=remedy,
    )


def _text(path: Path) -> str:
    """The file's text, empty where there is no such file."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# --- Probes: what is optional -------------------------------------------------------------------------------


class Tool(NamedTuple):
    """A program, how to ask it for its version (nothing: only its path is shown), and what it is for."""

    program: str
    version: tuple[str, ...]
    package: str
    needed_for: str


# fmt: off
TOOLS = (
    Tool("gcc",     ("--version",), "gcc",            "counting instructions of emulated ARM cores"),
    Tool("adb",     ("--version",), "adb",            "measuring on an Android phone (DEVICE=adb)"),
    Tool("ssh",     ("-V",),        "openssh-client", "measuring on another machine (DEVICE=ssh://user@host)"),
    Tool("sshd",    (),             "openssh-server", "the tests that measure over ssh"),
    Tool("apt-get", ("--version",), "",               "make data, make emulator"),
)
QEMU = Tool("qemu-aarch64", ("--version",), "qemu-user", "measuring on emulated cores (DEVICE=emulated:…)")
# fmt: on


def probe_tool(tool: Tool) -> Finding:
    """Whether the program is there, and the first line that it says of itself."""
    path = find_program(tool.program)
    if path is None:
        remedy = f"sudo apt-get install {tool.package}" if tool.package else "none outside Debian and its kin"
        return Finding(
            topic=tool.program, state=State.ABSENT, fact="not found", costs=tool.needed_for, remedy=remedy
        )
    lines = _says(path, *tool.version).strip().splitlines() if tool.version else []
    return Finding(topic=tool.program, fact=lines[0] if lines else path)


def probe_qemu() -> Finding:
    """qemu-aarch64, and whether it can load the plugin that counts instructions."""
    found = probe_tool(QEMU)
    path = find_program(QEMU.program)
    if path is None or machine.has_plugins(_says(path, "-help")):
        return found
    fact = f"{found.fact}, built without plugins (a static build?)"
    remedy = f"sudo apt-get install {QEMU.package}"
    return Finding(topic=QEMU.program, state=State.LIMITED, fact=fact, costs=QEMU.needed_for, remedy=remedy)


def find_program(name: str) -> str | None:
    """The path of a program, also where only root looks for it."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN)))


def _says(*command: str) -> str:
    """What a command prints on both streams; empty if it cannot be run or hangs."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TOOL_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def probe_emulator() -> Finding:
    """Whether the ARM runtime that qemu runs has been set up."""
    topic, costs = "emulated cores", QEMU.needed_for
    try:
        from device_bench import emulator_setup

        manifest = emulator_setup.installed()
    except (ImportError, OSError, AlpharhoError) as error:
        return Finding(
            topic=topic, state=State.LIMITED, fact=_first_line(error), costs=costs, remedy="make emulator"
        )
    if manifest is None:
        return Finding(
            topic=topic, state=State.ABSENT, fact="not set up", costs=costs, remedy="make emulator"
        )
    return Finding(
        topic=topic, fact=f"set up in {emulator_setup.FOLDER}, runtimes {', '.join(manifest.sites)}"
    )


def probe_data() -> Finding:
    """Whether the whole of Fashion-MNIST is here, or only the sample that ships."""
    topic = "Fashion-MNIST"
    try:
        from pipeline import data
    except ImportError as error:
        return _broken(topic, error, "every command that looks at images")
    for folder in data.FASHION_MNIST_DIRS:
        if all((folder / name).is_file() for name in data.FASHION_MNIST_SHA256):
            return Finding(topic=topic, fact=f"whole, in {folder}")
    fact = "only the sample that ships, which is enough for an export"
    return Finding(
        topic=topic,
        state=State.ABSENT,
        fact=fact,
        costs="training, accuracy on the full test set",
        remedy="make data",
    )


# --- The table ----------------------------------------------------------------------------------------------

PROBES: tuple[Callable[[], Finding | tuple[Finding, ...]], ...] = (
    probe_python,
    probe_packages,
    probe_torch,
    probe_onnxruntime,
    probe_tflite,
    probe_processor,
    probe_speeds,
    probe_memory,
    probe_disk,
    probe_network,
    probe_data,
    probe_qemu,
    probe_emulator,
    lambda: tuple(map(probe_tool, TOOLS)),
)


def examine() -> list[Finding]:
    """Every row, in the order of PROBES."""
    answers = [probe() for probe in PROBES]
    return [row for answer in answers for row in ((answer,) if isinstance(answer, Finding) else answer)]


def table(findings: Iterable[Finding]) -> str:
    """The findings as text, one line each, and below a row that is not ok what it costs and the remedy."""
    rows = list(findings)
    width = max(len(row.topic) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row.topic:<{width}}  {row.state:<7}  {row.fact}")
        notes = [f"{label}: {text}" for label, text in (("costs", row.costs), ("mend", row.remedy)) if text]
        lines += [f"{'':<{width + 11}}{note}" for note in notes]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`doctor` takes no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 1 if anything that an export needs is broken, else 0."""
    findings = examine()
    print(table(findings))
    broken = [row.topic for row in findings if row.state is State.BROKEN]
    if broken:
        print(f"\nAn export does not work here: mend {', '.join(broken)} first.")
        return 1
    print("\nAn export works here.")
    return 0
