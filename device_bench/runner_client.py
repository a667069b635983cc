"""The harness's side of `runner.py`: what is asked, how the answer is read, what is made of it."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from device_bench.device import (
    BenchSpec,
    DeviceError,
    DeviceInfo,
    DeviceState,
    Measurement,
    ModelInfo,
    ProcessSamples,
    ResultClass,
    RuntimeInfo,
    as_device_error,
)
from device_bench.process import Finished, death
from device_bench.records import RecordError, from_plain, to_plain
from pipeline.artifacts import AlpharhoError, sha256_of

RUNNER = Path(__file__).with_name("runner.py")
T = TypeVar("T")
LOG_LINES = 20  # kept of a device's text


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One action for the runner; `nonce` frames its answer."""

    action: str  # facts, probe, time, count, outputs
    nonce: str
    fields: Mapping[str, Any]

    @property
    def argument(self) -> str:
        """The runner's only argument: letters, digits, `-`, `_` and `=`, so safe in any shell."""
        plain = {"action": self.action, "nonce": self.nonce, **self.fields}
        return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode()


def request(action: str, spec: BenchSpec, **fields: object) -> Request:
    """A request with the fields of `spec` and further ones, under a new nonce."""
    return Request(action=action, nonce=secrets.token_hex(8), fields={**to_plain(spec), **fields})


def model_fields(model: Path) -> dict[str, object]:
    """`sha256` of a local model, which the runner holds the file on the device against."""
    try:
        return {"sha256": sha256_of(model)}
    except OSError as error:
        raise AlpharhoError(f"{model}: {error.strerror}; give the path of a .tflite file") from error


def answer_in(text: str, nonce: str) -> dict[str, Any] | None:
    """The answer framed by `nonce` in the device's text, whatever noise surrounds it; the last one wins."""
    frames = re.findall(rf"@@{re.escape(nonce)} (\{{.*\}})@@", text)
    if not frames:
        return None
    try:
        answer = json.loads(frames[-1])
    except ValueError as error:
        found = f"the frame holds no JSON ({error})"
        raise DeviceError(ResultClass.PARSE_ERROR, found, log=last_lines(text)) from error
    assert isinstance(answer, dict)
    return answer


def accepted(answer: dict[str, Any], log: str) -> dict[str, Any]:
    """`answer` when its result is ok. Raises the DeviceError that the runner found otherwise."""
    if answer.get("result") == ResultClass.OK:
        return answer
    try:
        result, found = ResultClass(answer["result"]), str(answer["found"])
    except (KeyError, ValueError) as error:
        raise DeviceError(ResultClass.PARSE_ERROR, f"the answer has no result: {error}", log=log) from error
    raise DeviceError(result, found, log=log)


def answer_of(finished: Finished, asked: Request) -> dict[str, Any]:
    """The accepted answer of a local runner process. Raises DeviceError; a death by signal is `crashed`."""
    log = last_lines(finished.out + finished.err)
    answer = answer_in(finished.out, asked.nonce)
    if answer is not None:
        return accepted(answer, log)
    if name := death(finished.code):
        raise DeviceError(ResultClass.CRASHED, f"ended by {name}", log=log)
    found = f"exit code {finished.code}, no answer; its last line: {log.splitlines()[-1:] or 'none'}"
    raise DeviceError(ResultClass.PARSE_ERROR, found, log=log)


def last_lines(text: str) -> str:
    """The end of a log."""
    return "\n".join(text.strip().splitlines()[-LOG_LINES:])


def device_info(answer: Mapping[str, Any], kind: str, name: str) -> DeviceInfo:
    """DeviceInfo from an answer that holds device facts."""
    return _record(DeviceInfo, {"kind": kind, "name": name, **answer["device"]})


def model_info(answer: Mapping[str, Any], model: Path) -> ModelInfo:
    """ModelInfo from an answer of a model action."""
    return _record(ModelInfo, {"name": model.name, **answer["model"]})


def runtime_info(answer: Mapping[str, Any]) -> RuntimeInfo:
    """RuntimeInfo from an answer of a model action."""
    return _record(RuntimeInfo, answer["runtime"])


def gather(
    device: tuple[str, str], model: Path, spec: BenchSpec, run_process: Callable[[], Mapping[str, Any]]
) -> Measurement:
    """A measurement from `spec.processes` calls of `run_process`: accepted answers to `time` requests.

    `device` is (kind, name). Raises the DeviceError of the call that failed, with what came before it as
    its only partial measurement; an interrupt by the user likewise.
    """
    answers: list[Mapping[str, Any]] = []
    try:
        for _ in range(spec.processes):
            answers.append(run_process())
    except (DeviceError, KeyboardInterrupt) as error:
        if not answers:
            raise
        failure = as_device_error(error)
        reason = f"{len(answers)} of {spec.processes} processes: {failure.found}"
        failure.partials = (measurement(device, model, spec, answers).marked(failure.result, reason),)
        raise failure from error.__cause__
    return measurement(device, model, spec, answers)


def measurement(
    device: tuple[str, str], model: Path, spec: BenchSpec, answers: Iterable[Mapping[str, Any]]
) -> Measurement:
    """The record of at least one answer to a `time` request. Raises DeviceError(parse-error) for a misfit."""
    answers = list(answers)
    return Measurement(
        model=model_info(answers[0], model),
        device=device_info(answers[0], *device),
        runtime=runtime_info(answers[0]),
        spec=spec,
        processes=tuple(_record(ProcessSamples, answer["process"]) for answer in answers),
        before=_record(DeviceState, answers[0]["before"]),
        after=_record(DeviceState, answers[-1]["after"]),
    )


def _record(kind: type[T], plain: object) -> T:
    try:
        return from_plain(kind, plain, "the runner's answer")
    except RecordError as error:
        raise DeviceError(ResultClass.PARSE_ERROR, str(error)) from error
