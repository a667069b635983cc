"""The adb backend through the real adb program, against a small adbd on localhost (`adbd.py`)."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from device_bench import adb_client, device, measure
from device_bench.adb import BASE, AdbDevice
from device_bench.device import BenchSpec, DeviceError, ResultClass, WarmUp
from pipeline.artifacts import AlpharhoError, sha256_of
from tests.device_bench.adbd import Adbd
from tests.device_bench.tiny_models import conv_model

pytestmark = pytest.mark.adb
DATA = Path(__file__).with_name("data")
SPEC = BenchSpec(processes=1, runs=20, seconds=0.5, max_seconds=9, timeout_s=20)
BOOT_ID = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
CAPACITIES = (160, 160, 160, 160, 850, 850, 850, 1024)

# --- a phone -------------------------------------------------------------------------------------------

COMMANDS = {  # what a phone has and this machine has not
    "getprop": 'cat "$DEVICE/answers/getprop"',
    "dumpsys": 'cat "$DEVICE/answers/dumpsys.$1"',
    "settings": 'cat "$DEVICE/answers/$3"',
    "df": 'cat "$DEVICE/answers/df"',
    "taskset": """if [ "$1" = -p ]; then echo "pid $2's current affinity mask: $MASK"; exit; fi
export MASK="$1"; shift; exec "$@" """,
}
TOYBOX = "cat chmod date grep mkdir mv rm rmdir sha256sum sleep tail timeout uname wc".split()
ANSWERS = {
    "getprop": (DATA / "getprop.txt").read_text(),
    "dumpsys.battery": (DATA / "battery.txt").read_text(),
    "dumpsys.thermalservice": (DATA / "thermalservice.txt").read_text(),
    "low_power": "0\n",
    "df": "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/dm-5 111610920 1 5610920 95% /data\n",
}
FILES = {
    "proc/uptime": "1000.25 7000.00\n",
    "proc/loadavg": "0.50 0.4 0.3 2/900 4711\n",
    "proc/meminfo": "MemTotal:        7655728 kB\n",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\n",
    "proc/self/status": "Cpus_allowed:\tff\nCpus_allowed_list:\t0-7\n",
    "proc/sys/kernel/random/boot_id": BOOT_ID + "\n",
    "sys/devices/system/cpu/present": "0-7\n",
    **{f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity": f"{CAPACITIES[cpu]}\n" for cpu in range(8)},
    **{f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_governor": "walt\n" for cpu in range(8)},
    **{f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_max_freq": "2400000\n" for cpu in range(8)},
}


def write(path: Path, content: str, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)
    return path


def benchmark_model(printed: str = "tflite_xnnpack.txt", *, tool: str = "tflite", first: str = "") -> str:
    """A program with benchmark_model's help and text that notes its arguments, then runs `first`."""
    return f"""#!/bin/sh
if [ "$*" = --help ]; then cat >&2 <<'END_OF_HELP'
{(DATA / f"{tool}_help.txt").read_text()}
END_OF_HELP
exit 1; fi
echo "$*" >>"$DEVICE/arguments"
echo $$ >"$DEVICE/tool.pid"
{first}
cat <<'END_OF_TEXT'
{(DATA / printed).read_text()}
END_OF_TEXT
"""


@dataclass
class Phone:
    """A test device, what the harness is given for it, and what is to be seen of it afterwards."""

    adbd: Adbd
    home: Path
    model: Path
    binary: Path

    def answer(self, name: str, content: str) -> None:
        write(self.adbd.root / "answers" / name, content)

    def plant(self, name: str, content: str) -> None:
        write(self.adbd.root / name, content)

    def tool(self, content: str) -> None:
        write(self.binary, content, 0o755)

    def harness(self) -> AdbDevice:
        return AdbDevice(serial=self.adbd.serial, binary=self.binary)

    def run(self, spec: BenchSpec = SPEC) -> device.Measurement:
        with self.harness() as entered:
            return entered.run(self.model, spec)

    def fail(self, spec: BenchSpec = SPEC) -> DeviceError:
        with pytest.raises(DeviceError) as caught:
            self.run(spec)
        assert "\n" not in str(caught.value)
        return caught.value

    def tool_calls(self) -> list[list[str]]:
        return [shlex.split(line) for line in (self.adbd.root / "arguments").read_text().splitlines()]

    def left(self) -> list[str]:
        """What the harness left on the device but its programs, which stay for the next run."""
        base = self.adbd.path("/data/local/tmp")
        files = {path.relative_to(base).as_posix() for path in base.rglob("*")}
        tools = {name for name in files if name.startswith("alpharho/tools/") and len(Path(name).name) == 16}
        return sorted(files - tools - {"alpharho", "alpharho/tools"})

    def tool_runs(self) -> bool:
        pid = int((self.adbd.root / "tool.pid").read_text())
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state != "Z"  # dead, and waiting for a parent to ask


@pytest.fixture(scope="module")
def adb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """The real program with a server, keys and devices of its own."""
    home = tmp_path_factory.mktemp("adb-home")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {
        "HOME": str(home),
        "ANDROID_ADB_SERVER_PORT": str(port),
        "ADB_LOCAL_TRANSPORT_MAX_PORT": "5554",  # no scan for emulators
        "ADB_MDNS": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        for name in (
            "ADB",
            "ADB_VENDOR_KEYS",
            "ANDROID_SERIAL",
            "ANDROID_ADB_SERVER_ADDRESS",
            "BENCHMARK_MODEL",
        ):
            patch.delenv(name, raising=False)
        with subprocess.Popen(["adb", "nodaemon", "server"], stdout=-3, stderr=-3) as server:
            wait_for(lambda: is_open(port))
            yield run_adb
            server.kill()


def run_adb(*arguments: str) -> None:
    subprocess.run(["adb", *arguments], check=True, capture_output=True)


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def make_phone(adb: Callable[..., None], tmp_path: Path) -> Iterator[Callable[[], Phone]]:
    made: list[Phone] = []

    def make() -> Phone:
        root = tmp_path / f"device{len(made)}"
        (root / "data/local/tmp").mkdir(parents=True)
        for name, content in FILES.items():
            write(root / name, content)
        for name, content in ANSWERS.items():
            write(root / "answers" / name, content)
        for name, content in COMMANDS.items():
            write(root / "bin" / name, f"#!/bin/sh\n{content}\n", 0o755)
        model, binary = tmp_path / "m.tflite", write(tmp_path / "tool", benchmark_model(), 0o755)
        model.write_bytes(conv_model())
        made.append(Phone(Adbd(root), tmp_path, model, binary))
        adb("connect", made[-1].adbd.serial)
        return made[-1]

    yield make
    for phone in made:
        subprocess.run(["adb", "disconnect", phone.adbd.serial], capture_output=True)
        phone.adbd.vanish()


@pytest.fixture
def phone(make_phone: Callable[[], Phone]) -> Phone:
    return make_phone()


@pytest.fixture(params=["sh", "mksh"])
def any_phone(phone: Phone, request: pytest.FixtureRequest) -> Phone:
    """A device with this machine's own shell and commands, and one with Android's: mksh and toybox."""
    if request.param == "mksh":
        shell, toybox = shutil.which("mksh"), shutil.which("toybox")
        if shell is None or toybox is None:
            reason = "needs mksh, toybox: sudo apt-get install mksh toybox"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
        (phone.adbd.root / "bin/sh").symlink_to(shell)
        for name in TOYBOX:
            (phone.adbd.root / "bin" / name).symlink_to(toybox)
    return phone


# --- what works ----------------------------------------------------------------------------------------


def test_a_model_is_measured(any_phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    phone = any_phone
    monkeypatch.setenv("BENCHMARK_MODEL", str(phone.binary))
    spec = BenchSpec(runs=20, seconds=0.5, max_seconds=9, timeout_s=20, warm_up=WarmUp(runs=3, seconds=0.25))
    with device.connect(f"adb:{phone.adbd.serial}") as entered:
        (found,) = measure.measure(entered, [phone.model], spec)
        second = entered.run(phone.model, SPEC)
    assert (found.result, found.reasons) == (ResultClass.OK, ())
    assert [process.samples_ns for process in found.processes] == [(10_062_000,)] * 5
    process = found.processes[0]
    assert (process.runs_per_sample, process.init_ns, process.first_ns) == (99, 21_437_000, 13_817_000)
    assert process.affinity == found.spec.affinity == (7,)
    assert (found.model.sha256, found.model.inputs[0].shape) == (sha256_of(phone.model), (1, 8, 8, 16))
    assert found.runtime.binary_sha256 == sha256_of(phone.binary)
    assert (found.device.model, found.before.boot_id) == ("Google Pixel 5", BOOT_ID)
    assert found.after.extra["delegated"] == "65 of 67 nodes, 2 partitions"
    assert device.from_json(device.to_json(found)) == found
    assert second.model == found.model
    remote = f"/{found.model.sha256[:16]}.tflite"
    arguments = phone.tool_calls()[0]
    assert arguments[0].startswith("--graph=") and arguments[0].endswith(remote)
    assert arguments[1:] == [
        *("--num_threads=1", "--use_xnnpack=true", "--num_runs=20", "--min_secs=0.500", "--max_secs=9.000"),
        *("--warmup_runs=3", "--warmup_min_secs=0.250"),
    ]
    assert len(phone.tool_calls()) == 6
    assert phone.left() == []


def test_the_other_program_is_asked_in_its_own_words(phone: Phone) -> None:
    phone.tool(benchmark_model("litert.txt", tool="litert"))
    found = phone.run(BenchSpec(threads=4, processes=1, timeout_s=20))
    assert found.processes[0].samples_ns == (7_642_000,)
    assert found.processes[0].affinity == (4, 5, 6, 7)
    assert found.runtime.version == "litert, median of runs"
    assert {"--use_cpu=true", "--num_threads=4"} <= set(phone.tool_calls()[0])


def test_files_go_over_once_and_the_program_stays(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[str] = []
    push = adb_client.Adb.push

    def noted(self: adb_client.Adb, local: Path, remote: str, *, timeout_s: float) -> None:
        pushed.append(local.name)
        push(self, local, remote, timeout_s=timeout_s)

    monkeypatch.setattr(adb_client.Adb, "push", noted)
    with phone.harness() as entered:
        entered.run(phone.model, SPEC)
        entered.run(phone.model, SPEC)
    assert pushed == ["tool", "m.tflite"]
    # A model of the same size is another model.
    phone.model.write_bytes(conv_model(seed=1))
    assert phone.run().model.sha256 == sha256_of(phone.model)
    assert pushed == ["tool", "m.tflite", "m.tflite"]
    assert phone.left() == []


def test_a_device_without_shell_v2_is_measured(phone: Phone) -> None:
    phone.adbd.faults.shell_v2 = False
    phone.adbd.unplug()
    assert phone.run().processes[0].samples_ns == (10_062_000,)
    phone.tool(benchmark_model(first="kill -SEGV $$"))
    assert phone.fail().result is ResultClass.CRASHED
    assert phone.left() == []


@pytest.mark.parametrize(
    "name",
    ["größe 中.tflite", "-rf.tflite", "a'b\"c $(touch owned) `touch owned`;touch owned.tflite", "x\n.tflite"],
)
def test_no_file_name_is_executed_or_lost(phone: Phone, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(phone.home)
    folder = phone.home / "a b; touch owned"
    folder.mkdir()
    phone.model = phone.model.rename(folder / name)
    phone.binary = phone.binary.rename(folder / "tool $(touch owned) é")
    found = phone.run()
    assert (found.model.name, found.result) == (name, ResultClass.OK)
    assert not list(phone.home.rglob("owned"))
    assert phone.left() == []


def test_no_answer_of_the_device_is_executed(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(phone.home)
    attack = "$(touch owned)`touch owned`';touch owned;'\";touch owned;\""
    phone.answer("getprop", f"[ro.product.model]: [{attack}]\n[ro.product.cpu.abilist]: [{attack}]\n")
    phone.answer("dumpsys.battery", f"  level: {attack}\n  temperature: {attack}\n")
    for name in ("low_power", "df"):
        phone.answer(name, f"{attack}\n")
    for name in ("boot_id", "uptime"):
        path = "sys/kernel/random/boot_id" if name == "boot_id" else name
        phone.plant(f"proc/{path}", f"{attack if name == 'boot_id' else 1000} {attack}\n")
    phone.plant("data/local/tmp/alpharho/lock/until", f"{BOOT_ID} x[$(touch owned)]\n")
    phone.plant("data/local/tmp/alpharho/lock/owner", f"{attack}\n")
    found = phone.run()
    assert found.device.model == attack
    assert not list(phone.home.rglob("owned"))
    assert phone.left() == []


# --- which device --------------------------------------------------------------------------------------


def refused(serial: str = "") -> str:
    with pytest.raises(DeviceError) as caught, AdbDevice(serial=serial):
        raise AssertionError("entered")
    assert caught.value.result is ResultClass.UNREACHABLE
    return str(caught.value)


def test_without_a_device_it_says_how_to_attach_one(adb: Callable[..., None]) -> None:
    assert "no adb device attached; attach it with USB debugging on" in refused()


def test_the_only_device_needs_no_serial(phone: Phone) -> None:
    with AdbDevice() as entered:
        assert entered.info().name == f"adb:{phone.adbd.serial}"


def test_of_two_devices_one_must_be_named(
    make_phone: Callable[[], Phone], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_phone().adbd.serial, make_phone().adbd.serial
    text = refused()
    assert "2 devices attached" in text and "name one as adb:SERIAL" in text
    assert f"{first} (device)" in text and f"{second} (device)" in text
    monkeypatch.setenv("ANDROID_SERIAL", second)
    with AdbDevice() as entered:
        assert entered.info().name == f"adb:{second}"
    with AdbDevice(serial=first) as entered:
        assert entered.info().name == f"adb:{first}"


def test_an_unknown_serial_is_answered_with_the_known(phone: Phone) -> None:
    text = refused("nope")
    assert f"adb knows no device 'nope'; attached: {phone.adbd.serial} (device)" in text


def test_an_unauthorized_device_asks_for_its_dialog(phone: Phone, adb: Callable[..., None]) -> None:
    phone.adbd.faults.unauthorized = True
    adb("disconnect", phone.adbd.serial)
    adb("connect", phone.adbd.serial)
    assert "is unauthorized; unlock it and accept its dialog" in refused(phone.adbd.serial)


def test_an_offline_device_is_tried_once_more(phone: Phone) -> None:
    phone.adbd.unplug()
    with phone.harness() as entered:
        assert entered.info().model == "Google Pixel 5"
    phone.adbd.vanish()
    text = refused(phone.adbd.serial)
    assert "is offline; unplug and plug it again" in text


def test_a_missing_adb_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADB", "/nowhere/adb")
    assert "no program '/nowhere/adb'; install Android's platform-tools" in refused()


# --- what fails on a working connection ----------------------------------------------------------------

FAILURES: dict[str, tuple[str, ResultClass, str]] = {
    "ignored flag": (
        benchmark_model(first="echo 'WARN: Unconsumed cmdline flags: --use_xnnpack=true'"),
        ResultClass.NO_RUNTIME,
        "ignores --use_xnnpack=true",
    ),
    "segmentation fault": (benchmark_model(first="kill -SEGV $$"), ResultClass.CRASHED, "SIGSEGV"),
    "killed": (benchmark_model(first="kill -KILL $$"), ResultClass.CRASHED, "free memory"),
    "refused model": (
        benchmark_model(first=f"cat <<'END'\n{(DATA / 'bad_model.txt').read_text()}END\nexit 1"),
        ResultClass.MODEL_UNSUPPORTED,
        "Didn't find op for builtin opcode 'CONV_2D'",
    ),
    "silence": (benchmark_model(first="exit 0"), ResultClass.PARSE_ERROR, "no inference time"),
    "another program": ("#!/bin/sh\necho hello\n", ResultClass.NO_RUNTIME, "ends with ['hello']"),
    "missing loader": ("#!/system/bin/no-such-loader\n", ResultClass.NO_RUNTIME, "does not start"),
    "wrong ABI": ("\x7fELF\x02\x01\x01" + "\0" * 9 + "\x03\0\x3e\0", ResultClass.NO_RUNTIME, "x86_64"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_every_failure_of_the_program_has_its_class(phone: Phone, name: str) -> None:
    content, result, found = FAILURES[name]
    phone.tool(content)
    error = phone.fail()
    assert error.result is result
    assert found in str(error)
    assert phone.left() == []


def test_a_missing_program_is_asked_for(phone: Phone) -> None:
    phone.binary = phone.home / "nowhere"
    error = phone.fail()
    assert error.result is ResultClass.NO_RUNTIME
    assert "for arm64-v8a" in str(error) and "https://" in str(error)
    assert phone.left() == []


def test_a_junk_model_never_leaves_this_machine(phone: Phone) -> None:
    phone.model.write_bytes(b"junk")
    assert phone.fail().result is ResultClass.MODEL_UNSUPPORTED
    assert not any(".tflite" in command for command in phone.adbd.commands)


def test_an_endless_program_ends_with_its_deadline(any_phone: Phone) -> None:
    phone = any_phone
    phone.tool(benchmark_model(first="echo begun; exec sleep 1000"))
    error = phone.fail(BenchSpec(processes=1, timeout_s=1))
    assert (error.result, error.log) == (ResultClass.TIMEOUT, "begun")
    assert not phone.tool_runs()
    assert phone.left() == []


def test_a_silent_connection_ends_with_ours(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_bench.adb.MARGIN_S", 0.5)
    phone.adbd.faults.hang_on = "--graph"
    assert phone.fail(BenchSpec(processes=1, timeout_s=1)).result is ResultClass.TIMEOUT
    assert phone.left() == []


def test_a_full_device_is_told_before_and_during_the_push(phone: Phone) -> None:
    phone.adbd.faults.space = 5_000  # the program fits, the model does not
    error = phone.fail()
    assert (error.result, error.found) == (ResultClass.NO_SPACE, "m.tflite does not fit")
    phone.answer("df", "Filesystem 1K-blocks Used Available Use% Mounted on\n/dev/dm-5 9 1 8 95% /data\n")
    error = phone.fail()
    assert error.result is ResultClass.NO_SPACE
    assert f"has {phone.model.stat().st_size} bytes, 8192 are free" in str(error)
    assert phone.left() == []


def test_a_file_that_changed_on_the_way_is_found_out(phone: Phone) -> None:
    phone.adbd.faults.spoil_push = True
    error = phone.fail()
    assert (error.result, "and arrived with" in str(error)) == (ResultClass.TRANSPORT_LOST, True)
    assert phone.left() == []


# --- a connection that breaks --------------------------------------------------------------------------


def test_a_connection_lost_in_a_run_keeps_what_was_measured(any_phone: Phone) -> None:
    phone = any_phone
    drop = 'if [ "$(wc -l <"$DEVICE/arguments")" -eq 3 ]; then echo third; exec sleep 1000; fi'
    phone.tool(benchmark_model(first=drop))

    def in_third_run() -> bool:
        return (phone.adbd.root / "arguments").exists() and len(phone.tool_calls()) == 3

    def watch() -> None:
        wait_for(in_third_run, 60)
        phone.adbd.unplug()

    threading.Thread(target=watch, daemon=True).start()
    error = phone.fail(BenchSpec(processes=5, timeout_s=60))
    assert error.result is ResultClass.TRANSPORT_LOST
    assert error.log.startswith("third") and "still runs" not in error.log
    (partial,) = error.partials
    assert (partial.result, partial.valid) == (ResultClass.TRANSPORT_LOST, False)
    assert [process.samples_ns for process in partial.processes] == [(10_062_000,)] * 2
    assert "2 of 5 processes" in partial.reasons[0]
    assert not phone.tool_runs()
    assert phone.left() == []


def test_a_connection_lost_in_a_push_leaves_no_part(phone: Phone) -> None:
    phone.adbd.faults.drop_in_push = 1_000
    assert phone.fail().result is ResultClass.TRANSPORT_LOST
    assert phone.left() == []


def test_a_device_that_never_comes_back_hides_no_error(phone: Phone) -> None:
    phone.tool(benchmark_model(first="sleep 3"))
    phone.adbd.faults.drop_on, phone.adbd.faults.drop_for_good = "--graph", True
    error = phone.fail()
    assert error.result is ResultClass.TRANSPORT_LOST
    assert "adb exit code" in str(error)


def test_a_device_lost_after_the_last_run_is_told(phone: Phone) -> None:
    with pytest.raises(DeviceError, match="is left on the device") as caught, phone.harness():
        phone.adbd.vanish()
    assert caught.value.result is ResultClass.TRANSPORT_LOST


def test_an_interrupt_stops_the_program_and_keeps_the_rest(phone: Phone) -> None:
    phone.tool(
        benchmark_model(first='if [ "$(wc -l <"$DEVICE/arguments")" -eq 2 ]; then exec sleep 1000; fi')
    )
    script = f"""
from pathlib import Path
from device_bench.adb import AdbDevice
from device_bench.device import BenchSpec, DeviceError
try:
    with AdbDevice(serial={phone.adbd.serial!r}, binary=Path({str(phone.binary)!r})) as phone:
        phone.run(Path({str(phone.model)!r}), BenchSpec(processes=5, timeout_s=60))
except DeviceError as error:
    print(error.result, len(error.partials[0].processes), error.partials[0].result)
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        wait_for(lambda: (phone.adbd.root / "arguments").exists() and len(phone.tool_calls()) == 2, 60)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)
    assert printed.split() == ["invalid", "1", "invalid"]
    assert not phone.tool_runs()
    assert phone.left() == []


# --- two harnesses -------------------------------------------------------------------------------------


def test_a_second_harness_is_kept_away(phone: Phone) -> None:
    with phone.harness() as first:
        error = phone.fail()
        assert error.result is ResultClass.UNREACHABLE
        assert f"another benchmark holds the device {phone.adbd.serial} for up to 600 s" in str(error)
        assert first.run(phone.model, SPEC).result is ResultClass.OK
    assert phone.run().result is ResultClass.OK
    assert phone.left() == []


@pytest.mark.parametrize(
    "held",
    [f"{BOOT_ID} 999", "00000000-0000-0000-0000-000000000000 999999", "", f"{BOOT_ID} x[$(touch owned)]"],
)
def test_the_lock_and_files_of_a_dead_harness_are_taken_over(any_phone: Phone, held: str) -> None:
    phone = any_phone
    phone.plant(f"{BASE[1:]}/lock/until", held + "\n")
    phone.plant(f"{BASE[1:]}/lock/owner", "dead\n")
    phone.plant(f"{BASE[1:]}/run-dead/out", "x" * 1000)
    assert phone.run().result is ResultClass.OK
    assert not list(phone.home.rglob("owned"))
    assert phone.left() == []


def test_a_harness_that_slept_too_long_notices(phone: Phone) -> None:
    with pytest.raises(DeviceError, match="is not this run's any more"), phone.harness() as first:
        first.run(phone.model, SPEC)
        phone.plant(f"{BASE[1:]}/lock/owner", "another\n")
        first.run(phone.model, SPEC)
    assert phone.left() == ["alpharho/lock", "alpharho/lock/owner", "alpharho/lock/until"]


# --- a phone that is not itself ------------------------------------------------------------------------


def test_a_phone_on_battery_saver_is_not_measured(phone: Phone) -> None:
    phone.answer("low_power", "1\n")
    error = phone.fail()
    assert (error.result, "battery saver is on" in str(error)) == (ResultClass.INVALID, True)
    assert not (phone.adbd.root / "arguments").exists()


def test_heat_and_a_reboot_during_the_run_make_it_invalid(phone: Phone) -> None:
    hot = 'echo "Thermal Status: 2" >"$DEVICE/answers/dumpsys.thermalservice"'
    cold = 'echo "Thermal Status: 0" >"$DEVICE/answers/dumpsys.thermalservice"'
    reboot = 'echo other >"$DEVICE/proc/sys/kernel/random/boot_id"'
    second, third = (f'[ "$(wc -l <"$DEVICE/arguments")" -eq {number} ]' for number in (2, 3))
    phone.tool(benchmark_model(first=f"{second} && {{ {hot}; }}\n{third} && {{ {cold}; {reboot}; }}"))
    with phone.harness() as entered:
        (found,) = measure.measure(entered, [phone.model], BenchSpec(processes=5, timeout_s=20))
    assert found.result is ResultClass.INVALID
    assert found.reasons == ("thermal status 2 of 6 after a process", "the device rebooted during the run")
    assert len(found.processes) == 5


def test_cores_that_were_not_given_make_it_invalid(phone: Phone) -> None:
    taskset = phone.adbd.root / "bin/taskset"
    taskset.write_text(taskset.read_text().replace('MASK="$1"', "MASK=f"))
    found = phone.run()
    assert found.result is ResultClass.INVALID
    assert found.reasons == ("ran on CPUs [0, 1, 2, 3], not [7]",)
    with pytest.raises(AlpharhoError, match=r"CPUs \[9\] asked for, the device lets"):
        phone.run(BenchSpec(processes=1, affinity=(9,)))
    assert phone.left() == []
