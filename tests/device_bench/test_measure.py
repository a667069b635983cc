from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from device_bench.device import BenchSpec, DeviceError, DeviceInfo, DeviceState, Measurement, ResultClass
from device_bench.measure import judged, measure
from tests.device_bench.measurements import counted, timed

STEADY = timed([[1_000_000] * 10] * 5)


class Scripted:
    """A device that answers from a script, and remembers what it was asked."""

    def __init__(self, answer: Callable[[int], list[list[int]]]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def info(self) -> DeviceInfo:
        return STEADY.device

    def run(self, model: Path, spec: BenchSpec) -> Measurement:
        self.asked.append((model.name, spec.processes))
        made = timed(self.answer(len(self.asked)))
        return replace(made, spec=spec, model=replace(made.model, name=model.name))


def test_one_model_is_one_run() -> None:
    device = Scripted(lambda _: [[1_000_000] * 10] * 5)
    (made,) = measure(device, [Path("a")], BenchSpec(processes=5))
    assert made.valid and device.asked == [("a", 5)]


def test_several_models_are_interleaved_abba_and_merged() -> None:
    device = Scripted(lambda call: [[call * 1000] * 3])
    a, b = measure(device, [Path("a"), Path("b")], BenchSpec(processes=5))
    assert "".join(name for name, _ in device.asked) == "abbaabbaab"
    assert {processes for _, processes in device.asked} == {1}
    assert [process.samples_ns[0] for process in a.processes] == [1000, 4000, 5000, 8000, 9000]
    assert [process.samples_ns[0] for process in b.processes] == [2000, 3000, 6000, 7000, 10000]
    assert a.spec.processes == 5 and a.model.name == "a"


def test_the_same_model_twice_gives_two_measurements() -> None:
    device = Scripted(lambda _: [[1_000_000] * 3])
    first, second = measure(device, [Path("a"), Path("a")], BenchSpec(processes=5))
    assert len(first.processes) == len(second.processes) == 5


def _fails_at(call: int, error: BaseException) -> Callable[[int], list[list[int]]]:
    def answer(now: int) -> list[list[int]]:
        if now == call:
            raise error
        return [[1_000_000]]

    return answer


def test_what_was_measured_before_a_failure_is_kept_and_marked() -> None:
    device = Scripted(_fails_at(4, DeviceError(ResultClass.TRANSPORT_LOST, "gone")))
    with pytest.raises(DeviceError) as caught:
        measure(device, [Path("a"), Path("b")], BenchSpec(processes=5))
    a, b = caught.value.partials
    assert (len(a.processes), len(b.processes)) == (1, 2)
    assert a.result is b.result is ResultClass.TRANSPORT_LOST and not a.valid
    assert b.reasons == ("2 of 5 processes: gone",)


def test_an_interrupt_keeps_what_there_is() -> None:
    device = Scripted(_fails_at(2, KeyboardInterrupt()))
    with pytest.raises(DeviceError, match="interrupted; measure again") as caught:
        measure(device, [Path("a"), Path("b")], BenchSpec(processes=5))
    (a,) = caught.value.partials
    assert a.reasons == ("1 of 5 processes: interrupted",)


def _after(**change: object) -> Measurement:
    return replace(STEADY, after=replace(STEADY.after, **change))  # type: ignore[arg-type]  # names vary by case


def _before(**change: object) -> DeviceState:
    return replace(STEADY.before, **change)  # type: ignore[arg-type]  # names vary by case


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (timed([[1]] * 4), "4 processes, at least 5 are needed"),
        (
            replace(STEADY, processes=(replace(STEADY.processes[0], steady=False), *STEADY.processes)),
            "process 1 had",
        ),
        (
            timed([[100] * 4, [100] * 4, [104] * 4, [106] * 4, [106] * 4]),
            "drift: the last third ran 6 % slower",
        ),
        (_after(throttle_flags=0x1), "under-voltage (throttled=0x0 before, 0x1 after)"),
        (_after(throttle_flags=0x40000), "throttled (throttled=0x0 before, 0x40000 after)"),
        (_after(thermal_status=2), "thermal status 2 of 6"),
        (_after(frequency_limits_khz=(2_400_000, 1_800_000)), "CPU 1 was capped from 2400 to 1800 MHz"),
        (_after(boot_id="b"), "the device rebooted during the run"),
        (counted(100), "counted 1 times"),
        (counted(1000, 1006), "instruction counts differ by more than 0.5 %: 1000, 1006"),
    ],
)
def test_what_cannot_be_trusted_is_invalid_with_its_reason(made: Measurement, reason: str) -> None:
    found = judged(made)
    assert found.result is ResultClass.INVALID
    assert len(found.reasons) == 1 and found.reasons[0].startswith(reason)


@pytest.mark.parametrize(
    "made",
    [
        STEADY,
        # The sticky bit was there before the run: something that happened since boot, not in it.
        replace(_after(throttle_flags=0x50000), before=_before(throttle_flags=0x50000)),
        counted(1000, 1004),
        timed([[100] * 4, [100] * 4, [100] * 4, [104] * 4, [104] * 4]),
    ],
    ids=["steady", "sticky flags", "counts", "within the drift limit"],
)
def test_what_can_be_trusted_stays_valid(made: Measurement) -> None:
    assert judged(made) == made
