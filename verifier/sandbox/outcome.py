"""What became of one job: a pure function of what was collected. Nothing that a job sends makes it raise."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from verifier.sandbox import wire
from verifier.sandbox.collect import MAX_OUTPUT, Collected
from verifier.sandbox.limits import Limits

Outcome = Literal["ok", "error", "timeout", "crash", "memory"]
_CLAIMABLE = ("ok", "error", "memory")
_NEARLY = 0.75  # the kernel counts ticks towards its limit, and reports finer
_MAX_ERROR = 8 << 10


@dataclass(frozen=True, slots=True)
class JobResult:
    """The end of one job. `value` and `blobs` of a confined job are claims: check them before use."""

    outcome: Outcome
    value: Any = None
    """JSON value when `ok`, else None. NaN and infinities may occur."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    error: str = ""
    """`Type: message` and a short traceback, or in words how the job ended; empty when `ok`."""
    output: str = ""
    """Tail of stdout and stderr, 8 kB."""
    seconds: float = 0.0
    """Wall time from the request to the end of all its processes."""
    peak_bytes: int = 0
    """Largest resident memory of one of its processes, with what it shares with the warm process."""


def judge(got: Collected, limits: Limits, seconds: float) -> JobResult:
    """Outcome by precedence: stopped by us, over memory, ended by a signal or status, then the answer."""
    outcome, value, blobs, error = _decide(got, limits)
    return JobResult(
        outcome=outcome,
        value=value,
        blobs=blobs,
        error=error,
        output=got.output.decode(errors="replace"),
        seconds=seconds,
        peak_bytes=int(got.report["peak_bytes"]),
    )


_Decision = tuple[Outcome, Any, dict[str, bytes], str]


def _decide(got: Collected, limits: Limits) -> _Decision:
    if got.stopped:
        return _stopped(got.stopped, limits)
    over = got.report["over"]
    if over == "memory":
        return "memory", None, {}, f"its processes used more than {limits.memory_bytes} bytes of memory"
    code = os.waitstatus_to_exitcode(got.report["status"])
    if over == "cpu" or (code == -signal.SIGKILL and got.report["cpu_seconds"] >= limits.cpu_seconds * _NEARLY):
        return "timeout", None, {}, f"used more than {limits.cpu_seconds} s of CPU time"
    if code < 0:
        return "crash", None, {}, f"killed by signal {-code} ({_signal_name(-code)})"
    if code or not got.answer:
        return "crash", None, {}, f"exited with status {code} without an answer"
    return _answered(got.answer, limits)


def _stopped(why: str, limits: Limits) -> _Decision:
    if why == "timeout":
        return "timeout", None, {}, f"ran longer than {limits.wall_seconds:g} s"
    if why == "asked":
        return "crash", None, {}, "ended because it was no longer needed"
    if why == "output":
        return "crash", None, {}, f"wrote more than {MAX_OUTPUT} bytes of output"
    return "crash", None, {}, f"sent an answer of more than {limits.result_bytes} bytes"


def _answered(answer: bytearray, limits: Limits) -> _Decision:
    if len(answer) > limits.result_bytes:
        return "crash", None, {}, f"sent an answer of more than {limits.result_bytes} bytes"
    try:
        header, blobs = wire.unpack(answer)
        outcome, error = _claimed(header)
    except wire.FrameError as problem:
        return "crash", None, {}, f"sent a malformed answer: {problem}"
    if outcome != "ok":
        return outcome, None, {}, error
    return "ok", header["value"], blobs, ""


def _claimed(header: Mapping[str, Any]) -> tuple[Outcome, str]:
    if header.keys() != {"outcome", "value", "error"}:
        raise wire.FrameError("its fields are not those of an answer")
    claimed, error = header["outcome"], header["error"]
    if not isinstance(claimed, str) or claimed not in _CLAIMABLE or not isinstance(error, str):
        raise wire.FrameError("its outcome is none that a job may claim")
    for outcome in get_args(Outcome):
        if outcome == claimed:
            return outcome, error[:_MAX_ERROR]
    raise wire.FrameError("its outcome is unknown")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "real-time signal"
