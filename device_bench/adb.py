"""An Android device over the adb program: the user's own `benchmark_model`, one fresh process a sample.

Everything on the device is under /data/local/tmp/alpharho: `tools/` keeps pushed programs by hash, `run-*`
holds one session's files and goes with it, `lock` keeps a second harness away.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from device_bench import android
from device_bench.adb_client import MARGIN_S, Adb, Reply, adb_version, connected
from device_bench.benchmark_model import SOURCE, Report, Tool, arguments, failure, report, tool_in
from device_bench.device import (
    BenchSpec,
    Device,
    DeviceError,
    DeviceInfo,
    DeviceState,
    Measurement,
    ModelInfo,
    ProcessSamples,
    ResultClass,
    RuntimeInfo,
)
from device_bench.model_file import describe
from device_bench.records import to_plain
from device_bench.runner_client import gather, last_lines
from pipeline.artifacts import UsageError, sha256_of

BASE = "/data/local/tmp/alpharho"  # /sdcard is mounted noexec
HOLD_S = 600  # how long the lock outlives the work it was last renewed for
CLEAN_UP_S = 10.0
LOG_BYTES = 100_000  # of what the tool printed
BUSY, TAKEN_OVER, UNWRITABLE = 91, 92, 93  # exit codes of our own shell lines
_UPTIME = "read up rest </proc/uptime; up=${up%%.*}; boot=$(cat /proc/sys/kernel/random/boot_id)"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """The user's benchmark_model, as it stands on the device."""

    path: str
    sha256: str
    tool: Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """A program that ran on the device: its code, what it printed, what taskset said of it."""

    code: int
    text: str
    cpus: str


@dataclass(slots=True, kw_only=True)
class AdbDevice:
    """`adb` or `adb:SERIAL`. `binary`: the user's benchmark_model; None: not given."""

    serial: str = ""
    binary: Path | None = None
    _nonce: str = field(default_factory=lambda: secrets.token_hex(8))
    _adb: Adb | None = None
    _facts: Mapping[str, str] = field(default_factory=dict)
    _info: DeviceInfo | None = None
    _program: _Program | None = None

    def __enter__(self) -> Self:
        """Find the device, lock it and make this session's folder."""
        self._adb = adb = connected(self.serial)
        self._facts = adb.ask(android.FACTS)
        android.require_commands(self._facts)
        info = android.device_info(self._facts, adb.serial)
        self._info = replace(info, extra={**info.extra, "adb_version": adb_version(adb.program)})
        try:
            self._lock()
        except (DeviceError, KeyboardInterrupt):
            with contextlib.suppress(DeviceError):
                self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the session's folder and lock, over a new connection where the old one is lost.

        Raises DeviceError(transport-lost) when that fails and nothing else went wrong; what is left then is
        removed by the next session on the device.
        """
        try:
            self._clean_up()
        except DeviceError as left:
            if error is None:
                found = f"{self._folder} is left on the device: {left.found}"
                raise DeviceError(ResultClass.TRANSPORT_LOST, found, remedy=_LEFT) from left

    def info(self) -> DeviceInfo:
        """What the device is."""
        assert self._info is not None, "not entered"
        return self._info

    def run(self, model: Path, spec: BenchSpec) -> Measurement:
        """Time `model` in `spec.processes` fresh processes on the fastest cores, unless others are given.

        Every process gives the median of its runs, which is all that the tool tells.
        """
        described, binary = describe(model), self._given_binary()
        affinity = spec.affinity or android.big_cpus(self._facts, spec.threads)
        self._check_affinity(affinity)
        pinned = replace(spec, affinity=affinity)
        program = self._placed_program(binary, pinned)
        remote = self._place(model, described.sha256, f"{self._folder}/{described.sha256[:16]}.tflite", spec)
        info, doubts = self.info(), dict[str, None]()

        def one_process() -> Mapping[str, Any]:
            return self._process(program, described, remote, pinned, doubts)

        measured = gather((info.kind, info.name), model, pinned, one_process)
        return measured.marked(ResultClass.INVALID, *doubts) if doubts else measured

    # --- one process -------------------------------------------------------------------------------------

    def _process(
        self,
        program: _Program,
        model: ModelInfo,
        remote: str,
        spec: BenchSpec,
        doubts: dict[str, None],
    ) -> Mapping[str, Any]:
        """An answer such as the runner gives; adds to `doubts` why it cannot be trusted."""
        before = self._state()
        android.refuse(before)
        found, had = self._timed(program, remote, spec)
        after = self._state()
        reasons = android.doubts(after)
        if had != spec.affinity:
            reasons.append(f"ran on CPUs {list(had)}, not {list(spec.affinity)}")
        doubts.update(dict.fromkeys(reasons))
        delegated = {"delegated": found.delegated} if found.delegated else {}
        return {
            "model": to_plain(model),
            "device": to_plain(self.info()),
            "runtime": to_plain(_runtime(program, found)),
            "process": to_plain(_samples(found, had)),
            "before": to_plain(before),
            "after": to_plain(replace(after, extra={**after.extra, **delegated})),
        }

    def _timed(self, program: _Program, remote: str, spec: BenchSpec) -> tuple[Report, tuple[int, ...]]:
        """Run the tool once: its report and the CPUs it had."""
        ended = self._executed([program.path, *arguments(program.tool, remote, spec)], spec)
        if ended.code != 0:
            raise failure(ended.code, ended.text)
        return report(ended.text), android.cpus_in(ended.cpus)

    def _executed(self, command: list[str], spec: BenchSpec) -> _Ended:
        """Run a program on the device, on the cores of `spec` and within its time, to its end."""
        limit_s = max(1, round(spec.timeout_s))
        line = _RUN.format(
            lock=self._renewed_lock(limit_s),
            folder=self._folder,
            limit=limit_s,
            mask=android.mask_of(spec.affinity),
            command=shlex.join(command),
            lost=TAKEN_OVER,
            full=UNWRITABLE,
        )
        try:
            reply = self._device.shell(line, timeout_s=limit_s + MARGIN_S, late=ResultClass.TIMEOUT)
            answers = self._printed()
        except (DeviceError, KeyboardInterrupt) as error:
            log = self._stopped()
            if isinstance(error, DeviceError) and log:
                error.log = log
            raise
        if reply.code == TAKEN_OVER:
            raise self._taken_over()
        if reply.code == UNWRITABLE:
            raise self._unwritable(reply)
        # The last word is the shell's own, of a program that was killed.
        printed = f"{answers['out']}\n{answers['err']}".strip().removesuffix("Killed").rstrip()
        return _Ended(code=reply.code, text=printed or reply.err, cpus=answers["cpus"])

    def _printed(self) -> dict[str, str]:
        """What the last process printed, kept in files: over the line the two outputs could mix."""
        folder = self._folder
        return self._device.ask(
            {
                "out": f"tail -c {LOG_BYTES} {folder}/out",
                "err": f"tail -c {LOG_BYTES} {folder}/err",
                "cpus": f"cat {folder}/cpus",
            }
        )

    def _stopped(self) -> str:
        """Kill what still runs of the last process, over a fresh call: the last lines that it printed."""
        # The line may be lost for good: the device's own deadline then ends the process.
        with contextlib.suppress(DeviceError):
            self._device.require()
            reply = self._device.shell(_KILL.format(folder=self._folder), timeout_s=CLEAN_UP_S)
            answers = self._printed()
            left = "benchmark_model still runs on the device" if reply.code else ""
            return last_lines(f"{answers['out']}\n{answers['err']}\n{left}")
        return ""

    def _state(self) -> DeviceState:
        return android.device_state(self._device.ask(android.STATE))

    # --- files on the device -----------------------------------------------------------------------------

    @property
    def _device(self) -> Adb:
        assert self._adb is not None, "not entered"
        return self._adb

    @property
    def _folder(self) -> str:
        return f"{BASE}/run-{self._nonce}"

    def _place(self, local: Path, sha256: str, remote: str, spec: BenchSpec) -> str:
        """Have the file of that hash, executable, as `remote`; pushed only where it is not there already."""
        if self._hash(remote) == sha256:
            return remote
        size, part = local.stat().st_size, f"{self._folder}/part"
        free = android.free_bytes(self._device.ask({"df": f"df -k {BASE}"})["df"])
        if free is not None and free < 2 * size:
            found = f"{local.name} has {size} bytes, {free} are free in {BASE}"
            raise DeviceError(ResultClass.NO_SPACE, found)
        # 1 MB/s is slow for USB 2.
        self._device.push(local, part, timeout_s=spec.timeout_s + size / 1e6)
        arrived = self._hash(part)
        if arrived != sha256:
            found = f"{local.name} was sent with sha256 {sha256} and arrived with {arrived or 'none'}"
            raise DeviceError(ResultClass.TRANSPORT_LOST, found)
        line = f"{self._renewed_lock(HOLD_S)}\nchmod 755 {part} && mv {part} {remote}"
        reply = self._device.shell(line)
        if reply.code == TAKEN_OVER:
            raise self._taken_over()
        if reply.code != 0:
            raise self._unwritable(reply)
        return remote

    def _hash(self, remote: str) -> str:
        answer = self._device.ask({"sha256": f"sha256sum <{remote}"}, timeout_s=120)["sha256"]
        return answer.split()[0] if answer.split() else ""

    def _given_binary(self) -> Path:
        if self.binary is not None and self.binary.is_file():
            return self.binary
        found = f"BENCHMARK_MODEL is {str(self.binary) if self.binary else 'not set'}: no file"
        remedy = (
            f"give the path of a benchmark_model for {self.info().extra.get('abis', '')}, such as {SOURCE}"
        )
        raise DeviceError(ResultClass.NO_RUNTIME, found, remedy=remedy)

    def _placed_program(self, binary: Path, spec: BenchSpec) -> _Program:
        """The binary on the device, proven to start there."""
        sha256 = sha256_of(binary)
        if self._program is not None and self._program.sha256 == sha256:
            return self._program
        with binary.open("rb") as file:
            abi = android.abi_of(file.read(20))
        abis = self.info().extra.get("abis", "")
        if abi and abis and abi not in abis.split(","):
            found = f"{binary} is for {abi}, the device runs {abis}"
            raise DeviceError(ResultClass.NO_RUNTIME, found, remedy=f"give one such as {SOURCE}")
        path = self._place(binary, sha256, f"{BASE}/tools/{sha256[:16]}", spec)
        ended = self._executed([path, "--help"], spec)
        if ended.code > 1:  # its help ends with 1
            raise failure(ended.code, ended.text)
        self._program = _Program(path=path, sha256=sha256, tool=tool_in(ended.text))
        return self._program

    def _check_affinity(self, affinity: tuple[int, ...]) -> None:
        allowed = android.allowed_cpus(self._facts)
        if not set(affinity) <= set(allowed):
            raise UsageError(
                f"CPUs {list(affinity)} asked for, the device lets {allowed} be used; give of those"
            )

    # --- the lock and the end ----------------------------------------------------------------------------

    def _lock(self) -> None:
        """Hold the device and clear what a dead session left. Raises DeviceError when another holds it."""
        line = _LOCK.format(base=BASE, nonce=self._nonce, hold=HOLD_S, uptime=_UPTIME, busy=BUSY)
        reply = self._device.shell(line)
        if reply.code == BUSY:
            found = f"another benchmark holds the device {self._device.serial} {reply.out.strip()[:40]}"
            remedy = f"wait for its end, or adb shell rm -r {BASE}/lock if it is dead"
            raise DeviceError(ResultClass.UNREACHABLE, found, remedy=remedy)
        if reply.code != 0:
            raise self._unwritable(reply)

    def _renewed_lock(self, seconds: float) -> str:
        """A shell line that holds the lock for so long and HOLD_S more, or exits when it was taken over."""
        until = round(seconds) + HOLD_S
        owner = f'[ "$(cat {BASE}/lock/owner 2>/dev/null)" = {self._nonce} ] || exit {TAKEN_OVER}'
        return f'{owner}; {_UPTIME}; echo "$boot $((up + {until}))" >{BASE}/lock/until'

    def _unwritable(self, reply: Reply) -> DeviceError:
        found = f"cannot write in {BASE}: {last_lines(reply.err or reply.out)}"
        return DeviceError(ResultClass.NO_SPACE, found, remedy="free space there, or restart the device")

    def _taken_over(self) -> DeviceError:
        found = f"the lock {BASE}/lock is not this run's any more"
        return DeviceError(ResultClass.TRANSPORT_LOST, found, remedy="see that no other benchmark runs there")

    def _clean_up(self) -> None:
        self._device.require()
        line = _UNLOCK.format(base=BASE, folder=self._folder, nonce=self._nonce)
        self._device.shell(line, timeout_s=CLEAN_UP_S)


def _samples(found: Report, affinity: tuple[int, ...]) -> ProcessSamples:
    return ProcessSamples(
        samples_ns=(found.inference_ns,),
        runs_per_sample=found.runs,
        init_ns=found.init_ns,
        first_ns=found.first_ns,
        affinity=affinity,
    )


def _runtime(program: _Program, found: Report) -> RuntimeInfo:
    version = f"{program.tool.name}, {found.statistic} of runs"
    return RuntimeInfo(name="benchmark_model", version=version, binary_sha256=program.sha256)


def connect(name: str) -> Device:
    """The backend of `adb` and `adb:SERIAL`; the program to run is the file named by BENCHMARK_MODEL."""
    binary = os.environ.get("BENCHMARK_MODEL", "")
    return AdbDevice(serial=name.partition(":")[2], binary=Path(binary) if binary else None)


_LEFT = "attach it again: the next run on it removes what is left"
# `until` is the uptime up to which a lock holds; it is stale beyond, or after a restart. Who makes
# `lock/taking` may take a stale one over. What a file holds is checked to be digits before [ -gt ], which
# evaluates expressions in Android's shell.
_LOCK = """
mkdir -p {base}/tools && cd {base} || exit 1
{uptime}
if ! mkdir lock 2>/dev/null; then
  [ -d lock ] || exit 1
  [ -f lock/until ] || sleep 1
  mkdir lock/taking 2>/dev/null || exit {busy}
  was= until=
  read was until <lock/until 2>/dev/null
  case "$until" in ''|*[!0-9]*|???????????*) until=0;; esac
  if [ "$was" = "$boot" ] && [ "$until" -gt "$up" ]; then
    rmdir lock/taking
    echo "for up to $((until - up)) s"
    exit {busy}
  fi
fi
echo "$boot $((up + {hold}))" >lock/until && echo {nonce} >lock/owner || exit 1
rm -rf lock/taking run-*
mkdir run-{nonce}
"""
_UNLOCK = """
rm -rf {folder}
if [ "$(cat {base}/lock/owner 2>/dev/null)" = {nonce} ]; then rm -rf {base}/lock; fi
"""
# The tool runs in the foreground and its exit code is the shell's own: toybox `timeout` loses the code of a
# program that ends at once, and starts it in a process group of its own. `sleeper` wakes the watchdog.
_RUN = """
{lock}
cd {folder} || exit {lost}
rm -f pid cpus out err overdue sleeper
( sleep {limit} & echo $! >sleeper; wait
  if [ -e pid ]; then : >overdue; kill -s KILL "$(cat pid)"; fi ) >/dev/null 2>&1 </dev/null &
for i in 1 2 3 4 5 6 7 8 9 10; do [ -s sleeper ] && break; sleep 0.1; done
[ -s sleeper ] || exit {full}
taskset {mask} sh -c 'echo $$ >pid && taskset -p $$ >cpus && exec "$@"' sh {command} >out 2>err </dev/null
code=$?
rm -f pid
kill "$(cat sleeper)" 2>/dev/null
[ -e overdue ] && exit 124
exit $code
"""
_KILL = """
cd {folder} || exit 0
pid=$(cat pid) sleeper=$(cat sleeper)
rm -f pid
case "$sleeper" in ''|*[!0-9]*) ;; *) kill $sleeper;; esac
case "$pid" in ''|*[!0-9]*) exit 0;; esac
kill -s KILL $pid
for i in 1 2 3 4 5 6 7 8 9 10; do
  kill -s 0 $pid 2>/dev/null || exit 0
  sleep 0.3
done
exit 1
"""
