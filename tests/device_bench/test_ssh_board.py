"""The whole way through the real OpenSSH client and server, with every fault made for real."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from device_bench import emulator_setup
from device_bench.device import BenchSpec, DeviceError, Measurement, ResultClass, WarmUp, connect
from device_bench.measure import judged
from tests.device_bench.ssh_server import Board, children, needs_sshd, running
from tests.device_bench.tiny_models import conv_model, int8_conv_model

pytestmark = pytest.mark.ssh

WARM_UP = WarmUp(runs=1, seconds=0, max_runs=0)
QUICK = BenchSpec(processes=1, runs=3, seconds=0, warm_up=WARM_UP, timeout_s=60)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    needs_sshd()
    with running(Board(tmp_path / "board"), monkeypatch) as made:
        yield made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(conv_model())
    return path


def time_model(model: Path, spec: BenchSpec = QUICK) -> Measurement:
    with connect("ssh://board") as device:
        return device.run(model, spec)


def failure(result: ResultClass, act: Callable[[], object]) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        act()
    assert caught.value.result is result, str(caught.value)
    return caught.value


def hang_at(board: Board, call: int) -> None:
    """The device's Python does not get going at that call, and the file `reached` says that it is there."""
    reached = shlex.quote(str(board.reached))
    board.hook(f'if [ "$call" = {call} ]; then touch {reached}; sleep 60; fi')


@contextmanager
def when_reached(board: Board, action: Callable[[], object]) -> Iterator[None]:
    """Act from another thread once the device hangs."""

    def wait_and_act() -> None:
        board.wait_for(board.reached)
        action()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    yield
    thread.join()


def kill_clients(ending: str) -> None:
    """SIGKILL to this process's ssh clients whose remote command holds `ending`."""
    for pid in children(os.getpid()):
        if ending in Path(f"/proc/{pid}/cmdline").read_bytes().decode():
            os.kill(pid, signal.SIGKILL)


# --- measuring -----------------------------------------------------------------------------------------


def test_a_model_is_timed_in_fresh_processes_under_noise(board: Board, model: Path) -> None:
    board.bashrc('echo "Welcome"; echo "@@0 {}@@"; echo "@@1 rc=0@@"; echo "motd" >&2')
    taken = time_model(model, replace(QUICK, processes=2))
    assert (taken.result, taken.reasons) == (ResultClass.OK, ())
    assert [len(process.samples_ns) for process in taken.processes] == [3, 3]
    assert taken.model.sha256 == sha256(model.read_bytes()).hexdigest()
    assert (taken.device.kind, taken.device.name) == ("ssh", "ssh://board")
    assert taken.runtime.name == "ai-edge-litert"
    assert taken.processes[0].affinity == taken.spec.affinity
    assert board.settled() == []


def test_hostile_names_are_only_names(board: Board, tmp_path: Path) -> None:
    evil = "a $(touch pwned) `touch pwned` ';touch pwned;' \"& é -rf *"
    temporary = board.tmp / f"t {evil}"
    temporary.mkdir()
    board.bashrc(f"export TMPDIR={shlex.quote(str(temporary))}")
    model = tmp_path / f"-m {evil}.tflite"
    model.write_bytes(conv_model())
    taken = time_model(model)
    assert (taken.result, taken.model.name) == (ResultClass.OK, model.name)
    assert list(temporary.iterdir()) == []
    assert [*board.folder.rglob("pwned"), *Path.cwd().glob("pwned")] == []


def test_an_answer_of_the_device_never_becomes_a_command(board: Board) -> None:
    board.bashrc(
        "nonce=$(printf %s \"$BASH_EXECUTION_STRING\" | grep -o 'nonce[0-9a-f]*' | tail -n 1)\n"
        'echo "@@$nonce ready owner-1-1-$(touch ~/logged-in); touch $HOME/pwned@@"\n'
    )
    error = failure(ResultClass.PARSE_ERROR, lambda: connect("ssh://board").__enter__())
    assert "who holds its folder" in error.found
    assert (board.home / "logged-in").exists() and not (board.home / "pwned").exists()
    assert board.settled() == []


def test_a_python_made_for_it_comes_before_python3(board: Board) -> None:
    folder = board.home / ".alpharho/bin"
    folder.mkdir(parents=True)
    (folder / "python3").write_text(f'#!/bin/sh\ntouch ~/chosen\nexec {board.folder}/bin/python3 "$@"\n')
    (folder / "python3").chmod(0o755)
    with connect("ssh://board") as device:
        assert device.info().cores == os.cpu_count()
    assert (board.home / "chosen").exists()


def test_throttling_during_the_run_makes_it_invalid(board: Board, model: Path) -> None:
    board.script(
        "vcgencmd",
        "#!/bin/sh\n"
        "case $1 in\n"
        '    get_throttled) echo "throttled=$(cat ~/flags)"; echo 0x50000 >~/flags ;;\n'
        '    measure_temp) echo "temp=61.5\'C" ;;\n'
        "    measure_clock) echo 'frequency(48)=1500398464' ;;\n"
        "esac\n",
    )
    (board.home / "flags").write_text("0x10000\n")
    board.hook('[ "$call" = 2 ] && echo 0x10000 >~/flags')  # `info` has asked, too
    taken = time_model(model)
    assert (taken.before.throttle_flags, taken.after.throttle_flags) == (0x10000, 0x50000)
    assert taken.before.temperatures_c["vcgencmd"] == 61.5
    assert taken.after.extra["arm_clock_hz"] == "1500398464"
    assert judged(taken).result is ResultClass.INVALID
    assert any(reason.startswith("throttled") for reason in judged(taken).reasons)


@pytest.mark.emulator
def test_aarch64_code_runs_at_the_other_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_sshd()
    emulator = emulator_setup.installed()
    if emulator is None or shutil.which(emulator_setup.QEMU) is None:
        reason = "needs the emulator: make emulator"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    variables = emulator_setup.environment(emulator_setup.FOLDER, "ai-edge-litert")
    words = ["env", *(f"{name}={value}" for name, value in variables.items())]
    words += emulator_setup.command(emulator_setup.FOLDER, "cortex-a76")
    model = tmp_path / "model.tflite"
    model.write_bytes(int8_conv_model())
    with running(Board(tmp_path / "board", shlex.join(words)), monkeypatch) as board:
        taken = time_model(model)
        assert board.settled() == []
    assert (taken.device.machine, len(taken.processes[0].samples_ns)) == ("aarch64", 3)
    assert taken.runtime.name == "ai-edge-litert"
    assert (taken.model.inputs[0].dtype, taken.model.sha256) == (
        "int8",
        sha256(model.read_bytes()).hexdigest(),
    )


# --- logging in ----------------------------------------------------------------------------------------


def forget_host_key(board: Board) -> str:
    (board.folder / "known_hosts").write_text("")
    return "ssh://board"


def change_host_key(board: Board) -> str:
    other = (board.folder / "id.pub").read_text().split()[:2]
    (board.folder / "known_hosts").write_text(f"[127.0.0.1]:{board.port} {' '.join(other)}\n")
    return "ssh://board"


def take_key_away(board: Board) -> str:
    (board.folder / "authorized_keys").write_text("")
    return "ssh://board"


def close_port(board: Board) -> str:
    board.stop()
    return "ssh://board"


@pytest.mark.parametrize(
    ("fault", "found", "remedy"),
    [
        (forget_host_key, "its host key is not known", "compare the fingerprint: ssh board"),
        (change_host_key, "its host key is not the one that is known", "ssh-keygen -R"),
        (take_key_away, "it does not accept your key (", "ssh-copy-id"),
        (close_port, "nothing listens on its ssh port", "enable ssh there"),
        (lambda board: "ssh://no-such-board.invalid", "its name is unknown", "check the spelling"),
    ],
)
def test_why_a_login_fails_is_said(
    board: Board, fault: Callable[[Board], str], found: str, remedy: str
) -> None:
    name = fault(board)
    error = failure(ResultClass.UNREACHABLE, lambda: connect(name).__enter__())
    assert found in error.found and remedy in str(error)
    assert "\n" not in str(error)


def test_user_and_port_of_the_address_reach_ssh(board: Board) -> None:
    login = connect(f"ssh://nobody-such@127.0.0.1:{board.port}")
    error = failure(ResultClass.UNREACHABLE, login.__enter__)
    assert "nobody-such@127.0.0.1: Permission denied" in error.found


def test_a_login_without_a_shell_is_a_parse_error(board: Board) -> None:
    board.bashrc('echo "This account is not available." >&2; exit 1')
    error = failure(ResultClass.PARSE_ERROR, lambda: connect("ssh://board").__enter__())
    assert "This account is not available." in error.found


def test_a_missing_client_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    error = failure(ResultClass.UNREACHABLE, lambda: connect("ssh://board").__enter__())
    assert "apt-get install openssh-client" in str(error)


# --- lost on the way -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "break_connection",
    [
        pytest.param(lambda board: kill_clients(" run owner-"), id="client of the session killed"),
        pytest.param(lambda board: kill_clients(" guard"), id="client of the master connection killed"),
        pytest.param(lambda board: board.kill_connections(), id="server's process killed"),
        # 15 s without an answer, then a clean-up over a new connection.
        pytest.param(lambda board: board.freeze_connections(), id="network gone", marks=pytest.mark.slow),
    ],
)
def test_a_lost_connection_ends_the_run_on_the_device(
    board: Board, break_connection: Callable[[Board], None]
) -> None:
    hang_at(board, 1)
    with connect("ssh://board") as device, when_reached(board, lambda: break_connection(board)):
        failure(ResultClass.TRANSPORT_LOST, device.info)
        assert board.settled() == []
        assert device.info().cores == os.cpu_count()
    assert board.settled() == []


def test_a_dead_guard_is_replaced_by_a_fresh_connection(board: Board) -> None:
    hang_at(board, 1)

    def kill_guard_and_connections() -> None:
        for pid, command in board.processes():
            if command.rstrip().endswith("guard"):
                os.kill(pid, signal.SIGKILL)
        board.kill_connections()

    with connect("ssh://board") as device, when_reached(board, kill_guard_and_connections):
        failure(ResultClass.TRANSPORT_LOST, device.info)
        assert board.settled() == []


def test_a_process_is_repeated_once_when_the_connection_breaks(board: Board, model: Path) -> None:
    hang_at(board, 3)
    with when_reached(board, board.kill_connections):
        taken = time_model(model, replace(QUICK, processes=2))
    assert (taken.result, len(taken.processes)) == (ResultClass.OK, 2)
    (note,) = taken.reasons
    assert note.startswith("connection lost once, that process repeated: ")
    assert board.settled() == []


def test_what_was_measured_before_the_loss_is_kept_and_marked(board: Board, model: Path) -> None:
    hang_at(board, 3)
    with when_reached(board, board.switch_off):
        error = failure(ResultClass.TRANSPORT_LOST, lambda: time_model(model, replace(QUICK, processes=3)))
    (partial,) = error.partials
    assert (partial.result, len(partial.processes)) == (ResultClass.TRANSPORT_LOST, 1)
    assert partial.reasons[0].startswith("1 of 3 processes: ")
    assert board.settled() == []


HARNESS = """
import sys
from pathlib import Path
from device_bench.device import BenchSpec, DeviceError, WarmUp, connect
spec = BenchSpec(processes=3, runs=3, seconds=0, warm_up=WarmUp(runs=1, seconds=0, max_runs=0), timeout_s=60)
try:
    with connect("ssh://board") as device:
        device.run(Path(sys.argv[1]), spec)
except DeviceError as error:
    print(error.result, [len(partial.processes) for partial in error.partials])
"""


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "invalid [1]"), (signal.SIGKILL, "")], ids=["Ctrl-C", "killed"]
)
def test_an_ended_harness_leaves_nothing(
    board: Board, model: Path, number: signal.Signals, said: str
) -> None:
    hang_at(board, 3)
    command = [sys.executable, "-c", HARNESS, str(model)]
    # Short, for the socket in it; a killed harness leaves its empty folder there.
    with tempfile.TemporaryDirectory(prefix="ssh-", dir="/tmp") as temporary:
        environment = {**os.environ, "TMPDIR": temporary}
        harness = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        board.wait_for(board.reached)
        harness.send_signal(number)
        out, _ = harness.communicate(timeout=30)
        assert out.strip() == said
        assert board.settled() == []


# --- failing on the device -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "result", "found"),
    [
        ("kill -SEGV $$", ResultClass.CRASHED, "ended by SIGSEGV"),
        ("kill -KILL $$", ResultClass.CRASHED, "ended by SIGKILL"),
        ("exit 255", ResultClass.PARSE_ERROR, "exit code 255, no answer"),
        ("exec no-such-python", ResultClass.NO_RUNTIME, "no-such-python: not found"),
        ("exec /etc/passwd", ResultClass.NO_RUNTIME, "Permission denied"),
    ],
)
def test_how_python_ended_decides_the_class(board: Board, hook: str, result: ResultClass, found: str) -> None:
    board.hook(hook)
    with connect("ssh://board") as device:
        assert found in failure(result, device.info).found
    assert board.settled() == []


@pytest.mark.parametrize("hook", ["sleep 30", "trap '' TERM; sleep 30"], ids=["ends", "ignores SIGTERM"])
def test_the_device_itself_ends_a_hanging_run(board: Board, model: Path, hook: str) -> None:
    board.hook(f'[ "$call" = 1 ] || {{ {hook}; }}')
    with connect("ssh://board") as device:
        error = failure(ResultClass.TIMEOUT, lambda: device.run(model, replace(QUICK, timeout_s=1)))
        assert error.found == "ended on the device after 1 s"
        assert [command for _, command in board.processes() if "sleep 30" in command] == []
    assert board.settled() == []


def test_a_missing_runtime_is_met_with_advice(board: Board, model: Path) -> None:
    board.hook('set -- -S "$@"')  # no site-packages
    error = failure(ResultClass.NO_RUNTIME, lambda: time_model(model))
    assert "ModuleNotFoundError: No module named 'ai_edge_litert'" in error.found
    assert "No module named 'tflite_runtime'" in error.found
    assert "~/.alpharho/bin/pip install ai-edge-litert" in str(error)


def test_an_importable_runtime_that_cannot_load_a_model_is_none(board: Board, model: Path) -> None:
    # What tflite-runtime 2.14 does under numpy 2: the import works, the constructor does not.
    package = board.home / "site/tflite_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "interpreter.py").write_text(
        "class Interpreter:\n"
        "    def __init__(self, **_):\n"
        "        raise SystemError('returned a result with an exception set')\n"
    )
    board.hook("export PYTHONPATH=~/site")
    spec = replace(QUICK, runtime="tflite-runtime")
    error = failure(ResultClass.NO_RUNTIME, lambda: time_model(model, spec))
    assert "tflite-runtime: SystemError: returned a result with an exception set" in error.found
    assert board.settled() == []


def test_a_model_that_the_runtime_refuses_is_not_a_lost_connection(board: Board, tmp_path: Path) -> None:
    junk = tmp_path / "junk.tflite"
    junk.write_bytes(b"TFL3" * 100)
    with connect("ssh://board") as device:
        failure(ResultClass.MODEL_UNSUPPORTED, lambda: device.run(junk, QUICK))
        assert device.info().kind == "ssh"


def test_a_file_that_does_not_fit_is_no_space(board: Board, tmp_path: Path) -> None:
    board.bashrc("trap '' XFSZ; ulimit -f 64")  # a write past the limit fails as on a full disk
    big = tmp_path / "big.tflite"
    big.write_bytes(bytes(200_000))
    error = failure(ResultClass.NO_SPACE, lambda: time_model(big))
    assert "File too large" in error.found
    assert board.settled() == []


def test_space_is_looked_at_before_anything_is_sent(board: Board, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(board.tmp)], check=True)
    try:
        big = tmp_path / "big.tflite"
        big.write_bytes(bytes(100_000))
        error = failure(ResultClass.NO_SPACE, lambda: time_model(big))
        assert "bytes are free, 200000 needed" in error.found
        (board.tmp / "full").write_bytes(bytes(180_000))
        failure(ResultClass.NO_SPACE, lambda: time_model(big))
        assert [path.name for path in board.tmp.iterdir()] == ["full"]
    finally:
        subprocess.run(["umount", "--lazy", str(board.tmp)], check=True)


# --- several harnesses ---------------------------------------------------------------------------------


def test_one_harness_measures_at_a_time(board: Board) -> None:
    with connect("ssh://board") as first:
        error = failure(ResultClass.UNREACHABLE, lambda: connect("ssh://board").__enter__())
        assert "another measurement is running there (process " in error.found
        assert first.info().cores == os.cpu_count()
    with connect("ssh://board"):
        pass
    assert board.settled() == []


@pytest.mark.parametrize("boot", ["this", "another"])
def test_of_those_who_find_a_dead_owner_one_takes_over(board: Board, boot: str) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    folder = board.tmp / f"alpharho-{os.geteuid()}"
    folder.mkdir()
    orphan = subprocess.Popen(["sleep", "60"], start_new_session=True)
    started = Path(f"/proc/{orphan.pid}/stat").read_text().rpartition(") ")[2].split()[19]
    owner = f"{orphan.pid}-{started}" if boot == "another" else f"{orphan.pid}-1"
    (folder / f"owner-{owner}-{boot_id if boot == 'this' else boot_id[::-1]}").touch()
    (folder / "run").write_text(f"{orphan.pid} {started}\n")
    entered, refused = [], []

    def enter() -> None:
        device = connect("ssh://board")
        try:
            entered.append(device.__enter__())
        except DeviceError as error:
            refused.append(error.found)

    threads = [threading.Thread(target=enter) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for device in entered:
        device.__exit__(None, None, None)
    assert (len(entered), orphan.wait(timeout=10)) == (1, -signal.SIGKILL)
    assert all(found.startswith("another measurement is running there") for found in refused)
    assert board.settled() == []


def test_a_folder_of_somebody_else_is_not_touched(board: Board, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (board.tmp / f"alpharho-{os.geteuid()}").symlink_to(elsewhere)
    error = failure(ResultClass.UNREACHABLE, lambda: connect("ssh://board").__enter__())
    assert "belongs to somebody else" in error.found
    assert list(elsewhere.iterdir()) == []
